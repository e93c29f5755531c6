// Exists for the bugs that the multithreaded tests of Go's context exist for: ends, causes and values that
// come out wrong where threads derive, cancel and ask at the same time. What each of Go's tests has become is
// listed in go-tests.md.
//
// The random tests print their seed; CTX_TEST_SEED replays one.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <latch>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::cancel_func;
using ctx::cancel_scope;
using ctx::context;
using ctx::errc;
using ctx::merge;
using ctx::with_cancel;
using ctx::with_timeout;
using ctx::with_value;

constexpr ctx::key<int> number{"number"};

context kept(cancel_scope scope) {
  scope.cancel.release();
  return std::move(scope.ctx);
}

std::exception_ptr make_cause() { return std::make_exception_ptr(std::runtime_error{"cause"}); }

/// Calls `f(0)` to `f(count - 1)` on threads of their own, from a common start, and joins them.
void at_once(std::size_t count, auto f) {
  std::latch start{static_cast<std::ptrdiff_t>(count)};
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      f(i);
    });
}

// SimultaneousCancels
TEST_CASE("a tree whose contexts are all canceled at once ends, each context once and for one cause") {
  for (int round = 0; round < 10; ++round) {
    std::vector<cancel_scope> scopes;
    std::vector<std::pair<std::size_t, std::size_t>> parents{{0, 0}};
    scopes.push_back(with_cancel(background()));
    while (scopes.size() < 100)
      for (std::size_t parent = 0, size = scopes.size(); parent < size; ++parent) {
        const bool merges = parent % 3 == 1;
        const std::size_t second = merges ? scopes.size() / 2 : parent;
        parents.emplace_back(parent, second);
        const context& c = scopes[parent].ctx;
        scopes.push_back(merges            ? merge(c, scopes[second].ctx)
                         : parent % 3 == 2 ? with_timeout(c, 1000h)
                                           : with_cancel(c));
      }
    std::vector<std::exception_ptr> causes;
    for (std::size_t i = 0; i < scopes.size(); ++i) causes.push_back(make_cause());
    std::vector<char> did(scopes.size()), done_at_return(scopes.size());
    std::vector<std::exception_ptr> waited(scopes.size());
    at_once(2 * scopes.size(), [&](std::size_t i) {
      if (i % 2 == 0) {
        did[i / 2] = scopes[i / 2].cancel(causes[i / 2]);
        done_at_return[i / 2] = scopes[i / 2].ctx.done();
      } else {
        scopes[i / 2].ctx.wait();
        waited[i / 2] = scopes[i / 2].ctx.cause();
      }
    });
    CHECK(did[0]);
    for (std::size_t i = 0; i < scopes.size(); ++i) {
      const auto cause = scopes[i].ctx.cause();
      REQUIRE(done_at_return[i]);
      REQUIRE(scopes[i].ctx.err() == errc::canceled);
      REQUIRE(waited[i] == cause);
      REQUIRE((cause == causes[i]) == static_cast<bool>(did[i]));
      const auto [first, second] = parents[i];
      REQUIRE((did[i] || cause == scopes[first].ctx.cause() || cause == scopes[second].ctx.cause()));
    }
  }
}

// InterlockedCancels
TEST_CASE("a thread that waits for the parent cancels the child, while the parent is canceled") {
  for (int round = 0; round < 300; ++round) {
    auto [parent, cancel_parent] = with_cancel(background());
    auto [child, cancel_child] = with_cancel(parent);
    const auto cause = make_cause();
    bool parent_did = false, child_did = true;
    std::exception_ptr child_cause;
    at_once(2, [&, &parent = parent, &child = child, &cancel_parent = cancel_parent,
                &cancel_child = cancel_child](std::size_t i) {
      if (i == 0) {
        parent_did = cancel_parent(cause);
      } else {
        parent.wait();
        child_did = cancel_child();
        child_cause = child.cause();
      }
    });
    CHECK(parent_did);
    REQUIRE(child.done());
    REQUIRE(child.cause() == child_cause);
    REQUIRE((child_cause == cause) != child_did);
  }
}

/// A random stack of contexts with a value at each layer.
struct stack {
  std::vector<std::unique_ptr<ctx::key<std::size_t>>> keys;
  std::vector<cancel_func> cancels;
  context top;

  stack(std::mt19937_64& random, const context& parent, bool timeouts) : top{parent} {
    while (keys.size() < 30 || cancels.empty()) {
      switch (random() % 4) {
        case 0:
          push(with_cancel(top));
          break;
        case 1:
          timeouts ? push(with_timeout(top, 1h + random() % 1000 * 1s)) : push(merge(top, parent));
          break;
        default:
          break;
      }
      keys.push_back(std::make_unique<ctx::key<std::size_t>>("layer"));
      top = with_value(top, *keys.back(), keys.size());
    }
  }
  void push(cancel_scope scope) {
    top = std::move(scope.ctx);
    cancels.push_back(std::move(scope.cancel));
  }
  bool has_all_values() const {
    for (std::size_t i = 0; i < keys.size(); ++i)
      if (const auto* const value = top.value(*keys[i]); value == nullptr || *value != i + 1) return false;
    return true;
  }
};

std::uint64_t make_seed() {
  const char* const given = std::getenv("CTX_TEST_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : std::random_device{}();
  MESSAGE("CTX_TEST_SEED=", seed);
  return seed;
}

// LayersCancel
TEST_CASE("random stacks end when a layer is canceled, and keep every value") {
  const std::uint64_t seed = make_seed();
  auto [shared, cancel_shared] = with_cancel(background());
  std::atomic<int> wrong = 0;
  at_once(4, [&, &shared = shared](std::size_t thread) {
    std::mt19937_64 random{seed + thread};
    for (int round = 0; round < 50; ++round) {
      stack s{random, shared, false};
      const bool before = !s.top.done() && s.has_all_values();
      const bool did = s.cancels[random() % s.cancels.size()]();
      const bool after = s.top.err() == errc::canceled && s.has_all_values();
      if (!before || !did || !after) ++wrong;
    }
  });
  CHECK(wrong == 0);
  CHECK_FALSE(shared.done());
}

// LayersTimeout
TEST_CASE("random stacks expire with their earliest layer, and keep every value") {
  const std::uint64_t seed = make_seed();
  ctx::manual_clock clock;
  auto [shared, cancel_shared] = with_timeout(background(), 2h);
  constexpr std::size_t threads = 4, stacks = 10;
  std::atomic<int> wrong = 0;
  const auto start = ctx::clock::now();
  std::barrier meeting{threads, [&]() noexcept { clock.advance(30min); }};
  at_once(threads, [&, &shared = shared](std::size_t thread) {
    std::mt19937_64 random{seed + thread};
    std::vector<stack> all;
    for (std::size_t i = 0; i < stacks; ++i) all.emplace_back(random, shared, true);
    for (int round = 0; round <= 4; ++round) {
      const auto now = start + round * 30min;
      for (const stack& each : all) {
        const bool due = *each.top.deadline() <= now;
        if (each.top.done() != due || !each.has_all_values()) ++wrong;
        if (due && each.top.err() != errc::deadline_exceeded) ++wrong;
      }
      if (round == 4 && !all.back().top.done()) ++wrong;
      meeting.arrive_and_wait();
    }
  });
  CHECK(wrong == 0);
}

// WithCancelSimultaneouslyCanceledParent
TEST_CASE("a child made while its parent is canceled ends with the parent's cause") {
  for (int round = 0; round < 100; ++round) {
    auto [parent, cancel] = with_cancel(background());
    const auto cause = make_cause();
    std::vector<context> children;
    at_once(2, [&, &parent = parent, &cancel = cancel](std::size_t i) {
      if (i == 0) {
        cancel(cause);
        return;
      }
      children.push_back(kept(with_cancel(parent)));
      children.push_back(kept(with_timeout(parent, 1000h)));
      children.push_back(with_value(kept(merge(background(), children.back())), number, 1));
      children.push_back(kept(with_cancel(children.back())));
      children.push_back(kept(with_stop_token(parent, {})));
      for (const context& each : children) each.wait();
    });
    for (const context& each : children) {
      REQUIRE(each.err() == errc::canceled);
      REQUIRE(each.cause() == cause);
    }
  }
}

// CauseRace
TEST_CASE("whoever polls sees nothing, or the end with its err and its cause") {
  for (int round = 0; round < 300; ++round) {
    auto [parent, cancel] = with_cancel(background());
    const context below[]{parent, kept(with_cancel(parent)), kept(merge(background(), parent)),
                          kept(with_timeout(parent, 1000h))};
    if (round % 2 == 0) static_cast<void>(below[1].stop_token());
    const auto given = round % 3 == 0 ? nullptr : make_cause();
    std::exception_ptr seen[std::size(below)];
    std::atomic<int> wrong = 0;
    at_once(1 + std::size(below), [&, &cancel = cancel](std::size_t i) {
      if (i == std::size(below)) {
        cancel(given);
        return;
      }
      const context& c = below[i];
      // Each asks for another thing first.
      switch (i % 3) {
        case 0:
          while (c.cause() == nullptr) {
          }
          break;
        case 1:
          while (!c.err()) {
          }
          break;
        case 2:
          while (!c.done()) {
          }
          break;
      }
      seen[i] = c.cause();
      if (!c.done() || c.err() != errc::canceled || !c.stop_token().stop_requested()) ++wrong;
    });
    REQUIRE(wrong == 0);
    for (const auto& each : seen) {
      REQUIRE(each != nullptr);
      REQUIRE(each == parent.cause());
      REQUIRE((given == nullptr || each == given));
    }
    CHECK_THROWS_AS(below[round % 4].throw_if_done(), std::exception);
  }
}

}  // namespace
