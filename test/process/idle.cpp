// What the timer's thread does not do, for as long as it may: catch signals, and wake up for nothing. The
// argument names which: see process_test.cpp. Linux only: the counts are those of /proc.

#include "check.hpp"

#include <ctx/context.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <latch>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;

/// The thread on which deadlines pass; it goes back to sleep now.
pid_t timers_thread() {
  for (auto timeout = 1ms;; timeout *= 2) {
    std::atomic<pid_t> number{0};
    auto scope = ctx::with_timeout(ctx::background(), timeout);
    std::stop_callback note{scope.ctx.stop_token(), [&] { number = this_thread_number(); }};
    while (number == 0) std::this_thread::yield();  // takes no lock, so that the timer waits for none
    // Where the deadline had passed before the callback was there, that ran here.
    if (number != this_thread_number()) return number;
  }
}

/// A field of the thread's status, as a word.
std::string field_of(pid_t thread, std::string_view field) {
  std::ifstream status{"/proc/self/task/" + std::to_string(thread) + "/status"};
  for (std::string name, line; status >> name && std::getline(status, line);) {
    if (name == field) return line.substr(1, line.find(' ') - 1);
  }
  must(false, "/proc knows the thread and the field");
  return {};
}

/// How often the thread went to sleep, once it sleeps.
unsigned long sleeps_of(pid_t thread) {
  for (;;) {
    const auto before = field_of(thread, "voluntary_ctxt_switches:");
    bool asleep = true;
    for (int i = 0; i < 100 && asleep; ++i) asleep = field_of(thread, "State:") == "S";
    if (asleep && before == field_of(thread, "voluntary_ctxt_switches:")) return std::stoul(before);
    std::this_thread::yield();
  }
}

void arm(std::vector<ctx::cancel_scope>& scopes, std::chrono::hours first) {
  for (int i = 0; i < 1000; ++i) scopes.push_back(ctx::with_timeout(ctx::background(), first + i * 1s));
}

void hour_away() {
  const pid_t thread = timers_thread();
  std::vector<ctx::cancel_scope> scopes;
  arm(scopes, 1h);
  unsigned long woken = 1;
  // A sanitizer may well wake the thread once. A wheel that ticks, or a wake-up for each deadline armed, wakes it every time.
  for (int attempt = 0; attempt < 3 && woken != 0; ++attempt) {
    const unsigned long before = sleeps_of(thread);
    arm(scopes, 2h);
    for (std::size_t i = 0; i < 500; ++i) scopes[2 * i].cancel();  // the earliest among them
    std::this_thread::sleep_for(1s);
    woken = sleeps_of(thread) - before;
  }
  must(woken == 0, "the timer's thread sleeps while nothing is due, whatever is armed or canceled");
}

void short_timeouts() {
  const pid_t thread = timers_thread();
  auto far = ctx::with_timeout(ctx::background(), 1h);
  const unsigned long before = sleeps_of(thread);
  const auto start = ctx::clock::now();
  constexpr int count = 100'000;
  for (int i = 0; i < count; ++i) ctx::with_timeout(ctx::background(), 10ms).cancel();
  const auto took = ctx::clock::now() - start;
  const unsigned long woken = sleeps_of(thread) - before;
  // One early wake-up in ten milliseconds, and each may find the lock taken a few times.
  const auto allowed = 100 + 10 * static_cast<unsigned long>(took / 10ms);
  must(woken <= allowed && woken < count / 2, "timeouts that are canceled in time wake the thread but now and then");
}

void check_signals_of(pid_t thread) {
  const unsigned long long blocked = std::stoull(field_of(thread, "SigBlk:"), nullptr, 16);
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    const bool can_be_blocked = signal != SIGKILL && signal != SIGSTOP && (signal < 32 || signal >= SIGRTMIN);
    const bool is_blocked = (blocked >> (signal - 1) & 1) != 0;
    must(is_blocked || !can_be_blocked, "the timer's thread blocks every signal");
  }
}

std::atomic<pid_t> caught_on{0};

void signals() {
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  const pid_t thread = timers_thread();
  check_signals_of(thread);
  sigset_t after;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    must(::sigismember(&before, signal) == ::sigismember(&after, signal), "whoever starts it blocks as before");
  }

  // Blocked here, a signal to the process is for any thread that takes it. None does.
  sigset_t user_defined;
  ::sigemptyset(&user_defined);
  ::sigaddset(&user_defined, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &user_defined, nullptr);
  ::signal(SIGUSR1, [](int) { caught_on = this_thread_number(); });
  ::kill(::getpid(), SIGUSR1);
  must(timers_thread() == thread, "there is one timer's thread");
  must(caught_on == 0, "it takes no signal");
  ::pthread_sigmask(SIG_UNBLOCK, &user_defined, nullptr);
  must(caught_on == this_thread_number(), "whoever does not block it takes it");
}

void after_func() {
  std::string blocked;
  std::latch ran{1};
  auto scope = ctx::with_timeout(ctx::background(), 10ms);
  const auto handle = ctx::after_func(scope.ctx, [&] {
    blocked = field_of(this_thread_number(), "SigBlk:");
    ran.count_down();
  });
  ran.wait();
  must(blocked == field_of(::getpid(), "SigBlk:"), "it blocks the signals that its owner's thread does, no more");
}

}  // namespace

int main(int argc, char** argv) {
  die_after_a_minute();
  const std::string_view what = argc > 1 ? argv[1] : "";
  if (what == "hour_away") return hour_away(), 0;
  if (what == "short_timeouts") return short_timeouts(), 0;
  if (what == "signals") return signals(), 0;
  if (what == "after_func") return after_func(), 0;
  must(false, "the argument is the name of what the thread does not do");
}
