// 16. Mistake: the value used as an optional parameter
//
// It is tempting: a setting that only one function far below needs, put into the context, spares all
// those in between a parameter. But everything below finds it, also what was never meant. And nothing
// in a signature tells that the function behaves differently with it, or that it needs it at all.
//
// Here somebody lets a search be tried five times. A payment, further down, reads the same setting.
//
// Right: what decides how a function does its work is a parameter of that function. In the context
// goes what belongs to the request whoever serves it, and what a function works without: who asks,
// a trace, a number for the log (step 6). A test: were the value missing, would only the log be poorer?
//
// Prints:
//   wrong: search tried 5 times, then paid 5 times
//   right: search tried 5 times, then paid 1 time

#include <ctx/context.hpp>

#include <iostream>

namespace wrong {

constexpr ctx::key<int> tries{"tries"};

int tries_of(const ctx::context& ctx) {
  const int* set = ctx.value(tries);
  return set != nullptr ? *set : 1;
}
int search(const ctx::context& ctx) { return tries_of(ctx); }
int pay(const ctx::context& ctx) { return tries_of(ctx); }  // wrong: nobody who calls it can see this

}  // namespace wrong

namespace right {

int search(const ctx::context&, int tries) { return tries; }
int pay(const ctx::context&) { return 1; }

}  // namespace right

int main() {
  const auto persistent = ctx::with_value(ctx::background(), wrong::tries, 5);
  const int searched = wrong::search(persistent);
  std::cout << "wrong: search tried " << searched << " times, then paid " << wrong::pay(persistent) << " times\n";

  const ctx::context ctx = ctx::background();
  std::cout << "right: search tried " << right::search(ctx, 5) << " times, then paid " << right::pay(ctx) << " time\n";
}
