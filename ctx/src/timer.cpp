#include <ctx/src/timer.hpp>

#include <ctx/detail/immortal.hpp>
#include <ctx/detail/saturate.hpp>
#include <ctx/detail/thread_settings.hpp>
#include <ctx/src/platform.hpp>
#include <ctx/src/time_source.hpp>
#include <ctx/src/tree.hpp>
#include <ctx/src/waiting.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace ctx::detail {
namespace {

tick to_tick(clock::time_point instant) noexcept { return instant.time_since_epoch().count(); }
clock::time_point to_instant(tick ticks) noexcept { return clock::time_point{clock::duration{ticks}}; }

constexpr tick past = std::numeric_limits<tick>::min();

/// A part of the wheel, on cache lines of its own. All zeros at first.
struct alignas(64) shard {
  std::mutex mutex;
  std::atomic<tick> next{0};  // written with the mutex held; not later than the wheel's
  detail::wheel wheel;        // guarded by mutex

  // requires mutex held
  void show_next_locked() noexcept {
    const tick now_next = wheel.next();
    // order: relaxed suffices for the reading; who holds the mutex is the only one to write.
    if (next.load(std::memory_order_relaxed) != now_next) next = now_next;
  }
};

std::array<shard, 8>& shards() noexcept {
  static immortal<std::array<shard, 8>> all;
  return all.value;
}

/// The shard in which something falls due first.
shard& earliest_shard() noexcept {
  return *std::ranges::min_element(shards(), {}, [](const shard& each) { return each.next.load(); });
}

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
  clock_moved();  // so that the list of waiting threads is made, too
  at_fork(fork_part::timer, {[] { instance().before_fork(); }, [] { instance().after_fork_in_parent(); },
                             [] { instance().after_fork_in_child(); }, [] { instance().restart(); }});
}

// When the library is loaded, so that no fork comes in the middle of making the timer, and no lock is held
// while the loader's is taken.
[[maybe_unused]] const timer& at_load = (stay_loaded(), timer::instance());

void timer::start() {
  // order: acquire pairs with the release below: thread_ is there.
  if (started_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock{starting_};
  // order: relaxed suffices; it is written with starting_ held.
  if (started_.load(std::memory_order_relaxed)) return;
  const thread_settings before;
  block_signals();  // so that the thread never has one
  try {
    thread_ = std::jthread{[this] { run(); }};
  } catch (...) {
    before.apply();
    throw;
  }
  before.apply();
  // order: release pairs with the acquire above, and in advance_by().
  started_.store(true, std::memory_order_release);
}

void timer::arm(timed& node, clock::time_point now) noexcept {
  node.shard_ = static_cast<unsigned char>(this_processor() % shards().size());
  shard& home = shards()[node.shard_];
  const tick due = node.due_;
  {
    const std::lock_guard lock{home.mutex};
    if (home.wheel.empty()) home.wheel.rewind(to_tick(now));  // so that the entry's place is as near as it can be
    home.wheel.arm(node, due);
    // order: relaxed suffices; who holds the mutex is the only one to write.
    if (due >= home.next.load(std::memory_order_relaxed)) return;
    home.next = due;
  }
  if (due >= asleep_until_) return;
  {
    const std::lock_guard lock{mutex_};
    if (due >= asleep_until_) return;
    asleep_until_ = due;
  }
  wake_.notify_one();
}

void timer::disarm(timed& node) noexcept {
  shard& home = shards()[node.shard_];
  const std::lock_guard lock{home.mutex};
  home.wheel.disarm(node);
}

void timer::run() noexcept {
  sharpen_timed_waits();
  std::unique_lock lock{mutex_};
  for (;;) {
    const bool ended_any = expire_due(lock);
    const tick next = earliest_shard().next;
    asleep_until_ = next;
    if (earliest_shard().next < next) continue;
    if (clock_is_manual() || next == never) {
      wake_.wait(lock);
    } else {
      const clock::time_point at = to_instant(next);
      wake_.wait_until(lock, ended_any ? std::max(at, clock::now() + nap) : at);
    }
    // order: relaxed suffices; whoever still reads that the thread sleeps wakes it for nothing.
    asleep_until_.store(past, std::memory_order_relaxed);
  }
}

bool timer::expire_due(std::unique_lock<std::mutex>& lock) noexcept {
  timed* const outer = ending_;  // not null where one of its callbacks moves the clock
  bool ended_any = false;
  for (;; ended_any = true) {
    const bool manual = clock_is_manual();
    const clock::time_point until = manual ? advance_until_ : clock::now();
    timed* const node = take_due(until);
    if (node == nullptr) {
      if (manual) {
        move_clock_to(until);
        if (outer != nullptr) return ended_any;  // whoever waits is told when that has ended, too
        advanced_to_ = until;
        advanced_.notify_all();
      }
      return ended_any;
    }
    if (manual) move_clock_to(node->due());
    ending_ = node;
    lock.unlock();
    node->end_amid_forks(errc::deadline_exceeded, nullptr);
    lock.lock();
    ending_ = outer;
    lock.unlock();
    node::release(node);
    lock.lock();
  }
}

timed* timer::take_due(clock::time_point until) noexcept {
  for (;;) {
    shard& first = earliest_shard();
    const std::lock_guard lock{first.mutex};
    // order: relaxed suffices; with the mutex held nobody else writes.
    const tick next = first.next.load(std::memory_order_relaxed);
    if (next == never || next > to_tick(until)) return nullptr;
    // Not up to `until`, or something that another shard has would come too late.
    auto* const node = static_cast<timed*>(first.wheel.expire(next));
    first.show_next_locked();
    // Pinned with the mutex held, or else it is being destroyed: then it finds itself disarmed.
    if (node != nullptr && node->retain_if_alive()) return node;
  }
}

void timer::hold() {
  const std::lock_guard lock{mutex_};
  if (clock_is_manual()) throw std::logic_error{"ctx: there is a manual clock already"};
  advance_until_ = advanced_to_ = clock::now();
  hold_clock(advanced_to_);
  clock_moved();
}

void timer::advance_by(clock::duration time) {
  std::unique_lock lock{mutex_};
  // order: acquire, as in start(): thread_ is read next.
  const bool has_thread = started_.load(std::memory_order_acquire);
  const bool in_callback = has_thread && thread_.get_id() == std::this_thread::get_id();
  // A callback moves the clock on from where it stands, other threads from where the last of them has it go.
  const clock::time_point from = in_callback ? clock::now() : advance_until_;
  const clock::time_point instant{add_saturate(from.time_since_epoch(), time)};
  advance_until_ = std::max(advance_until_, instant);
  if (!has_thread || in_callback) {
    // No deadline yet; or a callback, which must not wait for its own thread.
    expire_due(lock);
    return;
  }
  wake_.notify_one();
  advanced_.wait(lock, [&] { return advanced_to_ >= instant; });
}

void timer::let_run() noexcept {
  const std::lock_guard lock{mutex_};
  let_clock_run();
  for (shard& each : shards()) {
    const std::lock_guard shard_lock{each.mutex};
    each.wheel.rewind(to_tick(clock::now()));
    each.show_next_locked();
  }
  clock_moved();
  wake_.notify_one();
}

void timer::before_fork() noexcept {
  starting_.lock();
  mutex_.lock();
  for (shard& each : shards()) each.mutex.lock();
}

void timer::after_fork_in_parent() noexcept {
  for (shard& each : shards()) each.mutex.unlock();
  mutex_.unlock();
  starting_.unlock();
}

void timer::after_fork_in_child() noexcept {
  // A callback on the timer's thread may fork: then that is the thread which lives on.
  // order: relaxed suffices here and below; the child has one thread.
  const bool thread_is_gone =
      started_.load(std::memory_order_relaxed) && thread_.get_id() != std::this_thread::get_id();
  timed* interrupted = nullptr;
  if (thread_is_gone) {
    abandon(thread_);
    asleep_until_.store(past, std::memory_order_relaxed);
    started_.store(false, std::memory_order_relaxed);
    // Nobody finishes what it was ending: it expires again.
    interrupted = std::exchange(ending_, nullptr);
    if (interrupted != nullptr) {
      shard& home = shards()[interrupted->shard_];
      home.wheel.arm(*interrupted, interrupted->due_);
      home.show_next_locked();
    }
  }
  // So are the threads that were notifying, and those that had locked a node and waited for the timer's
  // lock to disarm it.
  std::construct_at(&wake_);
  std::construct_at(&advanced_);
  for (shard& each : shards()) {
    each.wheel.for_each([](wheel_entry& entry) { static_cast<timed&>(entry).break_lock(); });
  }
  if (interrupted != nullptr) interrupted->adopt_operation();
  after_fork_in_parent();
}

void timer::restart() {
  if (std::any_of(shards().begin(), shards().end(), [](const shard& each) { return !each.wheel.empty(); })) start();
}

}  // namespace ctx::detail
