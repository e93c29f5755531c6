#pragma once

#include <ctx/detail/export.hpp>

#include <chrono>

namespace ctx {

/// The clock of all deadlines and timed waits: `std::chrono::steady_clock`, whose `time_point` it
/// shares, unless a `ctx::manual_clock` lives, which then holds it still and moves it by hand.
///
/// It is steady: setting the system's time changes no deadline. On Linux it does not count the time
/// that the machine is suspended; a deadline an hour away is an hour of running time away.
struct clock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<std::chrono::steady_clock, duration>;
  static constexpr bool is_steady = true;

  /// The present instant. May be called from any thread.
  CTX_API static time_point now() noexcept;
};

}  // namespace ctx
