// Exists for a fork that leaves the child without the timer's thread, with a lock whose holder is gone, or with
// what such a thread left half done.
//
// Children say what is wrong on stderr, and by their status: see process/check.hpp. Whatever hangs is ended after a
// minute. Forks at the start and at the end of a process are in process_test.cpp, those amid signals in
// signal_process_test.cpp.

#include "process/check.hpp"

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <latch>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::clock;
using ctx::context;

/// Waits for a deadline that is set here and now.
void wait_for_a_deadline() noexcept {
  const auto start = clock::now();
  auto scope = ctx::with_timeout(background(), 1ms);
  scope.ctx.wait();
  must(scope.ctx.err() == ctx::errc::deadline_exceeded, "a deadline passes");
  must(clock::now() - start >= 1ms, "it does not pass early");
}

void wait_for(const ctx::context& ctx) noexcept {
  ctx.wait();
  must(ctx.err() == ctx::errc::deadline_exceeded, "an inherited deadline passes");
  must(clock::now() >= *ctx.deadline(), "it does not pass early");
}

TEST_CASE("a child makes deadlines, also where its parent has a timer already") {
  wait_for_a_deadline();
  CHECK(in_child(wait_for_a_deadline) == 0);
  wait_for_a_deadline();
}

#if !defined(CTX_TEST_TSAN)  // which has a thread of its own
TEST_CASE("a child has a thread for deadlines where it has deadlines") {
  const auto threads = [] {
    std::ptrdiff_t count = 0;
    for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator{"/proc/self/task"}) ++count;
    return count;
  };
  wait_for_a_deadline();  // so that the parent has one
  CHECK(in_child([&] { must(threads() == 1, "none was left, and there is no thread"); }) == 0);
  auto far = ctx::with_timeout(background(), 1h);
  CHECK(in_child([&] { must(threads() == 2, "one was left, and there is a thread"); }) == 0);
  CHECK(far.cancel());
  CHECK(in_child([&] { must(threads() == 1, "it was canceled, and there is no thread"); }) == 0);
}
#endif

TEST_CASE("a deadline armed before a fork passes in the child and in the parent") {
  auto first = ctx::with_timeout(background(), 100ms);
  auto second = ctx::with_timeout(background(), 110ms);
  auto child = ctx::with_cancel(second.ctx);
  auto far = ctx::with_timeout(background(), 1h);
  CHECK(in_child([&] {
          wait_for(first.ctx);
          wait_for(second.ctx);
          must(child.ctx.done(), "it takes its children with it");
          must(!far.ctx.done(), "a far deadline is still to come");
          wait_for_a_deadline();
          must(far.cancel(), "and can be canceled");
        }) == 0);
  wait_for(first.ctx);
  wait_for(second.ctx);
  CHECK(child.ctx.done());
  CHECK_FALSE(far.ctx.done());
}

TEST_CASE("callbacks on an inherited deadline run in the child, on its own timer's thread") {
  auto scope = ctx::with_timeout(background(), 100ms);
  std::atomic<bool> called{false};
  std::stop_callback callback{scope.ctx.stop_token(), [&] {
                                called = true;
                                called.notify_all();
                              }};
  CHECK(in_child([&] { called.wait(false); }) == 0);
  called.wait(false);
}

/// Has threads overwrite the stacks of those that are not in the child.
void overwrite_stacks() {
  std::vector<std::jthread> threads;
  std::latch all_there{8};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      volatile unsigned char stack[256 << 10];
      for (auto& each : stack) each = 0xab;
      all_there.arrive_and_wait();
    });
  }
}

TEST_CASE("a child waits as its parent does, whoever waits there at the fork") {
  auto scope = ctx::with_cancel(background());
  std::latch about_to_wait{3};
  std::vector<std::jthread> waiting;
  waiting.emplace_back([&] {
    about_to_wait.count_down();
    scope.ctx.wait();
  });
  waiting.emplace_back([&] {
    about_to_wait.count_down();
    scope.ctx.wait_for(1h);
  });
  waiting.emplace_back([&] {
    about_to_wait.count_down();
    while (!scope.ctx.wait_for(1us)) {
    }
  });
  about_to_wait.wait();
  int status = 0;
  for (int round = 0; round < 10 && status == 0; ++round) {
    status = in_child([] {
      overwrite_stacks();
      const auto start = clock::now();
      must(!background().wait_for(1ms), "nobody ends the background");
      must(!ctx::with_cancel(background()).ctx.wait_until(start + 2ms), "nobody ends the context");
      must(clock::now() - start >= 2ms, "no wait ends early");

      auto own = ctx::with_cancel(background());
      auto below = ctx::with_timeout(own.ctx, 1h);
      std::thread canceling{[&] { own.cancel(); }};
      must(below.ctx.wait_for(1h), "a cancelation ends a wait");
      own.ctx.wait();
      canceling.join();
      wait_for_a_deadline();
    });
  }
  CHECK(status == 0);
  scope.cancel();
}

TEST_CASE("children of children have all deadlines too") {
  auto scope = ctx::with_timeout(background(), 100ms);
  CHECK(in_child([&] {
          wait_for_a_deadline();
          auto own = ctx::with_timeout(background(), 90ms);
          const int status = in_child([&] {
            wait_for_a_deadline();
            must(in_child([&] { wait_for(own.ctx); }) == 0, "in the third generation");
            wait_for(own.ctx);
            wait_for(scope.ctx);
          });
          must(status == 0, "in the second generation");
          wait_for(own.ctx);
          wait_for(scope.ctx);
        }) == 0);
  wait_for(scope.ctx);
}

/// Forks in a callback on the timer's thread, which returns. In the child, `body` is called on a thread
/// that it starts.
int in_child_of_callback(const std::function<void()>& body) {
  // A fork in a callback that runs here, as its deadline had passed, proves nothing.
  for (auto timeout = 1ms;; timeout *= 2) {
    const pid_t here = this_thread_number();
    std::atomic<pid_t> forked{0};
    auto scope = ctx::with_timeout(background(), timeout);
    std::stop_callback callback{scope.ctx.stop_token(), [&] {
                                  if (this_thread_number() == here) {
                                    forked = -1;
                                  } else if (const pid_t child = fork_here(); child != 0) {
                                    forked = child;
                                  } else {
                                    // It holds what it needs: what is beside it here is not for long.
                                    std::thread{[body] {
                                      die_after_a_minute();
                                      body();
                                      leave(0);
                                    }}.detach();
                                    forked = -1;
                                  }
                                  forked.notify_all();
                                }};
    forked.wait(0);
    if (forked > 0) return status_of(forked);
  }
}

TEST_CASE("a callback on the timer's thread may fork, and the child goes on from there") {
  auto soon = ctx::with_timeout(background(), 100ms);
  auto far = ctx::with_timeout(background(), 1h);
  CHECK(in_child_of_callback([&] {
          wait_for_a_deadline();
          wait_for(soon.ctx);
          must(!far.ctx.done(), "a far deadline is still to come");
          must(in_child(wait_for_a_deadline) == 0, "the child can fork again");
        }) == 0);
  wait_for(soon.ctx);
  wait_for_a_deadline();
}

TEST_CASE("a callback that runs at a fork holds up no deadline in the child") {
  std::latch running{1};
  std::atomic<bool> release{false};
  auto held = ctx::with_timeout(background(), 1ms);
  auto after = ctx::with_timeout(background(), 2ms);
  auto far = ctx::with_timeout(background(), 1h);
  std::stop_callback callback{held.ctx.stop_token(), [&] {
                                running.count_down();
                                release.wait(false);
                              }};
  running.wait();
  const int status = in_child([&] {
    wait_for(after.ctx);
    wait_for(held.ctx);
    wait_for_a_deadline();
    must(!far.ctx.done(), "a far deadline is still to come");
  });
  release = true;
  release.notify_all();
  CHECK(status == 0);
  wait_for(after.ctx);
}

TEST_CASE("what an end had still to tell at a fork it tells in the child") {
  std::latch running{1};
  std::atomic<bool> release{false};
  auto held = ctx::with_timeout(background(), 50ms);
  auto child = ctx::with_cancel(held.ctx);
  auto grandchild = ctx::with_timeout(child.ctx, 1h);
  const std::stop_token token = grandchild.ctx.stop_token();
  std::stop_callback callback{held.ctx.stop_token(), [&] {
                                running.count_down();
                                release.wait(false);
                              }};
  running.wait();
  const auto hears_of_it = [&] {
    child.ctx.wait();
    grandchild.ctx.wait();
    must(token.stop_requested(), "who waits with the token hears of it");
    must(grandchild.ctx.err() == ctx::errc::deadline_exceeded, "and sees why");
  };
  const int status = in_child([&] {
    const int below = in_child(hears_of_it);
    hears_of_it();
    must(below == 0, "so does a child of the child");
  });
  release = true;
  release.notify_all();
  CHECK(status == 0);
  grandchild.ctx.wait();
}

TEST_CASE("a child forked while a thread waits for what is being ended can use that, and its deadlines") {
  std::latch running{1};
  std::atomic<bool> release{false};
  auto held = ctx::with_timeout(background(), 1ms);
  auto below = ctx::with_cancel(held.ctx);
  const std::stop_token token = below.ctx.stop_token();
  std::stop_callback callback{held.ctx.stop_token(), [&] {
                                running.count_down();
                                release.wait(false);
                              }};
  running.wait();
  // It is claimed already, so that this thread waits for its announcement, with a stack that the child overwrites.
  std::jthread waiting{[&] { below.ctx.wait(); }};
  int status = 0;
  for (int round = 0; round < 10 && status == 0; ++round) {
    status = in_child([&] {
      below.ctx.wait();
      must(token.stop_requested(), "what was being ended ends in the child");
      std::vector<std::jthread> on_new_stacks;
      for (int i = 0; i < 4; ++i) on_new_stacks.emplace_back(wait_for_a_deadline);
    });
  }
  release = true;
  release.notify_all();
  CHECK(status == 0);
}

TEST_CASE("a child forked while a deadline takes a large tree with it finds all of it ended, or nothing") {
  int status = 0;
  for (int round = 0; round < 20 && status == 0; ++round) {
    auto root = ctx::with_timeout(background(), 50ms);
    std::vector<context> tree{root.ctx};
    for (std::size_t i = 0; tree.size() < 20'000; ++i) {
      auto child = ctx::with_cancel(tree[i / 2]);
      child.cancel.release();
      tree.push_back(std::move(child.ctx));
    }
    // To sweep the tree takes about a millisecond: some of the forks come in the middle.
    while (clock::now() < *root.ctx.deadline() + round * 50us) {
    }
    status = in_child([&] {
      wait_for(root.ctx);
      for (const auto& each : tree) wait_for(each);  // for ever, were the sweep of the tree cut short
    });
  }
  CHECK(status == 0);
}

TEST_CASE("a child forked while another thread asks for a cause can ask, too") {
  auto ended = ctx::with_cancel(background());
  ended.cancel();
  auto below = ctx::with_cancel(ended.ctx);
  const auto cause = ended.ctx.cause();
  std::jthread asking{[&](const std::stop_token& over) {
    while (!over.stop_requested()) static_cast<void>(below.ctx.cause());
  }};
  int status = 0;
  for (int round = 0; round < 50 && status == 0; ++round) {
    status = in_child([&] { must(below.ctx.cause() == cause, "the cause is the same in the child"); });
  }
  CHECK(status == 0);
}

/// Threads that repeat a step each until they are told to stop, all of them at work once it is made.
class storm {
 public:
  explicit storm(std::initializer_list<std::function<void()>> steps) : started_{std::ssize(steps)} {
    for (const auto& step : steps) {
      threads_.emplace_back([this, step](const std::stop_token& over) {
        step();
        started_.count_down();
        while (!over.stop_requested()) step();
      });
    }
    started_.wait();
  }

 private:
  std::latch started_;
  std::vector<std::jthread> threads_;  // last: they use what is above
};

/// The status of children forked meanwhile, zero if all of them could use deadlines of their own.
int fork_in_storm() {
  int status = 0;
  for (int round = 0; round < 50 && status == 0; ++round) {
    status = in_child([] {
      wait_for_a_deadline();
      auto own = ctx::with_timeout(background(), 1h);
      // By the end of this, what the storm had armed in the parent has passed here.
      wait_for(ctx::with_timeout(own.ctx, 10ms).ctx);
      must(!own.ctx.wait_for(1ms), "a far deadline is still to come");
    });
  }
  for (int round = 0; round < 10 && status == 0; ++round) status = in_child_of_callback(wait_for_a_deadline);
  return status;
}

TEST_CASE("a child forked while threads arm, cancel and wait has working deadlines" *
          doctest::skip(!may_fork_in_storms)) {
  const storm raging{
      [] { ctx::with_timeout(background(), 1ms).cancel(); },
      [] { ctx::with_timeout(background(), 100us).ctx.wait(); },
      [] { ctx::with_timeout(background(), 1h).ctx.wait_for(10us); },
      [] {
        std::vector<ctx::cancel_scope> many;
        for (int i = 0; i < 100; ++i) many.push_back(ctx::with_timeout(background(), i * 50us));
      },
  };
  CHECK(fork_in_storm() == 0);
}

constexpr ctx::key<std::string> name{"name"};

/// Makes and ends contexts of all kinds, in a tree of its own.
void use_everything() {
  auto root = ctx::with_timeout(background(), 1h);
  const auto named = ctx::with_value(root.ctx, name, "a name that has to be allocated, as it is long");
  auto other = ctx::with_cancel(background());
  auto merged = ctx::merge(named, other.ctx);
  auto driven = ctx::with_stop_token(merged.ctx, other.ctx.stop_token());
  auto below = ctx::with_cancel(driven.ctx);
  auto leaf = ctx::with_timeout(below.ctx, 30min);
  int calls = 0;
  std::stop_callback callback{leaf.ctx.stop_token(), [&] { ++calls; }};
  std::latch ran{1};
  const auto function = ctx::after_func(merged.ctx, [&] { ran.count_down(); });
  std::jthread waiting{[&] { merged.ctx.wait(); }};
  must(merged.ctx.value(name) != nullptr && other.ctx.value(name) == nullptr, "values are found");
  must(calls == 0 && !leaf.ctx.done(), "nothing ends too soon");
  must(root.cancel(std::runtime_error{"why"}), "it was live");
  must(calls == 1, "callbacks run");
  must(merged.ctx.cause() == root.ctx.cause() && driven.ctx.cause() == root.ctx.cause(), "ends go down");
  must(!other.ctx.done(), "and not up");
  ran.wait();
}

TEST_CASE("a child forked in the middle of a storm makes contexts of every kind of its own" *
          doctest::skip(!may_fork_in_storms)) {
  const storm raging{
      use_everything,
      [] { ctx::with_timeout(background(), 50us).ctx.wait(); },
      [] {
        std::vector<ctx::cancel_scope> many;
        for (int i = 0; i < 100; ++i) many.push_back(ctx::with_timeout(background(), i * 5us));
      },
  };
  int status = 0;
  for (int round = 0; round < 200 && status == 0; ++round) {
    status = in_child([&] {
      use_everything();
      wait_for_a_deadline();
      if (round % 10 == 0) must(in_child(use_everything) == 0, "so does its child");
    });
  }
  CHECK(status == 0);
}

TEST_CASE("a manual clock goes its own way in a child") {
  ctx::manual_clock manual;
  auto scope = ctx::with_timeout(background(), 1h);
  auto later = ctx::with_timeout(background(), 3h);
  CHECK(in_child([&] {
          must(!scope.ctx.done(), "the clock stands still");
          auto own = ctx::with_timeout(background(), 30min);
          std::thread waiting{[&] { own.ctx.wait(); }};
          manual.advance(30min);
          waiting.join();
          must(own.ctx.done() && !scope.ctx.done(), "the child moves it by half an hour");
          manual.advance(30min);
          must(scope.ctx.done() && !later.ctx.done(), "and by an hour");
        }) == 0);
  CHECK_FALSE(scope.ctx.done());
  manual.advance(1h);
  CHECK(scope.ctx.done());
  CHECK_FALSE(later.ctx.done());
}

TEST_CASE("a manual clock can end in a child, and one begin") {
  {
    ctx::manual_clock* const manual = new ctx::manual_clock;
    auto scope = ctx::with_timeout(background(), 50ms);
    CHECK(in_child([&] {
            delete manual;
            wait_for(scope.ctx);
            wait_for_a_deadline();
          }) == 0);
    manual->advance(50ms);
    CHECK(scope.ctx.done());
    delete manual;
  }
  auto scope = ctx::with_timeout(background(), 1h);
  CHECK(in_child([&] {
          ctx::manual_clock manual;
          manual.advance(1h);
          must(scope.ctx.done(), "an hour has passed");
        }) == 0);
  CHECK_FALSE(scope.ctx.done());
}

}  // namespace
