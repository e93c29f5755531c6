#pragma once

// What the standard library has no words for. Where a system lacks something, it does nothing.

#include <mutex>
#include <thread>

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

/// The parts of the library that fork() has to deal with, in the order in which it takes their locks.
enum class fork_part : unsigned char { timer, signals, waiting };

/// What fork() does for one of them.
struct fork_steps {
  void (*before)();     // takes its locks
  void (*in_parent)();  // releases them
  void (*in_child)();   // makes whole what threads that are gone left half done, and releases them
  void (*restart)();    // in the child, once all parts are whole and no lock is held: starts threads anew; may throw
};

/// Has fork() take these steps. For when the library is loaded. Throws `std::bad_alloc`.
void at_fork(fork_part part, const fork_steps& steps);

/// Keeps forks away while it is locked. fork() takes it before all other locks of the library, and so must others.
std::mutex& fork_mutex() noexcept;

/// In the child of a fork: makes `gone` empty, whose thread is not in this process, so that another can take
/// its place. What belongs to that thread is kept for good, as destroying it would join it.
void abandon(std::jthread& gone) noexcept;

/// Blocks all signals for the calling thread, and every thread that it starts.
void block_signals() noexcept;

}  // namespace ctx::detail
