#include <ctx/error.hpp>

#include <ctx/src/immortal.hpp>

#include <string>

namespace ctx::detail {
namespace {

class category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "context"; }

  std::string message(int value) const override {
    switch (static_cast<errc>(value)) {
      case errc::canceled:
        return "context canceled";
      case errc::deadline_exceeded:
        return "context deadline exceeded";
    }
    return "unknown context error";
  }

  std::error_condition default_error_condition(int value) const noexcept override {
    switch (static_cast<errc>(value)) {
      case errc::canceled:
        return std::errc::operation_canceled;
      case errc::deadline_exceeded:
        return std::errc::timed_out;
    }
    return {value, *this};
  }
};

constinit immortal<category> the_one;

}  // namespace

constinit const std::error_category& the_category = the_one.value;

}  // namespace ctx::detail
