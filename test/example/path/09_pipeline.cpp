// 9. A pipeline that ends early
//
// One thread makes numbers, the next squares them, the last takes what it needs. Between them are
// queues of limited length, so that a fast stage waits for a slow one. What if the last has enough?
// The others are blocked then, in a queue that nobody empties, and would be for ever: the classic leak.
//
// Every wait of a queue listens to the context. One cancel ends all stages, whichever way each is
// waiting, and it says why. The same happens where a stage fails: it cancels with its exception.
//
// Prints:
//   1 4 9
//   all stages ended: three are enough

#include <ctx/context.hpp>

#include <condition_variable>
#include <deque>
#include <iostream>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>

class channel {
 public:
  /// Waits for room; false where the context is done.
  bool send(const ctx::context& ctx, long number) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait(lock, ctx.stop_token(), [&] { return numbers_.size() < 2; })) return false;
    numbers_.push_back(number);
    changed_.notify_all();
    return true;
  }

  /// Waits for a number; empty where the context is done.
  std::optional<long> receive(const ctx::context& ctx) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait(lock, ctx.stop_token(), [&] { return !numbers_.empty(); })) return {};
    const long number = numbers_.front();
    numbers_.pop_front();
    changed_.notify_all();
    return number;
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<long> numbers_;  // guarded by mutex_
};

int main() {
  channel made, squared;
  auto [ctx, cancel] = ctx::with_cancel(ctx::background());
  std::thread maker{[&made, ctx = ctx] {
    for (long i = 1; made.send(ctx, i); ++i) continue;
  }};
  std::thread squarer{[&made, &squared, ctx = ctx] {
    while (const auto i = made.receive(ctx))
      if (!squared.send(ctx, *i * *i)) break;
  }};

  for (int taken = 0; taken < 3; ++taken) std::cout << *squared.receive(ctx) << (taken < 2 ? ' ' : '\n');
  cancel(std::runtime_error{"three are enough"});
  maker.join();
  squarer.join();
  std::cout << "all stages ended: " << ctx::cause_message(ctx) << '\n';
}
