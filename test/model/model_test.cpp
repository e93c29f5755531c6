// Exists for what nobody thought of: orders of steps that no other test takes. Random programs run against the library
// and against a plain model of its contract, and all that can be seen of both is compared after every step.
//
// The seed is printed. CTX_TEST_SEED replays it, CTX_TEST_PROGRAMS is how many programs to run from there on: 1, with
// the seed of one program, runs that alone. What fails is printed short, with what CTX_TEST_PROGRAM has to be to run
// it.

#include "../sanitizer.hpp"
#include "driver.hpp"
#include "program.hpp"
#include "shrink.hpp"

#include <doctest/doctest.h>

#include <algorithm>
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
#include <utility>
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

#if defined(__OPTIMIZE__)
constexpr bool slow = sanitized;
#else
constexpr bool slow = true;
#endif

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const given = std::getenv(name);
  return given != nullptr ? std::stoull(given) : otherwise;
}

// What runs at the moment, and what ran before it, for the case that it kills the process, or never ends and is killed.
std::string running, before;

extern "C" void tell_what_runs(int signal) {
  for (const std::string* each : {&before, &running})
    if (write(STDERR_FILENO, each->data(), each->size()) < 0) break;
  std::signal(signal, SIG_DFL);
  raise(signal);
}

std::optional<std::string> run(const program& given) {
  for (std::string* each : {&before, &running}) each->reserve(1'000);  // so that they stay where they are
  before.assign(running);
  running.assign("\nThis program was running: CTX_TEST_PROGRAM=").append(model::to_hex(given)).append("\n");
  for (const int signal : {SIGSEGV, SIGILL, SIGABRT, SIGTERM, SIGINT}) std::signal(signal, tell_what_runs);
#if defined(SIGBUS)
  std::signal(SIGBUS, tell_what_runs);
#endif
  return difference(given);
}

void check(const program& given) {
  std::optional<std::string> last = run(given);
  if (!last) return;
  const program small = shrink(given, [&](const program& each) {
    // More than once, as the clock's digits and the threads' haste may have a part in it.
    for (int i = 0; i < 3; ++i)
      if (auto difference = run(each)) {
        last = std::move(difference);
        return true;
      }
    return false;
  });
  FAIL(report(small, *last));
}

TEST_CASE("random programs do what the model does") {
  const std::uint64_t seed = from_environment("CTX_TEST_SEED", std::random_device{}());
  const std::uint64_t programs = from_environment("CTX_TEST_PROGRAMS", slow ? 2'000 : 25'000);
  MESSAGE("CTX_TEST_SEED=", seed);
  for (std::uint64_t each = seed; each != seed + programs; ++each) {
    INFO("CTX_TEST_SEED=", each, " CTX_TEST_PROGRAMS=1");
    check(random_program(each));
  }
}

TEST_CASE("the programs of the corpus do what the model does") {
  const char* const corpus = std::getenv("CTX_TEST_CORPUS");
  if (corpus == nullptr) return;
  int programs = 0;
  for (const auto& entry : std::filesystem::directory_iterator{corpus}) {
    std::ifstream file{entry.path(), std::ios::binary};
    const std::vector<char> bytes{std::istreambuf_iterator<char>{file}, {}};
    INFO(entry.path().filename().string());
    check(decode(std::vector<std::uint8_t>(bytes.begin(), bytes.end())));
    ++programs;
  }
  CHECK(programs > 0);
}

TEST_CASE("a program that was given does what the model does") {
  if (const char* const given = std::getenv("CTX_TEST_PROGRAM")) check(model::from_hex(given));
}

// The tools

TEST_CASE("any bytes are a program, and a program is its bytes") {
  std::mt19937 random{1};
  for (std::size_t size = 0; size < 400; ++size) {
    std::vector<std::uint8_t> bytes(size);
    for (auto& each : bytes) each = static_cast<std::uint8_t>(random());
    const program decoded = decode(bytes);
    REQUIRE(decoded.steps.size() == std::min((std::max<std::size_t>(size, 1) - 1) / 5, model::most_steps));
    REQUIRE(decode(encode(decoded)) == decoded);
    REQUIRE(model::from_hex(model::to_hex(decoded)) == decoded);
    REQUIRE_FALSE(to_text(decoded).find("(null)") != std::string::npos);
  }
}

TEST_CASE("a seed is always the same program") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) REQUIRE(random_program(seed) == random_program(seed));
  CHECK(random_program(1) != random_program(2));
}

TEST_CASE("a program that fails is shrunk to the steps that matter, with small operands") {
  // It fails where a context is derived in a callback, and the clock moves after that.
  const auto fails = [](const program& each) {
    std::size_t body = 0;
    bool derived = false;
    for (const step& s : each.steps) {
      if (body != 0 && s.what == op::with_cancel) derived = true;
      if (derived && s.what == op::advance && s.a() >= 5) return true;
      body = s.what == op::on_stop ? s.c() : body - (body != 0);
    }
    return false;
  };
  int shrunk = 0;
  for (std::uint64_t seed = 0; seed < 2'000; ++seed) {
    const program given = random_program(seed);
    if (!fails(given)) continue;
    ++shrunk;
    const program least{false, {{op::on_stop, {0, 0, 1, 0}}, {op::with_cancel, {}}, {op::advance, {5, 0, 0, 0}}}};
    REQUIRE(to_text(shrink(given, fails)) == to_text(least));
  }
  CHECK(shrunk > 50);
}

TEST_CASE("a program reads as what it does") {
  const program given{true,
                      {{op::with_timeout, {1, 0, 9, 1}},
                       {op::on_stop, {0, 1, 2, 0}},
                       {op::on_stop, {1, 1, 1, 0}},
                       {op::cancel, {1, 2, 0, 0}},
                       {op::advance, {9, 0, 0, 0}}}};
  CHECK(to_text(given) ==
        "0:  [c1, f1] = with_timeout(c0, 1h, cause(0));\n"
        "1:  k0 = stop_callback(c1.stop_token(), [] {\n"
        "2:    k1 = stop_callback(c1.stop_token(), [] {\n"
        "3:      f1(cause(3));\n"
        "      });\n"
        "    });\n"
        "4:  clock.advance(1h);\n"
        "and only now look at causes\n");
}

}  // namespace
