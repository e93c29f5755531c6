// endurance [SECONDS]: a simulated server, for ten minutes unless told otherwise.
//
// Exists for what only shows in the long run: memory, threads and files that are not given back. Four threads
// serve requests, as many as the machine gives up to 100,000 a second in all: nested timeouts, values, merges,
// callbacks, functions; some are canceled, some expire, with all that is below them.
//
// After the warm-up and at the end the server drains: nothing is on its way, and what is resident, the threads
// and the open files are to be as many as before. Short runs, of less than a minute, leave out the memory,
// as that settles slowly; but every value has to be gone, in any run.
//
//   meson test -C build --benchmark --verbose endurance

#include "sanitizer.hpp"

#include <ctx/context.hpp>

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::cancel_scope;
using ctx::clock;
using ctx::context;

constexpr int servers = 4;
constexpr std::uint64_t most_a_second = 100'000;
constexpr std::size_t kept_in_flight = 256;  // by each server, until their deadlines have passed long ago

// What is held

struct holdings {
  double resident;  // MiB
  std::ptrdiff_t threads, files;
};

std::ptrdiff_t entries_of(const char* directory) {
  return std::distance(std::filesystem::directory_iterator{directory}, {});
}

holdings held() {
#if defined(__GLIBC__)
  ::malloc_trim(0);  // what is free only counts where it can't be given back
#endif
  std::ifstream statm{"/proc/self/statm"};
  long total = 0, resident = 0;
  statm >> total >> resident;
  return {static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20),
          entries_of("/proc/self/task"), entries_of("/proc/self/fd")};
}

void print(const char* when, const holdings& now) {
  std::printf("%s: %.1f MiB resident, %td threads, %td files\n", when, now.resident, now.threads, now.files);
}

// What is served

struct statistics {
  std::atomic<std::uint64_t> requests{0}, canceled{0}, expired{0}, callbacks{0}, functions{0};
  std::atomic<std::int64_t> values{0};  // that live
  std::atomic<std::uint64_t> wrong{0};

  void expect(bool holds, const char* what) noexcept {
    if (!holds && wrong++ == 0) std::fprintf(stderr, "not so: %s\n", what);
  }
};
statistics all;

struct user {
  std::string name;
  explicit user(std::string name_) : name{std::move(name_)} { ++all.values; }
  user(const user&) = delete;
  user& operator=(const user&) = delete;
  ~user() { --all.values; }
};
constexpr ctx::key<user> user_key{"user"};

struct header {
  using context_value = std::string;
  std::string name;
  bool operator==(const header&) const = default;
};

struct request {
  cancel_scope scope;
  context named;
  std::vector<cancel_scope> parts;
  std::optional<std::stop_callback<std::function<void()>>> callback;
  ctx::after_func_handle function;

  request(const context& connection, std::uint64_t number) : scope{ctx::with_timeout(connection, time_for(number))} {
    named = ctx::with_value(scope.ctx, user_key, "user " + std::to_string(number % 1000));
    if (number % 4 == 0) named = ctx::with_value(named, header{"x-trace-id"}, std::to_string(number));
    parts.push_back(ctx::with_timeout(named, 2ms));
    parts.push_back(ctx::with_timeout(number % 8 == 0 ? named : parts.back().ctx, 1s));
    if (number % 16 == 0) parts.push_back(ctx::merge(parts.front().ctx, parts.back().ctx));
    if (number % 32 == 0) parts.push_back(ctx::with_stop_token(named, parts.back().ctx.stop_token()));
    if (number % 2 == 0) {
      callback.emplace(parts.back().ctx.stop_token(), [c = parts.back().ctx, deadline = *named.deadline()] {
        ++all.callbacks;
        all.expect(c.done(), "a callback runs when its context is done");
        all.expect(c.err() != ctx::errc::deadline_exceeded || clock::now() >= *c.deadline(), "a deadline is not early");
      });
    }
    if (number % 64 == 0) function = ctx::after_func(named, [] { ++all.functions; });
  }

  static clock::duration time_for(std::uint64_t number) { return number % 5 == 0 ? 500us : 20ms; }

  void work(std::uint64_t number) {
    const user* const who = parts.back().ctx.value(user_key);
    all.expect(who != nullptr && who->name == "user " + std::to_string(number % 1000), "a request has its own user");
    if (number % 5 == 0) return;  // nobody answers: it expires
    if (number % 7 == 0) parts.front().cancel(std::runtime_error{"not needed"});
    if (number % 1024 == 1) parts.back().ctx.wait_for(100us);
    if (!scope.cancel()) return;  // its time was up, just now
    ++all.canceled;
    all.expect(parts.back().ctx.done(), "what is below a canceled context is done");
  }

  void finish(std::uint64_t number) {
    if (number % 5 != 0) return;
    scope.ctx.wait();
    if (scope.ctx.err() == ctx::errc::deadline_exceeded) ++all.expired;
    for (const auto& each : parts) each.ctx.wait();
  }
};

/// Serves until told to stop, then lets everything go.
void serve(const context& server, std::uint64_t& number) {
  struct flying {
    std::unique_ptr<request> what;
    std::uint64_t number;
  };
  std::deque<flying> in_flight;
  const auto land = [&] {
    in_flight.front().what->finish(in_flight.front().number);
    in_flight.pop_front();
  };
  const auto connection = ctx::with_cancel(server);
  constexpr std::uint64_t batch = 100;
  constexpr clock::duration time_for_batch = clock::duration{1s} * servers * batch / most_a_second;
  auto next = clock::now();
  while (!server.done()) {
    for (std::uint64_t i = 0; i < batch; ++i) {
      in_flight.push_back({std::make_unique<request>(connection.ctx, number), number});
      in_flight.back().what->work(number++);
      if (in_flight.size() > kept_in_flight) land();
    }
    all.requests += batch;
    // Where the machine gives less, what was missed is not made up for.
    next = std::max(next + time_for_batch, clock::now() - 100ms);
    server.wait_until(next);
  }
  while (!in_flight.empty()) land();
}

/// Lets the servers work for a time, and tells what is held when they have drained.
holdings run(std::chrono::seconds time, std::barrier<>& line, context& server, cancel_scope& scope) {
  scope = ctx::with_cancel(background());
  server = scope.ctx;
  line.arrive_and_wait();
  const auto start = clock::now();
  const auto before = all.requests.load();
  for (auto left = time; left > 0s; left -= std::min(left, std::chrono::seconds{10})) {
    background().wait_for(std::min(left, std::chrono::seconds{10}));
    const auto done = all.requests - before;
    const std::chrono::duration<double> took = clock::now() - start;
    std::printf("%.0f s: %llu requests, %.0f a second\n", took.count(), static_cast<unsigned long long>(done),
                static_cast<double>(done) / took.count());
    std::fflush(stdout);
  }
  scope.cancel();
  line.arrive_and_wait();
  scope = {};
  server = {};
  // A thread that has been joined may still be listed for a moment.
  holdings now = held();
  for (int i = 0; i < 1000 && now.threads > servers + 2; ++i, background().wait_for(1ms)) now = held();
  return now;
}

}  // namespace

int main(int argc, char** argv) {
  const std::chrono::seconds time{argc > 1 ? std::atol(argv[1]) : 600};
  if (time < 2s) {
    std::fprintf(stderr, "usage: endurance [SECONDS], 2 at least\n");
    return 2;
  }
  const auto warm_up = std::min(std::chrono::seconds{10}, time / 2);
  std::barrier line{servers + 1};
  context server;
  cancel_scope scope;
  bool over = false;
  std::vector<std::jthread> threads;
  for (std::uint64_t i = 0; i < servers; ++i) {
    threads.emplace_back([&, number = i << 32]() mutable {
      for (;;) {
        line.arrive_and_wait();
        if (over) return;
        serve(context{server}, number);
        line.arrive_and_wait();
      }
    });
  }
  const holdings first = run(warm_up, line, server, scope);
  print("after the warm-up", first);
  const holdings last = run(time - warm_up, line, server, scope);
  print("at the end", last);
  over = true;
  line.arrive_and_wait();
  threads.clear();

  std::printf("%llu requests: %llu canceled, %llu expired; %llu callbacks, %llu functions\n",
              static_cast<unsigned long long>(all.requests), static_cast<unsigned long long>(all.canceled),
              static_cast<unsigned long long>(all.expired), static_cast<unsigned long long>(all.callbacks),
              static_cast<unsigned long long>(all.functions));
  all.expect(all.values == 0, "every value is gone");
  all.expect(all.canceled > 0 && all.expired > 0 && all.callbacks > 0 && all.functions > 0, "everything happens");
  all.expect(last.threads <= first.threads, "there are as many threads as after the warm-up");
  all.expect(last.files <= first.files, "there are as many open files as after the warm-up");
  // Far less than a byte for each request.
  if (time >= 60s && !sanitized)
    all.expect(last.resident <= first.resident + 2, "as much is resident as after the warm-up");
  return all.wrong == 0 ? 0 : 1;
}
