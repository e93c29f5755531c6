#pragma once

#include <ctx/clock.hpp>
#include <ctx/detail/export.hpp>
#include <ctx/detail/saturate.hpp>

#include <chrono>

namespace ctx {

/// While it lives, `ctx::clock` stands still, and every deadline and timed wait of the process follows
/// it: a test of an hour takes microseconds, and always the same course.
///
/// ```cpp
/// ctx::manual_clock clock;
/// auto [ctx, cancel] = ctx::with_timeout(ctx::background(), 1h);
/// clock.advance(59min);  // ctx is live
/// clock.advance(1min);   // ctx is done
/// ```
/// When it ends, the clock goes back to the system's steady clock; what is still armed keeps its
/// deadline, and so is further off by as much as the clock had been advanced. For tests: while it is
/// made or ends, no other thread should read the clock.
class CTX_API manual_clock {
 public:
  /// Holds the clock still at the present instant. There can be one at a time: throws `std::logic_error`
  /// where there is another.
  manual_clock();
  manual_clock(const manual_clock&) = delete;
  manual_clock& operator=(const manual_clock&) = delete;
  ~manual_clock();

  /// Moves the clock on by `time`, rounded up to nanoseconds. Returns when every context that fell due
  /// is done, one after another in the order of their deadlines, each with the clock at its deadline, so
  /// that a deadline which a callback sets on the way is kept too. Timed waits that are due are released.
  /// May be called from any thread. Where a callback calls it, what is due ends before it returns, too.
  template <class Rep, class Period>
  void advance(const std::chrono::duration<Rep, Period>& time) {
    advance_by(detail::ceil_saturate(time));
  }

 private:
  void advance_by(clock::duration time);
};

}  // namespace ctx
