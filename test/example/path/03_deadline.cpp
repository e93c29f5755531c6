// 3. A deadline, and what is left of it
//
// "The answer within two seconds" is one instant for everything that has to happen until then. With a
// timeout of its own for each of three steps, they could take six seconds together. So `with_timeout`
// turns the duration into an instant once, where the request begins; everybody below shares it:
//
// - `deadline()` is that instant and `remaining()` the time left: what to give a function of somebody
//   else's that takes a timeout.
// - A part may be given less time than the whole. It can't be given more: the earlier deadline governs.
// - Once the instant has come, never before, the context is done, as if somebody had canceled it then.
//   `err()` tells which of the two it was.
//
// The clock in `main` stands still unless it is moved, so that this prints the same on every machine.
// Programs do without; step 11 shows what it is for.
//
// Prints:
//   connect: 2000 ms left
//   ask: 1300 ms left
//   ask, at most 300 ms: 300 ms left
//   ask, at most an hour: 1300 ms left
//   ask, at most 300 ms: context deadline exceeded
//   receive: 1000 ms left
//   receive: context deadline exceeded

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <iostream>

using namespace std::chrono_literals;

void show(const ctx::context& ctx, const char* step) {
  std::cout << step << ": ";
  if (ctx.done())
    std::cout << ctx.err().message() << '\n';
  else
    std::cout << ctx.remaining() / 1ms << " ms left\n";
}

int main() {
  ctx::manual_clock clock;
  auto [request, cancel] = ctx::with_timeout(ctx::background(), 2s);
  show(request, "connect");
  clock.advance(700ms);  // it took that long

  show(request, "ask");
  auto [hasty, cancel_hasty] = ctx::with_timeout(request, 300ms);
  auto [patient, cancel_patient] = ctx::with_timeout(request, 1h);
  show(hasty, "ask, at most 300 ms");
  show(patient, "ask, at most an hour");
  clock.advance(300ms);
  show(hasty, "ask, at most 300 ms");

  show(request, "receive");
  clock.advance(1s);
  show(request, "receive");
}
