#include <ctx/clock.hpp>

#include <ctx/src/time_source.hpp>

#include <atomic>
#include <limits>

namespace ctx {
namespace {

constexpr clock::rep running = std::numeric_limits<clock::rep>::min();

// The instant at which a manual clock stands, or `running`.
constinit std::atomic<clock::rep> held_at{running};

}  // namespace

clock::time_point clock::now() noexcept {
  // order: relaxed suffices; the instant is all there is to read, and whoever must see that the clock
  // moved is told so under a lock.
  const rep held = held_at.load(std::memory_order_relaxed);
  return held == running ? std::chrono::steady_clock::now() : time_point{duration{held}};
}

namespace detail {

bool clock_is_manual() noexcept {
  // order: relaxed, as in now().
  return held_at.load(std::memory_order_relaxed) != running;
}

void hold_clock(clock::time_point instant) noexcept {
  // order: relaxed, as in now().
  held_at.store(instant.time_since_epoch().count(), std::memory_order_relaxed);
}

void let_clock_run() noexcept {
  // order: relaxed, as in now().
  held_at.store(running, std::memory_order_relaxed);
}

}  // namespace detail
}  // namespace ctx
