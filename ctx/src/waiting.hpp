#pragma once

// Where threads wait for a context to be done, or for a time. Waiting makes no stop source and
// allocates nothing: a waiter stands in a list of the process, on its own stack.

#include <ctx/clock.hpp>
#include <ctx/src/tree.hpp>

namespace ctx::detail {

/// Blocks until `on` is done (never, where it is null) or `until` passed by `clock`; for
/// `time_point::max()` that is never. Returns whether `on` is done.
bool wait_until(cancelable* on, clock::time_point until);

/// Wakes those that wait on `on`, which is claimed: from then on they look for its announcement.
void wake_waiters(const cancelable& on) noexcept;

/// Has all that wait for a time look at the clock again: a manual clock came, moved or went.
void clock_moved() noexcept;

}  // namespace ctx::detail
