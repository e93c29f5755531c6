// Exists for what goes wrong when the surroundings do: a system clock that jumps by years takes deadlines
// with it; a signal ends a wait; a callback that blocks the timer's thread holds up what does not need it,
// or lets pass what it should hold up; a callback that throws ends the process without a word.
//
// Where memory and threads run out: see allocation_test.cpp. Forks: see fork_test.cpp; exits: process_test.cpp.
//
// The system's clock is interposed here, so that it can be set without being so.

#include "process/check.hpp"

#include <ctx/context.hpp>

#include <doctest/doctest.h>

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <latch>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

/// By so many seconds the system's clock was set ahead.
constinit std::atomic<std::int64_t> system_is_ahead{0};

/// How often it was read.
constinit std::atomic<int> readings{0};

}  // namespace

// Sanitizers call what is interposed before they are ready for code that they watch.
extern "C" [[gnu::visibility("default")]] __attribute__((no_sanitize("address", "thread", "undefined"))) int
clock_gettime(clockid_t which, timespec* time) noexcept {
  const auto result = static_cast<int>(::syscall(SYS_clock_gettime, which, time));
  if (which == CLOCK_REALTIME) {
    time->tv_sec += system_is_ahead.load();
    ++readings;
  }
  return result;
}

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
using ctx::with_timeout;
using std::chrono::steady_clock;
using std::chrono::system_clock;
using std::chrono::years;

// The system's clock

/// Sets the system's clock, until the end of its scope.
class jump {
 public:
  explicit jump(std::chrono::seconds ahead) { system_is_ahead = ahead.count(); }
  jump(const jump&) = delete;
  jump& operator=(const jump&) = delete;
  ~jump() { system_is_ahead = 0; }
};

constexpr std::array<std::chrono::seconds, 4> jumps{years{20}, -years{20}, 1h, -1h};

TEST_CASE("the system's clock can be set here") {
  const auto before = system_clock::now();
  const jump ahead{years{20}};
  CHECK(system_clock::now() >= before + years{20});
}

TEST_CASE("deadlines by the system's clock pass when they were to, wherever that jumps meanwhile") {
  for (const auto ahead : jumps) {
    const auto start = steady_clock::now();
    auto far = with_deadline(background(), system_clock::now() + 1000h);
    auto soon = with_deadline(background(), system_clock::now() + 20ms);
    auto below = with_deadline(far.ctx, system_clock::now() + 30ms);
    const auto deadline = far.ctx.deadline();
    const jump now{ahead};
    soon.ctx.wait();
    CHECK(steady_clock::now() >= start + 20ms);
    below.ctx.wait();
    CHECK(steady_clock::now() >= start + 30ms);
    for (const auto* each : {&soon, &below}) CHECK(each->ctx.err() == errc::deadline_exceeded);
    CHECK_FALSE(far.ctx.done());
    CHECK(far.ctx.deadline() == deadline);
    CHECK(far.ctx.remaining() <= 1000h);
    CHECK(far.ctx.remaining() > 999h);
    CHECK(far.cancel());
  }
}

TEST_CASE("a wait for a time of the system's clock ends when it was to, wherever that jumps meanwhile") {
  for (const auto ahead : jumps) {
    steady_clock::time_point start, ended;
    bool result = true;
    {
      readings = 0;
      const std::jthread waiting{[&] {
        start = steady_clock::now();
        result = background().wait_until(system_clock::now() + 20ms);
        ended = steady_clock::now();
      }};
      // Once by the thread, and once by the wait, which then knows how long that is.
      while (readings < 2) std::this_thread::yield();
      const jump now{ahead};
      while (steady_clock::now() < start + 20ms) std::this_thread::yield();
    }
    CHECK_FALSE(result);
    CHECK(ended >= start + 20ms);
  }
}

TEST_CASE("what is left of a time by the system's clock is what that shows at the call") {
  const auto deadline = system_clock::now() + 1h;
  {
    const jump now{years{20}};
    CHECK(with_deadline(background(), deadline).ctx.err() == errc::deadline_exceeded);
    CHECK_FALSE(background().wait_until(deadline));
  }
  {
    const jump now{-years{20}};
    auto scope = with_deadline(background(), deadline);
    CHECK(scope.ctx.remaining() > years{19});
    CHECK(scope.ctx.remaining() <= years{20} + 1h);
  }
  auto scope = with_deadline(background(), deadline);
  CHECK(scope.ctx.remaining() <= 1h);
  CHECK(scope.ctx.remaining() > 30min);
}

// Signals

std::atomic<int> signals_handled{0};

/// While it lives, SIGUSR1 is handled, and interrupts what it can.
class interrupting {
 public:
  interrupting() {
    struct sigaction action {};
    action.sa_handler = [](int) { ++signals_handled; };
    ::sigaction(SIGUSR1, &action, &before_);
  }
  interrupting(const interrupting&) = delete;
  interrupting& operator=(const interrupting&) = delete;
  ~interrupting() { ::sigaction(SIGUSR1, &before_, nullptr); }

 private:
  struct sigaction before_ {};
};

/// Has `thread` handle a signal, and returns once it has.
void interrupt(pthread_t thread) {
  const int before = signals_handled;
  ::pthread_kill(thread, SIGUSR1);
  while (signals_handled == before) std::this_thread::yield();
}

TEST_CASE("a wait goes on where a signal interrupts it, until the context is done") {
  const interrupting handled;
  const std::function<void(const context&)> waits[]{[](const context& c) { c.wait(); },
                                                    [](const context& c) { c.wait_for(1h); }};
  for (const auto& wait : waits) {
    for (const bool below : {false, true}) {
      auto [parent, cancel] = with_cancel(background());
      auto [merged, cancel_merged] = merge(background(), parent);
      const context& c = below ? merged : parent;
      bool was_done = false;
      std::latch starting{1};
      {
        std::jthread waiting{[&, &parent = parent] {
          starting.count_down();
          wait(c);
          was_done = c.done();
          // Where it came too early, it takes the rest of the signals here.
          while (!parent.done()) std::this_thread::yield();
        }};
        starting.wait();
        for (int i = 0; i < 100; ++i) interrupt(waiting.native_handle());
        cancel();
      }
      CHECK(was_done);
    }
  }
}

TEST_CASE("a timed wait that signals interrupt is not early") {
  const interrupting handled;
  int interrupted = 0;
  auto [far, cancel] = with_timeout(background(), 1h);
  for (int round = 0; interrupted < 10 && round < 1000; ++round) {
    const context& c = round % 2 != 0 ? far : background();
    std::latch starting{1};
    std::atomic<bool> over = false;
    bool result = true, early = false;
    std::jthread waiting{[&] {
      const auto until = steady_clock::now() + 2ms;
      starting.count_down();
      const int before = signals_handled;
      result = c.wait_until(until);
      early = steady_clock::now() < until;
      if (signals_handled > before + 1) ++interrupted;
      over = true;
    }};
    starting.wait();
    while (!over) ::pthread_kill(waiting.native_handle(), SIGUSR1);
    waiting.join();
    REQUIRE_FALSE(result);
    REQUIRE_FALSE(early);
  }
  CHECK(interrupted > 0);
}

TEST_CASE("whoever waits for a function to end waits on where a signal interrupts that") {
  const interrupting handled;
  auto [c, cancel] = with_cancel(background());
  std::latch ready{1};
  std::atomic<bool> release = false, ended = false;
  bool was_over = false;
  std::optional h{after_func(c, [&] {
    ready.count_down();
    release.wait(false);
    ended = true;
  })};
  cancel();
  ready.wait();
  std::latch destroying{1};
  {
    std::jthread owner{[&] {
      destroying.count_down();
      h.reset();
      was_over = ended;
      while (!release) std::this_thread::yield();
    }};
    destroying.wait();
    for (int i = 0; i < 100; ++i) interrupt(owner.native_handle());
    release = true;
    release.notify_all();
  }
  CHECK(was_over);
}

// A callback that blocks

/// A callback on a deadline that blocks the timer's thread, until it is released.
class blocked_timer {
 public:
  blocked_timer() {
    // Where the deadline had passed before the callback was there, that runs here, and must not block.
    for (auto timeout = 1ms; !blocks_; timeout *= 2) {
      const auto here = std::this_thread::get_id();
      callback_.reset();
      scope_.emplace(with_timeout(background(), timeout));
      called_ = false;
      callback_.emplace(scope_->ctx.stop_token(), [this, here] {
        blocks_ = std::this_thread::get_id() != here;
        called_ = true;
        called_.notify_all();
        if (blocks_) released_.wait(false);
        over_ = true;
      });
      called_.wait(false);
    }
  }
  blocked_timer(const blocked_timer&) = delete;
  blocked_timer& operator=(const blocked_timer&) = delete;
  ~blocked_timer() { release(); }

  void release() noexcept {
    released_ = true;
    released_.notify_all();
  }
  bool over() const noexcept { return over_; }
  const context& ctx() const noexcept { return scope_->ctx; }

 private:
  std::atomic<bool> called_ = false, blocks_ = false, released_ = false, over_ = false;
  std::optional<cancel_scope> scope_;
  std::optional<std::stop_callback<std::function<void()>>> callback_;  // last: waits for the callback to return
};

TEST_CASE("deadlines that fall due while a callback blocks the timer are late until it returns, and keep their order") {
  std::deque<std::pair<int, bool>> ended;
  std::deque<std::stop_callback<std::function<void()>>> callbacks;
  std::vector<cancel_scope> scopes;
  std::latch all_ended{10};
  blocked_timer blocked;
  for (int i = 10; i > 0; --i) {
    scopes.push_back(with_timeout(background(), i * 1ms));
    callbacks.emplace_back(scopes.back().ctx.stop_token(), [&, i] {
      ended.emplace_back(i, blocked.over());
      all_ended.count_down();
    });
  }
  // Their time comes, and passes.
  CHECK_FALSE(background().wait_for(15ms));
  for (const auto& each : scopes) {
    CHECK(each.ctx.remaining() == 0s);
    CHECK_FALSE(each.ctx.done());
    CHECK_FALSE(each.ctx.err());
    CHECK_FALSE(each.ctx.wait_for(100us));
  }
  CHECK_FALSE(blocked.over());
  blocked.release();
  all_ended.wait();
  REQUIRE(ended.size() == scopes.size());
  for (int i = 0; i < 10; ++i) CHECK(ended[static_cast<std::size_t>(i)] == std::pair{i + 1, true});
  for (const auto& each : scopes) CHECK(each.ctx.err() == errc::deadline_exceeded);
}

// Each of these would never return if it had to wait for the timer.
TEST_CASE("a callback that blocks the timer's thread holds up nothing that does not need that thread") {
  auto before = with_timeout(background(), 1h);
  blocked_timer blocked;
  auto below = with_cancel(blocked.ctx());
  CHECK(blocked.ctx().err() == errc::deadline_exceeded);
  CHECK(below.ctx.done());

  const auto start = steady_clock::now();
  CHECK_FALSE(background().wait_for(2ms));
  CHECK_FALSE(before.ctx.wait_until(system_clock::now() + 2ms));
  CHECK(steady_clock::now() >= start + 4ms);

  auto due = with_timeout(background(), 1ms);
  background().wait_for(2ms);
  bool did_it = false;
  std::thread{[&] { did_it = due.cancel(std::runtime_error{"on another thread"}); }}.join();
  CHECK(did_it);
  CHECK(due.ctx.err() == errc::canceled);
  CHECK_THROWS_AS(due.ctx.throw_if_done(), std::runtime_error);

  CHECK(with_timeout(background(), 0s).ctx.err() == errc::deadline_exceeded);
  auto armed = with_timeout(before.ctx, 1ms);
  auto merged = merge(armed.ctx, before.ctx);
  const auto waited_for = std::jthread{[c = merged.ctx] { c.wait(); }};
  std::latch ran{1};
  const auto function = after_func(merged.ctx, [&] { ran.count_down(); });
  int calls = 0;
  const std::stop_callback callback{merged.ctx.stop_token(), [&] { ++calls; }};
  CHECK(before.cancel());
  ran.wait();
  CHECK(calls == 1);
  for (const auto* each : {&armed, &merged}) CHECK(each->ctx.err() == errc::canceled);
  for (int i = 0; i < 1000; ++i) with_timeout(background(), 10us).cancel();
  CHECK_FALSE(blocked.over());
}

// A callback that throws

/// How a child ends that calls `body`, and what it says on stderr.
std::pair<int, std::string> last_words(const std::function<void()>& body) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = fork_here();
  if (child == 0) {
    ::signal(SIGABRT, SIG_DFL);  // not doctest's handler
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    die_after_a_minute();
    ::dup2(ends[1], STDERR_FILENO);
    body();
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t size = 0; (size = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    said.append(buffer, static_cast<std::size_t>(size));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return {WIFSIGNALED(status) ? WTERMSIG(status) : 0, said};
}

[[noreturn]] void fail() { throw std::runtime_error{"the disk is full"}; }

TEST_CASE("what a callback, a function or the destructor of a value throws ends the process, which says what it was") {
  struct throws_when_destroyed {
    ~throws_when_destroyed() { fail(); }
  };
  static constexpr ctx::key<std::optional<throws_when_destroyed>> fatal{"fatal"};
  const std::pair<const char*, std::function<void()>> ways[]{
      {"cancel",
       [] {
         auto [c, cancel] = with_cancel(background());
         const std::stop_callback callback{c.stop_token(), fail};
         cancel();
       }},
      {"cancel above",
       [] {
         auto [parent, cancel] = with_cancel(background());
         auto [c, cancel_child] = with_cancel(parent);
         const std::stop_callback callback{c.stop_token(), fail};
         cancel();
       }},
      {"the end of a scope",
       [] {
         std::optional scope{with_cancel(background())};
         const std::stop_callback callback{scope->ctx.stop_token(), fail};
         scope.reset();
       }},
      {"a deadline",
       [] {
         auto [c, cancel] = with_timeout(background(), 10ms);
         const std::stop_callback callback{c.stop_token(), fail};
         background().wait_for(1h);
       }},
      {"a registration on a context that is done",
       [] {
         auto [c, cancel] = with_timeout(background(), 0s);
         const std::stop_callback callback{c.stop_token(), fail};
       }},
      {"a function",
       [] {
         auto [c, cancel] = with_cancel(background());
         const auto h = after_func(c, fail);
         cancel();
         background().wait_for(1h);
       }},
      {"a value", [] { static_cast<void>(with_value(background(), fatal, std::in_place)); }},
  };
  for (const auto& [name, way] : ways) {
    CAPTURE(name);
    const auto [signal, said] = last_words(way);
    CHECK(signal == SIGABRT);
    CHECK_MESSAGE(said.find("the disk is full") != said.npos, said);
  }
}

}  // namespace
