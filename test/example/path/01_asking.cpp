// 1. Asking a thread to stop
//
// A thread can't be killed safely. It may be anywhere: between two writes that belong together, inside
// a function that holds a mutex, or one that owns memory. Killed there, it leaves the writes half done
// and the mutex locked for ever, and nobody can repair that from outside: only the thread's own code
// knows where it stands. (The one below moves coins from pocket to pocket. Killed between two lines of
// a move, it would lose one.)
//
// What works is to ask. Whoever starts the work derives a context for it, and keeps the right to
// cancel. The work takes the context as its first parameter and looks at it in every round, at a place
// where it can stop without harm. To look, `done()`, costs two loads: do it often. Once it is true it
// stays true, so a thread that looks late has missed nothing.
//
// Prints:
//   asked to stop: yes
//   returned; coins in both pockets: 100

#include <ctx/context.hpp>

#include <atomic>
#include <iostream>
#include <thread>
#include <utility>

struct pockets {
  int left = 70;
  int right = 30;
  std::atomic<int> moves{0};
};

void move_coins(const ctx::context& ctx, pockets& mine) {
  while (!ctx.done()) {  // here every coin is in a pocket
    --mine.left;
    ++mine.right;
    std::swap(mine.left, mine.right);
    ++mine.moves;
    mine.moves.notify_one();
  }
}

int main() {
  pockets mine;
  auto [ctx, cancel] = ctx::with_cancel(ctx::background());
  std::thread worker{[&mine, ctx = ctx] { move_coins(ctx, mine); }};
  mine.moves.wait(0);  // until it is well under way

  std::cout << "asked to stop: " << (cancel() ? "yes" : "no") << '\n';
  worker.join();  // asking does not wait for the answer; join() does
  std::cout << "returned; coins in both pockets: " << mine.left + mine.right << '\n';
}
