#include <ctx/src/timer.hpp>

#include <ctx/detail/signal_mask.hpp>
#include <ctx/src/platform.hpp>
#include <ctx/src/time_source.hpp>
#include <ctx/src/tree.hpp>
#include <ctx/src/waiting.hpp>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace ctx::detail {
namespace {

tick to_tick(clock::time_point instant) noexcept { return instant.time_since_epoch().count(); }
clock::time_point to_instant(tick ticks) noexcept { return clock::time_point{clock::duration{ticks}}; }

void move_clock_to(clock::time_point instant) noexcept {
  if (instant <= clock::now()) return;
  hold_clock(instant);
  clock_moved();
}

}  // namespace

timer& timer::instance() {
  static timer& the_timer = *new timer;
  return the_timer;
}

timer::timer() {
  // fork() takes locks in the reverse order of at_fork(): the timer's must be taken before that of the
  // waiting threads, which clock_moved() takes with it held, so those come first here.
  clock_moved();
  at_fork([] { instance().before_fork(); }, [] { instance().after_fork_in_parent(); },
          [] { instance().after_fork_in_child(); });
}

// When the library is loaded, so that no fork comes in the middle of making the timer, and no lock is held
// while the loader's is taken.
[[maybe_unused]] const timer& at_load = (stay_loaded(), timer::instance());

void timer::start() {
  // order: acquire pairs with the release below; thread_ itself is used by nobody else.
  if (started_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock{starting_};
  if (started_.load(std::memory_order_relaxed)) return;
  const signal_mask before;
  block_signals();  // so that the thread never has one
  try {
    thread_ = std::jthread{[this] { run(); }};
  } catch (...) {
    before.apply();
    throw;
  }
  before.apply();
  started_.store(true, std::memory_order_release);
}

void timer::arm(timed& node, clock::time_point due, clock::time_point now) noexcept {
  bool earlier = false;
  {
    const std::lock_guard lock{mutex_};
    if (wheel_.empty()) wheel_.rewind(to_tick(now));  // so that the entry's place is as near as it can be
    wheel_.arm(node, to_tick(due));
    earlier = due < asleep_until_;
    if (earlier) asleep_until_ = due;
  }
  if (earlier) wake_.notify_one();
}

void timer::disarm(timed& node) noexcept {
  const std::lock_guard lock{mutex_};
  wheel_.disarm(node);
}

void timer::run() noexcept {
  sharpen_timed_waits();
  std::unique_lock lock{mutex_};
  for (;;) {
    expire_due(lock);
    asleep_until_ = to_instant(wheel_.next());
    if (clock_is_manual() || asleep_until_ == clock::time_point::max()) {
      wake_.wait(lock);
    } else {
      wake_.wait_until(lock, asleep_until_);
    }
    asleep_until_ = clock::time_point::min();
  }
}

void timer::expire_due(std::unique_lock<std::mutex>& lock) noexcept {
  timed* const outer = ending_;  // not null where one of its callbacks moves the clock
  for (;;) {
    const bool manual = clock_is_manual();
    const clock::time_point until = manual ? advance_until_ : clock::now();
    auto* const node = static_cast<timed*>(wheel_.expire(to_tick(until)));
    if (node == nullptr) {
      if (manual) {
        move_clock_to(until);
        if (outer != nullptr) return;  // whoever waits is told when that has ended, too
        advanced_to_ = until;
        advanced_.notify_all();
      }
      return;
    }
    if (manual) move_clock_to(to_instant(node->due_));
    // Pinned under the lock, or else it is being destroyed: then it finds itself disarmed.
    if (!node->retain_if_alive()) continue;
    ending_ = node;
    const bool resumed = node == interrupted_;
    if (resumed) interrupted_ = nullptr;
    lock.unlock();
    node->end(errc::deadline_exceeded, nullptr, nullptr);
    if (resumed) help(*node);
    lock.lock();
    ending_ = outer;
    lock.unlock();
    node::release(node);
    lock.lock();
  }
}

void timer::hold() {
  const std::lock_guard lock{mutex_};
  if (clock_is_manual()) throw std::logic_error{"ctx: there is a manual clock already"};
  advance_until_ = advanced_to_ = clock::now();
  hold_clock(advanced_to_);
  clock_moved();
  wake_.notify_one();
}

void timer::advance_to(clock::time_point instant) {
  std::unique_lock lock{mutex_};
  advance_until_ = std::max(advance_until_, instant);
  // order: acquire, as in start(): thread_ is read next.
  if (!started_.load(std::memory_order_acquire) || thread_.get_id() == std::this_thread::get_id()) {
    // No deadline yet; or a callback moves the clock, and must not wait for its own thread.
    expire_due(lock);
    return;
  }
  wake_.notify_one();
  advanced_.wait(lock, [&] { return advanced_to_ >= instant; });
}

void timer::let_run() noexcept {
  const std::lock_guard lock{mutex_};
  let_clock_run();
  wheel_.rewind(to_tick(clock::now()));
  clock_moved();
  wake_.notify_one();
}

void timer::before_fork() noexcept {
  starting_.lock();
  mutex_.lock();
}

void timer::after_fork_in_parent() noexcept {
  mutex_.unlock();
  starting_.unlock();
}

void timer::after_fork_in_child() noexcept {
  // A callback on the timer's thread may fork: then that is the thread which lives on.
  const bool thread_is_gone = started_.load(std::memory_order_relaxed) &&
                              thread_.get_id() != std::this_thread::get_id();
  if (thread_is_gone) {
    // What belongs to the thread is left as it is, without destroying it, and made anew.
    std::construct_at(&thread_);
    asleep_until_ = clock::time_point::min();
    started_.store(false, std::memory_order_relaxed);
    interrupted_ = std::exchange(ending_, nullptr);
    if (interrupted_ != nullptr) wheel_.arm(*interrupted_, interrupted_->due_);
  }
  // So are the threads that were notifying, and those that had locked a node and waited for the timer's
  // lock to disarm it.
  std::construct_at(&wake_);
  std::construct_at(&advanced_);
  wheel_.for_each([](wheel_entry& entry) { static_cast<timed&>(entry).break_lock(); });
  if (thread_is_gone && interrupted_ != nullptr) interrupted_->adopt_operation();
  const bool restart = thread_is_gone && !wheel_.empty();
  after_fork_in_parent();
  if (!restart) return;
  try {
    start();
  } catch (...) {
    // There is nobody to tell. The next deadline tries again.
  }
}

}  // namespace ctx::detail
