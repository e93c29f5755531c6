// Exists for allocations where none is promised, or more than are promised; for memory that grows without
// need; and for what breaks where memory or threads run out: every allocation of every operation fails in
// turn.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <functional>
#include <latch>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include "no_threads.hpp"

#include <sys/wait.h>
#include <unistd.h>
#endif
#if defined(_WIN32)
#include <malloc.h>
#endif

namespace {

std::atomic<long> allocations = 0;   // made so far, by all threads
std::atomic<long> live = 0;          // of these, not yet freed
std::atomic<long> fails_in = 0;      // so many allocations from now, one fails; zero: none does
std::atomic<bool> fails_on = false;  // and so do all that follow
std::atomic<long> failures = 0;      // so far

bool fails() {
  const long turn = fails_in;
  if (turn > 1) --fails_in;
  if (turn == 1 && !fails_on) fails_in = 0;
  if (turn == 1) ++failures;
  return turn == 1;
}

#if defined(_WIN32)
void* aligned(std::size_t size, std::size_t alignment) { return ::_aligned_malloc(size, alignment); }
void free_aligned(void* memory) noexcept { ::_aligned_free(memory); }
#else
void* aligned(std::size_t size, std::size_t alignment) {
  return std::aligned_alloc(alignment, (size / alignment + 1) * alignment);
}
void free_aligned(void* memory) noexcept { std::free(memory); }
#endif

void* allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* const memory = fails() ? nullptr : aligned(size, alignment);
  if (memory == nullptr) throw std::bad_alloc{};
  ++live;
  return memory;
}

void deallocate(void* memory) noexcept {
  if (memory != nullptr) --live;
  free_aligned(memory);
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { deallocate(memory); }
void operator delete(void* memory, std::size_t) noexcept { deallocate(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { deallocate(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { deallocate(memory); }

namespace {

using namespace std::chrono_literals;
using ctx::after_func;
using ctx::background;
using ctx::cancel_scope;
using ctx::context;
using ctx::errc;
using ctx::merge;
using ctx::with_cancel;
using ctx::with_deadline;
using ctx::with_stop_token;
using ctx::with_timeout;
using ctx::with_value;
using ctx::without_cancel;

/// How many allocations `f` makes, on any thread.
long count(auto&& f) {
  const long before = allocations;
  f();
  return allocations - before;
}

/// While it lives, the n-th allocation fails, or all from that one on.
enum class mode { once, from_then_on };
class failing {
 public:
  failing(long n, mode how) {
    fails_on = how == mode::from_then_on;
    fails_in = n;
  }
  failing(const failing&) = delete;
  failing& operator=(const failing&) = delete;
  ~failing() { fails_in = 0; }
};

constexpr ctx::key<int> number{"number"};
constexpr ctx::key<std::string> text{"text"};
struct header {
  using context_value = std::string;
  std::string name;
  bool operator==(const header&) const = default;
};
constexpr const char* long_text = "too long to be kept inside of a string object";

context kept(cancel_scope scope) {
  scope.cancel.release();
  return std::move(scope.ctx);
}

// What the first use in a process allocates. These tests come first, as they need a process in which
// nothing was used yet: a fork of this one.

#if defined(__GLIBC__)
/// The status with which a child process ends that exits with the result of `f`; -1 where it crashes.
int in_fresh_process(auto f) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // not doctest's handler
    ::_exit(f());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool expires() {
  auto [c, cancel] = with_timeout(background(), 1ms);
  c.wait();
  return c.err() == errc::deadline_exceeded;
}

TEST_CASE("the first wait of a process allocates nothing") {
  CHECK(in_fresh_process([] { return count([] { background().wait_for(1ms); }) == 0; }) == 1);
  CHECK(in_fresh_process([] {
          auto [c, cancel] = with_cancel(background());
          return count([&, &c = c] { c.wait_for(1ms); }) == 0;
        }) == 1);
}

TEST_CASE("each allocation that the first deadline or clock of a process makes may fail") {
  enum outcome : int { broken, recovered, succeeded };
  void (*const uses[])(){[] { static_cast<void>(with_timeout(background(), 1h)); },
                         [] { const ctx::manual_clock clock; }, [] { ctx::manual_clock{}.advance(1h); }};
  for (const auto use : uses) {
    for (const mode how : {mode::once, mode::from_then_on}) {
      int ended = recovered;
      for (int n = 1; ended == recovered && n < 100; ++n) {
        CAPTURE(n);
        ended = in_fresh_process([&] {
          bool failed = false;
          try {
            const failing now{n, how};
            use();
          } catch (const std::bad_alloc&) {
            failed = true;
          }
          return !expires() ? broken : failed ? recovered : succeeded;
        });
        CHECK(ended >= recovered);
      }
      CHECK(ended == succeeded);
    }
  }
}

TEST_CASE("where the timer's thread can't be started, the first deadline says so and leaves nothing") {
  CHECK(in_fresh_process([] {
          auto [parent, cancel] = with_cancel(background());
          const context sibling = kept(with_cancel(parent));
          bool refused = false;
          for (int i = 0; i < 2; ++i) {
            const no_threads here;
            try {
              static_cast<void>(with_timeout(parent, 1h));
            } catch (const std::system_error&) {
              refused = true;
            }
          }
          const bool as_it_was = !parent.done() && !parent.deadline() && !sibling.done();
          return refused && as_it_was && expires() && cancel() && sibling.done();
        }) == 1);
}

TEST_CASE("where no thread can be started, a function runs on the canceling thread") {
  auto [c, cancel] = with_cancel(background());
  std::vector<std::thread::id> ran_on;
  std::optional<ctx::after_func_handle> h{after_func(c, [&] {
    ran_on.push_back(std::this_thread::get_id());
    h.reset();  // its own handle
  })};
  const no_threads here;
  CHECK_THROWS_AS(std::thread{[] {}}.join(), std::system_error);
  cancel();
  {
    auto at_once = after_func(c, [&] { ran_on.push_back(std::this_thread::get_id()); });
  }
  CHECK(ran_on == std::vector(2, std::this_thread::get_id()));
}

TEST_CASE("the handle waits for a function that runs on the canceling thread") {
  auto [c, cancel] = with_cancel(background());
  std::latch started{1}, ready{1}, go{1};
  std::atomic<int> steps = 0;
  std::optional h{after_func(c, [&] {
    started.count_down();
    for (int i = 0; i < 1000; ++i) ++steps, std::this_thread::yield();
  })};
  const std::jthread canceling{[&, &cancel = cancel] { ready.count_down(), go.wait(), cancel(); }};
  ready.wait();
  const no_threads here;
  go.count_down();
  started.wait();
  h.reset();
  CHECK(steps == 1000);
}

TEST_CASE("where no thread can be started, the function of a deadline runs on the timer's, which goes on") {
  ctx::manual_clock clock;
  std::thread::id timers, ran_on;
  bool was_done = false;
  const context c = kept(with_timeout(background(), 1h)), next = kept(with_timeout(background(), 2h));
  const auto h = after_func(c, [&] { ran_on = std::this_thread::get_id(), was_done = c.done() && !next.done(); });
  const std::stop_callback on_next{next.stop_token(), [&] { timers = std::this_thread::get_id(); }};
  const no_threads here;
  clock.advance(2h);
  CHECK(was_done);
  CHECK(ran_on != std::this_thread::get_id());
  CHECK(ran_on == timers);
}
#endif

// How much

/// Starts the timer.
void warm_up() { static_cast<void>(with_timeout(background(), 1h)); }

TEST_CASE("deriving allocates no more than it promises") {
  warm_up();
  const auto made_by = [](auto derive) {
    std::optional<std::decay_t<decltype(derive())>> made;
    return count([&] { made.emplace(derive()); });
  };
  CHECK(made_by([] { return background(); }) == 0);
  CHECK(made_by([] { return ctx::todo(); }) == 0);
  // The first and second child of one that is fresh, of a child, and of one that is done.
  auto [fresh, cancel_fresh] = with_cancel(background());
  auto [other, cancel_other] = with_cancel(fresh);
  auto [done, cancel_done] = with_cancel(background());
  cancel_done();
  std::vector<context> parents{background(), fresh, fresh, other, done, with_value(other, number, 1)};
  const auto in_an_hour = ctx::clock::now() + 1h;
  for (const context& parent : parents) {
    CHECK(made_by([&] { return with_cancel(context{kept(with_cancel(parent))}); }) <= 4);
    CHECK(made_by([&] { return with_cancel(parent); }) <= 2);
    CHECK(made_by([&] { return with_timeout(parent, 1h); }) <= 2);
    CHECK(made_by([&] { return with_timeout(parent, 0s); }) <= 2);
    CHECK(made_by([&] { return with_deadline(parent, in_an_hour); }) <= 2);
    CHECK(made_by([&] { return with_value(parent, number, 1); }) == 1);
    CHECK(made_by([&] { return with_value(parent, text, long_text); }) == 2);
    CHECK(made_by([&, given = std::string{long_text}]() mutable {
            return with_value(parent, text, std::move(given));
          }) == 1);
    CHECK(made_by([&, key = header{long_text}, given = std::string{long_text}]() mutable {
            return with_value(parent, std::move(key), std::move(given));
          }) == 1);
    CHECK(made_by([&] { return without_cancel(parent); }) <= 1);
  }
  // What the first child needs, the others have; and where the parent is done, nobody needs it.
  for (const context& parent : {fresh, other, done}) {
    CHECK(made_by([&] { return with_cancel(parent); }) == 1);
    CHECK(made_by([&] { return with_timeout(parent, 1h); }) == 1);
  }
  auto [childless, cancel] = with_cancel(background());
  CHECK(made_by([&, &childless = childless] { return with_timeout(childless, 1h); }) <= 2);
}

TEST_CASE("copying, moving, asking and waiting allocate nothing") {
  warm_up();
  auto [c, cancel] = with_timeout(with_value(background(), header{long_text}, "value"), 1h);
  auto [done, cancel_done] = with_cancel(c);
  cancel_done(std::runtime_error{"cause"});
  static_cast<void>(c.stop_token()), static_cast<void>(done.stop_token());
  const header key{long_text};
  bool met = true;
  for (const context* each : {&c, &done}) {
    CHECK(count([&] {
            context copy = *each, moved = std::move(copy);
            copy = moved;
            std::swap(copy, moved);
            const bool ended = copy.done();
            if (!ended) copy.throw_if_done();
            met = met && copy == *each && ended == (each == &done);
            met = met && static_cast<bool>(copy.err()) == ended && (copy.cause() != nullptr) == ended;
            met = met && copy.deadline() && copy.remaining() > 0s && copy.stop_token().stop_possible();
            met = met && copy.value(key) != nullptr && copy.value(number) == nullptr;
            met = met && copy.wait_for(1us) == ended && copy.wait_until(ctx::clock::now()) == ended;
          }) == 0);
  }
  CHECK(met);
}

TEST_CASE("the token of a context is allocated once, at its first call") {
  auto [parent, cancel] = with_cancel(background());
  const context live_child = kept(with_cancel(parent)), late = kept(with_cancel(parent));
  CHECK(count([&] { static_cast<void>(live_child.stop_token()); }) <= 1);
  CHECK(count([&] { static_cast<void>(live_child.stop_token()); }) == 0);
  CHECK(count([] { static_cast<void>(background().stop_token()); }) == 0);
  cancel();
  CHECK(count([&] { static_cast<void>(live_child.stop_token()); }) == 0);
  CHECK(count([&] { static_cast<void>(late.stop_token()); }) <= 1);
  CHECK(count([&] { static_cast<void>(late.stop_token()); }) == 0);
}

/// A tree of every kind of context, with tokens, callbacks and somebody who waits.
struct tree {
  std::stop_source source;
  cancel_scope root, driven;
  std::vector<context> below;
  std::vector<std::unique_ptr<std::stop_callback<void (*)()>>> callbacks;

  explicit tree(cancel_scope root_) : root{std::move(root_)}, driven{with_stop_token(root.ctx, source.get_token())} {
    for (int i = 0; i < 50; ++i) {
      const context parent = i < 3 ? driven.ctx : below[static_cast<std::size_t>(i) / 3];
      below.push_back(kept(with_cancel(parent)));
      below.push_back(kept(merge(parent, below.back())));
      below.push_back(with_value(kept(with_timeout(parent, 2h)), text, long_text));
      below.push_back(without_cancel(parent));
    }
    for (std::size_t i = 0; i < below.size(); i += 3)
      callbacks.push_back(std::make_unique<std::stop_callback<void (*)()>>(below[i].stop_token(), [] {}));
  }
};

TEST_CASE("canceling, expiring and destroying allocate nothing, and do without memory") {
  ctx::manual_clock clock;
  const auto cause = std::make_exception_ptr(std::runtime_error{"cause"});
  const auto check_frugal = [](tree& t, auto end) {
    const std::jthread waiting{[c = t.below.front()] { c.wait(); }};
    CHECK(count([&] {
            const failing now{1, mode::from_then_on};
            end(t);
          }) == 0);
  };
  for (int round = 0; round < 3; ++round) {
    tree canceled{with_cancel(background())}, expired{with_timeout(background(), 1h)};
    tree stopped{with_cancel(background())}, dropped{with_cancel(background())};
    std::optional gone{tree{with_timeout(background(), 1h)}};
    check_frugal(canceled, [&](tree& t) {
      round == 0 ? t.root.cancel() : round == 1 ? t.root.cancel(nullptr) : t.root.cancel(cause);
    });
    check_frugal(stopped, [&](tree& t) { t.source.request_stop(); });
    check_frugal(expired, [&](tree&) { clock.advance(1h); });
    check_frugal(dropped, [&](tree& t) { t.root = {}; });
    CHECK(count([&] {
            const failing now{1, mode::from_then_on};
            gone.reset();
            for (tree* each : {&canceled, &stopped, &expired, &dropped}) {
              each->root.cancel.release();
              each->root = {};
              each->driven = {};
              each->below.clear();
            }
          }) == 0);
  }
}

TEST_CASE("a parent, the timer and a token that live long do not grow") {
  ctx::manual_clock clock;
  std::stop_source source;
  auto [parent, cancel] = with_cancel(background());
  const auto come_and_go = [&, &parent = parent] {
    const auto a = with_cancel(parent), b = with_timeout(parent, 1h), c = with_timeout(parent, 1ns);
    const auto d = with_stop_token(parent, source.get_token()), e = merge(parent, a.ctx);
    const auto f = merge(background(), with_value(parent, text, long_text));
    auto h = after_func(parent, [] {}), stopped = after_func(a.ctx, [] {});
    stopped.stop();
    b.cancel();
    clock.advance(1ns);
    return static_cast<long>(live);
  };
  come_and_go();
  const long before = live, amid = come_and_go();
  for (int i = 0; i < 1000; ++i) REQUIRE(come_and_go() == amid);
  CHECK(live == before);
}

// When memory runs out

/// What may fail, and must have no effect then. Whatever it makes is gone when it returns.
struct operation {
  const char* name;
  std::function<void(const context& parent)> run;
};
const std::vector<operation>& operations() {
  static const context other = kept(with_cancel(background()));
  static const auto ignore = [](auto&&...) {};
  static const std::vector<operation> all{
      {"with_cancel", [](const context& c) { ignore(with_cancel(c)); }},
      {"with_timeout", [](const context& c) { ignore(with_timeout(c, 1h)); }},
      {"with_timeout, past", [](const context& c) { ignore(with_timeout(c, 0s)); }},
      {"with_deadline", [](const context& c) { ignore(with_deadline(c, ctx::clock::now() + 30min)); }},
      {"with_stop_token", [](const context& c) { ignore(with_stop_token(c, other.stop_token())); }},
      {"merge, first", [](const context& c) { ignore(merge(c, other)); }},
      {"merge, second", [](const context& c) { ignore(merge(other, c)); }},
      {"merge, both", [](const context& c) { ignore(merge(c, c)); }},
      {"with_value", [](const context& c) { ignore(with_value(c, number, 1)); }},
      {"with_value, which allocates", [](const context& c) { ignore(with_value(c, text, long_text)); }},
      {"with_value, key too", [](const context& c) { ignore(with_value(c, header{long_text}, long_text)); }},
      {"without_cancel", [](const context& c) { ignore(without_cancel(c)); }},
      {"stop_token", [](const context& c) { ignore(c.stop_token()); }},
      {"after_func", [](const context& c) { ignore(after_func(c, [] {})); }},
      {"after_func, which allocates", [](const context& c) { ignore(after_func(c, [s = std::string{long_text}] {})); }},
      {"after_func, which runs",
       [](const context& c) {
         const auto scope = with_cancel(c);
         std::atomic<int> calls = 0;
         {
           const auto h = after_func(scope.ctx, [&] { ++calls; });
           scope.cancel();
         }
         CHECK_UNARY(calls <= 1);
       }},
      {"to_string", [](const context& c) { ignore(to_string(c)); }},
      {"to a stream", [](const context& c) { ignore(std::ostringstream{} << c); }},
      {"cause", [](const context& c) { CHECK_UNARY((c.cause() != nullptr) == c.done()); }},
      {"throw_if_done",
       [](const context& c) {
         bool threw = false;
         try {
           c.throw_if_done();
         } catch (...) {
           threw = true;
         }
         CHECK_UNARY(threw == c.done());
       }},
      {"cancel, with a cause",
       [](const context& c) {
         static const std::runtime_error cause{long_text};
         const auto scope = with_cancel(c);
         CHECK_UNARY(scope.cancel(cause) != c.done());
         CHECK_UNARY(scope.ctx.cause() != nullptr);
       }},
      {"wait", [](const context& c) { CHECK_UNARY(c.wait_for(0s) == c.done()); }},
      {"merges of merges",
       [](const context& c) {
         const auto a = merge(c, other), b = merge(other, a.ctx), d = merge(a.ctx, b.ctx), e = merge(d.ctx, d.ctx);
         ignore(e.ctx.stop_token());
         a.cancel();
         CHECK_UNARY(e.ctx.done());
       }},
      {"a stack of all", [](const context& c) {
         const auto a = with_cancel(c);
         const auto b = with_timeout(with_value(a.ctx, text, long_text), 1h);
         const auto d = merge(with_stop_token(b.ctx, other.stop_token()).ctx, without_cancel(b.ctx));
         const auto e = with_timeout(d.ctx, 0s);
         ignore(e.ctx.stop_token(), d.ctx.stop_token(), a.ctx.stop_token());
         const auto f = with_cancel(a.ctx);
         a.cancel();
         CHECK_UNARY(f.ctx.done());
       }}};
  return all;
}

/// The parents on which they are tried.
struct situation {
  const char* name;
  std::function<cancel_scope()> make;
};
const std::vector<situation>& situations() {
  static const std::vector<situation> all{{"background",
                                           [] {
                                             return cancel_scope{background(), {}};
                                           }},
                                          {"fresh", [] { return with_cancel(background()); }},
                                          {"without_cancel",
                                           [] {
                                             return cancel_scope{without_cancel(with_cancel(background()).ctx), {}};
                                           }},
                                          {"value",
                                           [] {
                                             auto scope = with_cancel(background());
                                             scope.ctx = with_value(scope.ctx, number, 7);
                                             return scope;
                                           }},
                                          {"with a deadline", [] { return with_timeout(background(), 1h); }},
                                          {"with a token",
                                           [] {
                                             auto scope = with_cancel(background());
                                             static_cast<void>(scope.ctx.stop_token());
                                             return scope;
                                           }},
                                          {"canceled", [] {
                                             auto scope = with_cancel(background());
                                             scope.cancel();
                                             return scope;
                                           }}};
  return all;
}

/// Runs `run` with the n-th allocation failing, and checks that nothing came of it. True where it made
/// fewer than n, and so was not disturbed.
bool undisturbed(const situation& where, const operation& what, long n, mode how) {
  bool as_it_was = true;
  const long before = live, failures_before = failures;
  {
    auto [parent, cancel] = where.make();
    const context sibling = kept(with_cancel(parent));
    const bool done = parent.done();
    const auto deadline = parent.deadline();
    try {
      const failing now{n, how};
      what.run(parent);
    } catch (const std::bad_alloc&) {
    }
    as_it_was = parent.done() == done && static_cast<bool>(parent.err()) == done && parent.deadline() == deadline &&
                sibling.done() == done;
    // It can be used as ever.
    const context child = kept(with_cancel(parent));
    const bool can_end = cancel();
    as_it_was = as_it_was && child.done() == (can_end || done) && sibling.done() == (can_end || done) &&
                child.stop_token().stop_requested() == child.done();
  }
  const long after = live;
  CHECK(as_it_was);
  CHECK(after == before);
  return failures == failures_before;
}

TEST_CASE("an allocation that fails, whichever it is, leaves everything as it was and leaks nothing") {
  const ctx::manual_clock clock;
  warm_up();
  for (const auto& where : situations()) {
    for (const auto& what : operations()) {
      what.run(background());  // what is made once a process is made now
      for (const mode how : {mode::once, mode::from_then_on}) {
        CAPTURE(where.name);
        CAPTURE(what.name);
        long n = 1;
        while (n < 100 && !undisturbed(where, what, n, how)) ++n;
        CHECK(n < 100);
      }
    }
  }
}

TEST_CASE("a cause is never null after the end, and comes with the memory for it") {
  auto [c, cancel] = with_cancel(background());
  auto [given, cancel_given] = with_cancel(background());
  const auto cause = std::make_exception_ptr(std::runtime_error{"cause"});
  cancel();
  cancel_given(cause);
  std::exception_ptr meanwhile, meanwhile_given;
  {
    const failing now{1, mode::from_then_on};
    meanwhile = c.cause();
    meanwhile_given = given.cause();
  }
  CHECK(meanwhile != nullptr);
  CHECK(meanwhile_given == cause);
  CHECK_THROWS_AS(c.throw_if_done(), std::system_error);
  CHECK(c.cause() == c.cause());
}

TEST_CASE("a cause that nobody gave is made once, for all that ended by it") {
  auto [c, cancel] = with_cancel(background());
  const context child = kept(with_cancel(c));
  cancel();
  const std::exception_ptr cause = child.cause();
  bool same = false;
  CHECK(count([&] { same = c.cause() == cause && child.cause() == cause; }) == 0);
  CHECK(same);
}

/// Can be copied only, which takes memory, and so has a move that throws.
struct copied {
  std::string text = long_text;
  copied() = default;
  copied(const copied&) = default;
};

TEST_CASE("a cause that can't be copied for want of memory cancels all the same") {
  for (const mode how : {mode::once, mode::from_then_on}) {
    for (long n = 2; n < 6; ++n) {  // the first one is the caller's, for the argument
      auto [c, cancel] = with_cancel(background());
      const long before = failures;
      const copied cause;
      bool did_it = false;
      {
        const failing now{n, how};
        did_it = cancel(cause);
      }
      CHECK(did_it);
      CHECK(c.err() == errc::canceled);
      if (failures == before)
        CHECK_THROWS_AS(c.throw_if_done(), copied);
      else
        CHECK_THROWS_AS(c.throw_if_done(), std::bad_alloc);
    }
  }
}

TEST_CASE("a function for which no thread can be allocated runs on the canceling thread") {
  auto [c, cancel] = with_cancel(background());
  std::thread::id ran_on;
  const auto h = after_func(c, [&] { ran_on = std::this_thread::get_id(); });
  {
    const failing now{1, mode::from_then_on};
    cancel();
  }
  CHECK(ran_on == std::this_thread::get_id());
}

}  // namespace
