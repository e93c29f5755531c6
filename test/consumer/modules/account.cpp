#include "account.hpp"

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

const ctx::key<std::string> user_key{"user"};

ctx::cancel_scope log_in(const ctx::context& parent, std::string user, std::chrono::nanoseconds time) {
  const auto named = ctx::with_value(parent, user_key, std::move(user));
  return ctx::with_timeout(ctx::with_value(named, header{"agent"}, "account"), time,
                           std::make_exception_ptr(std::runtime_error{"logged out"}));
}
