// A program of four modules: itself, the libraries `account` and `report`, and a plugin. It exists to fail where a
// context, a value, a cause or the right to cancel gets lost between modules that hide what they have, be the
// library one that they share or one that each of them has for itself.

#include "account.hpp"

#include <dlfcn.h>

#include <chrono>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

namespace {

using namespace std::chrono_literals;

int failures = 0;

void equal(const std::string& got, const std::string& wanted) {
  if (got == wanted) return;
  std::cerr << "got '" << got << "', wanted '" << wanted << "'\n";
  ++failures;
}

}  // namespace

int main(int, char** argv) {
  void* const module = ::dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) return std::cerr << ::dlerror() << '\n', 1;
  const auto& plugin = *reinterpret_cast<const struct plugin* (*)()>(::dlsym(module, "plugin_functions"))();

  const auto mine = ctx::with_value(ctx::background(), user_key, "main");
  equal(*mine.value(user_key), "main");
  {
    auto scope = log_in(mine, "ann", 1ms);
    equal(report(scope.ctx), "ann, account: logged out");
    equal(plugin.report(scope.ctx), "ann, account: logged out");
    equal(*scope.ctx.value(user_key) + *scope.ctx.value(header{"agent"}), "annaccount");
  }
  {
    auto parent = log_in(mine, "ben", 1h);
    auto child = plugin.derive(parent.ctx);
    std::jthread waiting{[&] { equal(plugin.report(child.ctx), "ben, plugin: by the plugin"); }};
    equal(plugin.cancel(parent.cancel) ? "first" : "late", "first");
    waiting.join();
    equal(report(parent.ctx), "ben, account: by the plugin");
    equal(child.ctx.cause() == parent.ctx.cause() ? "same" : "other", "same");
  }
  {
    auto parent = plugin.derive(log_in(mine, "cyd", 1h).ctx);  // canceled at once, as its parent is
    equal(parent.ctx.err() == ctx::errc::canceled ? "canceled" : "other", "canceled");
  }
  equal(to_string(plugin.derive(mine).ctx).substr(0, 60),
        "background.with_value(user).with_value(header).with_timeout(");
  return failures == 0 ? 0 : 1;
}
