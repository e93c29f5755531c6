// 15. Mistake: the blocking callback on the timer's thread
//
// A `std::stop_callback` runs on the thread that ends the context. Where somebody calls `cancel()`,
// that is theirs. Where a deadline passes, it is the timer's, and that one thread serves all deadlines
// of the process. A callback that blocks there, on a lock, a file or a slow server, holds up all of
// them: contexts that have nothing to do with it are late.
//
// Right: in a stop callback do only what is short and can't block (set a flag, notify, wake a loop).
// For all else there is `after_func`, which runs it on a thread of its own (step 10).
//
// Prints:
//   wrong: another deadline has passed, and its context is live
//   wrong: once the callback returned, it is done
//   right: another deadline has passed, and its context is done

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <iostream>
#include <latch>
#include <optional>
#include <stop_token>

using namespace std::chrono_literals;

/// Something slow that a deadline sets off, as saving a file would be: it ends when told to.
struct slow_work {
  std::latch started{1};
  std::latch may_end{1};
  void operator()() {
    started.count_down();
    may_end.wait();
  }
};

int main() {
  {
    slow_work save;
    std::optional<ctx::manual_clock> still{std::in_place};  // or the deadline might pass before there is a callback
    auto [saved, cancel_saved] = ctx::with_timeout(ctx::background(), 1ms);
    const std::stop_callback on_end{saved.stop_token(), [&save] { save(); }};  // wrong: on the timer's thread
    still.reset();
    save.started.wait();
    auto [other, cancel_other] = ctx::with_timeout(ctx::background(), 1ms);
    ctx::background().wait_until(*other.deadline());  // a sleep: until the other one is due as well
    std::cout << "wrong: another deadline has passed, and its context is " << (other.done() ? "done\n" : "live\n");
    save.may_end.count_down();
    other.wait();
    std::cout << "wrong: once the callback returned, it is " << (other.done() ? "done\n" : "live\n");
  }
  {
    slow_work save;
    auto [saved, cancel_saved] = ctx::with_timeout(ctx::background(), 1ms);
    const auto on_end = ctx::after_func(saved, [&save] { save(); });
    save.started.wait();
    auto [other, cancel_other] = ctx::with_timeout(ctx::background(), 1ms);
    other.wait();  // comes to its end although the slow work goes on
    std::cout << "right: another deadline has passed, and its context is " << (other.done() ? "done\n" : "live\n");
    save.may_end.count_down();
  }
}
