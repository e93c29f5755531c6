// A program that depends on ctx as any other would. It exists to fail to build, or to run, where the
// dependency does not hand on all that its users need.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <chrono>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

inline constexpr ctx::key<std::string> name_key{"name"};

int main() {
  ctx::manual_clock clock;
  auto [request, cancel] = ctx::with_timeout(ctx::background(), std::chrono::hours{1});
  const auto named = ctx::with_value(request, name_key, "consumer");
  std::jthread worker{[named] { named.wait(); }};
  clock.advance(std::chrono::hours{1});
  worker.join();

  const bool right = named.err() == ctx::errc::deadline_exceeded && *named.value(name_key) == "consumer";
  std::cout << to_string(named) << ": " << named.err().message() << '\n';
  return right ? 0 : 1;
}
