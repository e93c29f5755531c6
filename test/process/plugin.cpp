// A plugin that carries its own static copy of the library, with everything in it hidden: see host.cpp.

#include "peer.hpp"

#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <string_view>

extern "C" {
[[gnu::visibility("default")]] ctx::cancel_scope* ctx_test_left_behind = nullptr;
}

namespace {

using namespace std::chrono_literals;

/// Arms a deadline and waits for it, and leaves one behind that is still to pass.
void use_deadlines() {
  ctx::with_timeout(ctx::background(), 1ms).ctx.wait();
  ctx_test_left_behind = new ctx::cancel_scope{ctx::with_timeout(ctx::background(), 50ms)};
}

/// Does when the plugin is loaded and unloaded what the host wants it to.
struct on_load {
  std::string_view want = std::getenv("CTX_TEST_PLUGIN") != nullptr ? std::getenv("CTX_TEST_PLUGIN") : "";

  on_load() {
    if (want == "use_deadlines_on_load") use_deadlines();
    using hook = void();
    if (auto* const loading = reinterpret_cast<hook*>(::dlsym(RTLD_DEFAULT, "ctx_test_loading"))) loading();
  }
  ~on_load() {
    if (want == "use_deadlines_on_unload") use_deadlines();
  }
} here;

}  // namespace

extern "C" [[gnu::visibility("default")]] const peer* ctx_test_plugin() { return &this_copy; }
