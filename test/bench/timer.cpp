// How punctual the timer is, and what it costs a process to have: what a benchmark of one operation does
// not see. timer.go measures the same of Go. The argument says what; the answer is a line of JSON.
//
//   spread   100,000 deadlines spread over one second: lateness, and CPU time from the first call on
//   single   a deadline 10 ms away, 200 times, each beside the best that the system can do
//   idle     1,000 deadlines an hour away: how often the process wakes up
//   busy     1,000,000 far deadlines, one of them replaced every few microseconds, and one a second that
//            does pass: how often the process wakes up for those
//
// A second argument scales a run down: 0.1 for a tenth of the deadlines and the time.

#include <ctx/context.hpp>

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <latch>
#include <optional>
#include <random>
#include <semaphore>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;
using nanoseconds = std::chrono::nanoseconds;
using instant = ctx::clock::time_point;

double microseconds(nanoseconds time) { return std::chrono::duration<double, std::micro>{time}.count(); }

nanoseconds percentile(std::vector<nanoseconds>& sample, double which) {
  const auto nth = sample.begin() + static_cast<std::ptrdiff_t>(which * static_cast<double>(sample.size() - 1));
  std::nth_element(sample.begin(), nth, sample.end());
  return *nth;
}

double cpu_milliseconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto milliseconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_usec) / 1e3;
  };
  return milliseconds(used.ru_utime) + milliseconds(used.ru_stime);
}

/// How often all threads but the calling one were put on a processor again after they had slept.
std::uint64_t wake_ups_of_others() {
  const std::string self = std::to_string(::syscall(SYS_gettid));
  const std::string_view field = "voluntary_ctxt_switches:";
  std::uint64_t sum = 0;
  for (const auto& thread : std::filesystem::directory_iterator{"/proc/self/task"}) {
    if (thread.path().filename() == self) continue;
    std::ifstream status{thread.path() / "status"};
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with(field)) sum += std::stoull(line.substr(field.size()));
    }
  }
  return sum;
}

/// Records how late it is called.
struct observer {
  instant due;
  nanoseconds* lateness;
  std::latch* left;
  void operator()() const noexcept {
    *lateness = ctx::clock::now() - due;
    left->count_down();
  }
};
using observation = std::stop_callback<observer>;

void spread(double scale) {
  const auto count = static_cast<std::size_t>(100'000 * scale);
  std::vector<std::size_t> order(count);
  for (std::size_t i = 0; i < count; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937_64{1});
  std::vector<nanoseconds> lateness(count);
  std::vector<ctx::cancel_scope> scopes;
  scopes.reserve(count);
  std::deque<observation> observations;
  std::latch left{static_cast<std::ptrdiff_t>(count)};

  const double cpu_before = cpu_milliseconds();
  // All are armed when the first falls due.
  const instant start = ctx::clock::now() + 1s;
  for (const std::size_t i : order) {
    const instant due = start + i * 10us;
    scopes.push_back(ctx::with_deadline(ctx::background(), due));
    observations.emplace_back(scopes.back().ctx.stop_token(), observer{due, &lateness[i], &left});
  }
  const bool in_time = ctx::clock::now() < start;
  const double cpu_armed = cpu_milliseconds();
  left.wait();
  const double cpu_after = cpu_milliseconds();

  const auto early = std::count_if(lateness.begin(), lateness.end(), [](auto late) { return late < 0ns; });
  std::printf(R"({"p50": %.2f, "p99": %.2f, "early": %td, "cpu": %.1f, "cpu_expiring": %.1f, "armed_in_time": %s})"
              "\n",
              microseconds(percentile(lateness, 0.5)), microseconds(percentile(lateness, 0.99)), early,
              cpu_after - cpu_before, cpu_after - cpu_armed, in_time ? "true" : "false");
}

/// Sleeps until the instants it is given, as punctually as the system can. On a thread of its own: threads
/// inherit their slack from those that start them, and so the first must keep its own as it is, or the
/// timer's thread would not have to lower it.
class sleeper {
 public:
  nanoseconds lateness(instant due) {
    due_ = due;
    start_.release();
    end_.acquire();
    return late_;
  }
  ~sleeper() {
    due_.reset();
    start_.release();
  }

 private:
  void run() {
    ::prctl(PR_SET_TIMERSLACK, 1UL);
    for (;;) {
      start_.acquire();
      if (!due_) return;
      const auto since_boot = due_->time_since_epoch().count();
      const timespec until{static_cast<time_t>(since_boot / 1'000'000'000),
                           static_cast<long>(since_boot % 1'000'000'000)};
      while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0) {
      }
      late_ = ctx::clock::now() - *due_;
      end_.release();
    }
  }

  std::optional<instant> due_;
  nanoseconds late_{};
  std::binary_semaphore start_{0};
  std::binary_semaphore end_{0};
  std::jthread thread_{[this] { run(); }};  // last: joins before what it reads is destroyed
};

void single(double scale) {
  const auto rounds = static_cast<std::size_t>(200 * scale);
  std::vector<nanoseconds> of_callback(rounds);
  std::vector<nanoseconds> of_wait(rounds);
  std::vector<nanoseconds> of_system(rounds);
  int slack = 0;
  sleeper system;
  for (std::size_t i = 0; i < rounds; ++i) {
    {
      const instant due = ctx::clock::now() + 10ms;
      const auto scope = ctx::with_deadline(ctx::background(), due);
      std::binary_semaphore end{0};
      const std::stop_callback observe{scope.ctx.stop_token(), [&] {
                                         of_callback[i] = ctx::clock::now() - due;
                                         slack = ::prctl(PR_GET_TIMERSLACK);  // of the timer's thread, which runs this
                                         end.release();
                                       }};
      end.acquire();
    }
    {
      const instant due = ctx::clock::now() + 10ms;
      const auto scope = ctx::with_deadline(ctx::background(), due);
      scope.ctx.wait();
      of_wait[i] = ctx::clock::now() - due;
    }
    of_system[i] = system.lateness(ctx::clock::now() + 10ms);
  }
  std::printf(R"({"p50": %.2f, "wait_p50": %.2f, "system_p50": %.2f, "slack": %d, "own_slack": %d})"
              "\n",
              microseconds(percentile(of_callback, 0.5)), microseconds(percentile(of_wait, 0.5)),
              microseconds(percentile(of_system, 0.5)), slack, ::prctl(PR_GET_TIMERSLACK));
}

void sleep_for(nanoseconds time) { std::this_thread::sleep_for(time); }

void idle(double scale) {
  std::vector<ctx::cancel_scope> scopes;
  for (int i = 0; i < 1'000; ++i) scopes.push_back(ctx::with_timeout(ctx::background(), 1h));
  sleep_for(200ms);
  const std::uint64_t before = wake_ups_of_others();
  sleep_for(std::chrono::duration_cast<nanoseconds>(5s * scale));
  std::printf(R"({"wake_ups": %ju})"
              "\n",
              static_cast<std::uintmax_t>(wake_ups_of_others() - before));
}

void busy(double scale) {
  const auto count = static_cast<std::size_t>(1'000'000 * scale);
  const auto time = std::chrono::duration_cast<nanoseconds>(5s * scale);
  std::mt19937_64 random{1};
  const auto far = [&] { return std::chrono::milliseconds{60'000 + random() % 3'540'000}; };
  std::vector<ctx::cancel_scope> scopes;
  for (std::size_t i = 0; i < count; ++i) scopes.push_back(ctx::with_timeout(ctx::background(), far()));
  sleep_for(200ms);

  const std::uint64_t before = wake_ups_of_others();
  const instant start = ctx::clock::now();
  auto soon = ctx::with_timeout(ctx::background(), 1s);
  instant next = start;
  std::uint64_t replaced = 0;
  for (; next < start + time; next += 4us) {
    scopes[random() % count] = ctx::with_timeout(ctx::background(), far());
    ++replaced;
    if (soon.ctx.done()) soon = ctx::with_timeout(ctx::background(), 1s);
    while (ctx::clock::now() < next) {
    }
  }
  const std::chrono::duration<double> seconds = ctx::clock::now() - start;
  std::printf(R"({"wake_ups": %.1f, "replaced": %.0f})"
              "\n",
              static_cast<double>(wake_ups_of_others() - before) / seconds.count(),
              static_cast<double>(replaced) / seconds.count());
  std::fflush(nullptr);
  std::_Exit(0);  // a million contexts need no goodbye
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  const double scale = argc > 2 ? std::atof(argv[2]) : 1.0;
  if (what == "spread") {
    spread(scale);
  } else if (what == "single") {
    single(scale);
  } else if (what == "idle") {
    idle(scale);
  } else if (what == "busy") {
    busy(scale);
  } else {
    std::fputs("usage: timer spread|single|idle|busy [SCALE]\n", stderr);
    return 2;
  }
}
