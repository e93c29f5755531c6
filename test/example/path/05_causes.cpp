// 5. Causes: who ended this, where, why
//
// "canceled" in a log at night helps nobody. So a context that is done can tell two things:
//
// - `err()` says which kind of end it was, for the program to branch on: `ctx::errc::canceled` or
//   `ctx::errc::deadline_exceeded`, which also equal the portable `std::errc::operation_canceled` and
//   `std::errc::timed_out`.
// - `cause()` says why, for people: an exception, given by whoever canceled or set the deadline. Where
//   none was given, the context makes one whose `what()` names the line that did it.
//
// The first cause wins, and everything that ended with the same cancel has the same one. Work that is
// several calls deep leaves by `throw_if_done()`, which throws the cause.
//
// Prints:
//   upload   | canceled | the disk is full
//   checksum | canceled | the disk is full
//   preview  | canceled | 05_causes.cpp:47: context canceled
//   payment  | too late | the bank is silent
//   retry    | too late | 05_causes.cpp:49: context deadline exceeded

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <exception>
#include <iostream>
#include <stdexcept>

using namespace std::chrono_literals;

void report(const char* work, const ctx::context& ctx) {
  try {
    ctx.throw_if_done();
    std::cout << work << " | goes on\n";
  } catch (const std::exception& why) {
    const bool late = ctx.err() == std::errc::timed_out;
    std::cout << work << " | " << (late ? "too late" : "canceled") << " | " << why.what() << '\n';
  }
}

int main() {
  ctx::manual_clock clock;  // as in step 3
  auto [upload, cancel_upload] = ctx::with_cancel(ctx::background());
  auto [checksum, cancel_checksum] = ctx::with_cancel(upload);
  auto [preview, cancel_preview] = ctx::with_cancel(ctx::background());
  cancel_upload(std::runtime_error{"the disk is full"});
  cancel_upload(std::runtime_error{"too late to be the reason"});
  cancel_preview();
  auto [payment, cancel_payment] = ctx::with_timeout(ctx::background(), 5s, std::runtime_error{"the bank is silent"});
  auto [retry, cancel_retry] = ctx::with_timeout(ctx::background(), 6s);
  clock.advance(6s);

  report("upload  ", upload);
  report("checksum", checksum);
  report("preview ", preview);
  report("payment ", payment);
  report("retry   ", retry);
}
