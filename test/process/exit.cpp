// Exits, in the way that its argument names, while contexts live that nobody ended: see process_test.cpp.
// A timer that is destroyed or joined too early shows as a crash, a hang or a wrong status.

#include "check.hpp"

#include <ctx/context.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <latch>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;

constexpr int status = 42;

/// Waits for a deadline in its destructor, where it has a name, and then says its name.
struct waits_in_destructor {
  std::string_view name;

  ~waits_in_destructor() {
    if (name.empty()) return;
    const auto start = ctx::clock::now();
    auto scope = ctx::with_timeout(ctx::background(), 1ms);
    scope.ctx.wait();
    must(scope.ctx.err() == ctx::errc::deadline_exceeded, "a deadline set in a destructor passes");
    must(ctx::clock::now() - start >= 1ms, "it does not pass early");
    must(::write(STDOUT_FILENO, name.data(), name.size()) > 0, "stdout can be written");
  }
};

/// All that can be made of contexts, with armed deadlines.
struct everything {
  ctx::cancel_scope timeout = ctx::with_timeout(ctx::background(), 1h);
  ctx::cancel_scope child = ctx::with_timeout(timeout.ctx, 30min);
  ctx::cancel_scope merged = ctx::merge(child.ctx, timeout.ctx);
  ctx::context todo = ctx::todo();
  std::stop_callback<void (*)()> callback{merged.ctx.stop_token(), [] {}};
  ctx::after_func_handle after = ctx::after_func(merged.ctx, [] {});
};

// Made before main, and so destroyed after all that the library makes when it is first used.
std::optional<everything> early;
waits_in_destructor early_waiter;
thread_local std::optional<everything> own;
thread_local waits_in_destructor own_waiter;

int contexts_everywhere() {
  early.emplace();
  static everything late;
  own.emplace();
  std::thread{[] { own.emplace(); }}.join();
  return status;
}

int destructors_that_wait() {
  early_waiter.name = "early ";
  static waits_in_destructor late{"late "};
  own_waiter.name = "main's ";
  std::thread{[] { own_waiter.name = "thread's "; }}.join();
  return status;
}

int first_deadline_in_a_destructor() {
  early_waiter.name = "early ";
  return status;
}

/// Arms so many deadlines, a microsecond apart.
void arm(std::vector<ctx::cancel_scope>& scopes, std::size_t count, std::chrono::nanoseconds first) {
  ::alarm(0);
  scopes.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    scopes.push_back(ctx::with_timeout(ctx::background(), first + i * 1us));
  }
  // It may take long to get here; from here to the end it may not.
  die_after_a_minute();
}

int million_armed() {
  static auto& never_destroyed = *new std::vector<ctx::cancel_scope>;
  arm(never_destroyed, 1'000'000, 1h);
  return status;
}

int million_destroyed() {
  static std::vector<ctx::cancel_scope> scopes;
  arm(scopes, 1'000'000, 1h);
  return status;
}

int deadlines_pass_meanwhile() {
  static std::vector<ctx::cancel_scope> scopes;
  arm(scopes, 100'000, 1ms);
  return status;
}

int exit_on_the_timers_thread() {
  early.emplace();
  auto scope = ctx::with_timeout(ctx::background(), 100ms);
  std::stop_callback callback{scope.ctx.stop_token(), [] { std::exit(status); }};
  ctx::background().wait();
  return failed;
}

int exit_in_after_func() {
  early.emplace();
  static auto scope = ctx::with_cancel(ctx::background());
  static auto after = ctx::after_func(scope.ctx, [] { std::exit(status); });
  scope.cancel();
  ctx::background().wait();
  return failed;
}

/// Returns in a child and, with the child's status, in its parent.
int in_a_child() {
  early.emplace();
  ctx::with_timeout(ctx::background(), 1ms).ctx.wait();
  static everything late;
  const pid_t child = fork_here();
  if (child != 0) return status_of(child);
  die_after_a_minute();
  own.emplace();
  ctx::with_timeout(ctx::background(), 1ms).ctx.wait();
  const pid_t grandchild = fork_here();
  return grandchild != 0 ? status_of(grandchild) : status;
}

int threads_go_on() {
  static std::latch& started = *new std::latch{4};
  early.emplace();
  std::thread{[] {
    started.count_down();
    ctx::background().wait();
  }}.detach();
  std::thread{[] {
    auto scope = ctx::with_timeout(ctx::background(), 1h);
    started.count_down();
    scope.ctx.wait();
  }}.detach();
  std::thread{[] {
    started.count_down();
    for (;;) ctx::with_timeout(ctx::background(), 10us).ctx.wait();
  }}.detach();
  std::thread{[] {
    started.count_down();
    for (;;) ctx::with_timeout(ctx::background(), 1h).cancel();
  }}.detach();
  started.wait();
  return status;
}

/// Four threads that do everything that can be done, for ever, until the process goes.
void storm() {
  static constexpr ctx::key<std::string> name{"name"};
  static std::latch& started = *new std::latch{4};
  early.emplace();
  static everything late;
  for (int i = 0; i < 4; ++i) {
    // With handles of its own: those in static storage are destroyed meanwhile.
    std::thread{[i, end_late = late.merged.ctx, end_early = early->child.ctx] {
      own.emplace();
      for (int round = 0;; ++round) {
        if (round == 10) started.count_down();
        auto request = ctx::with_timeout(end_late, (round + i) % 3 * 10us);
        const auto named = ctx::with_value(request.ctx, name, std::to_string(round));
        auto merged = ctx::merge(named, end_early);
        auto part = ctx::with_timeout(merged.ctx, 1h);
        std::stop_callback note{part.ctx.stop_token(), [&] { must(part.ctx.done(), "it is done"); }};
#if !defined(CTX_TEST_TSAN)  // which calls it a leak where a thread is over that nobody has joined yet
        const auto after = ctx::after_func(part.ctx, [] {});
#endif
        if (round % 2 != 0) request.cancel();
        part.ctx.wait_for(5us);
      }
    }}.detach();
  }
  started.wait();
}

int storm_return() {
  storm();
  return status;
}

int storm_exit() {
  storm();
  std::exit(status);
}

int storm_quick_exit() {
  storm();
  std::quick_exit(status);
}

int storm_immediate_exit() {
  storm();
  std::_Exit(status);
}

int storm_exit_elsewhere() {
  storm();
  std::thread{[] { std::exit(status); }}.detach();
  ctx::background().wait();
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  die_after_a_minute();
  const std::string_view way = argc > 1 ? argv[1] : "";
  if (way == "contexts_everywhere") return contexts_everywhere();
  if (way == "destructors_that_wait") return destructors_that_wait();
  if (way == "first_deadline_in_a_destructor") return first_deadline_in_a_destructor();
  if (way == "million_armed") return million_armed();
  if (way == "million_destroyed") return million_destroyed();
  if (way == "deadlines_pass_meanwhile") return deadlines_pass_meanwhile();
  if (way == "exit_on_the_timers_thread") return exit_on_the_timers_thread();
  if (way == "exit_in_after_func") return exit_in_after_func();
  if (way == "in_a_child") return in_a_child();
  if (way == "threads_go_on") return threads_go_on();
  if (way == "storm_return") return storm_return();
  if (way == "storm_exit") return storm_exit();
  if (way == "storm_quick_exit") return storm_quick_exit();
  if (way == "storm_immediate_exit") return storm_immediate_exit();
  if (way == "storm_exit_elsewhere") return storm_exit_elsewhere();
  must(false, "the argument is the name of a way to exit");
}
