// The start of the first thread, in a process that made no deadline yet, in the way that its argument names: see
// process_test.cpp. It interposes what the library starts with, so that it fails, or that another thread
// forks right then. Bugs of that kind leave a lock held, a parent changed, memory lost or a child that
// waits for a thread which is gone.

#include "check.hpp"

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>

namespace {

int threads_to_refuse = 0;
std::atomic<bool> out_of_memory{false};
bool out_of_memory_after_a_thread = false;
std::atomic<long> allocations{0};  // that live
void (*at_registration)() = nullptr;

// Sanitizers call what is interposed before they are ready for code that they watch.
#define CTX_TEST_UNWATCHED __attribute__((no_sanitize("address", "thread", "undefined")))

template <class Function>
CTX_TEST_UNWATCHED Function* next(const char* name) noexcept {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

[[gnu::visibility("default")]] CTX_TEST_UNWATCHED int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*run)(void*), void* argument) noexcept {
  if (threads_to_refuse > 0) {
    --threads_to_refuse;
    return EAGAIN;
  }
  const int error = next<decltype(pthread_create)>("pthread_create")(thread, attributes, run, argument);
  if (out_of_memory_after_a_thread) out_of_memory = true;
  return error;
}

// What pthread_atfork() calls in glibc, which has that itself only in the archive it links to each module.
[[gnu::visibility("default")]] CTX_TEST_UNWATCHED int __register_atfork(void (*prepare)(), void (*parent)(),
                                                                        void (*child)(), void* module) noexcept {
  if (at_registration != nullptr) at_registration();
  return next<decltype(__register_atfork)>("__register_atfork")(prepare, parent, child, module);
}

}  // extern "C"

void* operator new(std::size_t size) {
  void* const memory = out_of_memory ? nullptr : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc{};
  ++allocations;
  return memory;
}

void operator delete(void* memory) noexcept {
  if (memory != nullptr) --allocations;
  std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }

namespace {

using namespace std::chrono_literals;

void wait_for_a_deadline() noexcept {
  auto scope = ctx::with_timeout(ctx::background(), 1ms);
  scope.ctx.wait();
  must(scope.ctx.err() == ctx::errc::deadline_exceeded, "a deadline passes");
}

/// Whether no thread could be started for a deadline under `parent`.
bool refused(const ctx::context& parent) noexcept {
  threads_to_refuse = 1;
  try {
    auto scope = ctx::with_timeout(parent, 1ms);
  } catch (const std::system_error& error) {
    return error.code() == std::errc::resource_unavailable_try_again;
  }
  return false;
}

void no_thread() {
  auto scope = ctx::with_cancel(ctx::background());
  must(refused(scope.ctx), "the first deadline says that there is no thread for it");
  must(!scope.ctx.done(), "the parent lives");

  // What the library keeps for good it has now.
  const long before = allocations;
  must(refused(scope.ctx), "so does the next");
  must(allocations == before, "nothing is left behind");

  threads_to_refuse = 1;
  const bool passed = ctx::with_timeout(scope.ctx, 0s).ctx.done();
  const bool far = !ctx::with_deadline(scope.ctx, ctx::clock::time_point::max()).ctx.done();
  must(passed && far, "what the timer need not end needs no thread");
  threads_to_refuse = 0;

  auto child = ctx::with_timeout(scope.ctx, 1h);
  wait_for_a_deadline();
  must(scope.cancel(), "the parent was live");
  must(child.ctx.err() == ctx::errc::canceled, "it ends its children");
}

void no_thread_in_child() {
  wait_for_a_deadline();  // the thread may allocate while it starts, which AddressSanitizer's fork can't bear
  auto inherited = ctx::with_timeout(ctx::background(), 1h);
  auto soon = ctx::with_timeout(ctx::background(), 100ms);
  threads_to_refuse = 1;
  const int status = in_child([&] {
    threads_to_refuse = 0;
    wait_for_a_deadline();
    soon.ctx.wait();
    must(!inherited.ctx.done(), "a far deadline is still to come");
  });
  threads_to_refuse = 0;
  must(status == 0, "the next deadline starts it where that failed");
  soon.ctx.wait();
}

void no_memory_in_child() {
  wait_for_a_deadline();
  auto soon = ctx::with_timeout(ctx::background(), 100ms);
  out_of_memory = true;
  const int status = in_child([&] {
    out_of_memory = false;
    wait_for_a_deadline();
    soon.ctx.wait();
  });
  out_of_memory = false;
  must(status == 0, "the next deadline starts the thread where there was no memory for it");
  soon.ctx.wait();
}

void fork_before() {
  must(in_child(wait_for_a_deadline) == 0, "a child makes the first deadline");
  wait_for_a_deadline();
}

void fork_meanwhile() {
  static std::atomic<int> status{0};
  at_registration = [] {
    at_registration = nullptr;
    std::thread{[] { status = in_child(wait_for_a_deadline); }}.join();
  };
  wait_for_a_deadline();
  must(status == 0, "a child that was forked while another thread made the first deadline makes its own");
}

void advance_afterwards() {
  ctx::manual_clock clock;
  // order: relaxed, so that ThreadSanitizer sees whether the library orders what it does itself. To the same end the
  // deadline that starts the timer is not armed.
  std::atomic<bool> tried{false};
  std::thread other{[&] {
    out_of_memory_after_a_thread = true;
    bool failed_to_arm = false;
    try {
      auto scope = ctx::with_timeout(ctx::background(), 1h);
    } catch (const std::bad_alloc&) {
      failed_to_arm = true;
    }
    must(failed_to_arm, "there was memory for a thread, but not for a deadline");
    tried.store(true, std::memory_order_relaxed);
  }};
  while (!tried.load(std::memory_order_relaxed)) std::this_thread::yield();
  clock.advance(1h);
  out_of_memory = false;
  other.join();
}

void function_without_a_thread() {
  auto scope = ctx::with_cancel(ctx::background());
  bool ran = false;
  std::optional<ctx::after_func_handle> handle{ctx::after_func(scope.ctx, [&] { ran = true; })};
  threads_to_refuse = 1;
  scope.cancel();
  must(ran, "a function runs where it can't have a thread");
  std::thread{[&] { handle.reset(); }}.join();
}

}  // namespace

int main(int argc, char** argv) {
  die_after_a_minute();
  const std::string_view way = argc > 1 ? argv[1] : "";
  if (way == "no_thread") return no_thread(), 0;
  if (way == "no_thread_in_child") return no_thread_in_child(), 0;
  if (way == "no_memory_in_child") return no_memory_in_child(), 0;
  if (way == "fork_before") return fork_before(), 0;
  if (way == "fork_meanwhile") return fork_meanwhile(), 0;
  if (way == "advance_afterwards") return advance_afterwards(), 0;
  if (way == "function_without_a_thread") return function_without_a_thread(), 0;
  must(false, "the argument is the name of a way to start");
}
