// Exists for functions that run early, twice, never or after they were stopped, that hold up whoever
// cancels, and that outlive what their handle promised to wait for.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <latch>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using ctx::after_func;
using ctx::background;
using ctx::cancel_scope;
using ctx::context;
using ctx::manual_clock;
using ctx::merge;
using ctx::with_cancel;
using ctx::with_stop_token;
using ctx::with_timeout;
using ctx::with_value;
using ctx::without_cancel;

using handle = decltype(after_func(background(), [] {}));

static_assert(std::is_nothrow_default_constructible_v<handle> && std::is_nothrow_destructible_v<handle>);
static_assert(!std::is_copy_constructible_v<handle> && !std::is_copy_assignable_v<handle>);
static_assert(std::is_nothrow_move_constructible_v<handle> && std::is_nothrow_move_assignable_v<handle>);
static_assert(noexcept(std::declval<handle&>().stop()));

template <class F>
concept callable_later = requires(const context& c, F f) { after_func(c, std::forward<F>(f)); };
static_assert(callable_later<void (*)()> && callable_later<void (&)()> && callable_later<std::function<int()>>);
static_assert(!callable_later<void (*)(int)> && !callable_later<int>);

constexpr ctx::key<std::shared_ptr<int>> probe{"probe"};

context kept(cancel_scope scope) {
  scope.cancel.release();
  return std::move(scope.ctx);
}

/// A function that counts its calls, and lets others wait for the first.
struct counter {
  std::atomic<int> calls = 0;
  std::latch called{1};
  auto function() {
    return [this] {
      if (calls++ == 0) called.count_down();
    };
  }
};

TEST_CASE("a function runs once, after its context was canceled, on a thread of its own") {
  auto [c, cancel] = with_cancel(background());
  counter f;
  std::thread::id ran_on;
  bool was_done = false;
  handle h = after_func(c, [&, &c = c, count = f.function()] {
    ran_on = std::this_thread::get_id();
    was_done = c.done();
    count();
  });
  CHECK(f.calls == 0);
  cancel();
  f.called.wait();
  CHECK_FALSE(h.stop());
  h = {};
  CHECK(f.calls == 1);
  CHECK(was_done);
  CHECK(ran_on != std::this_thread::get_id());
}

TEST_CASE("a function runs after a context of any kind ended in any way") {
  manual_clock time;
  std::stop_source source;
  auto [parent, cancel_parent] = with_timeout(background(), 1h);
  auto [other, cancel_other] = with_cancel(background());
  const context by_deadline[]{parent, with_value(parent, probe, nullptr), kept(with_cancel(parent)),
                              kept(merge(background(), parent)), kept(with_timeout(background(), 1h))};
  const context by_token = kept(with_stop_token(background(), source.get_token()));
  const auto runs = [](const context& c, auto end) {
    counter f;
    const handle h = after_func(c, f.function());
    CHECK(f.calls == 0);
    end();
    f.called.wait();
  };
  counter all;
  std::vector<handle> handles;
  for (const context& each : by_deadline) handles.push_back(after_func(each, all.function()));
  runs(by_deadline[0], [&] { time.advance(1h); });
  handles.clear();
  CHECK(all.calls <= 5);
  runs(by_token, [&] { source.request_stop(); });
  runs(with_value(other, probe, nullptr), [&, &cancel_other = cancel_other] { cancel_other(); });
  auto dropped = std::make_optional(with_cancel(background()));
  runs(context{dropped->ctx}, [&] { dropped.reset(); });
}

TEST_CASE("a function on a context that is done runs at once") {
  manual_clock time;
  auto [canceled, cancel] = with_cancel(background());
  cancel();
  for (const context& c : {canceled, kept(with_timeout(background(), 0s)), kept(with_cancel(canceled)),
                           with_value(canceled, probe, nullptr)}) {
    counter f;
    std::thread::id ran_on;
    {
      handle h = after_func(c, [&, count = f.function()] { ran_on = std::this_thread::get_id(), count(); });
      f.called.wait();
      CHECK_FALSE(h.stop());
    }
    CHECK(f.calls == 1);
    CHECK(ran_on != std::this_thread::get_id());
  }
}

TEST_CASE("a function that was stopped never runs, and only the first stop did it") {
  auto [c, cancel] = with_cancel(background());
  counter f;
  {
    handle h = after_func(c, f.function());
    CHECK(h.stop());
    CHECK_FALSE(h.stop());
    cancel();
    CHECK_FALSE(h.stop());
  }
  CHECK(f.calls == 0);
}

TEST_CASE("a function whose handle is gone never runs, and holds nothing any more") {
  auto [c, cancel] = with_cancel(background());
  const auto alive = std::make_shared<int>();
  counter f;
  {
    const handle h = after_func(c, [count = f.function(), alive] { count(); });
  }
  CHECK(alive.use_count() == 1);
  cancel();
  CHECK(f.calls == 0);
}

TEST_CASE("a function on a context that is never done never runs") {
  counter f;
  for (const context& c : {background(), ctx::todo(), without_cancel(kept(with_timeout(background(), 0s)))}) {
    handle destroyed = after_func(c, f.function()), stopped = after_func(c, f.function());
    CHECK(stopped.stop());
    CHECK_FALSE(stopped.stop());
  }
  CHECK(f.calls == 0);
}

TEST_CASE("canceling does not wait for the function, nor does stop") {
  auto [c, cancel] = with_cancel(background());
  std::latch started{1}, canceled{1};
  std::atomic<bool> ended = false;
  {
    handle h = after_func(c, [&] {
      started.count_down();
      canceled.wait();
      ended = true;
    });
    cancel();  // else this would not return
    started.wait();
    CHECK_FALSE(h.stop());
    CHECK_FALSE(ended);
    canceled.count_down();
  }
  CHECK(ended);
}

TEST_CASE("destroying and overwriting the handle waits for a function that runs") {
  for (const bool overwritten : {false, true}) {
    auto [c, cancel] = with_cancel(background());
    std::latch started{1};
    std::atomic<int> steps = 0;
    std::optional<handle> h = after_func(c, [&] {
      started.count_down();
      for (int i = 0; i < 1000; ++i) ++steps, std::this_thread::yield();
    });
    cancel();
    started.wait();
    if (overwritten)
      *h = handle{};
    else
      h.reset();
    CHECK(steps == 1000);
  }
}

TEST_CASE("overwriting the handle stops a function that does not run yet") {
  auto [c, cancel] = with_cancel(background());
  counter first, second;
  handle h = after_func(c, first.function());
  h = after_func(c, second.function());
  cancel();
  second.called.wait();
  h = {};
  CHECK(first.calls == 0);
  CHECK(second.calls == 1);
}

TEST_CASE("a handle can be moved, and what was moved from does nothing") {
  auto [c, cancel] = with_cancel(background());
  counter f, g;
  handle empty, first = after_func(c, f.function());
  CHECK_FALSE(empty.stop());
  handle second = std::move(first);
  CHECK_FALSE(first.stop());
  first = handle{};
  handle& same = second;
  second = std::move(same);
  std::swap(second, empty);
  CHECK_FALSE(second.stop());
  std::vector<handle> many;
  many.push_back(std::move(empty));
  many.push_back(after_func(c, g.function()));
  many.insert(many.begin(), handle{});
  CHECK(f.calls + g.calls == 0);
  CHECK(many[1].stop());
  cancel();
  g.called.wait();
  many.clear();
  CHECK(f.calls == 0);
}

TEST_CASE("a function may destroy, overwrite, move and stop its own handle") {
  enum class act { destroy, overwrite, move, stop };
  for (const act what : {act::destroy, act::overwrite, act::move, act::stop}) {
    auto [c, cancel] = with_cancel(background());
    std::optional<handle> h;
    handle elsewhere;
    std::latch stored{1};
    const auto done = std::make_shared<std::latch>(1);  // nobody waits for the end of the thread
    const auto alive = std::make_shared<int>();
    bool stopped = false;
    h.emplace(after_func(c, [&, what, alive, done] {
      stored.wait();
      switch (what) {
        case act::destroy:
          h.reset();
          break;
        case act::overwrite:
          *h = handle{};
          break;
        case act::move:
          elsewhere = std::move(*h);
          break;
        case act::stop:
          stopped = h->stop();
          break;
      }
      *alive = 7;  // the function is still there
      done->count_down();
    }));
    cancel();
    stored.count_down();
    done->wait();
    CHECK_FALSE(stopped);
    CHECK(*alive == 7);
  }
}

TEST_CASE("a function may derive, cancel, and register and destroy the handles of others") {
  auto [c, cancel] = with_cancel(background());
  auto [other, cancel_other] = with_cancel(background());
  counter nested, victim;
  std::optional<handle> stopped = after_func(other, victim.function()), inner;
  {
    const handle h = after_func(c, [&, &c = c, &other = other, &cancel_other = cancel_other] {
      stopped.reset();
      inner.emplace(after_func(kept(with_cancel(other)), nested.function()));
      cancel_other();
      nested.called.wait();
      inner.reset();
      CHECK(kept(with_cancel(c)).done());
    });
    cancel();
    nested.called.wait();
  }
  CHECK(nested.calls == 1);
  CHECK(victim.calls == 0);
}

TEST_CASE("a callback may destroy the handle of a function on the context that is ending") {
  auto [c, cancel] = with_cancel(background());
  const context child = kept(with_cancel(c));
  counter f;
  std::optional<handle> h;
  const std::stop_callback on_parent{c.stop_token(), [&] { h.reset(); }};
  h.emplace(after_func(child, f.function()));
  cancel();
  CHECK_FALSE(h);
  CHECK(f.calls <= 1);
}

/// Counts itself, and can be neither copied nor called twice.
struct once {
  std::unique_ptr<int> content = std::make_unique<int>(0);
  std::atomic<int>* calls;
  void operator()() { *calls += ++*content; }
};

TEST_CASE("a function may be any callable: move-only, mutable, by reference, returning something") {
  auto [c, cancel] = with_cancel(background());
  std::atomic<int> calls = 0;
  struct referred {
    std::atomic<int>& calls;
    int operator()() { return ++calls; }
  } object{calls};
  static std::atomic<int> static_calls = 0;
  static_calls = 0;
  {
    std::vector<handle> handles;
    handles.push_back(after_func(c, once{std::make_unique<int>(0), &calls}));
    handles.push_back(after_func(c, std::ref(object)));
    handles.push_back(after_func(c, object));
    handles.push_back(after_func(
        c, +[] { ++static_calls; }));
    handles.push_back(after_func(c, [n = 0, &calls]() mutable {
      calls += ++n;
      return n;
    }));
    cancel();
    while (calls + static_calls < 5) std::this_thread::yield();
  }
  CHECK(calls == 4);
  CHECK(static_calls == 1);
}

TEST_CASE("a function keeps its context alive, and is destroyed once, whether it ran or not") {
  for (const bool runs : {false, true}) {
    const auto alive = std::make_shared<int>(), captured = std::make_shared<int>();
    counter f;
    {
      auto scope = with_cancel(with_value(background(), probe, alive));
      const handle h = after_func(scope.ctx, [count = f.function(), captured] { count(); });
      scope.ctx = {};
      CHECK(alive.use_count() == 2);
      if (runs) {
        scope.cancel();
        f.called.wait();
      } else {
        scope.cancel.release();
        CHECK(alive.use_count() == 2);
      }
    }
    CHECK(alive.use_count() == 1);
    CHECK(captured.use_count() == 1);
    CHECK(f.calls == (runs ? 1 : 0));
  }
}

TEST_CASE("many functions on one context all run once, those that were stopped do not") {
  auto [c, cancel] = with_cancel(background());
  std::atomic<int> wanted = 0, unwanted = 0;
  {
    std::vector<handle> handles;
    for (int i = 0; i < 200; ++i)
      handles.push_back(after_func(c, [&calls = i % 2 != 0 ? wanted : unwanted] { ++calls; }));
    for (std::size_t i = 0; i < handles.size(); i += 2) CHECK(handles[i].stop());
    cancel();
    while (wanted < 100) std::this_thread::yield();
  }
  CHECK(wanted == 100);
  CHECK(unwanted == 0);
}

TEST_CASE("either stop keeps the function from running, or it runs: never both, never neither") {
  for (int round = 0; round < 300; ++round) {
    auto [c, cancel] = with_cancel(background());
    std::atomic<int> calls = 0;
    bool stopped = false;
    {
      handle h = after_func(c, [&] { ++calls; });
      std::latch start{2};
      const std::jthread stopping{[&] { start.arrive_and_wait(), stopped = h.stop(); }};
      start.arrive_and_wait();
      cancel();
    }  // the handle goes last, and waits
    REQUIRE(calls == (stopped ? 0 : 1));
  }
}

TEST_CASE("once the handle is destroyed the function does not run, nor begin to") {
  for (int round = 0; round < 300; ++round) {
    auto [c, cancel] = with_cancel(background());
    auto shared = std::make_unique<std::atomic<int>>(0);  // gone with the handle: a late call would touch it
    std::optional<handle> h = after_func(c, [&] { ++*shared; });
    std::latch start{2};
    const std::jthread canceling{[&, &cancel = cancel] { start.arrive_and_wait(), cancel(); }};
    start.arrive_and_wait();
    h.reset();
    REQUIRE(*shared <= 1);
    shared.reset();
  }
}

}  // namespace
