// Exists for what nobody thought of: orders of steps that no other test takes. Random programs run against the library
// and against a plain model of its contract, and all that can be seen of both is compared after every step.
//
// The seed is printed. CTX_TEST_SEED replays it, CTX_TEST_PROGRAMS is how many programs to run from there on: 1, with the
// seed of one program, runs that alone. What fails is printed short, with what CTX_TEST_PROGRAM has to be to run it.

#include "driver.hpp"
#include "program.hpp"
#include "shrink.hpp"

#include <doctest/doctest.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

using model::decode;
using model::difference;
using model::encode;
using model::op;
using model::program;
using model::random_program;
using model::report;
using model::shrink;
using model::step;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
constexpr bool sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool sanitized = false;
#endif

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const given = std::getenv(name);
  return given != nullptr ? std::stoull(given) : otherwise;
}

// What runs at the moment, for the case that it kills the process, or never ends and is killed.
std::string running;

extern "C" void tell_what_runs(int signal) {
  [[maybe_unused]] const auto written = write(STDERR_FILENO, running.data(), running.size());
  std::signal(signal, SIG_DFL);
  raise(signal);
}

std::optional<std::string> run(const program& given) {
  running = "\nThis program was running: CTX_TEST_PROGRAM=" + model::to_hex(given) + "\n";
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGABRT, SIGTERM, SIGINT}) std::signal(signal, tell_what_runs);
  return difference(given);
}

void check(const program& given) {
  if (!run(given)) return;
  const program small = shrink(given, [](const program& each) { return run(each).has_value(); });
  const auto still = difference(small);
  FAIL(report(small, still.value_or("only now and then")));
}

TEST_CASE("random programs do what the model does") {
  const std::uint64_t seed = from_environment("CTX_TEST_SEED", std::random_device{}());
  const std::uint64_t programs = from_environment("CTX_TEST_PROGRAMS", sanitized ? 500 : 4000);
  MESSAGE("CTX_TEST_SEED=", seed);
  for (std::uint64_t each = seed; each != seed + programs; ++each) {
    INFO("CTX_TEST_SEED=", each, " CTX_TEST_PROGRAMS=1");
    check(random_program(each));
  }
}

TEST_CASE("a program that was given does what the model does") {
  if (const char* const given = std::getenv("CTX_TEST_PROGRAM")) check(model::from_hex(given));
}

}  // namespace
