// pipeline: the stages of Go's article on pipelines and cancelation, each on threads of its own, with
// bounded queues between them: one counts, three square, and main takes what comes.
//
//   count --numbers--> square, square, square --squares--> main
//
// Where main takes all, the stages end in order: each closes its queue when it has no more to give.
// Where main leaves early, it cancels: every push and pop returns, the stages end, and the threads are
// joined. Without a context they would wait for ever for room in a queue that nobody empties: the
// leak that the article is about.
//
// Usage: pipeline LIMIT WANTED
// Prints WANTED squares of numbers below LIMIT, or all, in any order, and how many threads are left.

#include "queue.hpp"

#include <ctx/context.hpp>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <thread>
#include <vector>

namespace {

using number = long long;

void count(const ctx::context& c, number limit, queue<number>& numbers) {
  for (number n = 0; n < limit; ++n)
    if (!numbers.push(c, n)) return;
  numbers.close();
}

void square(const ctx::context& c, queue<number>& numbers, queue<number>& squares) {
  while (const auto n = numbers.pop(c))
    if (!squares.push(c, *n * *n)) return;
}

/// When it returns, however it does, its threads are gone.
void print_squares(const ctx::context& parent, number limit, number wanted) {
  queue<number> numbers{4};
  queue<number> squares{4};
  std::atomic<int> squaring{3};
  std::vector<std::jthread> stages;                   // joins before what they use is destroyed
  const auto [c, cancel] = ctx::with_cancel(parent);  // last: cancels before the stages are joined

  stages.emplace_back([&, c = c] { count(c, limit, numbers); });
  for (int i = squaring; i > 0; --i) {
    stages.emplace_back([&, c = c] {
      square(c, numbers, squares);
      if (--squaring == 0) squares.close();  // the last one
    });
  }
  for (; wanted > 0; --wanted) {
    const auto value = squares.pop(c);
    if (!value) return;
    std::cout << *value << '\n';
  }
}

auto threads() { return std::distance(std::filesystem::directory_iterator{"/proc/self/task"}, {}); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "usage: pipeline LIMIT WANTED\n", 2;
  // Counted by a thread, less itself: with the first one, a sanitizer starts one of its own.
  std::ptrdiff_t before = 0;
  std::thread{[&] { before = threads() - 1; }}.join();
  print_squares(ctx::background(), std::atoll(argv[1]), std::atoll(argv[2]));
  while (threads() > before) std::this_thread::yield();  // a joined thread is listed for a moment more
  std::cout << "threads left: " << threads() - before << std::endl;
}
