// Exists for signals that end the wrong context, or none; for dispositions that are not put back, or not as they
// were; for handlers that reach for what a handler must not touch; and for what goes wrong only where a signal
// comes at the moment at which a context is made or ends.
//
// Signals are raised on the thread itself where the moment matters: then the handler has returned when raise()
// does. What signals do to whole processes is in signal_process_test.cpp.

#include "failing_new.hpp"
#include "sanitizer.hpp"

#include <ctx/manual_clock.hpp>
#include <ctx/signal.hpp>

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <initializer_list>
#include <latch>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::cancel_scope;
using ctx::context;
using ctx::signal_error;
using ctx::with_signals;

static_assert(std::is_base_of_v<std::system_error, signal_error>);
static_assert(std::is_nothrow_copy_constructible_v<signal_error> && std::is_nothrow_copy_assignable_v<signal_error>);

#if defined(_WIN32)

TEST_CASE("where there are no POSIX signals, an error says so") {
  try {
    (void)with_signals(background(), {SIGINT});
    FAIL("it returned");
  } catch (const std::system_error& e) {
    CHECK(e.code() == std::errc::not_supported);
  }
}

#else

// Helpers

/// What a signal does before a context waits for it.
class disposition {
 public:
  /// The present one.
  explicit disposition(int number) { ::sigaction(number, nullptr, &action_); }

  disposition(void (*handler)(int), int flags, std::initializer_list<int> masked) {
    action_.sa_handler = handler;
    action_.sa_flags = flags;
    mask(masked);
  }
  disposition(void (*handler)(int, siginfo_t*, void*), int flags, std::initializer_list<int> masked) {
    action_.sa_sigaction = handler;
    action_.sa_flags = flags | SA_SIGINFO;
    mask(masked);
  }

  void set(int number) const { ::sigaction(number, &action_, nullptr); }

  const struct sigaction& action() const { return action_; }

  friend bool operator==(const disposition& a, const disposition& b) {
    for (int number = 1; number <= SIGRTMAX; ++number) {
      if (::sigismember(&a.action_.sa_mask, number) != ::sigismember(&b.action_.sa_mask, number)) return false;
    }
    if (a.action_.sa_flags != b.action_.sa_flags) return false;
    return (a.action_.sa_flags & SA_SIGINFO) != 0 ? a.action_.sa_sigaction == b.action_.sa_sigaction
                                                  : a.action_.sa_handler == b.action_.sa_handler;
  }

 private:
  void mask(std::initializer_list<int> masked) {
    ::sigemptyset(&action_.sa_mask);
    for (const int number : masked) ::sigaddset(&action_.sa_mask, number);
  }

  struct sigaction action_ {};
};

std::atomic<int> earlier_calls = 0;
void count_call(int) { ++earlier_calls; }
void count_call_with_more(int, siginfo_t*, void*) { ++earlier_calls; }

/// Sets a disposition for as long as it lives.
class preset {
 public:
  preset(int number, const disposition& wanted) : number_{number}, before_{number} {
    wanted.set(number);
    earlier_calls = 0;
  }
  explicit preset(int number) : preset{number, disposition{count_call, 0, {}}} {}
  preset(const preset&) = delete;
  preset& operator=(const preset&) = delete;
  ~preset() { before_.set(number_); }

 private:
  const int number_;
  const disposition before_;
};

std::string message_of(const std::exception_ptr& error) {
  if (error == nullptr) return "";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

/// The number of the signal that ended a context; 0 for whatever else did, or none.
int signal_that_ended(const context& c) {
  try {
    c.throw_if_done();
  } catch (const signal_error& e) {
    return e.number();
  } catch (...) {
  }
  return 0;
}

/// Returns when what signals were to end until now has ended.
void settle() {
  const preset here{SIGURG, disposition{SIG_IGN, 0, {}}};
  auto scope = with_signals(background(), {SIGURG});
  ::raise(SIGURG);
  scope.ctx.wait();
}

// What a signal does

TEST_CASE("the first signal ends the context, and the cause names it") {
  const preset first{SIGUSR1};
  const preset second{SIGUSR2};
  auto [c, cancel] = with_signals(background(), {SIGUSR1, SIGUSR2});
  CHECK_FALSE(c.done());
  ::raise(SIGUSR2);
  c.wait();
  CHECK(c.err() == ctx::errc::canceled);
  CHECK(signal_that_ended(c) == SIGUSR2);
  CHECK(message_of(c.cause()) == "received SIGUSR2: context canceled");
  try {
    c.throw_if_done();
  } catch (const std::system_error& e) {
    CHECK(e.code() == c.err());
    CHECK(e.code() == std::errc::operation_canceled);
  }
  CHECK_FALSE(cancel());
  CHECK(earlier_calls == 0);
}

TEST_CASE("signals have the names that people know") {
  const std::pair<int, const char*> names[]{
      {SIGABRT, "SIGABRT"},     {SIGALRM, "SIGALRM"},         {SIGBUS, "SIGBUS"},    {SIGCHLD, "SIGCHLD"},
      {SIGCONT, "SIGCONT"},     {SIGFPE, "SIGFPE"},           {SIGHUP, "SIGHUP"},    {SIGILL, "SIGILL"},
      {SIGINT, "SIGINT"},       {SIGKILL, "SIGKILL"},         {SIGPIPE, "SIGPIPE"},  {SIGPROF, "SIGPROF"},
      {SIGQUIT, "SIGQUIT"},     {SIGSEGV, "SIGSEGV"},         {SIGSTOP, "SIGSTOP"},  {SIGSYS, "SIGSYS"},
      {SIGTERM, "SIGTERM"},     {SIGTRAP, "SIGTRAP"},         {SIGTSTP, "SIGTSTP"},  {SIGTTIN, "SIGTTIN"},
      {SIGTTOU, "SIGTTOU"},     {SIGURG, "SIGURG"},           {SIGUSR1, "SIGUSR1"},  {SIGUSR2, "SIGUSR2"},
      {SIGVTALRM, "SIGVTALRM"}, {SIGWINCH, "SIGWINCH"},       {SIGXCPU, "SIGXCPU"},  {SIGXFSZ, "SIGXFSZ"},
      {SIGRTMIN, "SIGRTMIN+0"}, {SIGRTMIN + 2, "SIGRTMIN+2"}, {1000, "signal 1000"},
  };
  for (const auto& [number, name] : names) {
    CHECK(signal_error{number}.what() == std::string{"received "} + name + ": context canceled");
  }
  CHECK(signal_error{SIGHUP}.number() == SIGHUP);
}

TEST_CASE("the description of the context lists its signals, once each") {
  static constexpr ctx::key<int> number{"number"};
  const context valued = ctx::with_value(background(), number, 5);
  CHECK(to_string(with_signals(valued, {SIGTERM, SIGINT, SIGTERM}).ctx) ==
        "background.with_value(number).with_signals(SIGINT, SIGTERM)");
}

TEST_CASE("a second signal does what it did before, from the very moment at which the first came") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  auto [c, cancel] = with_signals(background(), {SIGUSR1});
  CHECK(disposition{SIGUSR1} != before);
  ::raise(SIGUSR1);
  CHECK(disposition{SIGUSR1} == before);
  CHECK(earlier_calls == 0);
  ::raise(SIGUSR1);
  CHECK(earlier_calls == 1);
  c.wait();
}

TEST_CASE("of two signals in a row, the first is the cause") {
  const preset first{SIGUSR1};
  const preset second{SIGUSR2};
  const preset third{SIGURG};
  for (const auto& [number, other] : {std::pair{SIGUSR1, SIGUSR2}, std::pair{SIGUSR2, SIGUSR1}}) {
    // Meanwhile the thread that ends contexts is busy, so that it finds both.
    auto busy = with_signals(background(), {SIGURG});
    std::latch is_busy{1};
    std::latch go{1};
    std::stop_callback callback{busy.ctx.stop_token(), [&] {
                                  is_busy.count_down();
                                  go.wait();
                                }};
    ::raise(SIGURG);
    is_busy.wait();
    auto [c, cancel] = with_signals(background(), {SIGUSR1, SIGUSR2});
    ::raise(number);
    ::raise(other);
    CHECK_FALSE(c.done());
    go.count_down();
    c.wait();
    CHECK(signal_that_ended(c) == number);
  }
}

TEST_CASE("a signal of any kind will do, sent to the process or to any thread") {
  const auto ends = [](int number, const std::function<void()>& send) {
    const preset here{number};
    auto [c, cancel] = with_signals(background(), {number});
    send();
    c.wait();
    CHECK(signal_that_ended(c) == number);
    CHECK(earlier_calls == 0);
  };
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGCHLD, SIGPIPE, SIGRTMIN, SIGRTMAX}) {
    ends(number, [&] { ::kill(::getpid(), number); });
    ends(number, [&] { std::jthread{[&] { ::raise(number); }}; });
    std::jthread other{[](const std::stop_token& over) {
      std::mutex mutex;
      std::unique_lock lock{mutex};
      std::condition_variable_any{}.wait(lock, over, [] { return false; });
    }};
    ends(number, [&] { ::pthread_kill(other.native_handle(), number); });
  }
}

TEST_CASE("contexts below hear of it, those above and beside do not") {
  const preset first{SIGUSR1};
  const preset second{SIGUSR2};
  auto parent = ctx::with_cancel(background());
  auto [c, cancel] = with_signals(parent.ctx, {SIGUSR1});
  auto below = ctx::with_timeout(c, 1h);
  auto beside = with_signals(parent.ctx, {SIGUSR2});
  ::raise(SIGUSR1);
  below.ctx.wait();
  CHECK(signal_that_ended(below.ctx) == SIGUSR1);
  settle();
  CHECK_FALSE(parent.ctx.done());
  CHECK_FALSE(beside.ctx.done());
}

TEST_CASE("callbacks run on a thread of their own, which has all signals blocked") {
  const preset here{SIGUSR1};
  std::thread::id ran_on[2];
  bool all_blocked = true;
  bool was_done = false;
  for (auto& id : ran_on) {
    auto scope = with_signals(background(), {SIGUSR1});
    std::stop_callback callback{scope.ctx.stop_token(), [&] {
                                  id = std::this_thread::get_id();
                                  was_done = scope.ctx.done() && signal_that_ended(scope.ctx) == SIGUSR1;
                                  sigset_t blocked;
                                  ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
                                  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGALRM, SIGRTMAX}) {
                                    if (::sigismember(&blocked, number) != 1) all_blocked = false;
                                  }
                                }};
    ::raise(SIGUSR1);
    settle();
  }
  CHECK(ran_on[0] != std::thread::id{});
  CHECK(ran_on[0] != std::this_thread::get_id());
  CHECK(ran_on[0] == ran_on[1]);
  CHECK(all_blocked);
  CHECK(was_done);
}

TEST_CASE("a callback may make contexts that wait for signals, end them, and drop its own") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  auto scope = std::make_optional(with_signals(background(), {SIGUSR1}));
  std::optional<cancel_scope> made;
  int ended_by = 0;
  std::latch over{1};
  const context token_from = scope->ctx;
  std::stop_callback callback{token_from.stop_token(), [&] {
                                ended_by = signal_that_ended(scope->ctx);
                                made = with_signals(background(), {SIGUSR1});
                                with_signals(background(), {SIGUSR1}).cancel();
                                scope.reset();
                                over.count_down();
                              }};
  ::raise(SIGUSR1);
  over.wait();
  CHECK(ended_by == SIGUSR1);
  CHECK_FALSE(made->ctx.done());
  ::raise(SIGUSR1);
  made->ctx.wait();
  CHECK(disposition{SIGUSR1} == before);
}

TEST_CASE("no mask of a thread changes, system calls are restarted, and errno stays") {
  const preset here{SIGUSR1};
  const auto blocked = [] {
    sigset_t mask;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    std::string bits;
    for (int number = 1; number <= SIGRTMAX; ++number) bits += ::sigismember(&mask, number) == 1 ? '1' : '0';
    return bits;
  };
  const std::string before = blocked();
  {
    auto [c, cancel] = with_signals(background(), {SIGUSR1});
    CHECK(blocked() == before);
    std::string in_thread;
    std::jthread{[&] { in_thread = blocked(); }}.join();
    CHECK(in_thread == before);
    CHECK((disposition{SIGUSR1}.action().sa_flags & SA_RESTART) != 0);
    // Nor is the handler interrupted by others.
    for (const int number : {SIGUSR2, SIGINT, SIGALRM}) {
      CHECK(::sigismember(&disposition{SIGUSR1}.action().sa_mask, number) == 1);
    }
    errno = EXDEV;
    ::raise(SIGUSR1);
    CHECK(errno == EXDEV);
    c.wait();
    CHECK(blocked() == before);
  }
  CHECK(blocked() == before);
}

TEST_CASE("a signal that a thread has blocked waits until it is not") {
  const preset here{SIGUSR1};
  auto [c, cancel] = with_signals(background(), {SIGUSR1});
  sigset_t only;
  ::sigemptyset(&only);
  ::sigaddset(&only, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &only, nullptr);
  ::raise(SIGUSR1);
  settle();
  CHECK_FALSE(c.done());
  ::pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
  c.wait();
  CHECK(signal_that_ended(c) == SIGUSR1);
}

// What is put back

TEST_CASE("dispositions are put back exactly, however the context ends, before it is done") {
  const std::vector<disposition> earlier{
      {SIG_DFL, 0, {}},
      {SIG_IGN, 0, {}},
      {SIG_IGN, SA_RESTART, {SIGUSR2}},
      {count_call, 0, {}},
      {count_call, SA_RESTART | SA_NODEFER | SA_ONSTACK, {SIGINT, SIGRTMAX}},
      {count_call_with_more, SA_NOCLDSTOP, {SIGUSR2, SIGHUP}},
  };
  using ending = std::function<void(cancel_scope, const disposition&)>;
  const auto check = [](const disposition& expected, const ending& end, const context& parent = background()) {
    const preset first{SIGWINCH, expected};
    const preset second{SIGUSR2, expected};
    const disposition before{SIGWINCH};
    REQUIRE(before == disposition{SIGUSR2});
    auto scope = with_signals(parent, {SIGWINCH, SIGUSR2});
    CHECK(disposition{SIGWINCH} != before);
    CHECK(disposition{SIGUSR2} != before);
    end(std::move(scope), before);
    CHECK(disposition{SIGWINCH} == before);
    CHECK(disposition{SIGUSR2} == before);
  };
  for (const disposition& each : earlier) {
    check(each, [](cancel_scope scope, const disposition& before) {
      bool put_back = false;
      std::stop_callback callback{scope.ctx.stop_token(), [&] {
                                    put_back = disposition{SIGWINCH} == before && disposition{SIGUSR2} == before;
                                  }};
      ::raise(SIGWINCH);
      settle();
      CHECK(put_back);
    });
    check(each, [](cancel_scope scope, const disposition& before) {
      bool put_back = false;
      std::stop_callback callback{scope.ctx.stop_token(), [&] {
                                    put_back = disposition{SIGWINCH} == before && disposition{SIGUSR2} == before;
                                  }};
      CHECK(scope.cancel(std::runtime_error{"by hand"}));
      CHECK(put_back);
      CHECK(message_of(scope.ctx.cause()) == "by hand");
    });
    check(each, [](cancel_scope, const disposition&) {});
    check(each, [](cancel_scope scope, const disposition& before) {
      scope.cancel.release();
      context copy = std::move(scope.ctx);
      auto below = std::make_optional(ctx::with_cancel(copy));
      copy = {};
      CHECK(disposition{SIGWINCH} != before);
      below.reset();
    });
    auto parent = ctx::with_cancel(background());
    check(
        each,
        [&](cancel_scope scope, const disposition&) {
          parent.cancel();
          CHECK(scope.ctx.done());
        },
        parent.ctx);
    ctx::manual_clock time;
    auto timed = ctx::with_timeout(background(), 1h);
    check(
        each,
        [&](cancel_scope scope, const disposition&) {
          time.advance(1h);
          CHECK(scope.ctx.err() == ctx::errc::deadline_exceeded);
        },
        timed.ctx);
  }
}

TEST_CASE("where several contexts wait for a signal, it ends all of them") {
  const preset here{SIGUSR1};
  const preset other{SIGUSR2};
  const disposition before{SIGUSR1};
  auto first = with_signals(background(), {SIGUSR1});
  auto second = with_signals(background(), {SIGUSR2, SIGUSR1});
  auto nested = with_signals(second.ctx, {SIGUSR1});
  auto not_this = with_signals(background(), {SIGUSR2});
  ::raise(SIGUSR1);
  CHECK(disposition{SIGUSR1} == before);
  for (const context& each : {first.ctx, second.ctx, nested.ctx}) {
    each.wait();
    CHECK(signal_that_ended(each) == SIGUSR1);
  }
  settle();
  CHECK_FALSE(not_this.ctx.done());
  ::raise(SIGUSR2);
  not_this.ctx.wait();
  CHECK(signal_that_ended(not_this.ctx) == SIGUSR2);
  CHECK(earlier_calls == 0);
}

TEST_CASE("a disposition is put back when the last context that waits for the signal ends, in any order") {
  const std::array<std::array<std::size_t, 3>, 6> orders{
      {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}};
  for (const auto& order : orders) {
    const preset first{SIGUSR1, disposition{count_call, SA_NODEFER, {SIGINT}}};
    const preset second{SIGUSR2, disposition{SIG_IGN, 0, {}}};
    const disposition before[]{disposition{SIGUSR1}, disposition{SIGUSR2}};
    std::array<std::optional<cancel_scope>, 3> scopes;
    scopes[0] = with_signals(background(), {SIGUSR1});
    scopes[1] = with_signals(background(), {SIGUSR1, SIGUSR2});
    scopes[2] = with_signals(background(), {SIGUSR2, SIGUSR1});
    for (const std::size_t each : order) {
      CHECK(disposition{SIGUSR1} != before[0]);
      scopes[each].reset();
      CHECK((disposition{SIGUSR2} == before[1]) == (!scopes[1] && !scopes[2]));
    }
    CHECK(disposition{SIGUSR1} == before[0]);
  }
}

TEST_CASE("a context that is made after a signal came is not ended by it") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  for (int round = 0; round < 200; ++round) {
    auto old = with_signals(background(), {SIGUSR1});
    ::raise(SIGUSR1);
    auto fresh = with_signals(background(), {SIGUSR1});
    old.ctx.wait();
    settle();
    REQUIRE(signal_that_ended(old.ctx) == SIGUSR1);
    REQUIRE_FALSE(fresh.ctx.done());
    REQUIRE(disposition{SIGUSR1} != before);
    ::raise(SIGUSR1);
    fresh.ctx.wait();
    REQUIRE(disposition{SIGUSR1} == before);
  }
  CHECK(earlier_calls == 0);
}

TEST_CASE("a disposition that somebody else sets meanwhile is left alone") {
  const preset here{SIGUSR1};
  const disposition others{SIG_IGN, 0, {}};
  {
    auto scope = with_signals(background(), {SIGUSR1});
    others.set(SIGUSR1);
  }
  CHECK((disposition{SIGUSR1}.action().sa_handler == SIG_IGN));
  // What is put back next is that one.
  { auto scope = with_signals(background(), {SIGUSR1}); }
  CHECK((disposition{SIGUSR1}.action().sa_handler == SIG_IGN));
}

struct sigaction replaced_action {};
std::atomic<int> chained_calls = 0;
void call_replaced(int number) {
  ++chained_calls;
  replaced_action.sa_handler(number);
}

TEST_CASE("a handler that somebody else sets meanwhile may call the one that it replaced, also when that is over") {
  const preset here{SIGUSR1};
  chained_calls = 0;
  auto scope = with_signals(background(), {SIGUSR1});
  replaced_action = disposition{SIGUSR1}.action();
  disposition{call_replaced, 0, {}}.set(SIGUSR1);
  ::raise(SIGUSR1);
  scope.ctx.wait();
  CHECK(signal_that_ended(scope.ctx) == SIGUSR1);
  CHECK(chained_calls == 1);
  ::raise(SIGUSR1);
  CHECK(chained_calls == 2);
  CHECK(earlier_calls == 0);
}

TEST_CASE("where somebody puts the library's handler back after the end, it gives way to what was there before") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  std::optional<disposition> ours;
  {
    auto scope = with_signals(background(), {SIGUSR1});
    ours = disposition{SIGUSR1};
  }
  for (const int calls : {1, 2, 3}) {
    ours->set(SIGUSR1);
    ::raise(SIGUSR1);
    CHECK(earlier_calls == calls);
    CHECK(disposition{SIGUSR1} == before);
  }
  ours->set(SIGUSR1);
  {
    auto scope = with_signals(background(), {SIGUSR1});
    ::raise(SIGUSR1);
    scope.ctx.wait();
  }
  CHECK(earlier_calls == 3);
  CHECK(disposition{SIGUSR1} == before);
}

// What is an error

TEST_CASE("a number that is no signal or one that can't be caught is an error, and nothing has changed") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  auto parent = ctx::with_cancel(background());
  const auto refused = [&](int number, std::initializer_list<int> signals) {
    CAPTURE(number);
    std::error_code code;
    std::string what;
    try {
      (void)with_signals(parent.ctx, signals);
    } catch (const std::system_error& e) {
      code = e.code();
      what = e.what();
    }
    CHECK(code == std::errc::invalid_argument);
    CHECK(what.find('(' + std::to_string(number) + ')') != std::string::npos);
    CHECK(disposition{SIGUSR1} == before);
    CHECK_FALSE(parent.ctx.done());
  };
  constexpr int far = std::numeric_limits<int>::max();
  for (const int number : {SIGKILL, SIGSTOP, 0, -1, SIGRTMAX + 1, 128, 129, 1000, far, -far}) {
    refused(number, {number});
    refused(number, {SIGUSR1, number});
    refused(number, {number, SIGUSR1});
  }
  parent.cancel();
  CHECK_THROWS_AS((void)with_signals(parent.ctx, {SIGKILL}), std::system_error);
}

TEST_CASE("an empty list is an error") { CHECK_THROWS_AS((void)with_signals(background(), {}), std::invalid_argument); }

TEST_CASE("under a parent that is done, the context is born done, and nothing is installed") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  auto parent = ctx::with_cancel(background());
  parent.cancel();
  auto scope = with_signals(parent.ctx, {SIGUSR1});
  CHECK(disposition{SIGUSR1} == before);
  CHECK(scope.ctx.done());
  CHECK(scope.ctx.cause() == parent.ctx.cause());
  CHECK_FALSE(scope.cancel());
  CHECK(to_string(scope.ctx) == "background.with_cancel.with_signals(SIGUSR1)");
}

#if CTX_TEST_OWN_NEW
TEST_CASE("where memory is short, nothing has changed") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  auto parent = ctx::with_cancel(background());
  std::optional<cancel_scope> scope;
  int failed = 0;
  while (!scope) {
    fails_in = failed + 1;
    try {
      scope = with_signals(parent.ctx, {SIGUSR1, SIGUSR2});
      fails_in = 0;
    } catch (const std::bad_alloc&) {
      ++failed;
      CHECK(disposition{SIGUSR1} == before);
    }
  }
  CHECK(failed >= 2);  // the node, and its place in lists
  CHECK_FALSE(parent.ctx.done());
  ::raise(SIGUSR1);
  scope->ctx.wait();
  CHECK(signal_that_ended(scope->ctx) == SIGUSR1);
}
#endif

TEST_CASE("a context that is gone leaves nothing behind") {
  const preset here{SIGUSR1};
  static constexpr ctx::key<std::shared_ptr<int>> probe{"probe"};
  const auto alive = std::make_shared<int>();
  const auto valued = [&] { return ctx::with_value(background(), probe, alive); };
  { auto scope = with_signals(valued(), {SIGUSR1}); }
  CHECK(alive.use_count() == 1);
  {
    auto scope = with_signals(valued(), {SIGUSR1});
    scope.cancel.release();
  }
  CHECK(alive.use_count() == 1);
  {
    auto scope = with_signals(valued(), {SIGUSR1});
    ::raise(SIGUSR1);
  }
  settle();
  CHECK(alive.use_count() == 1);
}

// Races. Each round is judged when all is over. The earlier disposition counts.

constexpr int rounds = sanitized ? 1500 : 10'000;

/// Runs two steps at the same time, again and again.
class pair_of_threads {
 public:
  explicit pair_of_threads(std::function<void()> second)
      : second_{std::move(second)}, thread_{[this](const std::stop_token& over) {
          while (true) {
            meet();
            if (over.stop_requested()) return;
            second_();
            meet();
          }
        }} {}
  pair_of_threads(const pair_of_threads&) = delete;
  pair_of_threads& operator=(const pair_of_threads&) = delete;
  ~pair_of_threads() {
    thread_.request_stop();
    meet();
  }

  template <class First>
  void run(const First& first) {
    meet();
    first();
    meet();
  }

 private:
  // A barrier that does not sleep, or the two would seldom meet in what follows.
  void meet() noexcept {
    const unsigned round = rounds_;
    if (++here_ == 2) {
      here_ = 0;
      ++rounds_;
    }
    for (int spins = 0; rounds_ == round; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

  std::atomic<int> here_ = 0;
  std::atomic<unsigned> rounds_ = 0;
  const std::function<void()> second_;
  std::jthread thread_;  // last: it uses what is above
};

/// Lets the steps meet anywhere: one of the two begins later than the other, by nothing to twenty microseconds.
void begin(int round, int side) {
  static std::array<std::atomic<int>, 2> begun;
  begun[static_cast<std::size_t>(side)] = round + 1;
  if (round % 2 != side) return;
  while (begun[static_cast<std::size_t>(1 - side)] != round + 1) std::this_thread::yield();
  std::atomic<unsigned> left = static_cast<unsigned>(round) * 2654435761U >> 20;
  while (left > 0) --left;
}

TEST_CASE("a signal meets the end of the only context that waits for it") {
  const preset here{SIGUSR1};
  const disposition before{SIGUSR1};
  int round = 0;
  pair_of_threads race{[&] {
    begin(round, 0);
    ::raise(SIGUSR1);
  }};
  int by_signal = 0;
  int earlier = 0;
  int wrong = 0;
  for (; round < rounds; ++round) {
    auto parent = ctx::with_cancel(background());
    auto scope = std::make_optional(with_signals(parent.ctx, {SIGUSR1, SIGUSR2}));
    const context kept = round / 2 % 4 == 3 ? background() : scope->ctx;
    std::optional<context> last = scope->ctx;
    if (round / 2 % 4 == 3) scope->cancel.release();
    earlier_calls = 0;
    race.run([&] {
      begin(round, 1);
      if (round % 5 == 0) kept.wait_for(std::chrono::microseconds{round % 50});
      switch (round / 2 % 4) {
        case 0:
          scope->cancel(std::runtime_error{"by hand"});
          break;
        case 1:
          scope.reset();
          break;
        case 2:
          parent.cancel();
          break;
        default:
          scope.reset(), last.reset();
          break;  // goes without an end of its own
      }
    });
    const bool was_signal = signal_that_ended(kept) == SIGUSR1;
    if (was_signal) ++by_signal;
    if (earlier_calls == 1) ++earlier;
    if (earlier_calls > (was_signal ? 0 : 1)) ++wrong;
    if (round / 2 % 4 != 3 && !kept.done()) ++wrong;
    if (disposition{SIGUSR1} != before) ++wrong;
  }
  CHECK(wrong == 0);
  MESSAGE("ended by the signal: ", by_signal, ", signal came after the end: ", earlier, ", of ", rounds);
}

TEST_CASE("a signal meets the making of a context") {
  const preset here{SIGUSR1};
  int round = 0;
  pair_of_threads race{[&] {
    begin(round, 0);
    ::raise(SIGUSR1);
  }};
  int by_signal = 0;
  int wrong = 0;
  for (; round < rounds; ++round) {
    std::optional<cancel_scope> scope;
    earlier_calls = 0;
    race.run([&] {
      begin(round, 1);
      scope = with_signals(background(), {SIGUSR1});
    });
    // It came before the handler was there, or after: then it ends the context.
    if (earlier_calls == 0) {
      scope->ctx.wait();
      ++by_signal;
      if (signal_that_ended(scope->ctx) != SIGUSR1) ++wrong;
    } else {
      if (earlier_calls > 1 || scope->ctx.done()) ++wrong;
    }
  }
  CHECK(wrong == 0);
  MESSAGE("ended by the signal: ", by_signal, " of ", rounds);
}

TEST_CASE("of two signals at once, one ends the context, and the other does what it did before") {
  const preset here{SIGUSR1};
  int round = 0;
  pair_of_threads race{[&] {
    begin(round, 0);
    ::raise(SIGUSR1);
  }};
  int wrong = 0;
  for (; round < rounds; ++round) {
    auto scope = with_signals(background(), {SIGUSR1});
    earlier_calls = 0;
    race.run([&] {
      begin(round, 1);
      ::raise(SIGUSR1);
    });
    scope.ctx.wait();
    if (signal_that_ended(scope.ctx) != SIGUSR1 || earlier_calls != 1) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("contexts come and go on many threads while signals come") {
  const preset first{SIGUSR1};
  const preset second{SIGUSR2};
  const disposition before[]{disposition{SIGUSR1}, disposition{SIGUSR2}};
  std::atomic<int> wrong = 0;
  {
    std::atomic<int> at_work = 3;
    auto parent = ctx::with_cancel(background());
    std::vector<std::jthread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        for (int round = 0; round < rounds / 4; ++round) {
          auto a = with_signals(parent.ctx, {SIGUSR1, SIGUSR2});
          auto b = with_signals(round % 3 == i ? a.ctx : background(), {i == 0 ? SIGUSR2 : SIGUSR1});
          auto below = ctx::with_cancel(b.ctx);
          std::stop_callback callback{below.ctx.stop_token(), [&] {
                                        if (!b.ctx.done()) ++wrong;
                                      }};
          if (round % 2 == 0) a = with_signals(background(), {SIGUSR2});
          if (round % 5 == 0) b.cancel();
          if (round % 7 == 0) ::raise(SIGUSR2);
          if (round % 7 == 0 && i != 0) a.ctx.wait_for(1us);
        }
        --at_work;
      });
    }
    // They are interrupted wherever they are.
    for (std::size_t turn = 0; at_work > 0; ++turn) {
      ::pthread_kill(threads[turn % 3].native_handle(), turn % 2 == 0 ? SIGUSR1 : SIGUSR2);
      std::this_thread::yield();
    }
  }
  settle();
  CHECK(wrong == 0);
  CHECK(disposition{SIGUSR1} == before[0]);
  CHECK(disposition{SIGUSR2} == before[1]);
}

#endif

}  // namespace
