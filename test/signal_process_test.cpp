// Exists for what signals do to a whole process: one that a second Ctrl-C does not kill, that does not exit, or that
// confuses its signals with those of its child. The processes are runs of process/signals.cpp, which lies
// beside this program.

#include "process/check.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>

extern char** environ;

namespace {

/// A process that goes a way of its own. What it says on stdout is read line by line.
class process {
 public:
  explicit process(std::string way) {
    std::string program = std::filesystem::read_symlink("/proc/self/exe").replace_filename("process_signals").string();
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    // Else it would inherit what this one ignores.
    posix_spawnattr_t attributes;
    sigset_t all;
    ::sigfillset(&all);
    ::posix_spawnattr_init(&attributes);
    ::posix_spawnattr_setsigdefault(&attributes, &all);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    char* const arguments[]{program.data(), way.data(), nullptr};
    REQUIRE(::posix_spawn(&number_, program.c_str(), &actions, &attributes, arguments, environ) == 0);
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    from_ = ends[0];
  }
  process(const process&) = delete;
  process& operator=(const process&) = delete;
  ~process() { ::close(from_); }

  std::string next_line() const {
    std::string line;
    for (char byte = 0; ::read(from_, &byte, 1) == 1 && byte != '\n';) line += byte;
    return line;
  }

  void send(int number) const { ::kill(number_, number); }

  /// Its status; that of one which a signal ended is 128 and the signal.
  int wait() const { return status_of(number_); }

 private:
  pid_t number_ = 0;
  int from_ = -1;
};

int status_of_way(const std::string& way) { return process{way}.wait(); }

#if defined(CTX_TEST_TSAN)
// It holds a signal back from a thread that waits, at times for ever.
constexpr bool signals_reach_who_waits = false;
#else
constexpr bool signals_reach_who_waits = true;
#endif

TEST_CASE("a second Ctrl-C kills a program that hangs while shutting down, wherever it does" *
          doctest::skip(!signals_reach_who_waits)) {
  for (const char* const way : {"hang_after_the_end", "hang_in_a_callback", "hang_in_a_callback_of_another_context"}) {
    CAPTURE(way);
    const process hanging{way};
    CHECK(hanging.next_line() == "ready");
    hanging.send(SIGINT);
    CHECK(hanging.next_line() == "SIGINT");
    hanging.send(SIGINT);
    CHECK(hanging.wait() == 128 + SIGINT);
  }
}

TEST_CASE("so does another of the signals" * doctest::skip(!signals_reach_who_waits)) {
  for (const char* const way : {"hang_after_the_end", "hang_in_a_callback"}) {
    CAPTURE(way);
    const process hanging{way};
    CHECK(hanging.next_line() == "ready");
    hanging.send(SIGINT);
    CHECK(hanging.next_line() == "SIGINT");
    hanging.send(SIGTERM);
    CHECK(hanging.wait() == 128 + SIGTERM);
  }
}

TEST_CASE("a process exits with its own status, whatever waits for signals, or came of them") {
  for (const char* const way :
       {"exit_with_contexts", "exit_after_a_signal", "exit_while_a_callback_hangs", "signals_in_destructors"}) {
    CAPTURE(way);
    CHECK(status_of_way(way) == 42);
  }
}

TEST_CASE("that the thread can't be started is reported, and leaves nothing behind") {
  CHECK(status_of_way("no_thread") == 0);
}

TEST_CASE("a child may wait for signals, whether its parent did or not") {
  CHECK(status_of_way("fork_without_contexts") == 0);
}

TEST_CASE("contexts that wait at a fork go on in both processes, each with its own signals") {
  CHECK(status_of_way("fork_with_contexts") == 0);
}

TEST_CASE("a callback on the watcher's thread may fork, and the child goes on from there") {
  CHECK(status_of_way("fork_in_a_callback") == 0);
}

TEST_CASE("what a signal was ending at a fork is ended in the child too") {
  CHECK(status_of_way("fork_during_a_callback") == 0);
}

TEST_CASE("a child that was forked while another thread canceled what a signal is to end gets signals") {
  CHECK(status_of_way("fork_during_a_cancel") == 0);
}

TEST_CASE("a child that was forked while signals came and contexts ended is whole" *
          doctest::skip(!may_fork_in_storms)) {
  CHECK(status_of_way("fork_in_a_storm") == 0);
}

}  // namespace
