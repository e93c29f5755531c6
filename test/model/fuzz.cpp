// The same driver under libFuzzer, which looks for programs that reach code no program reached before. It minimizes
// what it finds with -minimize_crash=1; model_test runs it with CTX_TEST_PROGRAM=$(xxd -p FILE | tr -d '\n'), and
// shrinks it.

#include "driver.hpp"
#include "program.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const model::program given = model::decode({bytes, size});
  if (const auto difference = model::difference(given)) {
    std::fputs(model::report(given, *difference).c_str(), stderr);
    std::abort();
  }
  return 0;
}
