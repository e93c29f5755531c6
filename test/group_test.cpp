// Exists for tasks that run too often, never, or too many at a time; for exceptions that get lost, or end the
// wrong context; for groups that end before their tasks, or never; and for threads that pile up.
//
// Tasks note what they find; it is checked when they are over.

#include "failing_new.hpp"
#include "sanitizer.hpp"

#include <ctx/group.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <fstream>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include "no_threads.hpp"

#include <pthread.h>
#include <unistd.h>
#endif

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::context;
using ctx::group;

// What is fixed at compile time

static_assert(!std::is_copy_constructible_v<group> && !std::is_copy_assignable_v<group>);
static_assert(!std::is_move_constructible_v<group> && !std::is_move_assignable_v<group>);
static_assert(std::is_nothrow_destructible_v<group>);
static_assert(!std::is_convertible_v<context, group>);
static_assert(std::is_same_v<decltype(std::declval<group&>().spawn([](const context&) {})), bool>);
static_assert(std::is_same_v<decltype(std::declval<const group&>().context()), const context&>);

template <class F>
concept task = requires(group& g, F f) { g.spawn(std::forward<F>(f)); };
static_assert(task<void (*)(const context&)> && task<void (&)(context)> && task<std::function<int(context)>&>);
static_assert(!task<void (*)()> && !task<void (*)(int)> && !task<void (*)(context&)> && !task<int>);
struct move_only {
  move_only() = default;
  move_only(move_only&&) = default;
  void operator()(const context&) && {}
};
static_assert(task<move_only> && !task<move_only&> && !task<const move_only&>);

// Helpers

constexpr ctx::key<int> number{"number"};

struct failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What wait() throws, empty where it returns.
std::exception_ptr thrown_by_wait(group& g) {
  try {
    g.wait();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

std::string message_of(const std::exception_ptr& error) {
  if (error == nullptr) return "";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

/// A task that lasts until the context is done.
constexpr auto until_done = [](const context& c) { c.wait(); };

/// Keeps the largest of what it is told.
struct maximum {
  std::atomic<int> most = 0;
  void note(int value) {
    for (int seen = most; seen < value && !most.compare_exchange_weak(seen, value);) {
    }
  }
};

// Tasks

TEST_CASE("every task runs once, on a thread of its own, with the context of the group") {
  group g{background()};
  std::mutex mutex;
  std::set<std::thread::id> threads{std::this_thread::get_id()};
  std::latch all{10};
  std::atomic<int> with_other_context = 0;
  for (int i = 0; i < 10; ++i) {
    CHECK(g.spawn([&](const context& c) {
      if (&c != &g.context() || c.done()) ++with_other_context;
      all.arrive_and_wait();  // so that none of the threads can be the same as an earlier one
      const std::lock_guard lock{mutex};
      threads.insert(std::this_thread::get_id());
    }));
  }
  g.wait();
  CHECK(threads.size() == 11);
  CHECK(with_other_context == 0);
  CHECK_FALSE(g.context().done());
}

TEST_CASE("the context of a group has the values and the deadline of its parent, and ends with it") {
  ctx::manual_clock time;
  const context valued = ctx::with_value(background(), number, 5);
  auto parent = ctx::with_timeout(valued, 1h);
  group g{parent.ctx};
  CHECK(g.context() != parent.ctx);
  CHECK(*g.context().value(number) == 5);
  CHECK(g.context().deadline() == parent.ctx.deadline());
  CHECK(to_string(g.context()) == "background.with_value(number).with_timeout(3600.000s).with_cancel");
  std::error_code seen;
  g.spawn([&](const context& c) {
    c.wait();
    seen = c.err();
  });
  time.advance(1h);
  g.wait();
  CHECK(seen == ctx::errc::deadline_exceeded);
  CHECK(g.context().cause() == parent.ctx.cause());
}

TEST_CASE("a function may be move-only, a copy, a reference, a pointer or a member") {
  struct target {
    std::atomic<int> calls = 0;
    void call(const context&) { ++calls; }
  } object;
  static std::atomic<int> plain_calls;
  plain_calls = 0;
  std::atomic<int> copied_calls = 0;
  group g{background()};
  g.spawn([&, owned = std::make_unique<int>(3)](const context&) { object.calls += *owned; });
  g.spawn(std::bind_front(&target::call, &object));
  g.spawn(+[](const context&) { ++plain_calls; });
  g.spawn(move_only{});
  const auto reused = [&](const context&) { return ++copied_calls; };
  g.spawn(reused);
  g.spawn(reused);
  std::function<void(context)> referred_to = reused;
  g.spawn(std::ref(referred_to));
  g.wait();
  CHECK(object.calls == 4);
  CHECK(plain_calls == 1);
  CHECK(copied_calls == 3);
}

TEST_CASE("a function is destroyed on the thread that called it, before the task is over") {
  struct tracked {
    std::thread::id* destroyed_on;
    explicit tracked(std::thread::id* on) : destroyed_on{on} {}
    tracked(tracked&& other) : destroyed_on{std::exchange(other.destroyed_on, nullptr)} {}
    ~tracked() {
      if (destroyed_on != nullptr) *destroyed_on = std::this_thread::get_id();
    }
  };
  std::thread::id called_on[2];
  std::thread::id destroyed_on[2];
  group g{background(), 1};
  for (const int i : {0, 1}) {
    g.spawn([&, i, gone = tracked{&destroyed_on[i]}](const context&) {
      called_on[i] = std::this_thread::get_id();
      throw failure{"at work"};
    });
    CHECK(thrown_by_wait(g) != nullptr);
    if (i == 0) {
      CHECK(called_on[0] == destroyed_on[0]);
      CHECK(called_on[0] != std::thread::id{});
    }
  }
  // The second was refused: its function is destroyed here, without being called.
  CHECK(called_on[1] == std::thread::id{});
  CHECK(destroyed_on[1] == std::this_thread::get_id());
}

// Exceptions

TEST_CASE("the first exception ends the context with it as the cause, and wait throws it at every call") {
  group g{background()};
  const auto error = std::make_exception_ptr(failure{"disk full"});
  std::atomic<int> heard = 0;
  for (int i = 0; i < 3; ++i) {
    g.spawn([&](const context& c) {
      c.wait();
      if (c.cause() == error && c.err() == ctx::errc::canceled) ++heard;
      c.throw_if_done();
    });
  }
  g.spawn([&](const context&) { std::rethrow_exception(error); });
  CHECK(thrown_by_wait(g) == error);
  CHECK(heard == 3);
  CHECK(thrown_by_wait(g) == error);
  CHECK(g.context().cause() == error);
  CHECK_THROWS_WITH_AS(g.wait(), "disk full", failure);
}

TEST_CASE("later exceptions change nothing") {
  group g{background()};
  g.spawn([](const context&) { throw failure{"first"}; });
  g.spawn([&](const context& c) {
    c.wait();
    throw failure{"second"};
  });
  CHECK(message_of(thrown_by_wait(g)) == "first");
  g.spawn([](const context&) { throw failure{"third"}; });
  CHECK(message_of(thrown_by_wait(g)) == "first");
  CHECK(message_of(g.context().cause()) == "first");
}

TEST_CASE("an exception is kept where the parent ended the context before, and the cause stays the parent's") {
  auto parent = ctx::with_cancel(background());
  group g{parent.ctx};
  g.spawn([](const context& c) {
    c.wait();
    throw failure{"cleaning up failed"};
  });
  parent.cancel(failure{"closing"});
  CHECK(message_of(thrown_by_wait(g)) == "cleaning up failed");
  CHECK(message_of(g.context().cause()) == "closing");
}

TEST_CASE("a task that gives up because its context ended shows in wait") {
  auto parent = ctx::with_cancel(background());
  group g{parent.ctx};
  g.spawn([](const context& c) {
    c.wait();
    c.throw_if_done();
  });
  parent.cancel(failure{"closing"});
  CHECK(thrown_by_wait(g) == parent.ctx.cause());
}

TEST_CASE("where no task fails, wait returns, though the context is done") {
  auto parent = ctx::with_cancel(background());
  group g{parent.ctx};
  g.spawn(until_done);
  parent.cancel();
  CHECK(thrown_by_wait(g) == nullptr);
}

TEST_CASE("anything can be thrown") {
  group g{background()};
  g.spawn([](const context&) { throw 42; });
  CHECK_THROWS_AS(g.wait(), int);
}

TEST_CASE("an exception ends what is derived from the context, and leaves the parent alone") {
  auto parent = ctx::with_cancel(background());
  group g{parent.ctx};
  auto below = ctx::with_cancel(g.context());
  g.spawn([](const context&) { throw failure{"failed"}; });
  below.ctx.wait();
  CHECK(thrown_by_wait(g) == below.ctx.cause());
  CHECK_FALSE(parent.ctx.done());
}

// The end

TEST_CASE("a group without tasks can be waited for") {
  group g{background()};
  g.wait();
  g.wait();
  CHECK_FALSE(g.context().done());
}

TEST_CASE("the destructor cancels and joins, and says where the group was made") {
  std::atomic<int> over = 0;
  context kept;
  unsigned line = 0;
  {
    line = __LINE__ + 1;
    group g{background()};
    kept = g.context();
    for (int i = 0; i < 5; ++i) {
      g.spawn([&](const context& c) {
        c.wait();
        ++over;
        throw failure{"nobody hears of it"};
      });
    }
  }
  CHECK(over == 5);
  CHECK(kept.err() == ctx::errc::canceled);
  CHECK(message_of(kept.cause()).find(std::string{__FILE__} + ':' + std::to_string(line)) != std::string::npos);
}

TEST_CASE("after wait, a group in which no task failed goes on") {
  group g{background()};
  std::atomic<int> calls = 0;
  for (int round = 1; round <= 3; ++round) {
    for (int i = 0; i < 4; ++i) CHECK(g.spawn([&](const context&) { ++calls; }));
    g.wait();
    CHECK(calls == round * 4);
    CHECK_FALSE(g.context().done());
  }
}

TEST_CASE("a group without a limit starts tasks after its end too, which see it") {
  group g{background()};
  g.spawn([](const context&) { throw failure{"failed"}; });
  CHECK(thrown_by_wait(g) != nullptr);
  bool was_done = false;
  CHECK(g.spawn([&](const context& c) { was_done = c.done(); }));
  CHECK(message_of(thrown_by_wait(g)) == "failed");
  CHECK(was_done);
}

TEST_CASE("wait and the destructor also wait for what tasks spawn, and those in turn") {
  std::atomic<int> calls = 0;
  const std::function<void(group&, int)> spawn_tree = [&](group& g, int depth) {
    g.spawn([&, depth](const context&) {
      ++calls;
      if (depth > 1) spawn_tree(g, depth - 1);
      if (depth > 1) spawn_tree(g, depth - 1);
    });
  };
  {
    group g{background()};
    spawn_tree(g, 6);
    g.wait();
    CHECK(calls == 63);
    spawn_tree(g, 6);
  }
  CHECK(calls == 126);
}

TEST_CASE("what a thread leaves behind may spawn a task when it is destroyed with the thread") {
  static std::atomic<int> calls;
  static group* the_group;
  struct last_words {
    ~last_words() {
      for (int i = 0; i < 100; ++i) std::this_thread::yield();  // so that this thread is waited for by then
      the_group->spawn([](const context&) { ++calls; });
    }
  };
  calls = 0;
  group g{background()};
  the_group = &g;
  g.spawn([](const context&) {
    thread_local const last_words words;
    ++calls;
    (void)&words;
  });
  g.wait();
  CHECK(calls == 2);
}

TEST_CASE("a task starts once the threads of those that were over are gone") {
  struct last_words {
    std::latch* speaking;
    std::atomic<bool>* over;
    ~last_words() {
      speaking->count_down();
      std::this_thread::sleep_for(50ms);
      *over = true;
    }
  };
  group g{background()};
  for (int round = 0; round < 3; ++round) {
    std::latch speaking{1};
    std::atomic<bool> over = false;
    REQUIRE(g.spawn([&](const context&) { thread_local const last_words words{&speaking, &over}; }));
    speaking.wait();  // the task is over, and its thread exits
    REQUIRE(g.spawn([](const context&) {}));
    CHECK(over);
  }
  g.wait();
}

TEST_CASE("many threads may wait at once, and each of them waits for all") {
  for (int round = 0; round < 50; ++round) {
    group g{background()};
    std::atomic<int> over = 0;
    std::atomic<int> early = 0;
    std::atomic<int> heard = 0;
    std::latch go{1};
    for (int i = 0; i < 3; ++i) {
      g.spawn([&](const context&) {
        go.wait();
        struct at_exit {
          std::atomic<int>* count;
          ~at_exit() { ++*count; }
        };
        thread_local const at_exit counter{&over};  // later than the task: what joining means
        (void)&counter;
        throw failure{"failed"};
      });
    }
    {
      std::vector<std::jthread> waiting;
      for (int i = 0; i < 4; ++i) {
        waiting.emplace_back([&] {
          if (thrown_by_wait(g) != nullptr) ++heard;
          if (over != 3) ++early;
        });
      }
      go.count_down();
    }
    CHECK(heard == 4);
    CHECK(early == 0);
  }
}

TEST_CASE("a task that waits for its own group gets an error, and may wait for another") {
  group g{background()};
  std::error_code error;
  int calls = 0;
  g.spawn([&](const context& c) {
    try {
      g.wait();
    } catch (const std::system_error& e) {
      error = e.code();
    }
    group other{c};
    other.spawn([&](const context&) { ++calls; });
    other.wait();
  });
  g.wait();
  CHECK(error == std::errc::resource_deadlock_would_occur);
  CHECK(calls == 1);
}

TEST_CASE("what a task throws in a group inside a task comes out of both") {
  group outer{background()};
  outer.spawn([](const context& c) {
    group inner{c};
    inner.spawn([](const context&) { throw failure{"deep down"}; });
    inner.wait();
  });
  CHECK(message_of(thrown_by_wait(outer)) == "deep down");
  CHECK(message_of(outer.context().cause()) == "deep down");
}

// Limits

TEST_CASE("a limit of zero is an error") {
  auto parent = ctx::with_cancel(background());
  CHECK_THROWS_AS((group{parent.ctx, 0}), std::invalid_argument);
}

TEST_CASE("as many tasks as the limit run at a time, and no more") {
  group g{background(), 3};
  std::atomic<int> running = 0;
  std::atomic<int> calls = 0;
  maximum most;
  std::barrier three{3};
  for (int i = 0; i < 30; ++i) {
    CHECK(g.spawn([&](const context&) {
      most.note(++running);
      three.arrive_and_wait();  // passed by three at a time only
      ++calls;
      --running;
    }));
  }
  g.wait();
  CHECK(most.most == 3);
  CHECK(calls == 30);
}

TEST_CASE("threads that spawn at once share the places") {
  group g{background(), 2};
  std::atomic<int> running = 0;
  std::atomic<int> calls = 0;
  maximum most;
  {
    std::vector<std::jthread> spawning;
    for (int i = 0; i < 4; ++i) {
      spawning.emplace_back([&] {
        for (int j = 0; j < 100; ++j) {
          g.spawn([&](const context&) {
            most.note(++running);
            ++calls;
            --running;
          });
        }
      });
    }
  }
  g.wait();
  CHECK(most.most <= 2);
  CHECK(calls == 400);
}

/// A thread is blocked in spawn, as far as can be told: its function was moved to where it waits.
struct arriving {
  std::latch* arrived;
  explicit arriving(std::latch* latch) : arrived{latch} {}
  arriving(arriving&& other) : arrived{other.arrived} { arrived->count_down(); }
};

TEST_CASE("a spawn that waits for a place returns false when the context ends, however it ends") {
  ctx::manual_clock time;
  const auto refused = [](const context& parent, const std::function<void(group&)>& end) {
    auto releasing = ctx::with_cancel(background());
    group g{parent, 1};
    g.spawn([&, c = releasing.ctx](const context&) {
      c.wait();  // longer than the context of the group
      if (!g.context().done()) throw failure{"the place was free first"};
    });
    std::atomic<bool> called = false;
    std::latch arrived{1};
    bool started = true;
    {
      std::jthread blocked{
          [&] { started = g.spawn([&, here = arriving{&arrived}](const context&) { called = true; }); }};
      arrived.wait();
      end(g);
    }
    CHECK_FALSE(started);
    CHECK_FALSE(g.spawn([&](const context&) { called = true; }));
    releasing.cancel();
    g.wait();
    // A free place makes no difference.
    CHECK_FALSE(g.spawn([&](const context&) { called = true; }));
    g.wait();
    CHECK_FALSE(called);
  };
  auto canceled = ctx::with_cancel(background());
  refused(canceled.ctx, [&](group&) { canceled.cancel(); });
  auto timed = ctx::with_timeout(background(), 1h);
  refused(timed.ctx, [&](group&) { time.advance(1h); });
  auto canceled_before = ctx::with_cancel(background());
  std::stop_callback callback{canceled_before.ctx.stop_token(), [] {}};
  refused(canceled_before.ctx, [&](group&) { canceled_before.cancel(); });
}

TEST_CASE("a spawn that waits for a place returns false when a task fails") {
  group g{background(), 2};
  std::latch arrived{1};
  g.spawn(until_done);
  g.spawn([&](const context&) {
    arrived.wait();
    throw failure{"failed"};
  });
  std::atomic<bool> called = false;
  CHECK_FALSE(g.spawn([&, here = arriving{&arrived}](const context&) { called = true; }));
  CHECK(message_of(thrown_by_wait(g)) == "failed");
  CHECK_FALSE(called);
}

TEST_CASE("a group with a limit whose parent is done starts nothing") {
  auto parent = ctx::with_cancel(background());
  parent.cancel();
  group g{parent.ctx, 5};
  bool called = false;
  CHECK_FALSE(g.spawn([&](const context&) { called = true; }));
  g.wait();
  CHECK_FALSE(called);
}

TEST_CASE("tasks that wait for places in their own group end with its context") {
  auto parent = ctx::with_cancel(background());
  group g{parent.ctx, 2};
  std::latch both{2};
  std::atomic<int> refused = 0;
  for (int i = 0; i < 2; ++i) {
    g.spawn([&](const context&) {
      both.arrive_and_wait();
      if (!g.spawn([](const context&) {})) ++refused;
    });
  }
  both.wait();
  parent.cancel();
  g.wait();
  CHECK(refused == 2);
}

TEST_CASE("the destructor ends a task that waits for a place") {
  std::latch arrived{1};
  std::atomic<bool> refused = false;
  {
    group g{background(), 1};
    g.spawn([&](const context&) { refused = !g.spawn([here = arriving{&arrived}](const context&) {}); });
    arrived.wait();
  }
  CHECK(refused);
}

// Faults

#if CTX_TEST_OWN_NEW
TEST_CASE("a spawn that runs out of memory leaves the group as it was") {
  for (const std::size_t limit : {std::size_t{0}, std::size_t{1}}) {
    std::optional<group> g;
    if (limit == 0) g.emplace(background());
    if (limit == 1) g.emplace(background(), limit);
    std::atomic<int> calls = 0;
    int failed = 0;
    for (bool started = false; !started;) {
      fails_in = failed + 1;
      try {
        started = g->spawn([&](const context&) { ++calls; });
        fails_in = 0;
      } catch (const std::bad_alloc&) {
        ++failed;
        CHECK(calls == 0);
      }
    }
    g->wait();
    CHECK(failed >= 3);  // the function, its thread, and the thread's place in the group
    CHECK(calls == 1);
    CHECK_FALSE(g->context().done());
  }
}

TEST_CASE("a group that runs out of memory at its making leaves its parent as it was") {
  auto parent = ctx::with_cancel(background());
  int failed = 0;
  for (bool made = false; !made;) {
    fails_in = failed + 1;
    try {
      const group g{parent.ctx, 1};
      fails_in = 0;
      made = true;
    } catch (const std::bad_alloc&) {
      ++failed;
    }
  }
  CHECK(failed > 0);
  CHECK_FALSE(parent.ctx.done());
}
#endif

TEST_CASE("a function that throws when it is copied is not started") {
  struct bad_copy {
    bad_copy() = default;
    bad_copy(const bad_copy&) { throw failure{"no copy"}; }
    void operator()(const context&) const {}
  };
  group g{background(), 1};
  const bad_copy f;
  CHECK_THROWS_AS(g.spawn(f), failure);
  CHECK(g.spawn([](const context&) {}));
  g.wait();
  CHECK_FALSE(g.context().done());
}

#if defined(__GLIBC__)
TEST_CASE("a spawn that can't start a thread says so, gives its place back, and loses nothing") {
  for (const bool limited : {false, true}) {
    std::optional<group> g;
    if (limited) g.emplace(background(), 1);
    if (!limited) g.emplace(background());
    const auto alive = std::make_shared<int>();
    {
      const no_threads here;
      for (int i = 0; i < 3; ++i) {
        CHECK_THROWS_AS(g->spawn([alive](const context&) {}), std::system_error);
      }
    }
    CHECK(alive.use_count() == 1);
    bool called = false;
    CHECK(g->spawn([&](const context&) { called = true; }));
    g->wait();
    CHECK(called);
    CHECK_FALSE(g->context().done());
  }
}

TEST_CASE("a place that one could make nothing of goes to another who waits for it") {
  group g{background(), 1};
  std::latch arrived{2};
  std::latch go{1};
  std::atomic<int> calls = 0;
  std::atomic<int> failures = 0;
  g.spawn([&](const context&) { go.wait(); });
  {
    std::vector<std::jthread> blocked;
    for (int i = 0; i < 2; ++i) {
      blocked.emplace_back([&] {
        try {
          g.spawn([&, here = arriving{&arrived}](const context&) { ++calls; });
        } catch (const std::system_error&) {
          ++failures;
        }
      });
    }
    arrived.wait();
    const no_threads here;
    go.count_down();
    blocked.clear();
  }
  CHECK(failures == 2);
  g.wait();
  CHECK(calls == 0);
}

#endif

#if defined(__GLIBC__)
TEST_CASE("a group through which many tasks go keeps none of their threads" *
          doctest::skip(sanitized)) {  // where memory is kept for other purposes
  const auto pages = [] {
    std::size_t size = 0;
    std::ifstream{"/proc/self/statm"} >> size;
    return size;
  };
  group g{background(), 4};
  const auto some = [&] {
    for (int i = 0; i < 500; ++i) g.spawn([](const context&) {});
  };
  some();
  const std::size_t before = pages();
  some();
  some();
  // The stack of a thread that is not joined is not given back. The system keeps a few for new ones.
  pthread_attr_t attributes;
  std::size_t stack = 0;
  pthread_getattr_default_np(&attributes);
  pthread_attr_getstacksize(&attributes, &stack);
  const std::size_t after = pages();
  CHECK((after > before ? after - before : 0) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) < 100 * stack);
}
#endif

// Races

constexpr int rounds = sanitized ? 300 : 2000;

/// What the rounds below find wrong, in threads and tasks.
struct findings {
  std::atomic<int> wrong = 0;
  void expect(bool holds) {
    if (!holds) ++wrong;
  }
};

TEST_CASE("spawning meets canceling, failing and waiting") {
  findings found;
  for (int round = 0; round < rounds; ++round) {
    auto parent = ctx::with_cancel(background());
    std::atomic<int> started = 0;
    std::atomic<int> called = 0;
    std::atomic<int> running = 0;
    const auto cause = std::make_exception_ptr(failure{"parent"});
    const auto error = std::make_exception_ptr(failure{"task"});
    std::exception_ptr thrown;
    std::exception_ptr why;
    {
      std::optional<group> g;
      if (round % 2 == 0) g.emplace(parent.ctx);
      if (round % 2 == 1) g.emplace(parent.ctx, 2);
      std::barrier start{4};
      const auto spawn_some = [&] {
        start.arrive_and_wait();
        for (int i = 0; i < 4; ++i) {
          const bool fails = round % 3 == 0 && i == 2;
          const bool ok = g->spawn([&, fails](const context&) {
            found.expect(++running <= 2 || round % 2 == 0);
            ++called;
            --running;
            if (fails) std::rethrow_exception(error);
          });
          if (ok) ++started;
          found.expect(ok || g->context().done());
        }
      };
      {
        std::jthread first{spawn_some};
        std::jthread second{spawn_some};
        std::jthread waiting{[&] {
          start.arrive_and_wait();
          const auto early = thrown_by_wait(*g);
          found.expect(early == nullptr || early == error);
        }};
        start.arrive_and_wait();
        if (round % 5 != 0) parent.cancel(cause);
      }
      thrown = thrown_by_wait(*g);
      found.expect(called == started);
      why = g->context().cause();
      if (round % 7 == 0) g.reset();
    }
    found.expect(thrown == nullptr || thrown == error);
    found.expect(why == nullptr || why == cause || (why == error && thrown == error));
    found.expect(round % 5 == 0 || why != nullptr);
    // Without a limit or another end, every task is called, and so the one that fails.
    found.expect(round % 3 != 0 || round % 2 != 0 || thrown == error);
  }
  CHECK(found.wrong == 0);
}

TEST_CASE("of tasks that fail at once, the one whose exception wait throws is the one that ended the context") {
  findings found;
  for (int round = 0; round < rounds / 2; ++round) {
    group g{background()};
    std::barrier start{3};
    for (int i = 0; i < 3; ++i) {
      g.spawn([&, i](const context&) {
        start.arrive_and_wait();
        throw failure{std::to_string(i)};
      });
    }
    const std::exception_ptr thrown = thrown_by_wait(g);
    found.expect(thrown != nullptr);
    found.expect(thrown == g.context().cause());
  }
  CHECK(found.wrong == 0);
}

TEST_CASE("a place that comes free meets the end of the context and others who wait for it") {
  findings found;
  for (int round = 0; round < rounds / 2; ++round) {
    auto parent = ctx::with_cancel(background());
    group g{parent.ctx, 1};
    std::latch go{1};
    std::atomic<int> started = 0;
    std::atomic<int> called = 0;
    g.spawn([&](const context&) { go.wait(); });
    {
      std::vector<std::jthread> blocked;
      for (int i = 0; i < 3; ++i) {
        blocked.emplace_back([&] {
          if (g.spawn([&](const context&) { ++called; })) ++started;
        });
      }
      go.count_down();
      if (round % 2 == 0) parent.cancel();
    }
    g.wait();
    found.expect(called == started);
    found.expect(round % 2 == 0 || called == 3);
  }
  CHECK(found.wrong == 0);
}

TEST_CASE("the end of a group meets tasks that spawn tasks") {
  findings found;
  for (int round = 0; round < rounds / 4; ++round) {
    std::atomic<int> started = 0;
    std::atomic<int> called = 0;
    {
      std::optional<group> g;
      if (round % 2 == 0) g.emplace(background());
      if (round % 2 == 1) g.emplace(background(), 3);
      group& of = *g;  // which tasks may use until it is destroyed; the optional is empty before that
      std::function<void(int)> spawn = [&](int depth) {
        const bool ok = of.spawn([&, depth](const context& c) {
          ++called;
          if (depth > 0 && !c.done()) spawn(depth - 1);
          if (depth > 0 && !c.done()) spawn(depth - 1);
        });
        if (ok) ++started;
      };
      // Two is the depth from which on three places may all be held by tasks that wait for one.
      spawn(3);
      g.reset();
    }
    found.expect(called == started);
  }
  CHECK(found.wrong == 0);
}

}  // namespace
