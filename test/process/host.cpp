// Loads a plugin that carries a copy of the library of its own, as this program does; what for, its argument
// says: see process_test.cpp. A thread that outlives its code shows as a crash, a lock taken in two
// orders as a hang, and a context that ends up with the wrong copy as either.
//
// Usage: host WAY PLUGIN

#include "check.hpp"
#include "peer.hpp"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;

void* load(const std::string& file) {
  void* const module = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) std::fprintf(stderr, "%s\n", ::dlerror());
  must(module != nullptr, "the plugin can be loaded");
  return module;
}

const peer& plugin_in(void* module) {
  using function = const peer*();
  auto* const plugin = reinterpret_cast<function*>(::dlsym(module, "ctx_test_plugin"));
  must(plugin != nullptr, "it is the plugin");
  return *plugin();
}

/// Waits on the host's own timer.
void go_on_for(std::chrono::nanoseconds time) {
  auto scope = ctx::with_timeout(ctx::background(), time);
  scope.ctx.wait();
  must(scope.ctx.err() == ctx::errc::deadline_exceeded, "the host's deadlines pass");
}

// dlclose

void closed_while_armed(const std::string& file) {
  void* const module = load(file);
  const peer& plugin = plugin_in(module);
  auto soon = plugin.with_timeout(ctx::background(), 50ms);
  auto far = plugin.with_timeout(ctx::background(), 1h);
  plugin.destroy(plugin.with_timeout(ctx::background(), 25ms));  // a wake-up for nothing
  ::dlclose(module);
  go_on_for(100ms);
  // What the plugin's thread has not done yet it does soon.
  while (!soon.ctx.done()) std::this_thread::yield();
  must(!far.ctx.done(), "a far deadline is still to come");

  void* const again = load(file);
  must(&plugin_in(again) == &plugin, "the plugin stayed where it was");
  ::dlclose(again);
}

void found_by_a_relative_name(const std::string& file) {
  const std::filesystem::path path{file};
  std::filesystem::current_path(path.parent_path());
  void* const module = load("./" + path.filename().string());
  std::filesystem::current_path("/");
  const peer& plugin = plugin_in(module);
  auto soon = plugin.with_timeout(ctx::background(), 50ms);
  ::dlclose(module);
  go_on_for(100ms);
  while (!soon.ctx.done()) std::this_thread::yield();
}

void closed_after_waiting(const std::string& file) {
  // Nothing armed, so it may be gone: then with all that it allocated, which LeakSanitizer checks.
  for (int i = 0; i < 3; ++i) {
    void* const module = load(file);
    const peer& plugin = plugin_in(module);
    {
      auto scope = plugin.with_cancel(ctx::background());
      must(!plugin.wait_for(scope.ctx, 1ms), "nobody ends the context");
    }
    ::dlclose(module);
  }
}

void used_while_loaded_and_unloaded(const std::string& file, const char* want) {
  ::setenv("CTX_TEST_PLUGIN", want, 1);
  ::dlclose(load(file));
  go_on_for(100ms);
}

// The first deadline of all while the loader is busy

std::atomic<bool> asked_the_loader{false};
std::atomic<bool> look_out{false};

void tell_that_the_loader_is_asked() noexcept {
  asked_the_loader = true;
  asked_the_loader.notify_all();
}

std::thread other;

void first_deadline_while_loading(const std::string& file) {
  look_out = true;
  void* const module = load(file);
  other.join();
  ::dlclose(module);
}

// Two copies

constexpr ctx::key<std::string> name{"name"};

/// The one copy makes, the other ends.
void cross(const peer& one, const peer& other) {
  {
    auto scope = one.with_cancel(ctx::background());
    auto child = other.with_cancel(scope.ctx);
    auto grandchild = one.with_timeout(child.ctx, 1h);
    must(other.cancel(grandchild.cancel), "any copy cancels");
    must(!one.done(child.ctx), "its parent lives");
    must(other.cancel(scope.cancel), "any copy cancels a tree");
    for (const peer* const each : {&one, &other}) {
      must(each->done(child.ctx) && each->has(child.ctx, ctx::errc::canceled), "each copy sees why");
      must(each->cause(child.ctx) == each->cause(scope.ctx), "with one cause");
    }
    must(one.cause(child.ctx) == other.cause(child.ctx), "the same in each");
    try {
      std::rethrow_exception(other.cause(child.ctx));
    } catch (const std::system_error& error) {
      must(error.code() == std::errc::operation_canceled, "each copy's errors mean the same");
    }
    other.destroy(std::move(scope));
    one.destroy(std::move(child));
    other.destroy(std::move(grandchild));
  }
  {
    const ctx::context named = one.with_value(one.todo(), name, "value");
    auto scope = other.with_cancel(named);
    must(other.value(scope.ctx, name) != nullptr && *other.value(scope.ctx, name) == "value",
         "each finds the other's values");
    must(other.describe(scope.ctx) == "todo.with_value(name).with_cancel", "each can describe the other's");
  }
}

/// Each waits for what the other ends.
void cross_waits(const peer& one, const peer& other) {
  auto timeout = one.with_timeout(ctx::background(), 20ms);
  other.wait(timeout.ctx);
  must(other.has(timeout.ctx, ctx::errc::deadline_exceeded), "each waits for the other's deadlines");

  auto scope = one.with_cancel(ctx::background());
  auto child = other.with_cancel(scope.ctx);
  std::vector<std::jthread> waiting;
  for (const peer* const each : {&one, &other}) {
    waiting.emplace_back([&, each] { each->wait(scope.ctx); });
    waiting.emplace_back([&, each] { each->wait(child.ctx); });
    waiting.emplace_back([&, each] { must(each->wait_for(child.ctx, 1h), "the wait is interrupted"); });
  }
  // So that some of them wait by now; the others find it done.
  one.wait_for(ctx::background(), 20ms);
  other.cancel(scope.cancel);
}

/// The one copy's timer has the deadline, whoever disarms it.
void cross_timers(const peer& one, const peer& other) {
  one.hold_clock();
  std::vector<ctx::cancel_scope> armed;
  for (int i = 0; i < 1000; ++i) armed.push_back(one.with_timeout(ctx::background(), i * 7919us + 1h));
  for (std::size_t i = 0; i < armed.size(); ++i) {
    if (i % 3 == 0) other.destroy(std::move(armed[i]));
    if (i % 3 == 1) other.cancel(armed[i].cancel);
  }
  other.wait(other.with_timeout(ctx::background(), 1ms).ctx);  // the other's clock runs
  auto under = other.with_timeout(armed[2].ctx, 1ms);
  other.wait(under.ctx);
  must(!one.done(armed[2].ctx), "this one's stands still");

  one.advance(2h);
  for (std::size_t i = 2; i < armed.size(); i += 3) {
    must(other.has(armed[i].ctx, ctx::errc::deadline_exceeded), "what is left passes");
  }
  armed.clear();
  one.let_clock_run();
  one.wait(one.with_timeout(ctx::background(), 1ms).ctx);
}

}  // namespace

/// The library asks the loader where it is itself: from there on, it may hold a lock.
extern "C" [[gnu::visibility("default")]] int dladdr(const void* address, Dl_info* info) noexcept {
  if (look_out) tell_that_the_loader_is_asked();
  return reinterpret_cast<decltype(&dladdr)>(::dlsym(RTLD_NEXT, "dladdr"))(address, info);
}

/// Called by the plugin, when the loader loads it and holds its lock.
extern "C" [[gnu::visibility("default")]] void ctx_test_loading() {
  if (!look_out) return;
  other = std::thread{[] {
    go_on_for(1ms);
    tell_that_the_loader_is_asked();  // or it need not be asked
  }};
  asked_the_loader.wait(false);
  go_on_for(1ms);
}

int main(int argc, char** argv) {
  die_after_a_minute();
  must(argc == 3, "there are two arguments");
  const std::string_view way = argv[1];
  const std::string file = argv[2];
  if (way == "closed_while_armed") return closed_while_armed(file), 0;
  if (way == "found_by_a_relative_name") return found_by_a_relative_name(file), 0;
  if (way == "closed_after_waiting") return closed_after_waiting(file), 0;
  if (way == "use_deadlines_on_load" || way == "use_deadlines_on_unload") {
    return used_while_loaded_and_unloaded(file, argv[1]), 0;
  }
  if (way == "first_deadline_while_loading") return first_deadline_while_loading(file), 0;

  void* const module = load(file);
  const peer& plugin = plugin_in(module);
  if (way == "cross") return cross(this_copy, plugin), cross(plugin, this_copy), 0;
  if (way == "cross_waits") return cross_waits(this_copy, plugin), cross_waits(plugin, this_copy), 0;
  if (way == "cross_timers") return cross_timers(this_copy, plugin), cross_timers(plugin, this_copy), 0;
  must(false, "the first argument is the name of a way to use a plugin");
}
