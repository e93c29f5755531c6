#pragma once

// The timer: all deadlines of the process, and the one thread that drives them.
//
// The thread is started by the first deadline and sleeps until the next instant at which anything can
// fall due: with the next deadline an hour away, for an hour. Arming wakes it only for a deadline
// earlier than all others; disarming never does, so a disarmed earliest deadline costs one early
// wake-up at most. A deadline that is reached is late by what the system takes to wake a thread, by
// what the callbacks of those before it took, which all run on this thread, with no lock held, and,
// among many deadlines in close succession, by at most a nap: see `nap` below.
//
// The wheel comes in shards, each with a lock of its own, so that threads which set and drop deadlines at
// the same time seldom meet: one arms in the shard of the processor that it runs on. Each shard shows the
// next instant at which anything can fall due in it, `next`, to be read without its lock. How no deadline
// is missed:
//
//   arming, in its shard's lock:  1. next = due, where that is earlier   2. read asleep_until
//   the thread, before it sleeps: 3. asleep_until = earliest next        4. read every next again
//
// These are sequentially consistent. If 2 comes before 3, so does 1 before 4, and the thread sees the
// new deadline in time. Otherwise 2 reads the instant up to which the thread sleeps, or is going to,
// and wakes it where that is too late; it holds mutex_ from 3 until it sleeps, so it can't miss that.
//
// The timer is never destroyed and its thread never joined: contexts in static and thread-local storage
// may use it to the very end, and a process that exits with a million deadlines takes no notice of
// them. The library stays loaded once the thread runs.
//
// fork() takes all locks, so that the child finds the wheels whole, and starts a thread of its own.
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

  /// Has `node` end when it is due; requires start() before, and that the node is not armed. `now` is
  /// the present instant, or a recent one.
  void arm(timed& node, clock::time_point now) noexcept;

  /// Makes sure that the node is not in the wheel. Its end may be under way on the timer's thread,
  /// which then has a reference.
  void disarm(timed& node) noexcept;

  /// For ctx::manual_clock: holds the clock still; moves it on, and returns when all that fell due has
  /// ended, in the order of the deadlines; lets it run again.
  void hold();
  void advance_by(clock::duration time);
  void let_run() noexcept;

 private:
  /// The least time between two wake-ups by deadlines that follow each other closely. A thread that is
  /// woken for every single one of 100,000 deadlines a second does little else; so those that fall due
  /// within a nap after others end together at its end. One that comes alone is not delayed.
  static constexpr std::chrono::microseconds nap{50};

  void run() noexcept;
  bool expire_due(std::unique_lock<std::mutex>& lock) noexcept;
  timed* take_due(clock::time_point until) noexcept;
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;
  void restart();

  std::mutex starting_;  // held while the thread is started; taken before mutex_
  std::atomic<bool> started_{false};

  std::mutex mutex_;                  // taken before that of a shard
  std::atomic<tick> asleep_until_;    // written with mutex_ held; in the past while awake
  clock::time_point advance_until_;   // guarded by mutex_; where a manual clock is to go
  clock::time_point advanced_to_;     // guarded by mutex_; up to where all that fell due has ended
  timed* ending_ = nullptr;           // guarded by mutex_; out of the wheel, and not known to have ended
  std::condition_variable wake_;      // for the thread
  std::condition_variable advanced_;  // for advance_by()
  std::jthread thread_;               // never joined; see above
};

}  // namespace ctx::detail
