#include <ctx/error.hpp>

#include <string>

namespace ctx {
namespace {

class category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "context"; }

  std::string message(int value) const override {
    switch (static_cast<errc>(value)) {
      case errc::canceled: return "context canceled";
      case errc::deadline_exceeded: return "context deadline exceeded";
    }
    return "unknown context error";
  }

  std::error_condition default_error_condition(int value) const noexcept override {
    switch (static_cast<errc>(value)) {
      case errc::canceled: return std::errc::operation_canceled;
      case errc::deadline_exceeded: return std::errc::timed_out;
    }
    return {value, *this};
  }
};

}  // namespace

const std::error_category& context_category() noexcept {
  // Never destroyed: contexts in static storage may ask for it after any static destructor.
  union immortal {
    category value;
    constexpr immortal() : value{} {}
    ~immortal() {}
  };
  static constinit immortal the_category;
  return the_category.value;
}

}  // namespace ctx
