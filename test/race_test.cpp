// Exists for what goes wrong only when two threads meet on a context or on its relatives: a wake-up that
// is lost, memory that is used after its end, a callback that runs twice, a deadlock, two answers that
// disagree, and a cancel that returns while something below it is live.
//
// A race runs in rounds. Each makes a small world; several threads act on it at once; when all have
// acted, the world is judged: which outcomes there may be, and no other. The threads only note what
// they find. Sanitizers see what does not show in the outcome. test/races.md says which pairs meet where.
//
// CTX_TEST_SEED replays the random choices, though not the schedule; CTX_TEST_ROUNDS multiplies the rounds.

#include "sanitizer.hpp"

#include <ctx/context.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

using namespace std::chrono_literals;
using ctx::cancel_func;
using ctx::cancel_scope;
using ctx::context;
using std::chrono::microseconds;

constexpr int slowdown = sanitized ? 3 : 1;

// Chance

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::stoull(text) : otherwise;
}

std::uint64_t seed() {
  static const std::uint64_t chosen = [] {
    std::random_device device;
    const auto fresh = std::uint64_t{device()} << 32 | device();
    const auto given = from_environment("CTX_TEST_SEED", fresh);
    MESSAGE("CTX_TEST_SEED=", given);
    return given;
  }();
  return chosen;
}

int rounds(int plain) {
  const auto factor = static_cast<int>(from_environment("CTX_TEST_ROUNDS", 1));
  return std::max(1, plain * factor / slowdown);
}

/// A stream of random numbers; each thread has its own.
class dice {
 public:
  explicit dice(std::uint64_t stream) : state_{seed() ^ stream * 0x9e3779b97f4a7c15} {}

  unsigned below(unsigned bound) noexcept { return static_cast<unsigned>((next() >> 32) * bound >> 32); }
  bool coin() noexcept { return below(2) == 0; }
  microseconds up_to(microseconds most) noexcept {
    return microseconds{below(static_cast<unsigned>(most.count()) + 1)};
  }

  /// Passes a random moment, mostly a few nanoseconds, so that two threads meet anywhere.
  void dawdle() noexcept {
    const unsigned kind = below(16);
    if (kind == 0) std::this_thread::yield();
    for (unsigned left = below(1U << kind / 2 * 2 % 12); left > 0; --left) relax_ = left;
  }

 private:
  std::uint64_t next() noexcept {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

  std::uint64_t state_;
  volatile unsigned relax_ = 0;
};

// What is found

/// What the threads of a round find wrong. The first finding is kept.
class findings {
 public:
  bool expect(bool holds, const char* what) noexcept {
    if (!holds && !any_.exchange(true)) first_ = what;
    return holds;
  }

  /// What this thread sees of a context agrees. Each is asked after what promises it, so that an end in
  /// between explains nothing. Where `token` is null, the context is not asked for one.
  void sound(const context& c, const std::stop_token* token = nullptr) noexcept {
    if (token != nullptr && token->stop_requested()) expect(c.done(), "the token is stopped, done() is false");
    if (c.cause() != nullptr) expect(c.done(), "there is a cause, done() is false");
    if (c.err()) expect(c.done(), "there is an error, done() is false");
    if (!c.done()) return;
    const std::error_code error = c.err();
    const std::exception_ptr cause = c.cause();
    expect(error == ctx::errc::canceled || error == ctx::errc::deadline_exceeded, "done, but err() is empty");
    expect(cause != nullptr, "done, but cause() is null");
    expect(token == nullptr || token->stop_requested(), "done, but the token is not stopped");
    expect(c.done() && c.err() == error && c.cause() == cause, "what was seen of an end changed");
  }

  /// It is done, for whatever reason.
  void ended(const context& c) noexcept {
    expect(c.done(), "not done");
    sound(c);
  }

  void ended(const std::vector<cancel_scope>& all) noexcept {
    for (const auto& each : all) ended(each.ctx);
  }

  /// The child was ended by the end of the parent.
  void ended_with(const context& child, const context& parent) noexcept {
    ended(child);
    expect(child.err() == parent.err() && child.cause() == parent.cause(), "ended with another's error or cause");
  }

  // To be called when the threads have joined.
  const char* first() const noexcept { return any_ ? first_ : nullptr; }

 private:
  std::atomic<bool> any_{false};
  const char* first_ = nullptr;
};

std::exception_ptr make_cause(const char* what) { return std::make_exception_ptr(std::runtime_error{what}); }

/// The causes that the threads of a race give, one for each.
const std::array<std::exception_ptr, 4> causes{make_cause("0"), make_cause("1"), make_cause("2"), make_cause("3")};
const std::exception_ptr too_late = make_cause("too late");

// A context lives as long as anything below it. So whether a tree is gone shows in a value at its root.
std::atomic<int> trees{0};

struct tree {
  tree() noexcept { ++trees; }
  tree(const tree&) = delete;
  tree& operator=(const tree&) = delete;
  ~tree() { --trees; }
};

struct tree_key {
  using context_value = std::optional<tree>;
  bool operator==(const tree_key&) const = default;
};

context new_tree() { return ctx::with_value(ctx::background(), tree_key{}, std::in_place); }

/// A callback on a context, which notes how often it is called and looks what it sees then.
class witness {
 public:
  witness(const context& c, findings& found, std::function<void()> then = {})
      : seen_{c}, found_{&found}, then_{std::move(then)}, token_{c.stop_token()}, callback_{token_, look{this}} {}

  int calls() const noexcept { return calls_; }

 private:
  struct look {
    witness* self;
    void operator()() const noexcept {
      self->found_->expect(self->token_.stop_requested(), "a callback runs, its token is not stopped");
      self->found_->expect(self->seen_.done(), "a callback runs on a context that is not done");
      self->found_->sound(self->seen_, &self->token_);
      self->found_->expect(self->calls_++ == 0, "a callback runs twice");
      if (self->then_) self->then_();
    }
  };

  const context seen_;
  findings* const found_;  // borrows: outlived by the scene
  const std::function<void()> then_;
  std::atomic<int> calls_{0};
  const std::stop_token token_;
  std::stop_callback<look> callback_;
};

/// What the worlds of all races have in common.
struct scene {
  findings found;
  context root = new_tree();
  std::vector<cancel_scope> children;
  std::deque<witness> witnesses;

  /// Gives a context somebody who takes an interest in its end, or nobody: the library takes other ways.
  void dress(const context& c, dice& d) {
    switch (d.below(6)) {
      case 0:
        (void)c.stop_token();
        break;
      case 1:
        witnesses.emplace_back(c, found, d.coin() ? std::this_thread::yield : nullptr);
        break;
      case 2:
        children.push_back(ctx::with_cancel(c));
        break;
      case 3:
        children.push_back(ctx::with_timeout(c, 1h));
        witnesses.emplace_back(children.back().ctx, found);
        break;
      case 4:
        (void)c.wait_for(2us);
        break;
      default:
        break;
    }
  }

  /// Waits for the timer's thread: a deadline ends a context, and goes on to end what is below.
  void settle() const {
    for (const auto& each : children) each.ctx.wait();
    const auto guard = std::chrono::steady_clock::now() + 20s;
    for (const auto& each : witnesses) {
      while (each.calls() == 0 && std::chrono::steady_clock::now() < guard) std::this_thread::yield();
    }
  }

  /// All that dress() added has ended, and each callback was called, on whichever thread.
  void all_ended() {
    found.ended(children);
    for (const auto& each : witnesses) found.expect(each.calls() == 1, "a callback did not run");
  }
};

// The race

/// A barrier that does not sleep: std::barrier wakes one thread after the other, which seldom meet then.
class line {
 public:
  explicit line(std::size_t threads) : threads_{threads} {}

  void arrive_and_wait() noexcept {
    const std::size_t phase = phase_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++phase_;
    }
    for (int spins = 0; phase_ == phase; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

 private:
  const std::size_t threads_;
  std::atomic<std::size_t> arrived_{0};
  std::atomic<std::size_t> phase_{0};
};

template <class World>
using side = std::function<void(World&, dice&)>;

/// The course of a race, and what came out: empty where nothing was found wrong.
template <class World>
std::string race(int rounds, const std::function<std::unique_ptr<World>(dice&)>& make,
                 const std::vector<side<World>>& sides, const std::function<void(World&)>& judge) {
  static std::uint64_t stream = 0;
  dice d{++stream};
  std::unique_ptr<World> world;
  line start{sides.size()};
  const auto act = [&](std::size_t number, dice& own) {
    start.arrive_and_wait();
    own.dawdle();
    sides[number](*world, own);
    start.arrive_and_wait();
  };

  std::string outcome;
  {
    std::vector<std::jthread> others;
    for (std::size_t number = 1; number < sides.size(); ++number) {
      others.emplace_back([&act, number, rounds, own = dice{++stream}]() mutable {
        for (int round = 0; round < rounds; ++round) act(number, own);
      });
    }
    for (int round = 0; round < rounds; ++round) {
      world = make(d);
      act(0, d);
      judge(*world);
      if (const char* const first = world->found.first(); first != nullptr && outcome.empty()) {
        outcome = "round " + std::to_string(round) + " of " + std::to_string(rounds) + ": " + first;
      }
      world.reset();
    }
  }
  // The timer's thread may still hold what it has just ended.
  for (const auto guard = std::chrono::steady_clock::now() + 20s; trees != 0; std::this_thread::yield()) {
    if (std::chrono::steady_clock::now() > guard) return outcome + " contexts leak";
  }
  return outcome;
}

template <class World>
std::string race(int rounds, const std::vector<side<World>>& sides, const std::function<void(World&)>& judge) {
  return race<World>(
      rounds, [](dice& d) { return std::make_unique<World>(d); }, sides, judge);
}

void spin_until(ctx::clock::time_point instant) noexcept {
  while (ctx::clock::now() < instant) {
  }
}

void spin_for(ctx::clock::duration time) noexcept { spin_until(ctx::clock::now() + time); }

/// The ways in which a context ends, other than by its own cancel_func.
class ending {
 public:
  explicit ending(const context& root, dice& d) : kind_{d.below(5)}, other_{ctx::with_cancel(root)} {
    switch (kind_) {
      case 0:
        ended_.emplace(ctx::with_timeout(root, d.up_to(40us), too_late));
        break;
      case 1:
        ended_.emplace(ctx::with_stop_token(root, source_.get_token()));
        break;
      case 2:
        ended_.emplace(ctx::merge(root, other_.ctx));
        break;
      case 3:
        ended_.emplace(ctx::merge(other_.ctx, root));
        break;
      default:
        ended_.emplace(ctx::with_timeout(ctx::with_value(other_.ctx, tree_key{}, std::nullopt), 1h));
        break;
    }
  }

  const context& ctx() const noexcept { return ended_->ctx; }
  const cancel_func& cancel() const noexcept { return ended_->cancel; }

  /// Returns when the context is done.
  void bring_about() {
    switch (kind_) {
      case 0:
        while (!ended_->ctx.done()) std::this_thread::yield();
        break;
      case 1:
        source_.request_stop();
        break;
      default:
        other_.cancel(causes[0]);
        break;
    }
  }

  /// What it does to the context where nothing else was first.
  bool did_it() const {
    const std::exception_ptr cause = ctx().cause();
    if (kind_ == 0) return ctx().err() == ctx::errc::deadline_exceeded && cause == too_late;
    return ctx().err() == ctx::errc::canceled && (kind_ == 1 || cause == causes[0]);
  }

 private:
  unsigned kind_;
  std::stop_source source_;
  cancel_scope other_;
  std::optional<cancel_scope> ended_;
};

// First, so that in a program that runs this alone there has been no other thread: libstdc++ tells
// nobody then that a callback has returned.
TEST_CASE("a function stopped before the first thread starts is destroyed on another thread") {
  auto scope = ctx::with_cancel(ctx::background());
  auto handle = ctx::after_func(scope.ctx, [] {});
  CHECK(handle.stop());
  CHECK(scope.cancel());
  const auto destroyed = std::make_shared<std::atomic<bool>>(false);
  std::thread thread{[destroyed, handle = std::move(handle)]() mutable {
    { const auto last = std::move(handle); }
    *destroyed = true;
  }};
  const auto guard = std::chrono::steady_clock::now() + 20s;
  while (!*destroyed && std::chrono::steady_clock::now() < guard) std::this_thread::yield();
  CHECK(*destroyed);
  *destroyed ? thread.join() : thread.detach();
}

// Cancel meets cancel

TEST_CASE("one of many cancels ends a context, and each returns when it is done") {
  struct world : scene {
    explicit world(dice& d) {
      for (int i = 0; i < 3; ++i) dress(c.ctx, d);
    }
    cancel_scope c = ctx::with_cancel(root);
    std::array<bool, 3> won{};
  };
  const auto cancel = [](std::size_t by) {
    return [by](world& w, dice&) {
      w.won[by] = w.c.cancel(causes[by]);
      w.found.ended(w.c.ctx);
      if (w.won[by]) w.found.ended(w.children);
    };
  };
  CHECK(race<world>(rounds(4000), {cancel(0), cancel(1), cancel(2)}, [](world& w) {
          w.found.expect(std::count(w.won.begin(), w.won.end(), true) == 1, "not one winner");
          for (std::size_t by = 0; by < 3; ++by) {
            if (w.won[by]) w.found.expect(w.c.ctx.cause() == causes[by], "the cause is not the winner's");
          }
          w.all_ended();
        }) == "");
}

TEST_CASE("a context is canceled or ends otherwise, in one way for all who look and all below") {
  struct world : scene {
    explicit world(dice& d) : c{root, d} {
      for (int i = 0; i < 2; ++i) dress(c.ctx(), d);
    }
    ending c;
    bool won = false;
  };
  const side<world> cancel = [](world& w, dice& d) {
    // The timer's thread takes its time to wake.
    if (d.coin()) spin_for(d.up_to(120us));
    w.won = w.c.cancel()(causes[1]);
    w.found.ended(w.c.ctx());
    if (w.won) w.found.ended(w.children);
  };
  const side<world> end = [](world& w, dice&) {
    const auto deadline = w.c.ctx().deadline();
    w.c.bring_about();
    w.found.ended(w.c.ctx());
    if (w.c.ctx().err() == ctx::errc::deadline_exceeded) {
      w.found.expect(ctx::clock::now() >= *deadline, "ended before its deadline");
    }
  };
  const side<world> poll = [](world& w, dice& d) {
    std::optional<std::stop_token> token;
    if (d.coin()) token = w.c.ctx().stop_token();
    for (bool last = false; !last; std::this_thread::yield()) {
      last = w.c.ctx().done();
      w.found.sound(w.c.ctx(), token ? &*token : nullptr);
    }
  };
  CHECK(race<world>(rounds(4000), {cancel, end, poll}, [](world& w) {
          if (w.won) {
            w.found.expect(w.c.ctx().err() == ctx::errc::canceled && w.c.ctx().cause() == causes[1],
                           "a cancel won, but another end is seen");
          } else {
            w.found.expect(w.c.did_it(), "no cancel won, but the end is not the other's");
          }
          w.settle();
          for (const auto& child : w.children) w.found.ended_with(child.ctx, w.c.ctx());
          w.all_ended();
        }) == "");
}

TEST_CASE("parent and child canceled at once: a cancel that returns true leaves nothing live below it") {
  struct world : scene {
    explicit world(dice& d) {
      for (auto* each : {&p, &c}) dress(each->ctx, d);
      const context named = ctx::with_value(c.ctx, tree_key{}, std::nullopt);
      below.push_back(ctx::with_cancel(named));
      below.push_back(ctx::with_timeout(c.ctx, 1h));
      below.push_back(ctx::with_stop_token(c.ctx, source.get_token()));
      below.push_back(ctx::merge(c.ctx, aside.ctx));
      below.push_back(ctx::merge(aside.ctx, c.ctx));
      below.push_back(ctx::merge(below[3].ctx, p.ctx));
      for (std::size_t i = 0; i < 6; ++i) dress(below[i].ctx, d);
      std::shuffle(below.begin(), below.begin() + 3, std::minstd_rand{d.below(1000)});
    }
    std::stop_source source;
    cancel_scope aside = ctx::with_cancel(root);
    cancel_scope p = ctx::with_cancel(root);
    cancel_scope c = ctx::with_cancel(p.ctx);
    std::vector<cancel_scope> below;
    bool child_won = false;
  };
  const side<world> parent = [](world& w, dice&) {
    w.found.expect(w.p.cancel(causes[0]), "nobody else cancels the parent");
    w.found.ended(w.c.ctx);
    w.found.ended(w.below);
    w.found.ended(w.children);
  };
  const side<world> child = [](world& w, dice&) {
    w.child_won = w.c.cancel(causes[1]);
    w.found.ended(w.c.ctx);
    if (w.child_won) w.found.ended(w.below);
  };
  CHECK(race<world>(rounds(4000), {parent, child}, [](world& w) {
          w.found.expect(w.p.ctx.cause() == causes[0], "the parent has another cause");
          w.found.expect(w.c.ctx.cause() == causes[w.child_won ? 1 : 0], "the child has another cause");
          for (const auto& each : w.below) w.found.ended(each.ctx);
          for (std::size_t i = 0; i < 5; ++i) w.found.ended_with(w.below[i].ctx, w.c.ctx);
          w.all_ended();
        }) == "");
}

TEST_CASE("three cancels in one line: each that returns true leaves nothing live below it") {
  struct world : scene {
    explicit world(dice& d) {
      for (int level = 0; level < 6; ++level) {
        line.push_back(ctx::with_cancel(level == 0 ? root : line.back().ctx));
        dress(line.back().ctx, d);
      }
    }
    std::vector<cancel_scope> line;
    std::array<std::atomic<bool>, 6> ended_itself{};
    std::atomic<std::size_t> highest{6};
  };
  const auto cancel = [](std::size_t by) {
    return [by](world& w, dice& d) {
      const std::size_t level = d.below(6);
      const bool won = w.line[level].cancel(causes[by]);
      w.found.ended(w.line[level].ctx);
      if (won) {
        w.ended_itself[level] = true;
        w.found.expect(w.line[level].ctx.cause() == causes[by], "a cancel won, but another cause is seen");
        for (std::size_t each = level; each < 6; ++each) w.found.ended(w.line[each].ctx);
      }
      for (std::size_t seen = w.highest; level < seen && !w.highest.compare_exchange_weak(seen, level);) {
      }
    };
  };
  CHECK(race<world>(rounds(6000), {cancel(0), cancel(1), cancel(2)}, [](world& w) {
          for (std::size_t level = 0; level < 6; ++level) {
            const context& each = w.line[level].ctx;
            w.found.expect(each.done() == (level >= w.highest), "the wrong part of the line ended");
            if (each.done() && !w.ended_itself[level]) w.found.ended_with(each, w.line[level - 1].ctx);
          }
          w.line[0].cancel();
          w.all_ended();
        }) == "");
}

TEST_CASE("parents that share merged children are canceled at once: both return when these are done") {
  struct world : scene {
    explicit world(dice& d) {
      for (std::size_t i = 0; i < 2; ++i) {
        shared.push_back(ctx::merge(parents[i].ctx, parents[1 - i].ctx));
        dress(shared.back().ctx, d);
        shared.push_back(ctx::with_cancel(shared.back().ctx));
        dress(shared.back().ctx, d);
      }
      shared.push_back(ctx::merge(shared[1].ctx, shared[3].ctx));
      shared.push_back(ctx::merge(parents[0].ctx, shared[2].ctx));
      for (std::size_t i = 4; i < 6; ++i) dress(shared[i].ctx, d);
    }
    std::array<cancel_scope, 2> parents{ctx::with_cancel(root), ctx::with_cancel(root)};
    std::vector<cancel_scope> shared;
    bool won = false;
  };
  const auto cancel = [](std::size_t by) {
    return [by](world& w, dice&) {
      w.found.expect(w.parents[by].cancel(causes[by]), "nobody else cancels this parent");
      w.found.ended(w.shared);
      w.found.ended(w.children);
    };
  };
  const side<world> cancel_one = [](world& w, dice&) {
    w.won = w.shared[0].cancel(causes[2]);
    w.found.ended(w.shared[0].ctx);
    if (w.won) w.found.ended(w.shared[1].ctx);
  };
  const std::function<void(world&)> judge = [](world& w) {
    const auto one_of = [&](const context& c, std::initializer_list<std::exception_ptr> allowed) {
      w.found.expect(std::find(allowed.begin(), allowed.end(), c.cause()) != allowed.end(), "a cause from elsewhere");
    };
    one_of(w.shared[0].ctx, {w.won ? causes[2] : causes[0], w.won ? causes[2] : causes[1]});
    one_of(w.shared[2].ctx, {causes[0], causes[1]});
    w.found.ended_with(w.shared[1].ctx, w.shared[0].ctx);
    w.found.ended_with(w.shared[3].ctx, w.shared[2].ctx);
    one_of(w.shared[4].ctx, {w.shared[0].ctx.cause(), w.shared[2].ctx.cause()});
    one_of(w.shared[5].ctx, {causes[0], w.shared[2].ctx.cause()});
    w.all_ended();
  };
  CHECK(race<world>(rounds(4000), {cancel(0), cancel(1)}, judge) == "");
  CHECK(race<world>(rounds(2000), {cancel(0), cancel(1), cancel_one}, judge) == "");
}

// Cancel from a callback

TEST_CASE("callbacks cancel each other's parents: none waits for another") {
  struct family {
    cancel_scope parent, child, grandchild;
    explicit family(const context& root)
        : parent{ctx::with_cancel(root)},
          child{ctx::with_cancel(parent.ctx)},
          grandchild{ctx::with_cancel(child.ctx)} {}
  };
  struct world : scene {
    explicit world(dice& d) {
      for (std::size_t i = 0; i < 3; ++i) {
        auto& own = families[i];
        const std::array on{&own.parent, &own.child, &own.grandchild};
        for (const auto* each : on) dress(each->ctx, d);
        // By the first two, in a ring; by the third, anywhere.
        auto& other = families[i < 2 ? 1 - i : d.below(3)];
        witnesses.emplace_back(on[i < 2 ? 1 : d.below(3)]->ctx, found, [this, &other] {
          if (!other.parent.cancel()) return;
          for (const auto* each : {&other.parent, &other.child, &other.grandchild}) found.ended(each->ctx);
        });
      }
    }
    std::array<family, 3> families{family{root}, family{root}, family{root}};
  };
  const auto cancel = [](std::size_t by) {
    return [by](world& w, dice& d) {
      auto& own = w.families[by];
      const auto& one = d.coin() ? own.child : own.parent;
      if (one.cancel()) w.found.ended(own.grandchild.ctx);
      w.found.ended(one.ctx);
    };
  };
  const std::function<void(world&)> judge = [](world& w) {
    for (std::size_t i = 0; i < 2; ++i) w.found.ended(w.families[i].grandchild.ctx);
    for (auto& each : w.families) each.parent.cancel();
    w.all_ended();
  };
  CHECK(race<world>(rounds(4000), {cancel(0), cancel(1)}, judge) == "");
  CHECK(race<world>(rounds(2000), {cancel(0), cancel(1), cancel(2)}, judge) == "");
}

TEST_CASE("a callback cancels above itself, derives and lets go, while others do the same") {
  struct world : scene {
    explicit world(dice& d) {
      for (int level = 0; level < 4; ++level) {
        line.push_back(ctx::with_cancel(level == 0 ? root : line.back().ctx));
        dress(line.back().ctx, d);
        doomed.push_back(ctx::with_timeout(line.back().ctx, 1h));
        bystanders.push_back(std::move(doomed.back().ctx));
      }
      const std::size_t on = 1 + d.below(3);
      const std::size_t up = d.below(static_cast<unsigned>(on) + 1);
      witnesses.emplace_back(line[on].ctx, found, [this, on, up, more = d.coin()] {
        found.ended(ctx::with_cancel(line[on].ctx).ctx);
        doomed.clear();
        if (more) bystanders.clear();
        if (!line[up].cancel(causes[2])) return;
        for (std::size_t each = up; each < 4; ++each) found.ended(line[each].ctx);
        found.ended(ctx::with_timeout(line[3].ctx, 1h).ctx);
      });
    }
    std::vector<cancel_scope> line;
    std::vector<cancel_scope> doomed;
    std::vector<context> bystanders;
  };
  const auto cancel = [](std::size_t level) {
    return [level](world& w, dice&) {
      if (!w.line[level].cancel(causes[level])) return w.found.ended(w.line[level].ctx);
      for (std::size_t each = level; each < 4; ++each) w.found.ended(w.line[each].ctx);
    };
  };
  const std::function<void(world&)> judge = [](world& w) {
    w.line[0].cancel();
    for (const auto& each : w.line) w.found.ended(each.ctx);
    w.all_ended();
  };
  for (std::size_t upper = 0; upper < 3; ++upper) {
    CHECK(race<world>(rounds(1500), {cancel(3), cancel(upper)}, judge) == "");
  }
}

TEST_CASE("a cancel from a callback of a callback leaves nothing live below it") {
  // `both` is claimed by the end of `x`, whose callback runs, and not yet announced. The end of `child`
  // comes upon it, and the end of `parent` comes upon that of `child`.
  findings found;
  const auto x = ctx::with_cancel(ctx::background());
  const auto parent = ctx::with_cancel(ctx::background());
  const auto child = ctx::with_cancel(parent.ctx);
  const auto both = ctx::merge(child.ctx, x.ctx);
  const auto below = ctx::with_cancel(both.ctx);
  const witness on_both{both.ctx, found};
  const witness on_below{below.ctx, found};
  const witness on_x{x.ctx, found, [&] { child.cancel(); }};
  bool all_done = false;
  const witness on_child{child.ctx, found, [&] { all_done = parent.cancel() && both.ctx.done() && below.ctx.done(); }};
  CHECK(x.cancel());
  CHECK(all_done);
  CHECK(found.first() == nullptr);
}

TEST_CASE("a context derived in a callback, from one that is just ending, ends with its other parents too") {
  // `child` is claimed by the end of `parent`, whose callback runs, and not yet announced.
  const auto parent = ctx::with_cancel(ctx::background());
  const auto child = ctx::with_cancel(parent.ctx);
  const auto token = child.ctx.stop_token();
  const auto live = ctx::with_cancel(ctx::background());
  const auto done = ctx::with_cancel(ctx::background());
  done.cancel();
  std::stop_source source;
  std::stop_source stopped;
  stopped.request_stop();

  const auto in_callback = [&](auto&& f) {
    const auto run = [&] { f(); };
    const std::stop_callback<decltype(run)> callback{parent.ctx.stop_token(), run};
    parent.cancel();
  };
  bool ended = false;
  SUBCASE("a merge with what is canceled next") {
    in_callback([&] {
      const auto made = ctx::merge(child.ctx, live.ctx);
      ended = live.cancel() && made.ctx.done();
    });
  }
  SUBCASE("a merge with what is done") {
    in_callback([&] { ended = ctx::merge(child.ctx, done.ctx).ctx.done(); });
  }
  SUBCASE("a merge of what is done with it") {
    in_callback([&] { ended = ctx::merge(done.ctx, child.ctx).ctx.done(); });
  }
  SUBCASE("one for a token that is stopped next") {
    in_callback([&] {
      const auto made = ctx::with_stop_token(child.ctx, source.get_token());
      source.request_stop();
      ended = made.ctx.done();
    });
  }
  SUBCASE("one for a token that is stopped") {
    in_callback([&] { ended = ctx::with_stop_token(child.ctx, stopped.get_token()).ctx.done(); });
  }
  SUBCASE("one whose deadline passed") {
    in_callback([&] { ended = ctx::with_timeout(child.ctx, 0s).ctx.done(); });
  }
  CHECK(ended);
}

TEST_CASE("a callback may destroy what is being canceled, and the cancel_func that is called") {
  findings found;
  const auto in_callback_of = [&](auto& scope, auto&& f) {
    const auto run = [&] { f(); };
    const std::stop_callback<decltype(run)> callback{scope->ctx.stop_token(), run};
    return scope->cancel();
  };
  auto parent = std::make_unique<cancel_scope>(ctx::with_cancel(ctx::background()));
  auto child = std::make_unique<cancel_scope>(ctx::with_timeout(parent->ctx, 1h));
  const witness on_child{child->ctx, found};
  SUBCASE("the last handle") {
    CHECK(in_callback_of(parent, [&] { parent->ctx = {}; }));
  }
  SUBCASE("the whole scope") {
    CHECK(in_callback_of(parent, [&] { parent.reset(); }));
  }
  SUBCASE("the whole scope, and what is below") {
    CHECK(in_callback_of(parent, [&] {
      child.reset();
      parent.reset();
    }));
  }
  SUBCASE("a child, while the parent is canceled by its destruction") {
    const auto run = [&] { child.reset(); };
    const std::stop_callback<decltype(run)> callback{parent->ctx.stop_token(), run};
    parent.reset();
  }
  CHECK(found.first() == nullptr);
}

TEST_CASE("a callback destroys the scope whose cancel_func its thread calls, while the parent ends") {
  struct world : scene {
    explicit world(dice& d) : on_c{c->ctx.stop_token(), [this] { called(); }} {
      if (d.coin()) witnesses.emplace_back(parent.ctx, found, std::this_thread::yield);
      if (d.coin()) children.push_back(ctx::with_cancel(c->ctx));
    }
    void called() {
      if (std::this_thread::get_id() != canceling) return;
      // By then nobody else holds it.
      while (!parent_ended) std::this_thread::yield();
      c.reset();
    }
    std::atomic<std::thread::id> canceling{};
    std::atomic<bool> parent_ended{false};
    cancel_scope parent = ctx::with_cancel(root);
    std::optional<cancel_scope> c{ctx::with_cancel(parent.ctx)};
    std::stop_callback<std::function<void()>> on_c;
  };
  const side<world> end_parent = [](world& w, dice&) {
    w.parent.cancel();
    w.parent_ended = true;
  };
  const side<world> cancel = [](world& w, dice&) {
    w.canceling = std::this_thread::get_id();
    w.c->cancel();
  };
  CHECK(race<world>(rounds(3000), {end_parent, cancel}, [](world& w) { w.all_ended(); }) == "");
}

// Deriving, and letting go

TEST_CASE("what is derived from a context that is just ending ends with it") {
  struct world : scene {
    explicit world(dice& d) : p{root, d}, q{root, d} {
      dress(p.ctx(), d);
      dress(q.ctx(), d);
    }
    ending p, q;
    std::vector<cancel_scope> with_p, with_either;
  };
  const side<world> derive = [](world& w, dice& d) {
    const context &p = w.p.ctx(), &q = w.q.ctx();
    for (int i = 0; i < 6; ++i) {
      const unsigned kind = d.below(8);
      const bool p_was_done = p.done();
      const bool q_was_done = q.done();
      auto& made = kind < 5 ? w.with_p : w.with_either;
      switch (kind) {
        case 0:
          made.push_back(ctx::with_cancel(p));
          break;
        case 1:
          made.push_back(ctx::with_timeout(p, 1h));
          break;
        case 2:
          made.push_back(ctx::with_stop_token(p, {}));
          break;
        case 3:
          made.push_back(ctx::merge(p, p));
          break;
        case 4:
          made.push_back(ctx::merge(ctx::with_value(p, tree_key{}, std::nullopt), ctx::without_cancel(q)));
          break;
        case 5:
          made.push_back(ctx::merge(p, q));
          break;
        case 6:
          made.push_back(ctx::merge(q, p));
          break;
        default:
          made.push_back(ctx::with_stop_token(p, q.stop_token()));
          break;
      }
      const context& child = made.back().ctx;
      if (p_was_done || (q_was_done && kind > 4)) w.found.expect(child.done(), "born live, with a parent that is done");
      if (p_was_done) w.found.ended(child);
      if (d.coin()) w.dress(child, d);
    }
  };
  const side<world> end_p = [](world& w, dice&) { w.p.bring_about(); };
  const side<world> end_q = [](world& w, dice&) { w.q.bring_about(); };
  const std::function<void(world&)> judge = [](world& w) {
    w.q.bring_about();
    for (const auto* made : {&w.with_p, &w.with_either}) {
      for (const auto& each : *made) each.ctx.wait();
      w.found.ended(*made);
    }
    for (const auto& each : w.with_p) w.found.ended_with(each.ctx, w.p.ctx());
    w.found.expect(!ctx::without_cancel(w.p.ctx()).done(), "without_cancel() gives a context that is done");
    w.settle();
    w.all_ended();
  };
  CHECK(race<world>(rounds(3000), {derive, end_p}, judge) == "");
  CHECK(race<world>(rounds(2000), {derive, end_p, end_q}, judge) == "");
}

TEST_CASE("the first children of a context, derived at once on several threads, end with what is above it") {
  struct world : scene {
    explicit world(dice&) {}
    cancel_scope top = ctx::with_cancel(root), parent = ctx::with_cancel(top.ctx);
    std::array<std::vector<cancel_scope>, 2> made;
  };
  const auto derive = [](std::size_t by) {
    return [by](world& w, dice&) {
      for (int i = 0; i < 5; ++i) w.made[by].push_back(ctx::with_cancel(w.parent.ctx));
    };
  };
  const side<world> end_top = [](world& w, dice&) { w.top.cancel(); };
  const std::function<void(world&)> judge = [](world& w) {
    w.top.cancel();
    for (const auto& each : w.made) w.found.ended(each);
  };
  CHECK(race<world>(rounds(3000), {derive(0), derive(1)}, judge) == "");
  CHECK(race<world>(rounds(6000), {derive(0), end_top}, judge) == "");
}

TEST_CASE("contexts let go while their parents end: each ends once, or never") {
  struct kid {
    std::optional<cancel_scope> scope;
    bool released = false;
    std::stop_token token;
    std::atomic<int> calls{0};
    std::optional<std::stop_callback<std::function<void()>>> callback;
  };
  struct world : scene {
    explicit world(dice& d) : p{root, d}, q{root, d} {
      for (auto& kid : kids) {
        // A line, of which only the last is held.
        cancel_scope last = derive(p.ctx(), d);
        while (d.coin()) {
          cancel_scope next = derive(last.ctx, d);
          last.cancel.release();
          last = std::move(next);
        }
        if (d.coin()) {
          kid.token = last.ctx.stop_token();
          kid.callback.emplace(kid.token, [&kid] { ++kid.calls; });
        }
        kid.released = d.coin();
        if (kid.released) last.cancel.release();
        kid.scope.emplace(std::move(last));
      }
    }
    cancel_scope derive(const context& c, dice& d) {
      switch (d.below(6)) {
        case 0:
          return ctx::with_cancel(c);
        case 1:
          return ctx::with_timeout(c, 1h);
        case 2:
          return ctx::with_timeout(c, d.up_to(40us));
        case 3:
          return ctx::with_stop_token(c, source.get_token());
        case 4:
          return ctx::merge(c, q.ctx());
        default:
          return ctx::merge(q.ctx(), c);
      }
    }
    std::stop_source source;
    ending p, q;
    std::array<kid, 6> kids;
  };
  const side<world> let_go = [](world& w, dice& d) {
    for (auto& kid : w.kids) {
      kid.scope.reset();
      d.dawdle();
    }
  };
  const side<world> end_p = [](world& w, dice&) { w.p.bring_about(); };
  const side<world> end_q = [](world& w, dice&) {
    w.source.request_stop();
    w.q.bring_about();
  };
  const std::function<void(world&)> judge = [](world& w) {
    for (auto& kid : w.kids) {
      if (!kid.callback) continue;
      w.found.expect(kid.released || kid.token.stop_requested(), "destroying a cancel_func did not cancel");
      // The timer's thread may be about to call it.
      const auto guard = std::chrono::steady_clock::now() + 20s;
      while (kid.calls != (kid.token.stop_requested() ? 1 : 0) && std::chrono::steady_clock::now() < guard) {
        std::this_thread::yield();
      }
      w.found.expect(kid.calls <= 1, "a callback ran twice");
      w.found.expect(kid.calls == 1 || !kid.token.stop_requested(), "a callback did not run");
    }
  };
  CHECK(race<world>(rounds(3000), {let_go, end_p}, judge) == "");
  CHECK(race<world>(rounds(2000), {let_go, end_p, end_q}, judge) == "");
}

TEST_CASE("what dies with a context may cancel above it") {
  struct last_words {
    const cancel_func* cancel;  // borrows: outlived by the world
    explicit last_words(const cancel_func* c) noexcept : cancel{c} {}
    last_words(const last_words&) = delete;
    last_words& operator=(const last_words&) = delete;
    ~last_words() { (*cancel)(causes[2]); }
  };
  struct last_words_key {
    using context_value = last_words;
    bool operator==(const last_words_key&) const = default;
  };
  struct world : scene {
    explicit world(dice& d) {
      for (std::size_t i = 0; i < 4; ++i) {
        const auto& parent = line[d.below(2)];
        const context dying = ctx::with_value(parent.ctx, last_words_key{}, &line[d.below(3)].cancel);
        held.push_back(ctx::with_cancel(dying));
        dress(line[i % 3].ctx, d);
        if (d.coin()) tokens.push_back(held.back().ctx.stop_token());
      }
    }
    cancel_scope above = ctx::with_cancel(root);
    std::array<cancel_scope, 3> line{ctx::with_cancel(above.ctx), ctx::with_cancel(above.ctx), ctx::with_cancel(root)};
    std::vector<cancel_scope> held;
    std::vector<std::stop_token> tokens;
  };
  const side<world> let_go = [](world& w, dice&) { w.held.clear(); };
  const side<world> cancel = [](world& w, dice& d) {
    if (d.coin()) {
      w.above.cancel();
      w.found.ended(w.line[0].ctx);
    }
    if (w.line[0].cancel()) w.found.ended(w.line[0].ctx);
    w.line[1].cancel();
  };
  CHECK(race<world>(rounds(3000), {let_go, cancel}, [](world& w) {
          w.line[2].cancel();
          w.above.cancel();
          w.all_ended();
        }) == "");
}

// Tokens and callbacks

TEST_CASE("all first calls of stop_token() give the same token, which stops") {
  struct world : scene {
    explicit world(dice& d) {
      for (auto* each : {&p, &c, &k}) {
        if (d.below(4) == 0) dress(each->ctx, d);
      }
      if (d.coin()) p.cancel();
    }
    cancel_scope p = ctx::with_cancel(root), c = ctx::with_cancel(p.ctx), k = ctx::with_timeout(c.ctx, 1h);
    std::array<std::array<std::stop_token, 3>, 2> tokens;
  };
  const auto take = [](std::size_t by) {
    return [by](world& w, dice& d) {
      const std::array on{&w.p.ctx, &w.c.ctx, &w.k.ctx};
      const bool upwards = d.coin();
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t level = upwards ? 2 - i : i;
        w.tokens[by][level] = on[level]->stop_token();
        w.found.sound(*on[level], &w.tokens[by][level]);
      }
    };
  };
  const side<world> cancel = [](world& w, dice&) { w.p.cancel(); };
  const std::function<void(world&)> judge = [](world& w) {
    w.p.cancel();
    const std::array on{&w.p.ctx, &w.c.ctx, &w.k.ctx};
    for (std::size_t level = 0; level < 3; ++level) {
      const std::stop_token& token = w.tokens[0][level];
      w.found.expect(token == w.tokens[1][level], "two threads got two tokens");
      w.found.expect(token == on[level]->stop_token(), "a later call gives another token");
      w.found.expect(token.stop_requested(), "a token is not stopped");
    }
  };
  CHECK(race<world>(rounds(20000), {take(0), take(1)}, judge) == "");
  CHECK(race<world>(rounds(4000), {take(0), take(1), cancel}, judge) == "");
}

TEST_CASE("callbacks come and go while the context ends: each runs in its life, at most once") {
  struct world : scene {
    explicit world(dice& d) : c{root, d}, child{ctx::with_cancel(c.ctx())} {}
    ending c;
    cancel_scope child;
  };
  const side<world> come_and_go = [](world& w, dice& d) {
    const context& on = d.coin() ? w.c.ctx() : w.child.ctx;
    const std::stop_token token = on.stop_token();
    for (int i = 0; i < 8; ++i) {
      const auto calls = std::make_unique<int>(0);  // gone with the callback: a later call uses freed memory
      const bool late = token.stop_requested();
      const auto count = [&, at = calls.get()] {
        w.found.expect(on.done() && on.err() && on.cause() != nullptr, "a callback runs on a context that is not done");
        ++*at;
      };
      {
        const std::stop_callback<decltype(count)> callback{token, count};
        if (late) w.found.expect(*calls == 1, "a callback on a stopped token did not run at once");
        d.dawdle();
      }
      w.found.expect(*calls <= 1, "a callback ran twice");
    }
  };
  const side<world> end = [](world& w, dice&) { w.c.bring_about(); };
  CHECK(race<world>(rounds(3000), {come_and_go, end}, [](world&) {}) == "");
  CHECK(race<world>(rounds(1500), {come_and_go, end, come_and_go}, [](world&) {}) == "");
}

TEST_CASE("a foreign token stops, the parent ends and a cancel comes, all at once") {
  struct world : scene {
    explicit world(dice& d) {
      for (int i = 0; i < 2; ++i) dress(c.ctx, d);
      dress(parent.ctx, d);
    }
    std::stop_source source;
    cancel_scope parent = ctx::with_cancel(root);
    cancel_scope c = ctx::with_stop_token(parent.ctx, source.get_token());
    cancel_scope twin = ctx::with_stop_token(c.ctx, source.get_token());
    bool won = false;
  };
  const side<world> stop = [](world& w, dice&) {
    w.source.request_stop();
    w.found.ended(w.c.ctx);
    w.found.ended(w.twin.ctx);
  };
  const side<world> end_parent = [](world& w, dice&) {
    w.parent.cancel(causes[2]);
    w.found.ended(w.c.ctx);
    w.found.ended(w.children);
  };
  const side<world> cancel = [](world& w, dice&) {
    w.won = w.c.cancel(causes[1]);
    w.found.ended(w.c.ctx);
    if (w.won) w.found.ended(w.twin.ctx);
  };
  const std::function<void(world&)> judge = [](world& w) {
    w.parent.cancel();
    w.found.expect(w.c.ctx.err() == ctx::errc::canceled, "not canceled");
    if (w.won) w.found.expect(w.c.ctx.cause() == causes[1], "a cancel won, but another cause is seen");
    if (!w.won) w.found.expect(w.c.ctx.cause() != causes[1], "no cancel won, but its cause is seen");
    w.all_ended();
  };
  CHECK(race<world>(rounds(2000), {stop, end_parent}, judge) == "");
  CHECK(race<world>(rounds(2000), {stop, cancel}, judge) == "");
  CHECK(race<world>(rounds(2000), {stop, end_parent, cancel}, judge) == "");
}

// after_func

TEST_CASE("a function is stopped, or runs once, when stop() or after_func() meets the end") {
  struct world : scene {
    explicit world(dice& d) : c{root, d} {}
    void wait_for_function() {
      handle.emplace(ctx::after_func(c.ctx(), [this] {
        found.ended(c.ctx());
        ++runs;
      }));
    }
    ending c;
    std::atomic<int> runs{0};
    std::array<bool, 2> stopped{};
    std::optional<ctx::after_func_handle> handle;
  };
  struct armed_world : world {
    explicit armed_world(dice& d) : world{d} { wait_for_function(); }
  };
  const auto stop = [](std::size_t by) { return [by](armed_world& w, dice&) { w.stopped[by] = w.handle->stop(); }; };
  const side<world> wait_for_function = [](world& w, dice&) { w.wait_for_function(); };
  const auto end = [](world& w, dice&) { w.c.bring_about(); };
  const auto judge = [](world& w) {
    const auto stops = std::count(w.stopped.begin(), w.stopped.end(), true);
    const auto guard = std::chrono::steady_clock::now() + 20s;
    while (w.runs + stops == 0 && std::chrono::steady_clock::now() < guard) std::this_thread::yield();
    w.found.expect(!w.handle->stop(), "stopped again, or stopped after it ran");
    w.handle.reset();
    w.found.expect(w.runs + stops == 1, "a function ran and was stopped, or neither, or twice");
  };
  CHECK(race<armed_world>(rounds(800), {stop(0), end}, judge) == "");
  CHECK(race<armed_world>(rounds(400), {stop(0), end, stop(1)}, judge) == "");
  CHECK(race<world>(rounds(800), {wait_for_function, end}, judge) == "");
}

TEST_CASE("whoever destroys the handle of a function waits for it, and it does not run later") {
  struct world : scene {
    explicit world(dice& d) : c{root, d}, own{d.coin()} {
      handle.emplace(ctx::after_func(c.ctx(), [this] {
        ++runs;
        running = true;
        std::this_thread::yield();
        running = false;
        if (own) {
          while (!stored) std::this_thread::yield();
          handle.reset();
        }
        over = true;
      }));
      stored = true;
    }
    ending c;
    const bool own;  // the function destroys its handle itself
    std::atomic<int> runs{0};
    int runs_before = 0;
    std::atomic<bool> stored{false};
    std::atomic<bool> running{false};
    std::atomic<bool> over{false};
    std::optional<ctx::after_func_handle> handle;
  };
  const side<world> destroy = [](world& w, dice&) {
    if (w.own) return;
    w.handle.reset();
    w.found.expect(!w.running, "the function runs, its handle is gone");
    w.runs_before = w.runs;
  };
  const side<world> end = [](world& w, dice&) { w.c.bring_about(); };
  CHECK(race<world>(rounds(1500), {destroy, end}, [](world& w) {
          if (w.own) {
            while (!w.over) std::this_thread::yield();
            w.found.expect(w.runs == 1, "the function did not run once");
          } else {
            w.found.expect(w.runs == w.runs_before && w.runs <= 1, "the function ran after its handle was gone");
          }
        }) == "");
}

// Waiting

TEST_CASE("whoever waits is woken when the context ends, and not before") {
  struct world : scene {
    explicit world(dice& d) : c{root, d}, child{ctx::with_cancel(c.ctx())} {
      dress(c.ctx(), d);
      if (d.coin()) (void)child.ctx.stop_token();
    }
    ending c;
    cancel_scope child;
  };
  const side<world> wait = [](world& w, dice& d) {
    const context& on = d.coin() ? w.c.ctx() : w.child.ctx;
    on.wait();
    w.found.ended(on);
  };
  const side<world> wait_for = [](world& w, dice& d) {
    const context& on = d.coin() ? w.c.ctx() : w.child.ctx;
    for (;;) {
      const auto until = ctx::clock::now() + d.up_to(30us);
      if (on.wait_until(until)) break;
      w.found.expect(ctx::clock::now() >= until, "a wait ended before its time");
    }
    w.found.ended(on);
  };
  const side<world> wait_on_new = [](world& w, dice& d) {
    const auto made = d.coin() ? ctx::with_cancel(w.c.ctx()) : ctx::merge(w.child.ctx, w.c.ctx());
    if (d.coin()) (void)made.ctx.stop_token();
    made.ctx.wait();
    w.found.ended(made.ctx);
  };
  const side<world> end = [](world& w, dice& d) {
    if (d.coin()) spin_for(d.up_to(20us));
    w.c.bring_about();
  };
  const std::function<void(world&)> judge = [](world& w) {
    w.settle();
    w.all_ended();
  };
  for (const auto& waiting : {wait, wait_for, wait_on_new}) {
    CHECK(race<world>(rounds(1500), {waiting, end}, judge) == "");
    CHECK(race<world>(rounds(500), {waiting, end, wait}, judge) == "");
  }
}

TEST_CASE("a callback that joins who waits below does not hold up that wait, where done() is true") {
  static std::atomic<bool> hung;
  hung = false;
  struct world : scene {
    explicit world(dice& d) {
      if (d.coin()) child = ctx::with_timeout(parent.ctx, 1h);
      witnesses.emplace_back(parent.ctx, found, [this] {
        const auto guard = std::chrono::steady_clock::now() + 10s;
        while (!woken && !hung && std::chrono::steady_clock::now() < guard) std::this_thread::yield();
        if (child.ctx.done() && !woken) hung = true;
      });
    }
    cancel_scope parent = ctx::with_cancel(root);
    cancel_scope child = ctx::with_cancel(parent.ctx);
    std::atomic<bool> woken{false};
  };
  const side<world> wait = [](world& w, dice&) {
    w.child.ctx.wait();
    w.woken = true;
  };
  const side<world> cancel = [](world& w, dice& d) {
    spin_for(d.up_to(100us));
    w.parent.cancel();
    w.found.expect(!hung, "done, but who waits was not woken");
  };
  CHECK(race<world>(rounds(300), {wait, cancel}, [](world&) {}) == "");
}

// Deadlines

TEST_CASE("deadlines are set, met, missed and dropped on several threads") {
  struct world : scene {
    explicit world(dice& d) : p{root, d} { dress(p.ctx(), d); }
    ending p;
  };
  const auto set_some = [](bool end) {
    return [end](world& w, dice& d) {
      std::vector<cancel_scope> below;
      for (int i = 0; i < 12; ++i) {
        auto scope = ctx::with_timeout(w.p.ctx(), d.up_to(40us), too_late);
        const auto deadline = *scope.ctx.deadline();
        if (d.below(4) == 0) (void)scope.ctx.stop_token();
        switch (d.below(5)) {
          case 0:
            scope.cancel();
            break;
          case 1:
            scope.ctx.wait();
            break;
          case 2:
            below.push_back(ctx::with_timeout(scope.ctx, d.up_to(40us)));
            break;
          case 3:
            spin_until(deadline - 10us + d.up_to(60us));
            break;
          default:
            break;
        }
        w.found.sound(scope.ctx);
        if (scope.ctx.err() == ctx::errc::deadline_exceeded) {
          w.found.expect(ctx::clock::now() >= deadline, "ended before its deadline");
        }
        if (d.coin()) scope.cancel.release();
      }
      if (end) w.p.bring_about();
      for (const auto& each : below) each.ctx.wait();
      w.found.ended(below);
    };
  };
  CHECK(race<world>(rounds(300), {set_some(false), set_some(true)}, [](world& w) {
          w.settle();
          w.all_ended();
        }) == "");
}

TEST_CASE("a callback of a deadline sets the next, while another thread cancels") {
  struct world : scene {
    explicit world(dice& d) : chance{d.below(1000)} { set_next(12); }
    void set_next(int left) {
      auto next = [&] {
        const std::lock_guard lock{mutex};
        return ctx::with_timeout(p.ctx, chance.up_to(20us));
      }();
      // The callback may run before this returns, on this thread or another, and set the next.
      auto watch = std::make_unique<witness>(next.ctx, found, [this, left] {
        if (left > 1) set_next(left - 1);
      });
      {
        const std::lock_guard lock{mutex};
        scopes.push_back(std::move(next));
        watches.push_back(std::move(watch));
      }
      ++set;
    }
    bool over() const { return set == 12; }
    cancel_scope p = ctx::with_cancel(root);
    std::atomic<int> set{0};  // so many are set, and kept below
    std::mutex mutex;
    dice chance;                                    // guarded by mutex
    std::vector<cancel_scope> scopes;               // guarded by mutex
    std::vector<std::unique_ptr<witness>> watches;  // guarded by mutex
  };
  const side<world> wait = [](world& w, dice&) {
    while (!w.over()) std::this_thread::yield();
  };
  const side<world> cancel = [](world& w, dice& d) {
    spin_for(d.up_to(800us));
    w.p.cancel();
    while (!w.over()) std::this_thread::yield();
  };
  CHECK(race<world>(rounds(300), {wait, cancel}, [](world& w) {
          const std::lock_guard lock{w.mutex};
          for (const auto& each : w.scopes) each.ctx.wait();
          w.found.ended(w.scopes);
        }) == "");
}

// fork

#if defined(__unix__) && !defined(CTX_TEST_TSAN)

/// Calls `f` in a forked child, and returns whether it came to its end.
template <class F>
bool in_fork(F f) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // whoever hangs is killed
    std::signal(SIGSEGV, SIG_DFL);
    f();
    _exit(0);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

TEST_CASE("a fork in the middle of an expiry leaves the child a timer that works") {
  dice d{1};
  bool works = true;
  for (int round = 0; works && round < rounds(300); ++round) {
    std::vector<cancel_scope> soon;
    for (int i = 0; i < 40; ++i) soon.push_back(ctx::with_timeout(ctx::background(), 40us + microseconds{i}));
    while (!soon[d.below(30)].ctx.done()) {
    }
    works = in_fork([] {
      ctx::with_timeout(ctx::background(), 1us).ctx.wait();
      ctx::with_timeout(ctx::background(), 100us).ctx.wait();
    });
  }
  CHECK(works);
}

TEST_CASE("a fork during a callback on the timer's thread leaves the child what is above to cancel") {
  const auto parent = ctx::with_cancel(ctx::background());
  const auto kept = ctx::with_timeout(ctx::background(), 1h);
  const auto main_thread = std::this_thread::get_id();
  std::atomic<bool> called{false};
  std::atomic<bool> over{false};
  bool canceled = false;
  for (auto time = 1ms; !called; time *= 2) {
    const auto expiring = ctx::with_timeout(parent.ctx, time);
    bool missed = false;
    const auto block = [&] {
      if (std::this_thread::get_id() == main_thread) {
        missed = true;  // it expired before this was registered
        return;
      }
      called = true;
      while (!over) std::this_thread::yield();
    };
    const std::stop_callback<decltype(block)> callback{expiring.ctx.stop_token(), block};
    if (missed) continue;
    while (!called) std::this_thread::yield();
    canceled = in_fork([&] {
      ctx::with_timeout(ctx::background(), 1us).ctx.wait();
      parent.cancel();
    });
    over = true;
  }
  CHECK(canceled);
}

#endif

// Everything

/// What one side of a pair acts on.
struct actor {
  findings& found;
  context on;
  cancel_func& cancel;         // of that context
  std::stop_source& source;    // stops it, if it is driven by a token
  context beside;              // in another tree
  std::vector<context> below;  // and itself
  std::exception_ptr cause;
  bool won = false;
  std::vector<cancel_scope> made{};
};

struct action {
  const char* name;
  enum kind { any, timed, driven } on;     // the kind of context that it takes
  enum use { none, shares, owns } cancel;  // whether it calls the cancel_func, or moves or destroys it
  void (*act)(actor&, dice&);
};

const action actions[] = {
    {"cancel", action::any, action::shares,
     [](actor& a, dice&) {
       a.won = a.cancel(a.cause);
       a.found.ended(a.on);
       if (!a.won) return;
       a.found.expect(a.on.cause() == a.cause, "a cancel won, but another cause is seen");
       for (const context& each : a.below) a.found.ended(each);
     }},
    {"destroy the cancel_func", action::any, action::owns,
     [](actor& a, dice&) {
       a.cancel = {};
       a.found.ended(a.on);
     }},
    {"release", action::any, action::owns, [](actor& a, dice&) { a.cancel.release(); }},
    {"let go", action::any, action::owns,
     [](actor& a, dice& d) {
       if (d.coin()) a.cancel.release();
       a.cancel = {};
       a.below.clear();
       a.on = {};
     }},
    {"expire", action::timed, action::none,
     [](actor& a, dice&) {
       while (!a.on.done()) a.found.sound(a.on);
       a.found.ended(a.on);
     }},
    {"stop the source", action::driven, action::none,
     [](actor& a, dice&) {
       if (a.source.request_stop()) a.found.ended(a.on);
     }},
    {"derive", action::any, action::none, [](actor& a, dice&) { a.made.push_back(ctx::with_cancel(a.on)); }},
    {"derive and let go", action::any, action::none,
     [](actor& a, dice& d) {
       const auto child = ctx::with_cancel(ctx::with_value(a.on, tree_key{}, std::nullopt));
       if (d.coin()) (void)child.ctx.stop_token();
     }},
    {"set a deadline", action::any, action::none,
     [](actor& a, dice& d) { a.made.push_back(ctx::with_timeout(a.on, d.up_to(30us))); }},
    {"merge", action::any, action::none,
     [](actor& a, dice& d) { a.made.push_back(d.coin() ? ctx::merge(a.on, a.beside) : ctx::merge(a.beside, a.on)); }},
    {"with_stop_token", action::any, action::none,
     [](actor& a, dice& d) {
       a.made.push_back(ctx::with_stop_token(a.on, a.source.get_token()));
       if (d.coin()) a.made.push_back(ctx::with_stop_token(a.beside, a.on.stop_token()));
     }},
    {"stop_token", action::any, action::none,
     [](actor& a, dice&) {
       const std::stop_token token = a.on.stop_token();
       a.found.sound(a.on, &token);
       a.found.expect(a.on.stop_token() == token, "a later call gives another token");
     }},
    {"stop_callback", action::any, action::none,
     [](actor& a, dice& d) {
       int calls = 0;
       {
         const auto count = [&] { ++calls; };
         const std::stop_callback<decltype(count)> callback{a.on.stop_token(), count};
         d.dawdle();
       }
       a.found.expect(calls <= 1, "a callback ran twice");
     }},
    {"poll", action::any, action::none,
     [](actor& a, dice&) {
       for (int i = 0; i < 8; ++i) a.found.sound(a.on);
     }},
    {"wait", action::any, action::none,
     [](actor& a, dice& d) {
       const auto until = ctx::clock::now() + d.up_to(15us);
       if (a.on.wait_until(until)) return a.found.ended(a.on);
       a.found.expect(ctx::clock::now() >= until, "a wait ended before its time");
     }},
    {"after_func", action::any, action::none,
     [](actor& a, dice& d) {
       int runs = 0;
       auto handle = ctx::after_func(a.on, [&] { ++runs; });
       d.dawdle();
       const bool stopped = d.coin() && handle.stop();
       handle = {};
       a.found.expect(runs <= (stopped ? 0 : 1), "a function ran although it was stopped, or twice");
     }},
};

/// Two actions, each at a level of a line of three contexts.
struct encounter {
  const action* acts[2];
  std::size_t levels[2];

  bool possible() const {
    if (levels[0] != levels[1]) return true;
    const auto &a = *acts[0], &b = *acts[1];
    const bool kinds_fit = a.on == b.on || a.on == action::any || b.on == action::any;
    return kinds_fit && !(a.cancel == action::owns && b.cancel != action::none) &&
           !(b.cancel == action::owns && a.cancel != action::none);
  }

  bool lets_go() const { return acts[0] == &actions[3] || acts[1] == &actions[3]; }

  static std::vector<encounter> all() {
    std::vector<encounter> found;
    for (const auto& a : actions) {
      for (const auto& b : actions) {
        for (const auto [upper, lower] : {std::array{1, 1}, std::array{0, 1}, std::array{0, 2}}) {
          const encounter each{{&a, &b}, {static_cast<std::size_t>(upper), static_cast<std::size_t>(lower)}};
          if (each.possible() && (upper != lower || &a <= &b)) found.push_back(each);
        }
      }
    }
    return found;
  }
};

struct encounter_world : scene {
  encounter_world(const encounter& of, dice& d) {
    for (std::size_t level = 0; level < 3; ++level) {
      const context above = level == 0 ? ground.ctx : line.back().ctx;
      action::kind kind = action::any;
      for (int by = 0; by < 2; ++by) {
        if (of.levels[by] == level && of.acts[by]->on != action::any) kind = of.acts[by]->on;
      }
      line.push_back(kind == action::timed    ? ctx::with_timeout(above, d.up_to(30us))
                     : kind == action::driven ? ctx::with_stop_token(above, sources[level].get_token())
                                              : make_any(above, d));
      if (of.lets_go()) {
        if (d.coin()) (void)line.back().ctx.stop_token();
      } else {
        dress(line.back().ctx, d);
      }
    }
    for (std::size_t by = 0; by < 2; ++by) {
      const std::size_t level = of.levels[by];
      std::vector<context> below;
      for (std::size_t each = level; each < 3; ++each) below.push_back(line[each].ctx);
      actors.push_back(
          {found, line[level].ctx, line[level].cancel, sources[level], aside.ctx, std::move(below), causes[by]});
    }
    // Whoever lets go is to be the last, or meet the last.
    if (of.lets_go()) {
      for (auto& each : line) each.ctx = {};
      for (auto& each : actors) each.below.clear();
    }
  }

  cancel_scope make_any(const context& above, dice& d) const {
    switch (d.below(4)) {
      case 0:
        return ctx::merge(above, aside.ctx);
      case 1:
        return ctx::with_timeout(above, 1h);
      case 2:
        return ctx::with_cancel(ctx::with_value(above, tree_key{}, std::nullopt));
      default:
        return ctx::with_cancel(above);
    }
  }

  cancel_scope ground = ctx::with_cancel(root);
  cancel_scope aside = ctx::with_cancel(root);
  std::array<std::stop_source, 3> sources;
  std::vector<cancel_scope> line;
  std::vector<actor> actors;
};

TEST_CASE("every operation meets every other, on one context and on relatives") {
  const auto encounters = encounter::all();
  std::size_t next = 0;
  const encounter* now = nullptr;
  const auto make = [&](dice& d) {
    now = &encounters[next++ % encounters.size()];
    return std::make_unique<encounter_world>(*now, d);
  };
  const auto act = [&](std::size_t by) {
    return [&now, by](encounter_world& w, dice& d) { now->acts[by]->act(w.actors[by], d); };
  };
  const auto judge = [&](encounter_world& w) {
    if (now->levels[0] == now->levels[1]) {
      w.found.expect(!w.actors[0].won || !w.actors[1].won, "two cancels won");
    }
    w.aside.cancel();
    w.ground.cancel();
    w.settle();
    w.all_ended();
    for (const auto& each : w.actors) {
      if (each.on != context{}) w.found.ended(each.on);
      for (const context& below : each.below) w.found.ended(below);
      for (const auto& made : each.made) made.ctx.wait();
      w.found.ended(each.made);
    }
    if (w.found.first() != nullptr) MESSAGE(std::string{now->acts[0]->name}, " met ", std::string{now->acts[1]->name});
  };
  const int times = rounds(20);
  CHECK(race<encounter_world>(times * static_cast<int>(encounters.size()), make, {act(0), act(1)}, judge) == "");
}

/// A small forest which several threads change at random.
struct forest : scene {
  struct entry {
    entry(cancel_scope scope, std::shared_ptr<entry> first, std::shared_ptr<entry> second = nullptr)
        : ctx{std::move(scope.ctx)},
          cancel{std::move(scope.cancel)},
          parents{std::move(first), std::move(second)},
          depth{1 + std::max(parents[0] ? parents[0]->depth : 0, parents[1] ? parents[1]->depth : 0)} {}

    bool is_below(const entry& other) const {
      if (this == &other) return true;
      return std::any_of(parents.begin(), parents.end(), [&](const auto& p) { return p && p->is_below(other); });
    }

    const context ctx;
    cancel_func cancel;
    const std::array<std::shared_ptr<entry>, 2> parents;
    const int depth;
    const std::exception_ptr own_cause = make_cause("own");
    std::atomic<bool> ended_itself{false};
  };

  struct slot {
    std::mutex mutex;
    std::shared_ptr<entry> held;  // guarded by mutex
  };

  struct watch {
    forest* in;
    dice chance;
    void operator()() noexcept { in->step(chance); }
  };
  using watches = std::deque<std::stop_callback<watch>>;

  explicit forest(dice&) {
    for (std::size_t i = 0; i < 3; ++i) trees_[i] = std::make_shared<entry>(ctx::with_cancel(root), nullptr);
  }

  std::shared_ptr<entry> pick(dice& d) {
    auto& from = slots_[d.below(size)];
    if (d.below(4) != 0) {
      const std::lock_guard lock{from.mutex};
      if (from.held) return from.held;
    }
    return trees_[d.below(3)];
  }

  void put(std::shared_ptr<entry> made, dice& d) {
    auto& into = slots_[d.below(size)];
    const std::lock_guard lock{into.mutex};
    into.held.swap(made);  // what was there goes after the lock
  }

  cancel_scope derive(const entry& from, dice& d) {
    switch (d.below(5)) {
      case 0:
        return ctx::with_timeout(from.ctx, d.up_to(60us), too_late);
      case 1:
        return ctx::with_timeout(from.ctx, 1h);
      case 2:
        return ctx::with_stop_token(from.ctx, sources_[d.below(4)].get_token());
      case 3:
        return ctx::with_cancel(ctx::with_value(from.ctx, tree_key{}, std::nullopt));
      default:
        return ctx::with_cancel(from.ctx);
    }
  }

  void cancel(entry& e) {
    if (e.depth == 1) return;  // the trees live to the end
    const bool won = e.cancel(e.own_cause);
    found.ended(e.ctx);
    if (!won) return;
    found.expect(!e.ended_itself.exchange(true), "two cancels won");
    found.expect(e.ctx.cause() == e.own_cause, "a cancel won, but another cause is seen");
    for (auto& each : slots_) {
      std::shared_ptr<entry> other;
      {
        const std::lock_guard lock{each.mutex};
        other = each.held;
      }
      if (other && other->is_below(e)) found.ended(other->ctx);
    }
  }

  /// Does something; where it is not a callback that does, anything, and keeps callbacks in `into`.
  void step(dice& d, watches* into = nullptr) {
    const auto at = pick(d);
    switch (d.below(into != nullptr ? 16 : 10)) {
      case 0:
      case 1:
      case 2:
        if (at->depth < 8) put(std::make_shared<entry>(derive(*at, d), at), d);
        break;
      case 3: {
        const auto other = pick(d);
        if (std::max(at->depth, other->depth) > 6) break;
        put(std::make_shared<entry>(ctx::merge(at->ctx, other->ctx), at, other), d);
        break;
      }
      case 4:
      case 5:
        cancel(*at);
        break;
      case 6:
        put(nullptr, d);
        break;
      case 7: {
        const std::stop_token token = at->ctx.stop_token();
        found.sound(at->ctx, &token);
        break;
      }
      case 8:
        (void)ctx::with_cancel(at->ctx).ctx.done();
        break;
      case 9:
        if (d.below(8) == 0) sources_[d.below(4)].request_stop();
        break;
      case 10:
        found.sound(at->ctx);
        break;
      case 11:
        (void)at->ctx.wait_for(d.up_to(20us));
        break;
      case 12:
        if (d.below(8) == 0) (void)ctx::after_func(at->ctx, [] {}).stop();
        break;
      default:
        into->emplace_back(at->ctx.stop_token(), watch{this, dice{d.below(1U << 31)}});
        break;
    }
  }

  /// What ended a context is itself, or what it came from.
  void judge() {
    for (auto& tree : trees_) tree->cancel(causes[0]);
    for (auto& each : slots_) {
      if (!each.held) continue;
      const context& c = each.held->ctx;
      found.ended(c);
      const bool from_above = std::any_of(each.held->parents.begin(), each.held->parents.end(), [&](const auto& p) {
        return p && p->ctx.cause() == c.cause() && p->ctx.err() == c.err();
      });
      const bool by_itself =
          each.held->ended_itself ? c.cause() == each.held->own_cause : c.cause() != each.held->own_cause;
      found.expect(by_itself, "ended by a cancel that did not win, or not by that which won");
      if (from_above || each.held->ended_itself || each.held->depth == 1) continue;
      const bool expired = c.err() == ctx::errc::deadline_exceeded && c.cause() == too_late;
      const bool stopped = c.err() == ctx::errc::canceled && c.cause() != causes[0];
      found.expect(expired || stopped, "ended by nobody");
    }
  }

  static constexpr unsigned size = 20;
  std::array<std::stop_source, 4> sources_;
  std::array<std::shared_ptr<entry>, 3> trees_;
  std::array<slot, size> slots_;
};

TEST_CASE("a storm of everything on a small forest ends with all of it ended, and nothing left") {
  const side<forest> storm = [](forest& w, dice& d) {
    forest::watches watches;
    for (int i = 0; i < 60; ++i) w.step(d, &watches);
  };
  const std::function<void(forest&)> judge = [](forest& w) { w.judge(); };
  CHECK(race<forest>(rounds(150), {storm, storm, storm, storm}, judge) == "");
  CHECK(race<forest>(rounds(50), {storm, storm, storm, storm, storm, storm, storm, storm}, judge) == "");
}

}  // namespace
