#include <ctx/src/waiting.hpp>

#include <ctx/src/platform.hpp>
#include <ctx/src/time_source.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace ctx::detail {
namespace {

using namespace std::chrono_literals;

// How long a thread sleeps at most, between two looks whether what it waits on and is claimed was announced. It is not
// woken by a callback on the token: that would lie on its stack, and be run in the child of a fork, where it is gone.
constexpr clock::duration pause_limit = 1ms;

struct waiter {
  const cancelable* on;
  std::condition_variable wake;  // notified with the mutex of the lot held
  bool woken = false;            // guarded by the mutex of the lot, as the rest
  waiter* next = nullptr;
  waiter** link = nullptr;  // what points here
};

/// All waiters of the process.
class parking_lot {
 public:
  /// Never destroyed, so that contexts in static storage can be waited on to the very end.
  static parking_lot& instance() {
    static parking_lot& lot = *new parking_lot;
    return lot;
  }

  parking_lot() {
    at_fork(fork_part::waiting, {[] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                                 [] {
                                   // Those who waited are not in the child.
                                   instance().first_ = nullptr;
                                   instance().mutex_.unlock();
                                 },
                                 [] {}});
  }

  void enter(waiter& entering) noexcept {
    const std::lock_guard lock{mutex_};
    entering.next = first_;
    entering.link = &first_;
    if (first_ != nullptr) first_->link = &entering.next;
    first_ = &entering;
  }

  void leave(waiter& leaving) noexcept {
    const std::lock_guard lock{mutex_};
    *leaving.link = leaving.next;
    if (leaving.next != nullptr) leaving.next->link = leaving.link;
  }

  /// Returns whether it was woken: false where the time was up first.
  bool wait(waiter& waiting, clock::time_point until) noexcept {
    std::unique_lock lock{mutex_};
    while (!waiting.woken && clock::now() < until) {
      if (until == clock::time_point::max() || clock_is_manual()) {
        waiting.wake.wait(lock);
      } else {
        waiting.wake.wait_until(lock, until);
      }
    }
    return waiting.woken;
  }

  void wake_all_on(const cancelable& on) noexcept {
    const std::lock_guard lock{mutex_};
    for (waiter* each = first_; each != nullptr; each = each->next) {
      if (each->on != &on) continue;
      each->woken = true;
      each->wake.notify_one();
    }
  }

  void look_again() noexcept {
    const std::lock_guard lock{mutex_};
    for (waiter* each = first_; each != nullptr; each = each->next) each->wake.notify_one();
  }

 private:
  std::mutex mutex_;
  waiter* first_ = nullptr;  // guarded by mutex_; borrows: each is on the stack of a waiting thread
};

}  // namespace

bool wait_until(cancelable* on, clock::time_point until) {
  const auto is_done = [on] { return on != nullptr && on->done(); };
  if (is_done() || clock::now() >= until) return is_done();

  parking_lot& lot = parking_lot::instance();
  waiter self{on, {}};
  // In this order: whoever claims the context after it has waiters finds this one in the lot.
  lot.enter(self);
  const bool live = on == nullptr || on->expect_waiters();
  if (!live || lot.wait(self, until)) {
    // Claimed. That is announced at once, or after the callbacks on what is above: mostly before the first look.
    for (clock::duration pause{0}; !is_done() && clock::now() < until;
         pause = std::min(2 * pause + 10us, pause_limit)) {
      std::this_thread::sleep_for(pause);
    }
  }
  lot.leave(self);
  return is_done();
}

void wake_waiters(const cancelable& on) noexcept { parking_lot::instance().wake_all_on(on); }

void clock_moved() noexcept { parking_lot::instance().look_again(); }

}  // namespace ctx::detail
