// 2. Waiting that can be interrupted
//
// A thread that sleeps does not look at its context. Were it asked to stop in the middle of an hour's
// sleep, whoever joins it would wait for the rest of the hour. So the waiting itself has to listen.
// There are two kinds of it:
//
// - For time. `ctx.wait_for(d)` is a sleep that ends early where the context does. It returns
//   `done()`, which makes it the condition of a loop: do something every so often, until asked to stop.
// - For something to happen. `std::condition_variable_any` has waits that take a stop token, and every
//   context has one: `ctx.stop_token()`. They return whether what they wait for is there.
//
// Both threads here are in a wait that would last an hour, or for ever. One call ends them.
//
// Prints:
//   heart: 1 beat, then asked to stop
//   reader: no letter, asked to stop

#include <ctx/context.hpp>

#include <condition_variable>
#include <deque>
#include <iostream>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

using namespace std::chrono_literals;

class mailbox {
 public:
  /// Waits for a letter; empty where the context is done before one comes.
  std::optional<std::string> receive(const ctx::context& ctx) {
    std::unique_lock lock{mutex_};
    if (!arrived_.wait(lock, ctx.stop_token(), [&] { return !letters_.empty(); })) return {};
    std::string letter = std::move(letters_.front());
    letters_.pop_front();
    return letter;
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any arrived_;
  std::deque<std::string> letters_;  // guarded by mutex_
};

int main() {
  mailbox box;
  int beats = 0;
  std::optional<std::string> letter;
  auto [ctx, cancel] = ctx::with_cancel(ctx::background());
  std::thread heart{[&beats, ctx = ctx] {
    do ++beats;
    while (!ctx.wait_for(1h));
  }};
  std::thread reader{[&box, &letter, ctx = ctx] { letter = box.receive(ctx); }};

  cancel();
  heart.join();
  reader.join();
  std::cout << "heart: " << beats << " beat, then asked to stop\n"
            << "reader: " << letter.value_or("no letter") << ", asked to stop\n";
}
