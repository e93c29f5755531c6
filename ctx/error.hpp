#pragma once

#include <ctx/detail/export.hpp>

#include <system_error>

namespace ctx {

/// Why a context is done. Converts to `std::error_code`.
enum class errc {
  canceled = 1,       ///< somebody canceled it; equivalent to `std::errc::operation_canceled`
  deadline_exceeded,  ///< its deadline passed; equivalent to `std::errc::timed_out`
};

namespace detail {

/// As a variable, so that telling an error takes no call. It is there before any object is made at run time.
CTX_API extern const std::error_category& the_category;

/// An empty error code: copying it takes no call, where making one asks for the system's category.
inline const std::error_code& no_error() noexcept {
  static const std::error_code none;
  return none;
}

}  // namespace detail

/// The category of `ctx::errc`; its `name()` is "context". It outlives every context.
inline const std::error_category& context_category() noexcept { return detail::the_category; }

/// The error code of `error` in `context_category()`.
inline std::error_code make_error_code(errc error) noexcept { return {static_cast<int>(error), context_category()}; }

}  // namespace ctx

template <>
struct std::is_error_code_enum<ctx::errc> : std::true_type {};
