// What signals do to a process with contexts that wait for them, in the way that its argument names: see
// signal_process_test.cpp, which sends them. A line on stdout tells when it is ready for one.

#include "check.hpp"

#include <ctx/signal.hpp>

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <latch>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::cancel_scope;
using ctx::context;
using ctx::with_signals;

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

[[noreturn]] void hang() {
  for (;;) ::pause();
}

bool is_default(int number) {
  struct sigaction now {};
  ::sigaction(number, nullptr, &now);
  return (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL;
}

bool ended_by(const context& c, int number) {
  try {
    c.throw_if_done();
  } catch (const ctx::signal_error& e) {
    return e.number() == number;
  } catch (...) {
  }
  return false;
}

void raise_and_wait() {
  auto scope = with_signals(background(), {SIGUSR1});
  must(::raise(SIGUSR1) == 0, "a signal can be raised");
  scope.ctx.wait();
  must(ended_by(scope.ctx, SIGUSR1), "it ends the context");
  must(is_default(SIGUSR1), "its disposition is put back");
}

std::atomic<int> counted = 0;
void count(int) { ++counted; }

// Hanging while shutting down

void hang_after_the_end() {
  auto [c, cancel] = with_signals(background(), {SIGINT, SIGTERM});
  say("ready");
  c.wait();
  say(ended_by(c, SIGINT) ? "SIGINT" : "something else");
  hang();
}

void hang_in_a_callback() {
  auto [c, cancel] = with_signals(background(), {SIGINT, SIGTERM});
  std::stop_callback callback{c.stop_token(), [] {
                                say("SIGINT");
                                hang();
                              }};
  say("ready");
  hang();
}

void hang_in_a_callback_of_another_context() {
  auto first = with_signals(background(), {SIGUSR1});
  std::latch running{1};
  std::stop_callback callback{first.ctx.stop_token(), [&] {
                                running.count_down();
                                hang();
                              }};
  ::raise(SIGUSR1);
  running.wait();
  // The watcher is at work elsewhere: nobody ends this context, and yet the disposition is put back.
  auto second = with_signals(background(), {SIGINT});
  say("ready");
  while (!is_default(SIGINT)) std::this_thread::yield();
  say("SIGINT");
  hang();
}

// Exit

std::optional<cancel_scope> immortal;

void exit_with_contexts() {
  immortal = with_signals(background(), {SIGUSR1});
  static auto in_static = with_signals(background(), {SIGUSR1, SIGUSR2});
  thread_local auto in_thread = with_signals(in_static.ctx, {SIGUSR2});
  must(!in_thread.ctx.done(), "a context is live");
  std::exit(42);
}

void exit_after_a_signal() {
  static auto scope = with_signals(background(), {SIGUSR1});
  ::raise(SIGUSR1);
  std::exit(42);
}

void exit_while_a_callback_hangs() {
  static auto scope = with_signals(background(), {SIGUSR1});
  static std::latch running{1};
  static std::stop_callback callback{scope.ctx.stop_token(), [] {
                                       running.count_down();
                                       hang();
                                     }};
  ::raise(SIGUSR1);
  running.wait();
  ::_exit(42);
}

void signals_in_destructors() {
  struct last {
    ~last() { raise_and_wait(); }
  };
  static const last words;
  std::exit(42);
}

// Threads

void no_thread() {
  ::signal(SIGUSR1, count);
  pthread_attr_t before;
  pthread_attr_t huge;
  ::pthread_getattr_default_np(&before);
  ::pthread_attr_init(&huge);
  ::pthread_attr_setstacksize(&huge, std::size_t{1} << 60);
  auto parent = ctx::with_cancel(background());
  for (int i = 0; i < 2; ++i) {
    ::pthread_setattr_default_np(&huge);
    bool failed = false;
    try {
      (void)with_signals(parent.ctx, {SIGUSR1});
    } catch (const std::system_error& e) {
      failed = e.code().value() != 0;
    }
    ::pthread_setattr_default_np(&before);
    must(failed, "that no thread can be started is reported");
    must(!parent.ctx.done(), "the parent is as it was");
    ::raise(SIGUSR1);
    must(counted == i + 1, "no disposition was taken");
  }
  sigset_t blocked;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  must(::sigismember(&blocked, SIGUSR1) == 0, "no signal stays blocked");
  ::signal(SIGUSR1, SIG_DFL);
  raise_and_wait();
}

// Forks

void fork_without_contexts() {
  must(in_child(raise_and_wait) == 0, "a child may be the first to wait for signals");
  raise_and_wait();
  must(in_child(raise_and_wait) == 0, "or wait for them where its parent did");
  must(in_child([] { must(in_child(raise_and_wait) == 0, "so may a child of a child"); }) == 0, "in two generations");
}

void fork_with_contexts() {
  auto parent = ctx::with_cancel(background());
  auto scope = with_signals(parent.ctx, {SIGUSR1, SIGUSR2});
  std::atomic<int> calls = 0;
  std::stop_callback callback{scope.ctx.stop_token(), [&] { ++calls; }};
  must(in_child([&] {
         ::raise(SIGUSR1);
         scope.ctx.wait();
         must(ended_by(scope.ctx, SIGUSR1), "a child's contexts wait for its own signals");
         must(is_default(SIGUSR1) && is_default(SIGUSR2), "which put back its dispositions");
         raise_and_wait();
       }) == 0,
       "a child gets a signal");
  must(!scope.ctx.done() && !is_default(SIGUSR1), "what a child gets is nothing to its parent");
  must(in_child([&] {
         scope.cancel();
         must(is_default(SIGUSR1) && is_default(SIGUSR2), "the end of a child's context puts back its dispositions");
       }) == 0,
       "a child cancels");
  must(!scope.ctx.done() && !is_default(SIGUSR1), "what a child cancels is its own");

  int ends[2];
  must(::pipe(ends) == 0, "there is a pipe");
  const pid_t child = fork_here();
  if (child == 0) {
    die_after_a_minute();
    char byte = 0;
    must(::read(ends[0], &byte, 1) == 1, "the parent got its signal");
    must(!scope.ctx.done() && !is_default(SIGUSR1), "what the parent gets is nothing to its child");
    ::raise(SIGUSR2);
    scope.ctx.wait();
    must(ended_by(scope.ctx, SIGUSR2), "which waits for its own");
    ::_exit(0);
  }
  ::raise(SIGUSR1);
  scope.ctx.wait();
  must(ended_by(scope.ctx, SIGUSR1) && calls == 1, "the parent's context still waits for signals");
  must(::write(ends[1], "", 1) == 1, "the child is told");
  must(status_of(child) == 0, "the child waited on");
}

void fork_in_a_callback() {
  auto scope = with_signals(background(), {SIGUSR1});
  auto other = with_signals(background(), {SIGUSR2});
  std::atomic<pid_t> forked = -1;
  {
    std::stop_callback callback{scope.ctx.stop_token(), [&] {
                                  const pid_t child = fork_here();
                                  forked = child;
                                  forked.notify_all();
                                  if (child != 0) return;
                                  // This is the watcher, which goes on in the child once the callback returns.
                                  std::thread{[&] {
                                    die_after_a_minute();
                                    sigset_t none;
                                    ::sigemptyset(&none);
                                    ::pthread_sigmask(SIG_SETMASK, &none, nullptr);  // unlike the watcher's
                                    must(scope.ctx.done() && !other.ctx.done(), "the child goes on from there");
                                    ::raise(SIGUSR2);
                                    other.ctx.wait();
                                    must(in_child(raise_and_wait) == 0, "it can fork");
                                    ::_exit(0);
                                  }}.detach();
                                }};
    ::raise(SIGUSR1);
    forked.wait(-1);
  }
  must(status_of(forked) == 0, "the child's watcher went on");
  must(!other.ctx.done(), "what the child gets is nothing to its parent");
}

void fork_during_a_callback() {
  auto first = with_signals(background(), {SIGUSR1});
  auto second = with_signals(background(), {SIGUSR1, SIGUSR2});
  auto below = ctx::with_cancel(first.ctx);
  const std::stop_token token = below.ctx.stop_token();
  std::latch running{1};
  std::atomic<bool> release = false;
  std::stop_callback callback{first.ctx.stop_token(), [&] {
                                running.count_down();
                                release.wait(false);
                              }};
  ::raise(SIGUSR1);
  running.wait();
  const auto hears_of_it = [&] {
    below.ctx.wait();
    must(token.stop_requested(), "what an end had still to tell is told in the child");
    second.ctx.wait();
    must(ended_by(second.ctx, SIGUSR1), "what was still to be ended is ended there");
    raise_and_wait();
  };
  must(in_child([&] {
         must(in_child(hears_of_it) == 0, "in a child of the child, too");
         hears_of_it();
       }) == 0,
       "a callback that runs at a fork holds nothing up in the child");
  release = true;
  release.notify_all();
  second.ctx.wait();
}

void fork_during_a_cancel() {
  for (int round = 0; round < 20; ++round) {
    auto busy = with_signals(background(), {SIGUSR1});
    std::latch running{1};
    std::atomic<bool> release = false;
    std::stop_callback callback{busy.ctx.stop_token(), [&] {
                                  running.count_down();
                                  release.wait(false);
                                }};
    ::raise(SIGUSR1);
    running.wait();
    // The watcher is at work elsewhere, and is still to end this one. To cancel it takes about a millisecond.
    auto large = with_signals(background(), {SIGUSR2});
    std::vector<context> tree{large.ctx};
    for (std::size_t i = 0; tree.size() < 20'000; ++i) {
      auto child = ctx::with_cancel(tree[i / 2]);
      child.cancel.release();
      tree.push_back(std::move(child.ctx));
    }
    ::raise(SIGUSR2);
    auto next = with_signals(background(), {SIGURG});
    std::atomic<bool> canceling = false;
    const std::jthread other{[&] {
      canceling = true;
      large.cancel();
    }};
    while (!canceling) std::this_thread::yield();
    for (const auto start = ctx::clock::now(); ctx::clock::now() < start + round * 50us;) {
    }
    const int status = in_child([&] {
      large.ctx.wait();
      must(!next.ctx.done(), "what waited at the fork still waits");
      ::raise(SIGURG);
      next.ctx.wait();
      raise_and_wait();
    });
    release = true;
    release.notify_all();
    must(status == 0, "a child that was forked in the middle of a cancel gets signals");
  }
}

void fork_in_a_storm() {
  ::signal(SIGUSR1, count);  // at times there is no context left that waits for it
  std::atomic<bool> over = false;
  {
    std::vector<std::jthread> threads;
    // Both make and end contexts, and get signals, also those of the other's contexts.
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        while (!over) {
          auto mine = with_signals(background(), {SIGUSR1});
          ::raise(SIGUSR1);
          mine.ctx.wait_for(10us);
          with_signals(background(), {SIGUSR2}).cancel();
        }
      });
    }
    auto far = with_signals(background(), {SIGURG});
    for (int round = 0; round < 200; ++round) {
      const int status = in_child([&] {
        counted = 0;
        for (int i = 0; i < 3; ++i) {
          auto mine = with_signals(background(), {SIGUSR1, SIGUSR2});
          ::raise(SIGUSR1);
          mine.ctx.wait();
          must(ended_by(mine.ctx, SIGUSR1), "a child waits for signals of its own");
        }
        must(!far.ctx.done(), "what waited at the fork still waits");
        ::raise(SIGURG);
        far.ctx.wait();
      });
      must(status == 0, "a child that was forked amid signals is whole");
    }
    over = true;
  }
  ::signal(SIGUSR1, SIG_DFL);
  raise_and_wait();
}

constexpr std::pair<std::string_view, void (*)()> ways[]{
    {"hang_after_the_end", hang_after_the_end},
    {"hang_in_a_callback", hang_in_a_callback},
    {"hang_in_a_callback_of_another_context", hang_in_a_callback_of_another_context},
    {"exit_with_contexts", exit_with_contexts},
    {"exit_after_a_signal", exit_after_a_signal},
    {"exit_while_a_callback_hangs", exit_while_a_callback_hangs},
    {"signals_in_destructors", signals_in_destructors},
    {"no_thread", no_thread},
    {"fork_without_contexts", fork_without_contexts},
    {"fork_with_contexts", fork_with_contexts},
    {"fork_in_a_callback", fork_in_a_callback},
    {"fork_during_a_callback", fork_during_a_callback},
    {"fork_during_a_cancel", fork_during_a_cancel},
    {"fork_in_a_storm", fork_in_a_storm},
};

}  // namespace

int main(int argc, char** argv) {
  die_after_a_minute();
  for (const auto& [name, way] : ways) {
    if (argc == 2 && name == argv[1]) {
      way();
      return 0;
    }
  }
  std::fprintf(stderr, "no such way\n");
  return failed;
}
