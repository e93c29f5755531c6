// 7. A std::jthread's own token as a parent
//
// The standard library asks threads to stop, too: `std::jthread` hands its function a stop token, and
// its destructor requests the stop and then joins. That is one thread and one reason. Often there are
// more: this thread is not needed any longer, or the whole program shuts down, or time is up.
//
// `with_stop_token(parent, token)` makes a context that ends with either. The function then looks at
// one thing, waits on it, derives from it, and need not know who may end it.
//
// Prints:
//   first: ended by its jthread; the program is live
//   second: ended by the program: shutting down

#include <ctx/context.hpp>

#include <functional>
#include <iostream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>

using namespace std::chrono_literals;

void work(std::stop_token own, const ctx::context& program, std::string& ended_by) {
  const auto [ctx, cancel] = ctx::with_stop_token(program, own);
  while (!ctx.wait_for(1h)) {
    // … a step of the work
  }
  ended_by = program.done() ? "the program: " + ctx::cause_message(program) : "its jthread";
}

int main() {
  auto [program, shut_down] = ctx::with_cancel(ctx::background());
  std::string one, two;
  std::jthread first{work, program, std::ref(one)};
  std::jthread second{work, program, std::ref(two)};

  first.request_stop();  // as its destructor would
  first.join();
  std::cout << "first: ended by " << one << "; the program is " << (program.done() ? "done" : "live") << '\n';

  shut_down(std::runtime_error{"shutting down"});
  second.join();
  std::cout << "second: ended by " << two << '\n';
}
