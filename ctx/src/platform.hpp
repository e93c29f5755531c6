#pragma once

// What the standard library has no words for. Where a system lacks something, it does nothing.

namespace ctx::detail {

/// Lets the calling thread's timed waits end as close to their time as the system can: Linux adds
/// 50 µs to each otherwise, to gather wake-ups.
void sharpen_timed_waits() noexcept;

/// Keeps the code of this library loaded for as long as the process lives, so that a thread of its own
/// can't be left without code when a plugin that carries a copy of it is closed.
void stay_loaded() noexcept;

/// The number of the processor on which the caller runs, or did a moment ago; where the system does not say, a number
/// that stays the same for a thread.
unsigned this_processor() noexcept;

/// Has fork() call `prepare` before it, and after it `parent` in the parent and `child` in the child.
/// Throws `std::bad_alloc`.
void at_fork(void (*prepare)(), void (*parent)(), void (*child)());

/// Blocks all signals for the calling thread, and every thread that it starts.
void block_signals() noexcept;

}  // namespace ctx::detail
