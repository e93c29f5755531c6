#include <ctx/src/platform.hpp>

#include <ctx/detail/signal_mask.hpp>

#if !defined(_WIN32)

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <new>

#if defined(__linux__)
#include <sys/prctl.h>
#endif

namespace ctx::detail {

void sharpen_timed_waits() noexcept {
#if defined(__linux__)
  ::prctl(PR_SET_TIMERSLACK, 1UL);  // nanosecond
#endif
}

void stay_loaded() noexcept {
  Dl_info here;
  if (::dladdr(reinterpret_cast<const void*>(&stay_loaded), &here) == 0) return;
  // The handle is not kept: NODELETE is for good. The program itself is not found by its name, and
  // stays anyway.
  if (void* const self = ::dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE)) {
    ::dlclose(self);
  }
}

void at_fork(void (*prepare)(), void (*parent)(), void (*child)()) {
  if (::pthread_atfork(prepare, parent, child) != 0) throw std::bad_alloc{};
}

void block_signals() noexcept {
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

signal_mask::signal_mask() noexcept {
  static_assert(sizeof(sigset_t) <= sizeof blocked_);
  ::pthread_sigmask(SIG_SETMASK, nullptr, ::new (static_cast<void*>(blocked_)) sigset_t);
}

void signal_mask::apply() const noexcept {
  ::pthread_sigmask(SIG_SETMASK, reinterpret_cast<const sigset_t*>(blocked_), nullptr);
}

}  // namespace ctx::detail

#else

namespace ctx::detail {

void sharpen_timed_waits() noexcept {}
void stay_loaded() noexcept {}
void at_fork(void (*)(), void (*)(), void (*)()) {}
void block_signals() noexcept {}
signal_mask::signal_mask() noexcept {}
void signal_mask::apply() const noexcept {}

}  // namespace ctx::detail

#endif
