// What each operation on a context costs: ours, named `ctx:…`, and, named `raw:…`, the same built
// from the standard library where it has the parts. cost.go holds the same operations, named
// alike; run.py runs them in turn and prints the table.
//
// Fair play:
// - What an operation needs is made before its time starts, and dropped after it ends, unless
//   making and dropping are the operation. Go collects its garbage whenever it likes, on the other
//   core as well.
// - A second thread is alive throughout, as in any program that needs contexts: without it libstdc++
//   and glibc leave out atomic operations and locks.

#include "counting.hpp"
#include "raw.hpp"

#include <ctx/context.hpp>

#include <benchmark/benchmark.h>

#if defined(__unix__)
#include <sys/resource.h>
#endif

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <random>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using benchmark::DoNotOptimize;
using benchmark::State;
using namespace std::chrono_literals;

// The two ways to build a tree.

struct of_ctx {
  static constexpr const char* prefix = "ctx:";
  using context = ctx::context;
  using scope = ctx::cancel_scope;
  static scope with_cancel(const context& parent) { return ctx::with_cancel(parent); }
};

struct of_raw {
  static constexpr const char* prefix = "raw:";
  using context = raw::context;
  using scope = raw::scope;
  static scope with_cancel(const context& parent) { return raw::with_cancel(parent); }
};

// The two ways to measure.

void report(State& state, const bench::allocations& made, double operations) {
  const auto each = [&](std::size_t sum) {
    return benchmark::Counter{static_cast<double>(sum) / operations, benchmark::Counter::kAvgThreads};
  };
  state.counters["allocations"] = each(made.count);
  state.counters["bytes"] = each(made.bytes);
}

/// Times `operation`, over and over.
template <class Operation>
void repeat(State& state, Operation operation) {
  const auto before = bench::allocated();
  for (auto _ : state) operation();
  report(state, bench::allocated() - before, static_cast<double>(state.iterations()));
}

/// Times `operation` alone on what `prepare` makes anew each time. It does `count` things: the time
/// is for all of them, and run.py divides.
template <class Prepare, class Operation>
void repeat_on(State& state, std::size_t count, Prepare prepare, Operation operation) {
  bench::allocations made;
  for (auto _ : state) {
    auto prepared = prepare();
    const auto before = bench::allocated();
    const auto start = std::chrono::steady_clock::now();
    operation(prepared);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    made += bench::allocated() - before;
    state.SetIterationTime(time.count());
  }
  state.counters["count"] = static_cast<double>(count);
  report(state, made, static_cast<double>(state.iterations()) * static_cast<double>(count));
}

template <class Function>
auto* add(const std::string& name, Function function) {
  return benchmark::RegisterBenchmark(name.c_str(), function)->UseRealTime();
}

template <class Function>
void add_manual(const std::string& name, Function function) {
  benchmark::RegisterBenchmark(name.c_str(), function)->UseManualTime();
}

using sizes = std::initializer_list<std::size_t>;

std::string numbered(const std::string& name, std::size_t number) { return name + '=' + std::to_string(number); }

// One context: made, canceled, dropped.

template <class Make>
void make_and_cancel(State& state, Make make) {
  repeat(state, [&] {
    auto scope = make();
    DoNotOptimize(scope);
    scope.cancel();
  });
}

template <class Of>
void add_with_cancel() {
  const std::string name = Of::prefix + std::string{"with_cancel/"};
  for (const int threads : {1, 2, 4, 8}) {
    const std::string suffix = threads == 1 ? "" : numbered("/threads", static_cast<std::size_t>(threads));
    add(name + "root" + suffix, [](State& state) {
      const typename Of::context root;
      make_and_cancel(state, [&] { return Of::with_cancel(root); });
    })->Threads(threads);
    const auto parent = std::make_shared<typename Of::scope>();
    add(name + "parent" + suffix, [parent](State& state) {
      // Before any thread starts to measure; all have stopped when it is dropped.
      if (state.thread_index() == 0) *parent = Of::with_cancel({});
      make_and_cancel(state, [&] { return Of::with_cancel(parent->ctx); });
    })->Threads(threads);
  }
}

void add_with_timeout() {
  for (const int threads : {1, 2}) {
    const std::string suffix = threads == 1 ? "" : numbered("/threads", static_cast<std::size_t>(threads));
    add("ctx:with_timeout/root" + suffix, [](State& state) {
      const ctx::context root;
      make_and_cancel(state, [&] { return ctx::with_timeout(root, 1h); });
    })->Threads(threads);
    const auto parent = std::make_shared<ctx::cancel_scope>();
    add("ctx:with_timeout/parent" + suffix, [parent](State& state) {
      if (state.thread_index() == 0) *parent = ctx::with_cancel({});
      make_and_cancel(state, [&] { return ctx::with_timeout(parent->ctx, 1h); });
    })->Threads(threads);
  }
}

// Asking.

template <class Ask>
void ask(State& state, Ask ask) {
  repeat(state, [&] {
    auto answer = ask();
    DoNotOptimize(answer);
    // As in a loop that does something: what is asked is loaded anew each time.
    benchmark::ClobberMemory();
  });
}

/// `which` is live or canceled; `poll` takes what `observe` took from the scope.
template <class Of, class Observe, class Poll>
void add_asking(const std::string& name, Observe observe, Poll poll) {
  for (const bool canceled : {false, true}) {
    add(Of::prefix + name + (canceled ? "/canceled" : "/live"), [=](State& state) {
      auto scope = Of::with_cancel({});
      if (canceled) scope.cancel();
      auto observed = observe(scope);
      DoNotOptimize(&observed);
      ask(state, [&] { return poll(observed); });
    });
  }
}

void add_asking() {
  const auto context_of = [](const ctx::cancel_scope& scope) { return scope.ctx; };
  const auto token_of = [](const raw::scope& scope) {
    // A source that stays, or the token would know that nobody can stop it.
    return std::pair{scope.ctx->source.get_token(), scope.ctx};
  };
  add_asking<of_ctx>("done", context_of, [](const ctx::context& ctx) { return ctx.done(); });
  add_asking<of_raw>("done", token_of, [](const auto& token) { return token.first.stop_requested(); });
  add_asking<of_ctx>("err", context_of, [](const ctx::context& ctx) { return ctx.err(); });

  const auto shared = std::make_shared<ctx::cancel_scope>();
  add("ctx:context_cancel_done", [shared](State& state) {
    if (state.thread_index() == 0) *shared = ctx::with_cancel({});
    ask(state, [&] { return shared->ctx.done(); });
  })->Threads(static_cast<int>(std::thread::hardware_concurrency()));
}

// Values. Two kinds of keys: those with identity, the counterpart of a key type of one's own in Go; and, as
// in Go's own benchmark, numbers of one type, compared by what they are.

const std::deque<ctx::key<int>>& keys() {
  static const auto made = [] {
    std::deque<ctx::key<int>> all;
    for (int i = 0; i <= 100; ++i) all.emplace_back("key");
    return all;
  }();
  return made;
}

struct number_key {
  using context_value = int;
  int number;
  bool operator==(const number_key&) const = default;
};

template <class KeyOf>
ctx::context chain_of_values(std::size_t depth, KeyOf key_of) {
  ctx::context chain;
  for (std::size_t i = 0; i < depth; ++i) chain = ctx::with_value(chain, key_of(i), static_cast<int>(i));
  return chain;
}
constexpr auto by_identity = [](std::size_t i) -> const ctx::key<int>& { return keys()[i]; };
constexpr auto by_equality = [](std::size_t i) { return number_key{static_cast<int>(i)}; };

std::unique_ptr<raw::value> raw_chain_of_values(std::size_t depth) {
  std::unique_ptr<raw::value> chain;
  for (std::size_t i = 0; i < depth; ++i) {
    chain.reset(new raw::value{&keys()[i], static_cast<int>(i), std::move(chain)});
  }
  return chain;
}

void add_values() {
  for (const std::size_t depth : sizes{10, 100}) {
    add(numbered("ctx:value/depth", depth), [depth](State& state) {
      const ctx::context chain = chain_of_values(depth, by_identity);
      const auto& missing = keys()[100];
      ask(state, [&] { return chain.value(missing); });
    });
    add(numbered("raw:value/depth", depth), [depth](State& state) {
      const auto chain = raw_chain_of_values(depth);
      const auto& missing = keys()[100];
      ask(state, [&] { return raw::find(chain.get(), &missing); });
    });
    add(numbered("ctx:with_value/depth", depth), [depth](State& state) {
      repeat(state, [&] {
        auto chain = chain_of_values(depth, by_identity);
        DoNotOptimize(chain);
      });
    });
    add(numbered("raw:with_value/depth", depth), [depth](State& state) {
      repeat(state, [&] {
        auto chain = raw_chain_of_values(depth);
        DoNotOptimize(chain);
      });
    });
  }
}

// Many contexts: wide trees and deep ones.

template <class Of>
struct family {
  typename Of::scope parent = Of::with_cancel({});
  std::vector<typename Of::scope> members;  // children, or a chain of descendants

  void make_children(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) members.push_back(Of::with_cancel(parent.ctx));
  }
  void make_chain(std::size_t count) {
    for (std::size_t i = 1; i < count; ++i) {
      members.push_back(Of::with_cancel(members.empty() ? parent.ctx : members.back().ctx));
    }
  }
};

/// As many families of `size` as it takes for reading the clock not to count.
template <class Of>
std::vector<family<Of>> families(std::size_t size) {
  std::vector<family<Of>> made(std::max<std::size_t>(1, 10'000 / size));
  for (auto& each : made) each.members.reserve(size);
  return made;
}

template <class Of>
void add_trees() {
  const std::string prefix = Of::prefix;
  const auto with_children = [](std::size_t size) {
    auto all = families<Of>(size);
    for (auto& each : all) each.make_children(size);
    return all;
  };
  const auto cancel_all = [](auto& all) {
    for (auto& each : all) each.parent.cancel();
  };
  for (const std::size_t size : sizes{1, 10, 100, 1'000, 10'000, 100'000, 1'000'000}) {
    const std::size_t count = std::max<std::size_t>(size, 10'000);
    add_manual(numbered(prefix + "create/children", size), [=](State& state) {
      repeat_on(
          state, count, [&] { return families<Of>(size); },
          [&](auto& all) {
            for (auto& each : all) each.make_children(size);
          });
    });
    add_manual(numbered(prefix + "cancel/children", size), [=](State& state) {
      repeat_on(
          state, count, [&] { return with_children(size); }, cancel_all);
    });
    add_manual(numbered(prefix + "destroy/children", size), [=](State& state) {
      repeat_on(
          state, count,
          [&] {
            auto all = with_children(size);
            cancel_all(all);
            return all;
          },
          [](auto& all) {
            for (auto& each : all) each.members.clear();
          });
    });
    if (size > 100'000) continue;
    add_manual(numbered(prefix + "cancel/chain", size), [=](State& state) {
      repeat_on(
          state, count,
          [&] {
            auto all = families<Of>(size);
            for (auto& each : all) each.make_chain(size);
            return all;
          },
          cancel_all);
    });
  }
}

/// What a live child, and a live timeout, take of the heap.
void add_bytes() {
  add_manual("ctx:bytes/child", [](State& state) {
    const std::size_t count = 100'000;
    repeat_on(
        state, count, [&] { return families<of_ctx>(count); }, [&](auto& all) { all.front().make_children(count); });
  });
  add_manual("raw:bytes/child", [](State& state) {
    const std::size_t count = 100'000;
    repeat_on(
        state, count, [&] { return families<of_raw>(count); }, [&](auto& all) { all.front().make_children(count); });
  });
  add_manual("ctx:bytes/timeout", [](State& state) {
    const std::size_t count = 100'000;
    repeat_on(
        state, count,
        [&] {
          std::vector<ctx::cancel_scope> all;
          all.reserve(count);
          return all;
        },
        [&](auto& all) {
          for (std::size_t i = 0; i < count; ++i) all.push_back(ctx::with_timeout({}, 1h));
        });
  });
}

// Many timers.

std::vector<std::chrono::nanoseconds> random_timeouts(std::size_t count) {
  std::mt19937_64 random{1};
  std::uniform_int_distribution<std::int64_t> nanoseconds{1'800'000'000'000, 5'400'000'000'000};
  std::vector<std::chrono::nanoseconds> made(count);
  for (auto& each : made) each = std::chrono::nanoseconds{nanoseconds(random)};
  return made;
}

std::vector<std::size_t> random_order(std::size_t count) {
  std::vector<std::size_t> made(count);
  std::iota(made.begin(), made.end(), std::size_t{0});
  std::shuffle(made.begin(), made.end(), std::mt19937_64{2});
  return made;
}

void arm_all(std::vector<ctx::cancel_scope>& scopes, const std::vector<std::chrono::nanoseconds>& timeouts) {
  for (const auto timeout : timeouts) scopes.push_back(ctx::with_timeout({}, timeout));
}

std::vector<ctx::cancel_scope> live_timers(std::size_t count) {
  std::vector<ctx::cancel_scope> made;
  made.reserve(count);
  arm_all(made, random_timeouts(count));
  return made;
}

void add_timers() {
  for (const std::size_t count : sizes{1'000, 1'000'000}) {
    add_manual(numbered("ctx:arm/timers", count), [count](State& state) {
      const auto timeouts = random_timeouts(count);
      repeat_on(
          state, count,
          [&] {
            std::vector<ctx::cancel_scope> scopes;
            scopes.reserve(count);
            return scopes;
          },
          [&](auto& scopes) { arm_all(scopes, timeouts); });
    });
    add_manual(numbered("ctx:disarm/timers", count), [count](State& state) {
      const auto order = random_order(count);
      repeat_on(
          state, count, [&] { return live_timers(count); },
          [&](auto& scopes) {
            for (const std::size_t i : order) scopes[i].cancel();
          });
    });
  }
  // A thousand more beside those that live, in the memory of the thousand before them, as in a program that has
  // run for a while.
  for (const std::size_t live : sizes{1'000, 1'000'000}) {
    constexpr std::size_t count = 1'000;
    add_manual(numbered("ctx:arm/live", live), [live](State& state) {
      const auto others = live_timers(live);
      const auto timeouts = random_timeouts(count);
      std::vector<ctx::cancel_scope> scopes;
      scopes.reserve(count);
      repeat_on(
          state, count, [&] { return scopes.clear(), &scopes; }, [&](auto* made) { arm_all(*made, timeouts); });
    });
    add_manual(numbered("ctx:disarm/live", live), [live](State& state) {
      const auto others = live_timers(live);
      const auto order = random_order(count);
      repeat_on(
          state, count, [&] { return live_timers(count); },
          [&](auto& scopes) {
            for (const std::size_t i : order) scopes[i].cancel();
          });
    });
  }
  for (const std::size_t count : sizes{1, 10, 100, 1'000, 10'000, 100'000, 1'000'000}) {
    add(numbered("ctx:with_timeout/live", count), [count](State& state) {
      const auto others = live_timers(count);
      make_and_cancel(state, [&] { return ctx::with_timeout({}, 1h); });
    });
  }
}

// Go's own benchmarks, as far as they are not among the above.

void divide_a_hundred_times(std::int64_t& x) {
  for (int i = 0; i < 100; ++i) {
    x /= x + 1;
    DoNotOptimize(x);
  }
}

constexpr ctx::key<std::string> text_key{"key"};

ctx::context tree(ctx::context root, std::size_t depth) {
  for (std::size_t i = 0; i < depth; ++i) {
    auto made = ctx::with_cancel(root);
    made.cancel.release();  // as Go's benchmark drops it
    root = std::move(made.ctx);
  }
  return root;
}

void add_benchmarks_of_go() {
  const int processors = static_cast<int>(std::thread::hardware_concurrency());

  const auto shared = std::make_shared<ctx::cancel_scope>();
  add("ctx:common_parent_cancel", [shared](State& state) {
    if (state.thread_index() == 0) {
      *shared = ctx::with_cancel(ctx::with_value(ctx::background(), text_key, "value"));
    }
    std::int64_t x = 0;
    repeat(state, [&] {
      auto scope = ctx::with_cancel(shared->ctx);
      if (*scope.ctx.value(text_key) != "value") state.SkipWithError("should not be reached");
      divide_a_hundred_times(x);
      scope.cancel();
      divide_a_hundred_times(x);
    });
  })->Threads(processors);

  for (const std::size_t concurrency : sizes{40, 4'000, 400'000}) {
    const auto others = std::make_shared<std::vector<ctx::cancel_scope>>();
    add(numbered("ctx:with_timeout/concurrency", concurrency), [=](State& state) {
      if (state.thread_index() == 0) {
        for (std::size_t i = 0; i < concurrency; ++i) others->push_back(ctx::with_timeout({}, 1h));
      }
      std::array<ctx::cancel_func, 10> cancels;
      repeat(state, [&] {
        for (auto& each : cancels) each = ctx::with_timeout({}, 1h).cancel;
        for (auto& each : cancels) each();
      });
      if (state.thread_index() == 0) others->clear();
    })->Threads(processors);
  }

  for (const std::size_t depth : sizes{1, 10, 100, 1'000}) {
    const std::string name = numbered("ctx:cancel_tree/depth", depth) + "/root=";
    add(name + "background", [depth](State& state) { repeat(state, [&] { tree({}, depth); }); });
    add(name + "open", [depth](State& state) {
      repeat(state, [&] {
        auto scope = ctx::with_cancel({});
        const auto leaf = tree(scope.ctx, depth);
        scope.cancel();
      });
    });
    add(name + "closed", [depth](State& state) {
      repeat(state, [&] {
        auto scope = ctx::with_cancel({});
        scope.cancel();
        tree(scope.ctx, depth);
      });
    });
  }
}

void add_deep_values() {
  for (const std::size_t depth : sizes{10, 20, 30, 50, 100}) {
    add(numbered("ctx:deep_value/depth", depth), [depth](State& state) {
      const ctx::context chain = chain_of_values(depth, by_equality);
      ask(state, [&] { return chain.value(number_key{-1}); });
    });
    add(numbered("ctx:with_deep_value/depth", depth), [depth](State& state) {
      repeat(state, [&] {
        auto chain = chain_of_values(depth, by_equality);
        DoNotOptimize(chain);
      });
    });
  }
}

void describe_build() {
#if defined(__clang__)
  benchmark::AddCustomContext("compiler", std::string{"clang "} + __clang_version__);
#elif defined(__GNUC__)
  benchmark::AddCustomContext("compiler", std::string{"g++ "} + __VERSION__);
#endif
#if defined(_LIBCPP_VERSION)
  benchmark::AddCustomContext("library", "libc++ " + std::to_string(_LIBCPP_VERSION));
#elif defined(_GLIBCXX_RELEASE)
  benchmark::AddCustomContext("library", "libstdc++ " + std::to_string(_GLIBCXX_RELEASE));
#endif
#if defined(__OPTIMIZE__)
  benchmark::AddCustomContext("optimised", "yes");
#else
  benchmark::AddCustomContext("optimised", "no");
#endif
}

/// For the deepest raw chain, which ends by recursion. The stack of the first thread grows up to what
/// the limit is by then.
void allow_a_deep_stack() {
#if defined(__unix__)
  rlimit limit{};
  if (::getrlimit(RLIMIT_STACK, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 100 << 20);
  ::setrlimit(RLIMIT_STACK, &limit);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  allow_a_deep_stack();
  add_with_cancel<of_ctx>();
  add_with_cancel<of_raw>();
  add_with_timeout();
  add_asking();
  add_values();
  add_trees<of_ctx>();
  add_trees<of_raw>();
  add_bytes();
  add_timers();
  add_benchmarks_of_go();
  add_deep_values();

  describe_build();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  std::binary_semaphore end{0};
  const std::jthread idle{[&] { end.acquire(); }};
  benchmark::RunSpecifiedBenchmarks();
  end.release();
}
