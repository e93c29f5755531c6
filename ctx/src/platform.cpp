#include <ctx/src/platform.hpp>

#include <ctx/detail/immortal.hpp>
#include <ctx/detail/thread_settings.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <utility>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#endif
#if defined(__linux__)
#include <sys/prctl.h>
#endif

namespace ctx::detail {

std::mutex& fork_mutex() noexcept {
  static immortal<std::mutex> mutex;
  return mutex.value;
}

void abandon(std::jthread& gone) noexcept {
  struct abandoned {
    std::jthread thread;
    const abandoned* next;
  };
  static constinit const abandoned* all = nullptr;  // for those that search a process for leaks
  const auto* const kept = new (std::nothrow) abandoned{std::move(gone), all};
  if (kept != nullptr) {
    all = kept;
  } else {
    std::construct_at(&gone);
  }
}

unsigned this_processor() noexcept {
#if defined(__linux__)
  return static_cast<unsigned>(::sched_getcpu());
#else
  return static_cast<unsigned>(std::hash<std::thread::id>{}(std::this_thread::get_id()));
#endif
}

#if !defined(_WIN32)

namespace {

void nothing() {}

constexpr fork_steps no_steps{nothing, nothing, nothing, nothing};
constinit std::array<fork_steps, 3> parts{no_steps, no_steps, no_steps};  // guarded by fork_mutex()

}  // namespace

void sharpen_timed_waits() noexcept {
#if defined(__linux__)
  ::prctl(PR_SET_TIMERSLACK, 1UL);  // nanosecond
#endif
}

void stay_loaded() noexcept {
  Dl_info here;
  if (::dladdr(reinterpret_cast<const void*>(&stay_loaded), &here) == 0) return;
  // The handle is of no use: this is for good. The program itself is not found by its name, and stays anyway.
  static_cast<void>(::dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE));
}

// Not a pthread_atfork() for each part: the order would be that in which their files happen to be initialized, and
// the thread of one part would be at work in the child while another is still half done.
void at_fork(fork_part part, const fork_steps& steps) {
  static const int failed = ::pthread_atfork(
      [] {
        fork_mutex().lock();
        for (const fork_steps& each : parts) each.before();
      },
      [] {
        std::for_each(parts.rbegin(), parts.rend(), [](const fork_steps& each) { each.in_parent(); });
        fork_mutex().unlock();
      },
      [] {
        std::for_each(parts.rbegin(), parts.rend(), [](const fork_steps& each) { each.in_child(); });
        fork_mutex().unlock();
        for (const fork_steps& each : parts) {
          try {
            each.restart();
          } catch (...) {
            // There is nobody to tell. Who needs the thread next tries again.
          }
        }
      });
  if (failed != 0) throw std::bad_alloc{};
  const std::lock_guard lock{fork_mutex()};
  parts[static_cast<std::size_t>(part)] = steps;
}

void block_signals() noexcept {
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

thread_settings::thread_settings() noexcept {
  static_assert(sizeof(sigset_t) <= sizeof blocked_signals_);
  ::pthread_sigmask(SIG_SETMASK, nullptr, ::new (static_cast<void*>(blocked_signals_)) sigset_t);
#if defined(__linux__)
  timer_slack_ = static_cast<unsigned long>(::prctl(PR_GET_TIMERSLACK));
#endif
}

void thread_settings::apply() const noexcept {
  ::pthread_sigmask(SIG_SETMASK, reinterpret_cast<const sigset_t*>(blocked_signals_), nullptr);
#if defined(__linux__)
  ::prctl(PR_SET_TIMERSLACK, timer_slack_);
#endif
}

#else

void sharpen_timed_waits() noexcept {}
void stay_loaded() noexcept {}
void at_fork(fork_part, const fork_steps&) {}
void block_signals() noexcept {}
thread_settings::thread_settings() noexcept {}
void thread_settings::apply() const noexcept {}

#endif

}  // namespace ctx::detail
