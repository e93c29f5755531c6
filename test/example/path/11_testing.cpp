// 11. Testing an hour in a microsecond
//
// How does one test that a session ends after an hour? Not by waiting for it, and not by making it a
// second "for tests": that test is slow, fails on a busy machine, and tests something else.
//
// While a `ctx::manual_clock` lives, time stands still for all contexts of the process; `advance`
// moves it. When it returns, every context that fell due is done, one after the other in the order of
// their deadlines. No real time passes, nothing is left to chance, and the code under test takes no
// clock as a parameter: it does not notice. So a test can look at the last nanosecond.
//
// Prints:
//   after 59 min: live
//   after 1 h less 1 ns: live
//   after 1 h: the session expired
//   in order: reminder, session, archive

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <iostream>
#include <stdexcept>
#include <stop_token>
#include <string>

using namespace std::chrono_literals;

// What is tested.
ctx::cancel_scope log_in(const ctx::context& parent) {
  return ctx::with_timeout(parent, 1h, std::runtime_error{"the session expired"});
}

// The test.
std::string state(const ctx::context& ctx) { return ctx.done() ? ctx::cause_message(ctx) : "live"; }

int main() {
  ctx::manual_clock clock;
  auto [session, log_out] = log_in(ctx::background());
  auto [reminder, cancel_reminder] = ctx::with_timeout(ctx::background(), 55min);
  auto [archive, cancel_archive] = ctx::with_timeout(ctx::background(), 24h);
  std::string order = "in order:";
  const std::stop_callback third{archive.stop_token(), [&] { order += " archive"; }};
  const std::stop_callback first{reminder.stop_token(), [&] { order += " reminder,"; }};
  const std::stop_callback second{session.stop_token(), [&] { order += " session,"; }};

  clock.advance(59min);
  std::cout << "after 59 min: " << state(session) << '\n';
  clock.advance(1min - 1ns);
  std::cout << "after 1 h less 1 ns: " << state(session) << '\n';
  clock.advance(1ns);
  std::cout << "after 1 h: " << state(session) << '\n';
  clock.advance(24h);
  std::cout << order << '\n';
}
