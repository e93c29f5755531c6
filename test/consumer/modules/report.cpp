#include "account.hpp"

#include <exception>
#include <string>

namespace {

std::string text(const std::string* value) { return value != nullptr ? *value : "nothing"; }

}  // namespace

std::string report(const ctx::context& c) {
  c.wait();
  try {
    c.throw_if_done();
    return "nothing";
  } catch (const std::exception& why) {
    return text(c.value(user_key)) + ", " + text(c.value(header{"agent"})) + ": " + why.what();
  }
}
