#pragma once

// What the process tests and the programs that they run share. A test framework does not survive fork
// and exit, so children and programs say what is wrong on stderr, and by their status.

#include "../sanitizer.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <source_location>

#if defined(CTX_TEST_TSAN)
/// Where several threads were at the fork, it gives up on a child that starts another, unless told not to.
extern "C" [[gnu::used, gnu::visibility("default")]] inline const char* __tsan_default_options() {
  return "die_after_fork=0";
}
#endif

// AddressSanitizer's allocator does not know of forks: it leaves locks in the child whose holders are gone.
// ThreadSanitizer sees two threads in one that got the stack, and with it the identity, of one that is gone.
inline constexpr bool may_fork_in_storms = !sanitized;

/// A status that no program means.
inline constexpr int failed = 99;

/// Ends the process, without a destructor, where something does not hold.
inline void must(bool holds, const char* what, std::source_location where = std::source_location::current()) noexcept {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: not so: %s\n", where.file_name(), static_cast<unsigned>(where.line()), what);
  ::_exit(failed);
}

/// Makes a hang a failure: SIGALRM ends the process, even where it was forked on a thread that blocks
/// signals.
inline void die_after_a_minute() noexcept {
  sigset_t alarm_only;
  ::sigemptyset(&alarm_only);
  ::sigaddset(&alarm_only, SIGALRM);
  ::signal(SIGALRM, SIG_DFL);
  ::pthread_sigmask(SIG_UNBLOCK, &alarm_only, nullptr);
  ::alarm(60);
}

/// What a shell would call the status of a child that ends: 128 and the signal, where one ended it.
inline int status_of(pid_t child) noexcept {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return failed;
  }
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  std::fprintf(stderr, "a child was ended by signal %d\n", WTERMSIG(status));
  return 128 + WTERMSIG(status);
}

/// Calls fork(). ThreadSanitizer gives up on a thread that gets the stack, and with it the identity, of one
/// that is not in the child. So threads get larger stacks from here on, for which none of those will do.
inline pid_t fork_here() noexcept {
#if defined(CTX_TEST_TSAN)
  pthread_attr_t defaults;
  std::size_t size = 0;
  ::pthread_getattr_default_np(&defaults);
  ::pthread_attr_getstacksize(&defaults, &size);
  ::pthread_attr_setstacksize(&defaults, size + (64 << 10));
  ::pthread_setattr_default_np(&defaults);
  ::pthread_attr_destroy(&defaults);
#endif
  return ::fork();
}

// Of a program built to measure its coverage. Its meson.build has it linked, where there is one.
extern "C" [[gnu::weak]] void __gcov_dump();

/// Ends a child at once, but counts what it covered.
[[noreturn]] inline void leave(int status) noexcept {
  if (__gcov_dump != nullptr) __gcov_dump();
  ::_exit(status);
}

/// The status of a child that calls `body`: zero, unless something must hold and does not.
template <class Body>
int in_child(const Body& body) noexcept {
  const pid_t child = fork_here();
  if (child == 0) {
    die_after_a_minute();
    body();
    leave(0);
  }
  const unsigned left = ::alarm(0);  // the child's minute has just begun
  const int status = status_of(child);
  ::alarm(left);
  return status;
}

/// The system's number of the calling thread, as in /proc/self/task.
inline pid_t this_thread_number() noexcept { return static_cast<pid_t>(::syscall(SYS_gettid)); }
