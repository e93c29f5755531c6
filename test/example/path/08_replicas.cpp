// 8. The first of several replicas wins
//
// Three servers hold the same data. Ask all of them, take the first answer, tell the others to stop:
// the slowest no longer decides how long a user waits.
//
// Who is the first? Two answers may come at the same moment. Here the cancel decides: of all calls
// that race to end a context, exactly one returns true. Whoever got that true has won; the others were
// done before they had an answer, or come too late with it. No further lock or flag is needed, and
// the threads are joined before anybody reads what the winner wrote.
//
// The clock is moved by hand, as in step 3: the servers answer after 90, 20 and 50 ms of its time.
//
// Prints:
//   paris answers after 20 ms; the others were asked to stop

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <iostream>
#include <string>
#include <thread>
#include <vector>

using namespace std::chrono_literals;

/// Asks one server; false where nobody wants to know any more.
bool ask(const ctx::context& ctx, ctx::clock::time_point answer_comes) { return !ctx.wait_until(answer_comes); }

struct replica {
  std::string name;
  std::chrono::milliseconds takes;
};

int main() {
  ctx::manual_clock clock;
  const auto start = ctx::clock::now();
  std::string winner;
  auto [race, cancel] = ctx::with_cancel(ctx::background());
  {
    std::vector<std::jthread> threads;  // joined at the end of this block
    for (const replica& each : {replica{"oslo", 90ms}, {"paris", 20ms}, {"quito", 50ms}}) {
      threads.emplace_back([&winner, start, each, race = race, &cancel = cancel] {
        if (ask(race, start + each.takes) && cancel()) winner = each.name;
      });
    }
    clock.advance(20ms);
  }
  std::cout << winner << " answers after " << (ctx::clock::now() - start) / 1ms
            << " ms; the others were asked to stop\n";
}
