#pragma once

// Where `clock` takes the time from.

#include <ctx/clock.hpp>

namespace ctx::detail {

/// Whether a manual clock lives.
bool clock_is_manual() noexcept;

/// Holds the clock still at `instant`, or lets it run by the system's steady clock again. For the timer.
void hold_clock(clock::time_point instant) noexcept;
void let_clock_run() noexcept;

}  // namespace ctx::detail
