// Exists for deadlines that pass early, late, never or in the wrong order, for the wrong context or by the
// wrong clock; for times that overflow; and for waits that end before their time, or do not end.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <latch>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <ratio>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::cancel_scope;
using ctx::clock;
using ctx::context;
using ctx::errc;
using ctx::manual_clock;
using ctx::merge;
using ctx::with_cancel;
using ctx::with_deadline;
using ctx::with_timeout;
using ctx::with_value;
using ctx::without_cancel;
using std::chrono::duration;
using std::chrono::nanoseconds;

static_assert(clock::is_steady&& noexcept(clock::now()));
static_assert(std::is_same_v<clock::time_point::clock, std::chrono::steady_clock>);
static_assert(std::is_same_v<decltype(clock::now()), clock::time_point>);
static_assert(!std::is_copy_constructible_v<manual_clock> && !std::is_copy_assignable_v<manual_clock>);
static_assert(!std::is_move_constructible_v<manual_clock> && !std::is_move_assignable_v<manual_clock>);

constexpr ctx::key<int> number{"number"};

using callback = std::stop_callback<std::function<void()>>;

context kept(cancel_scope scope) {
  scope.cancel.release();
  return std::move(scope.ctx);
}

std::exception_ptr make_cause(const char* what) { return std::make_exception_ptr(std::runtime_error{what}); }

void check_expired(const context& c) {
  CHECK(c.done());
  CHECK(c.err() == errc::deadline_exceeded);
  CHECK(c.remaining() == 0s);
  CHECK(c.stop_token().stop_requested());
}

// When

TEST_CASE("a context ends when the clock reaches its deadline, and not a nanosecond before") {
  manual_clock time;
  auto [by_timeout, cancel_timeout] = with_timeout(background(), 1h);
  auto [by_deadline, cancel_deadline] = with_deadline(background(), clock::now() + 1h);
  const context value = with_value(by_timeout, number, 1), child = kept(with_cancel(by_deadline));
  const context all[]{by_timeout, by_deadline, value, child};
  for (const context& each : all) CHECK(each.deadline() == clock::now() + 1h);
  time.advance(1h - 1ns);
  for (const context& each : all) {
    CHECK_FALSE(each.done());
    CHECK(each.remaining() == 1ns);
  }
  time.advance(1ns);
  for (const context& each : all) check_expired(each);
  CHECK_FALSE(cancel_timeout());
  check_expired(by_timeout);
}

TEST_CASE("a deadline that has passed gives a context that is done") {
  const manual_clock time;
  for (const nanoseconds timeout : {0ns, -1ns, -3600'000'000'000ns, nanoseconds::min()}) {
    auto by_timeout = with_timeout(background(), timeout);
    check_expired(by_timeout.ctx);
    CHECK_FALSE(by_timeout.cancel());
  }
  for (const auto deadline : {clock::now(), clock::now() - 1ns, clock::time_point{}, clock::time_point::min()})
    check_expired(with_deadline(background(), deadline).ctx);
  CHECK_FALSE(with_timeout(background(), 1ns).ctx.done());
}

TEST_CASE("a deadline that has passed gives a context that is done, though its parent has yet to end") {
  manual_clock time;
  // Two contexts fall due at once: while a callback on the first runs, the other is still live.
  std::vector<cancel_scope> twins;
  for (int i = 0; i < 2; ++i) twins.push_back(with_timeout(background(), 1h));
  std::deque<callback> callbacks;
  int derived = 0;
  for (std::size_t i = 0; i < 2; ++i)
    callbacks.emplace_back(twins[i].ctx.stop_token(), [&, i] {
      for (const nanoseconds timeout : {0ns, -1ns, -3600'000'000'000ns - 1ns}) {
        check_expired(with_timeout(twins[1 - i].ctx, timeout).ctx);
        ++derived;
      }
    });
  time.advance(1h);
  CHECK(derived == 6);
}

TEST_CASE("of two deadlines that passed the earlier ended the context, though the timer did not come to it yet") {
  const auto why_of = [](int number) { return std::make_exception_ptr(number); };
  std::latch busy{1};
  std::latch checked{1};
  auto blocking = ctx::with_timeout(background(), 1ms);
  std::stop_callback callback{blocking.ctx.stop_token(), [&] {
                                busy.count_down();
                                checked.wait();
                              }};
  busy.wait();
  const auto now = ctx::clock::now();
  const auto first = why_of(1);
  auto parent = ctx::with_deadline(background(), now + 10ms, first);
  auto other = ctx::with_deadline(background(), now + 1h);
  auto merged = ctx::merge(other.ctx, parent.ctx);
  while (ctx::clock::now() < now + 11ms) std::this_thread::yield();
  auto child = ctx::with_deadline(merged.ctx, now + 11ms, why_of(2));
  CHECK(child.ctx.done());
  CHECK(child.ctx.cause() == first);
  CHECK(parent.ctx.done());
  CHECK_FALSE(other.ctx.done());
  checked.count_down();
}

TEST_CASE("the earlier of two deadlines governs") {
  manual_clock time;
  const auto outer = make_cause("outer"), inner = make_cause("inner");
  auto [parent, cancel_parent] = with_timeout(background(), 2h, outer);
  auto [earlier, cancel_earlier] = with_timeout(with_value(parent, number, 1), 1h, inner);
  auto [later, cancel_later] = with_timeout(with_value(parent, number, 1), 3h, inner);
  auto [below, cancel_below] = with_timeout(kept(with_cancel(later)), 150min, inner);
  CHECK(parent.remaining() == 2h);
  CHECK(earlier.remaining() == 1h);
  CHECK(later.remaining() == 2h);
  CHECK(below.remaining() == 2h);
  time.advance(1h);
  check_expired(earlier);
  CHECK(earlier.cause() == inner);
  for (const context& each : {parent, later, below}) CHECK_FALSE(each.done());
  time.advance(1h);
  for (const context& each : {parent, later, below}) {
    check_expired(each);
    CHECK(each.cause() == outer);
  }
}

TEST_CASE("a context that was canceled before its deadline stays canceled") {
  manual_clock time;
  auto [c, cancel] = with_timeout(background(), 1h, make_cause("too slow"));
  auto [child, cancel_child] = with_timeout(c, 30min);
  int calls = 0;
  const callback on_end{c.stop_token(), [&] { ++calls; }};
  CHECK(cancel());
  const auto cause = c.cause();
  time.advance(2h);
  CHECK(c.err() == errc::canceled);
  CHECK(child.err() == errc::canceled);
  CHECK(c.cause() == cause);
  CHECK(calls == 1);
  CHECK(c.remaining() == 0s);
}

TEST_CASE("remaining counts down to zero, and is endless without a deadline") {
  manual_clock time;
  auto [c, cancel] = with_timeout(background(), 3s);
  for (const auto left : {3s, 2s, 1s, 0s, 0s}) {
    CHECK(c.remaining() == left);
    time.advance(1s);
  }
  CHECK(background().remaining() == clock::duration::max());
  CHECK(kept(with_cancel(background())).remaining() == clock::duration::max());
  CHECK(without_cancel(c).remaining() == clock::duration::max());
  CHECK_FALSE(background().deadline());
  CHECK_FALSE(kept(with_cancel(background())).deadline());
  CHECK_FALSE(without_cancel(c).deadline());
}

// What times may be given

TEST_CASE("a time is rounded up, never down") {
  const manual_clock time;
  const auto timeout_of = [](auto given) { return with_timeout(background(), given).ctx.remaining(); };
  CHECK(timeout_of(duration<double, std::nano>{0.5}) == 1ns);
  CHECK(timeout_of(duration<double>{1e-12}) == 1ns);
  CHECK(timeout_of(duration<int, std::ratio<1, 3>>{1}) == 333'333'334ns);
  CHECK(timeout_of(duration<std::int64_t, std::pico>{1001}) == 2ns);
  CHECK(timeout_of(duration<float>{0.5F}) == 500ms);
  CHECK(timeout_of(std::chrono::weeks{1}) == 168h);
  using precise = std::chrono::time_point<std::chrono::steady_clock, duration<std::int64_t, std::pico>>;
  const precise deadline{precise::duration{1h} + precise::duration{1}};
  CHECK(with_deadline(background(), deadline).ctx.deadline() == clock::time_point{1h + 1ns});
}

TEST_CASE("a time beyond what the clock can represent never comes, or has passed") {
  std::vector<cancel_scope> never, bounded;
  manual_clock time;
  auto [parent, cancel] = with_timeout(background(), 1h);
  const auto beyond = [&](auto far) {
    never.push_back(with_timeout(background(), far));
    bounded.push_back(with_timeout(parent, far));
    check_expired(with_timeout(background(), -far).ctx);
    check_expired(with_timeout(parent, -far).ctx);
  };
  beyond(nanoseconds::max());
  beyond(std::chrono::hours::max());
  beyond(std::chrono::years::max());
  beyond(duration<std::int64_t, std::ratio<31'556'952'000>>::max());
  beyond(duration<double>::max());
  beyond(duration<float>{std::numeric_limits<float>::infinity()});
  beyond(duration<long double, std::pico>::max());
  check_expired(with_timeout(background(), std::chrono::hours::min()).ctx);

  using date = std::chrono::time_point<std::chrono::system_clock, std::chrono::hours>;
  never.push_back(with_deadline(background(), clock::time_point::max()));
  never.push_back(with_deadline(background(), std::chrono::system_clock::time_point::max()));
  never.push_back(with_deadline(background(), date::max()));
  check_expired(with_deadline(background(), std::chrono::system_clock::time_point::min()).ctx);
  check_expired(with_deadline(background(), date::min()).ctx);

  for (const auto& each : bounded) CHECK(each.ctx.remaining() == 1h);
  for (const auto& each : never) CHECK(each.ctx.remaining() > 24h);
  for (int i = 0; i < 3; ++i) {
    time.advance(std::chrono::hours::max());
    for (const auto& each : never) CHECK_FALSE(each.ctx.done());
  }
  for (const auto& each : bounded) check_expired(each.ctx);
  for (const auto& each : never) CHECK(each.cancel());
}

TEST_CASE("what passed ever so long ago is past for ever") {
  manual_clock time;
  const context ages_ago[]{kept(with_timeout(background(), nanoseconds::min())),
                           kept(with_timeout(background(), std::chrono::hours::min())),
                           kept(with_deadline(background(), clock::time_point::min())),
                           kept(with_deadline(background(), std::chrono::system_clock::time_point::min()))};
  for (int i = 0; i < 2; ++i, time.advance(1h))
    for (const context& each : ages_ago) {
      check_expired(each);
      CHECK(to_string(each).ends_with("(0.000s)"));
      check_expired(kept(with_timeout(each, 1h)));
    }
}

TEST_CASE("a time that is not a number throws, and changes nothing") {
  const manual_clock time;
  auto [parent, cancel] = with_timeout(background(), 1h);
  constexpr duration<double> nan{std::numeric_limits<double>::quiet_NaN()};
  const std::chrono::time_point<std::chrono::steady_clock, duration<double>> nan_point{nan};
  const std::chrono::time_point<std::chrono::system_clock, duration<float>> nan_date{nan};
  CHECK_THROWS_AS(static_cast<void>(with_timeout(parent, nan)), std::invalid_argument);
  CHECK_THROWS_AS(static_cast<void>(with_timeout(parent, duration<float>{nan})), std::invalid_argument);
  CHECK_THROWS_AS(static_cast<void>(with_deadline(parent, nan_point)), std::invalid_argument);
  CHECK_THROWS_AS(static_cast<void>(with_deadline(parent, nan_date)), std::invalid_argument);
  CHECK_THROWS_AS(parent.wait_for(nan), std::invalid_argument);
  CHECK_THROWS_AS(parent.wait_until(nan_point), std::invalid_argument);
  CHECK_THROWS_AS(parent.wait_until(nan_date), std::invalid_argument);
  CHECK_FALSE(parent.done());
  CHECK(parent.remaining() == 1h);
}

/// A wall clock that the test sets. It counts in twos of seconds, from an epoch of its own.
struct wall_clock {
  using duration = std::chrono::duration<int, std::ratio<2>>;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<wall_clock>;
  [[maybe_unused]] static constexpr bool is_steady = false;
  static inline time_point instant{};
  static time_point now() { return instant; }
};

TEST_CASE("the time of another clock is converted once, by what is left of it") {
  manual_clock time;
  wall_clock::instant += 1000h;
  auto [c, cancel] = with_deadline(background(), wall_clock::now() + 1h);
  auto [fine, cancel_fine] = with_deadline(background(), wall_clock::now() + 1h + 1ns);
  CHECK(c.remaining() == 1h);
  CHECK(fine.remaining() == 1h + 1ns);
  check_expired(with_deadline(background(), wall_clock::now()).ctx);
  check_expired(with_deadline(background(), wall_clock::now() - 1h).ctx);
  CHECK_FALSE(with_deadline(background(), wall_clock::now() + 2s).ctx.done());
  for (const auto jump : {+5000h, -9000h}) {
    wall_clock::instant += jump;
    CHECK_FALSE(c.done());
    CHECK(c.remaining() == 1h);
  }
  CHECK_FALSE(c.wait_until(wall_clock::now()));
  CHECK_FALSE(c.wait_until(wall_clock::now() - 1h));
  time.advance(1h);
  check_expired(c);
  CHECK_FALSE(fine.done());
}

/// A clock that is slow to read: meanwhile an hour passes.
struct slow_clock {
  using duration = clock::duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<slow_clock>;
  [[maybe_unused]] static constexpr bool is_steady = true;
  static inline manual_clock* time = nullptr;
  static time_point now() {
    time->advance(30min);
    const time_point instant{clock::now().time_since_epoch()};
    time->advance(30min);
    return instant;
  }
};

TEST_CASE("the time of another clock is not early where time passes while it is converted") {
  manual_clock time;
  slow_clock::time = &time;
  const clock::time_point deadline = clock::now() + 10h;
  auto [c, cancel] = with_deadline(background(), slow_clock::time_point{deadline.time_since_epoch()});
  CHECK(*c.deadline() >= deadline);
  CHECK(*c.deadline() <= deadline + 1h);
}

TEST_CASE("the system's clock and the steady clock's own time points will do") {
  const manual_clock time;
  auto [dated, cancel_dated] = with_deadline(background(), std::chrono::system_clock::now() + 1000h);
  CHECK(dated.remaining() <= 1000h);
  CHECK(dated.remaining() > 999h);
  const auto deadline = std::chrono::steady_clock::now() + 1000h;
  CHECK(with_deadline(background(), deadline).ctx.deadline() == deadline);
  using coarse = std::chrono::time_point<std::chrono::steady_clock, std::chrono::seconds>;
  CHECK(with_deadline(background(), coarse{1'000'000h}).ctx.deadline() == clock::time_point{1'000'000h});
}

// Waiting

TEST_CASE("a wait on a context that is done returns at once") {
  const manual_clock time;
  auto [c, cancel] = with_cancel(background());
  cancel();
  for (const context& each : {c, with_value(c, number, 1), kept(merge(background(), c))}) {
    each.wait();
    CHECK(each.wait_for(1h));
    CHECK(each.wait_for(-1h));
    CHECK(each.wait_until(clock::now() + 1h));
    CHECK(each.wait_until(clock::time_point::max()));
  }
}

TEST_CASE("a wait whose time is up returns at once, with whether the context is done") {
  const manual_clock time;
  auto [c, cancel] = with_timeout(background(), 1h);
  for (const context& each : {background(), c, without_cancel(c)}) {
    CHECK_FALSE(each.wait_for(0s));
    CHECK_FALSE(each.wait_for(-1h));
    CHECK_FALSE(each.wait_for(nanoseconds::min()));
    CHECK_FALSE(each.wait_until(clock::now()));
    CHECK_FALSE(each.wait_until(clock::time_point::min()));
  }
}

/// Has `wait(c)` called on another thread, `end()` on this one at about the same time, and returns when
/// the wait has.
template <class Wait, class End>
void wait_while(const context& c, Wait wait, End end) {
  std::latch starting{1};
  std::jthread waiting{[&] {
    starting.count_down();
    wait(c);
  }};
  starting.wait();
  end();
}

TEST_CASE("every wait ends when its context is done, canceled or expired, itself or above") {
  manual_clock time;
  const std::function<bool(const context&)> waits[]{
      [](const context& c) { return c.wait(), c.done(); },
      [](const context& c) { return c.wait_for(1000h); },
      [](const context& c) { return c.wait_for(std::chrono::hours::max()); },
      [](const context& c) { return c.wait_until(clock::time_point::max()); },
      [](const context& c) { return c.wait_until(std::chrono::system_clock::now() + 1000h); },
  };
  for (int round = 0; round < 50; ++round) {
    for (const auto& wait : waits) {
      for (const bool expires : {false, true}) {
        auto [parent, cancel] = with_timeout(background(), 1h);
        const context below[]{parent, kept(with_cancel(parent)), kept(merge(background(), parent)),
                              with_value(kept(with_cancel(parent)), number, 1)};
        const context& c = below[round % 4];
        if (round % 3 == 0) static_cast<void>(c.stop_token());
        bool result = false, done = false;
        wait_while(
            c, [&](const context& on) { result = wait(on), done = on.done(); },
            [&, &cancel = cancel] {
              if (expires)
                time.advance(1h);
              else
                cancel();
            });
        REQUIRE(result);
        REQUIRE(done);
      }
    }
  }
}

TEST_CASE("a timed wait ends when the clock reaches its time, and not before, however often it moves") {
  manual_clock time;
  auto [c, cancel] = with_timeout(background(), 1000'000h);
  for (const context& each : {background(), c}) {
    for (int round = 0; round < 50; ++round) {
      const auto until = clock::now() + 1h;
      bool result = true;
      clock::time_point ended;
      wait_while(
          each, [&](const context& on) { result = on.wait_until(until), ended = clock::now(); },
          [&] {
            for (int i = 0; i < 60; ++i) time.advance(1min);
          });
      REQUIRE_FALSE(result);
      REQUIRE(ended >= until);
    }
  }
}

TEST_CASE("wait_for sleeps by the clock of the library, also on a context that is never done") {
  manual_clock time;
  clock::time_point started, ended;
  bool result = true;
  std::atomic<bool> through = false;
  wait_while(
      background(),
      [&](const context& on) {
        started = clock::now();
        result = on.wait_for(1h);
        ended = clock::now();
        through = true;
      },
      [&] {
        while (!through) time.advance(1min);
      });
  CHECK_FALSE(result);
  CHECK(ended - started >= 1h);
}

TEST_CASE("many threads wait on many contexts, and each is told of its own") {
  manual_clock time;
  constexpr std::size_t count = 16;
  std::vector<cancel_scope> scopes;
  for (std::size_t i = 0; i < count; ++i) scopes.push_back(with_timeout(background(), (i + 1) * 1h));
  std::vector<clock::time_point> ended(2 * count);
  const auto start = clock::now();
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < 2 * count; ++i)
      threads.emplace_back([&, i] {
        scopes[i / 2].ctx.wait();
        ended[i] = clock::now();
      });
    for (std::size_t i = 0; i < count; ++i) time.advance(1h);
  }
  for (std::size_t i = 0; i < 2 * count; ++i) CHECK(ended[i] >= start + (i / 2 + 1) * 1h);
}

TEST_CASE("a wait ends once its context is done, though a callback above is still running") {
  bool in_time = true;
  for (int round = 0; round < 100 && in_time; ++round) {
    auto [parent, cancel] = with_cancel(background());
    const context child = kept(with_cancel(parent));
    std::promise<void> through;
    auto ended = through.get_future();
    const callback on_parent{parent.stop_token(), [&] {
                               // It would be as good if the child were not done yet.
                               in_time = !child.done() || ended.wait_for(10s) == std::future_status::ready;
                             }};
    wait_while(
        child, [&](const context& c) { c.wait(), through.set_value(); }, [&, &cancel = cancel] { cancel(); });
  }
  CHECK(in_time);
}

TEST_CASE("a callback that waits for its own context does not wait") {
  manual_clock time;
  auto [c, cancel] = with_timeout(background(), 1h);
  bool result = false;
  const callback on_end{c.stop_token(), [&, &c = c] {
                          c.wait();
                          result = c.wait_for(1h);
                        }};
  time.advance(1h);
  CHECK(result);
}

// Moving the clock

TEST_CASE("contexts expire in the order of their deadlines, each with the clock at its deadline") {
  manual_clock time;
  std::mt19937 random{1};
  std::vector<cancel_scope> scopes;
  std::deque<callback> callbacks;
  std::vector<clock::time_point> seen;
  const auto start = clock::now();
  for (int i = 0; i < 2000; ++i) {
    // Some are ties, some years away, most in between.
    const nanoseconds timeout = (1 + random() % 100) * nanoseconds{std::int64_t{1} << random() % 50};
    scopes.push_back(with_timeout(background(), timeout));
    callbacks.emplace_back(scopes.back().ctx.stop_token(), [&, at = start + timeout] {
      CHECK(clock::now() == at);
      seen.push_back(at);
    });
  }
  std::size_t due = 0;
  for (nanoseconds step = 1us; due < scopes.size(); step *= 2) {
    time.advance(step);
    due = static_cast<std::size_t>(
        std::ranges::count_if(scopes, [](const cancel_scope& each) { return *each.ctx.deadline() <= clock::now(); }));
    for (const auto& each : scopes) REQUIRE(each.ctx.done() == (*each.ctx.deadline() <= clock::now()));
    REQUIRE(seen.size() == due);
  }
  CHECK(std::ranges::is_sorted(seen));
}

TEST_CASE("a deadline that a callback sets on the way is kept, too") {
  manual_clock time;
  const auto start = clock::now();
  std::deque<cancel_scope> scopes;
  std::deque<callback> callbacks;
  std::vector<nanoseconds> seen;
  const std::function<void()> again = [&] {
    seen.push_back(clock::now() - start);
    scopes.push_back(with_timeout(background(), 10min));
    callbacks.emplace_back(scopes.back().ctx.stop_token(), again);
  };
  again();
  time.advance(35min);
  CHECK(seen == std::vector<nanoseconds>{0min, 10min, 20min, 30min});
  CHECK(clock::now() == start + 35min);
  time.advance(5min);
  CHECK(seen.size() == 5);
}

TEST_CASE("what a callback cancels on the way is canceled, though it is due by the same step") {
  manual_clock time;
  auto [first, cancel_first] = with_timeout(background(), 1h);
  auto [second, cancel_second] = with_timeout(background(), 2h);
  const callback on_first{first.stop_token(), [&, &cancel_second = cancel_second] { cancel_second(); }};
  time.advance(3h);
  CHECK(first.err() == errc::deadline_exceeded);
  CHECK(second.err() == errc::canceled);
}

TEST_CASE("a callback may move the clock itself: what is due ends before that returns") {
  manual_clock time;
  const auto start = clock::now();
  auto [first, cancel_first] = with_timeout(background(), 1h);
  auto [second, cancel_second] = with_timeout(background(), 2h);
  auto [third, cancel_third] = with_timeout(background(), 5h);
  bool in_time = false;
  const callback on_first{first.stop_token(), [&, &second = second] {
                            time.advance(2h);
                            in_time = second.done() && clock::now() == start + 3h;
                          }};
  time.advance(1h);
  CHECK(in_time);
  CHECK_FALSE(third.done());
  CHECK(clock::now() == start + 3h);
}

TEST_CASE("a callback that moves the clock is over, with all that ends with it, when the advance around it returns") {
  manual_clock time;
  for (int round = 0; round < 100; ++round) {
    auto [parent, cancel_parent] = with_timeout(background(), 1h);
    auto [child, cancel_child] = with_cancel(parent);
    const auto told = child.stop_token();
    bool over = false;
    const callback on_parent{parent.stop_token(), [&] {
                               time.advance(1h);
                               for (int i = 0; i < 100; ++i) std::this_thread::yield();
                               over = true;
                             }};
    time.advance(1h);
    REQUIRE(over);
    REQUIRE(told.stop_requested());
  }
}

TEST_CASE("the clock stands still, and moves by what it is told, rounded up, never back") {
  manual_clock time;
  const auto start = clock::now();
  CHECK(clock::now() == start);
  time.advance(0s);
  time.advance(-1h);
  CHECK(clock::now() == start);
  time.advance(duration<double, std::nano>{0.5});
  CHECK(clock::now() == start + 1ns);
  auto [c, cancel] = with_timeout(background(), 1h);
  time.advance(-1h);
  CHECK(clock::now() == start + 1ns);
  time.advance(std::chrono::hours::max());
  time.advance(std::chrono::hours::max());
  check_expired(c);
  CHECK(clock::now() > start + 1000h);
}

TEST_CASE("the clock may be moved from many threads") {
  manual_clock time;
  const auto start = clock::now();
  std::vector<cancel_scope> scopes;
  for (int i = 1; i <= 400; ++i) scopes.push_back(with_timeout(background(), i * 1min));
  std::atomic<int> late = 0;
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 4; ++thread)
      threads.emplace_back([&] {
        for (int i = 0; i < 100; ++i) {
          const auto before = clock::now();
          time.advance(1min);
          for (const auto& each : scopes)
            if (!each.ctx.done() && *each.ctx.deadline() <= before + 1min) ++late;
        }
      });
  }
  CHECK(late == 0);
  CHECK(clock::now() <= start + 400min);
  CHECK(clock::now() >= start + 100min);
}

TEST_CASE("advances by several threads add up") {
  manual_clock time;
  auto armed = ctx::with_timeout(background(), 1h);
  const auto start = clock::now();
  {
    std::vector<std::jthread> threads;
    std::latch all{4};
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        all.arrive_and_wait();
        for (int step = 0; step < 100; ++step) time.advance(1s);
      });
    }
  }
  CHECK(clock::now() - start == 400s);
}

TEST_CASE("there is one manual clock at a time") {
  std::optional<manual_clock> time{std::in_place};
  auto [c, cancel] = with_timeout(background(), 1h);
  CHECK_THROWS_AS(manual_clock{}, std::logic_error);
  const auto before = clock::now();
  time->advance(1h);
  CHECK(clock::now() == before + 1h);
  check_expired(c);
  time.reset();
  time.emplace();
}

TEST_CASE("a manual clock takes over the deadlines that are armed, and gives back those that are left") {
  auto [before, cancel_before] = with_timeout(background(), 1h);
  std::optional<manual_clock> time{std::in_place};
  auto [later, cancel_later] = with_timeout(background(), 3h);
  auto [during, cancel_during] = with_timeout(background(), 2h);
  const auto deadline = later.deadline();
  time->advance(2h);
  check_expired(before);
  check_expired(during);
  time.reset();
  CHECK_FALSE(later.done());
  CHECK(later.deadline() == deadline);
  CHECK(later.remaining() > 1h);
}

// The real clock

#if !defined(_WIN32)  // where std::clock() tells no processor time
TEST_CASE("while a manual clock stands, who waits for it sleeps, though the time is up by every other clock") {
  manual_clock time;
  const std::clock_t before = std::clock();
  const auto scope = with_timeout(background(), 1ms);
  std::jthread waiting{[until = clock::now() + 1ms] { background().wait_until(until); }};
  std::this_thread::sleep_for(500ms);
  CHECK(std::clock() - before < CLOCKS_PER_SEC / 20);
  time.advance(1ms);
  CHECK(scope.ctx.done());
}
#endif

TEST_CASE("without a manual clock, the clock is the steady clock") {
  for (int i = 0; i < 2; ++i) {
    const auto before = std::chrono::steady_clock::now();
    const auto now = clock::now();
    const auto after = std::chrono::steady_clock::now();
    CHECK(before <= now);
    CHECK(now <= after);
    manual_clock time;
    CHECK(clock::now() >= after);
    time.advance(1000h);
  }
}

TEST_CASE("a deadline of the real clock is not early, after a manual clock was years ahead, too") {
  std::mt19937 random{2};
  for (int round = 0; round < 2; ++round) {
    std::vector<cancel_scope> scopes;
    std::deque<callback> callbacks;
    std::atomic<int> early = 0, calls = 0;
    for (int i = 0; i < 100; ++i) {
      scopes.push_back(with_timeout(background(), random() % 30'000 * 1us));
      callbacks.emplace_back(scopes.back().ctx.stop_token(), [&, deadline = *scopes.back().ctx.deadline()] {
        if (std::chrono::steady_clock::now() < deadline) ++early;
        ++calls;
      });
    }
    for (const auto& each : scopes) {
      each.ctx.wait();
      CHECK(std::chrono::steady_clock::now() >= *each.ctx.deadline());
      CHECK(each.ctx.err() == errc::deadline_exceeded);
    }
    callbacks.clear();  // waits for those that still run
    CHECK(calls == 100);
    CHECK(early == 0);
    manual_clock time;
    const auto armed = with_timeout(background(), 100'000h);
    time.advance(50'000h);
  }
}

TEST_CASE("a timed wait by the real clock is not early, and ends at a cancel") {
  const auto start = std::chrono::steady_clock::now();
  CHECK_FALSE(background().wait_for(5ms));
  CHECK(std::chrono::steady_clock::now() >= start + 5ms);
  CHECK_FALSE(background().wait_until(start + 15ms));
  CHECK(std::chrono::steady_clock::now() >= start + 15ms);
  for (int round = 0; round < 20; ++round) {
    auto [c, cancel] = with_cancel(background());
    bool result = false;
    wait_while(
        c, [&](const context& on) { result = on.wait_for(1h); }, [&, &cancel = cancel] { cancel(); });
    CHECK(result);
  }
}

TEST_CASE("a wait that a manual clock held goes on by the real clock") {
  std::optional<manual_clock> time{std::in_place};
  const auto until = clock::now() + 5ms;
  std::chrono::steady_clock::time_point ended;
  bool result = true;
  wait_while(
      background(),
      [&](const context& on) {
        result = on.wait_until(until);
        ended = std::chrono::steady_clock::now();
      },
      [&] { time.reset(); });
  CHECK_FALSE(result);
  CHECK(ended >= until);
}

TEST_CASE("a deadline that is set just as the timer goes to sleep is not slept through") {
  const auto far = with_timeout(background(), 1h);
  const auto start = clock::now();
  do {
    const auto scope = with_timeout(background(), 1us);
    // Without sleep, so that the next one comes while the timer is done with this one.
    for (int looks = 0; !scope.ctx.done(); ++looks) {
      if (looks > 1000) std::this_thread::yield();
      if (clock::now() - start > 1min) FAIL("it never passes");
    }
  } while (clock::now() - start < 2s);
  CHECK_FALSE(far.ctx.done());
}

TEST_CASE("an earlier deadline is not held up by a later one that was there before") {
  auto [later, cancel_later] = with_timeout(background(), 1000h);
  for (int i = 0; i < 5; ++i) {
    auto [sooner, cancel_sooner] = with_timeout(background(), 1ms);
    sooner.wait();
    CHECK(sooner.err() == errc::deadline_exceeded);
  }
  CHECK_FALSE(later.done());
}

}  // namespace
