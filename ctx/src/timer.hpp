#pragma once

// The timer: the process's one wheel of deadlines, and the one thread that drives it.
//
// The thread is started by the first deadline and sleeps until the next instant at which anything can
// fall due: with the next deadline an hour away, for an hour. Arming wakes it only for a deadline
// earlier than all others; disarming never does, so a disarmed earliest deadline costs one early
// wake-up at most. A deadline that is reached is late by what the system takes to wake a thread, and by
// what the callbacks of those before it took, which all run on this thread, with no lock held.
//
// The timer is never destroyed and its thread never joined: contexts in static and thread-local storage
// may use it to the very end, and a process that exits with a million deadlines takes no notice of
// them. The library stays loaded once the thread runs.
//
// fork() takes the lock, so that the child finds the wheel whole, and starts a thread of its own.
//
// On Linux the steady clock stands still while the machine is suspended, and with it every deadline.
//
// Rejected: a thread a timeout (a stack each); timerfd, signals and other timers of the system (a
// system call to arm and to disarm each, which is most of what timeouts do).

#include <ctx/clock.hpp>
#include <ctx/src/wheel.hpp>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace ctx::detail {

class timed;

class timer {
 public:
  static timer& instance();

  timer();
  timer(const timer&) = delete;
  timer& operator=(const timer&) = delete;

  /// Makes sure that the thread runs; throws `std::system_error` where it can't be started.
  void start();

  /// Has `node` end at `due`; requires start() before, and that the node is not armed. `now` is the
  /// present instant, or a recent one.
  void arm(timed& node, clock::time_point due, clock::time_point now) noexcept;

  /// Makes sure that the node is not in the wheel. Its end may be under way on the timer's thread,
  /// which then has a reference.
  void disarm(timed& node) noexcept;

  /// For ctx::manual_clock: holds the clock still; moves it to `instant`, and returns when all that
  /// fell due has ended, in the order of the deadlines; lets it run again.
  void hold();
  void advance_to(clock::time_point instant);
  void let_run() noexcept;

 private:
  void run() noexcept;
  void expire_due(std::unique_lock<std::mutex>& lock) noexcept;
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;

  std::mutex starting_;  // held while the thread is started; taken before mutex_
  std::atomic<bool> started_{false};

  std::mutex mutex_;
  wheel wheel_;                            // guarded by mutex_
  clock::time_point asleep_until_;         // guarded by mutex_; min() while awake
  clock::time_point advance_until_;        // guarded by mutex_; where a manual clock is to go
  clock::time_point advanced_to_;          // guarded by mutex_; up to where all that fell due has ended
  timed* ending_ = nullptr;                // guarded by mutex_; out of the wheel, and not known to have ended
  timed* interrupted_ = nullptr;           // guarded by mutex_; what a thread gone with a fork was ending
  std::condition_variable wake_;           // for the thread
  std::condition_variable advanced_;       // for advance_to()
  std::jthread thread_;                    // never joined; see above
};

}  // namespace ctx::detail
