// 13. Mistake: the lost scope
//
// A factory returns a scope: the context, and the right to cancel it. At its end the scope cancels, so
// that nothing derived is ever forgotten. If only the context is taken out, the rest of the scope ends
// with the statement, and the context is done before the work begins. Its cause then names the
// line that derived it: here is the line to look at.
//
// If the whole scope is dropped, the compiler notices. For `ctx::with_timeout(parent, 5s);` it warns:
//   the context is canceled at once where its scope is discarded
//
// Right: take both parts, `auto [ctx, cancel] = …`, in the block that the work belongs to. A function
// that derives a context for its caller returns the scope. Where really nobody is to cancel, only the
// parent or the deadline: `cancel.release()`.
//
// Prints:
//   wrong: 13_mistake_lost_scope.cpp:32: context canceled
//   right: live
//   right, from a function: live
//   right, without the right: live, then context deadline exceeded

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <iostream>
#include <string>

using namespace std::chrono_literals;

std::string state(const ctx::context& ctx) { return ctx.done() ? ctx::cause_message(ctx) : "live"; }

ctx::context for_query_wrong(const ctx::context& parent) {
  return ctx::with_timeout(parent, 5s).ctx;  // wrong: the cancel_func ends here
}

ctx::cancel_scope for_query_right(const ctx::context& parent) { return ctx::with_timeout(parent, 5s); }

int main() {
  ctx::manual_clock clock;
  std::cout << "wrong: " << state(for_query_wrong(ctx::background())) << '\n';

  auto [ctx, cancel] = ctx::with_timeout(ctx::background(), 5s);
  std::cout << "right: " << state(ctx) << '\n';

  auto [query, cancel_query] = for_query_right(ctx::background());
  std::cout << "right, from a function: " << state(query) << '\n';

  auto [alone, cancel_alone] = ctx::with_timeout(ctx::background(), 5s);
  cancel_alone.release();
  std::cout << "right, without the right: " << state(alone);
  clock.advance(5s);
  std::cout << ", then " << alone.err().message() << '\n';
}
