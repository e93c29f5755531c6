// Exists for what breaks at the edges of a process: an exit that waits for a thread, or finds destroyed what it
// needs; a plugin that is unloaded under its thread; a thread that can't be started, catches signals or wakes up
// for nothing.
//
// What needs a process of its own, from its start or to its end, is in the programs of process/, which lie beside
// this one and are run by it. Whatever hangs is ended after a minute.

#include "process/check.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <filesystem>
#include <sstream>
#include <string>

namespace {

struct outcome {
  int status;
  std::string said;  // on stdout and stderr
};

/// What was said but for a remark of LeakSanitizer's, which takes threads of the parent for those of a child.
std::string without_remarks(const std::string& said) {
  std::istringstream lines{said};
  std::string rest;
  for (std::string line; std::getline(lines, line);) {
    if (line.find("was not suspended. False leaks are possible") == line.npos) rest += line + '\n';
  }
  return rest;
}

/// Runs a program that lies beside this one.
outcome run(const std::string& name, const std::string& first, const std::string& second = {}) {
  const auto program = std::filesystem::read_symlink("/proc/self/exe").replace_filename(name).string();
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = fork_here();
  if (child == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::dup2(ends[1], STDERR_FILENO);
    ::close(ends[0]);
    ::close(ends[1]);
    ::execl(program.c_str(), name.c_str(), first.c_str(), second.empty() ? nullptr : second.c_str(), nullptr);
    must(false, "the program can be run");
  }
  ::close(ends[1]);
  outcome result{};
  char buffer[4096];
  for (ssize_t size = 0; (size = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    result.said.append(buffer, static_cast<std::size_t>(size));
  }
  ::close(ends[0]);
  result.said = without_remarks(result.said);
  result.status = status_of(child);
  return result;
}

void check_exit(const std::string& way, const std::string& said = "") {
  CAPTURE(way);
  const outcome result = run("process_exit", way);
  CHECK(result.status == 42);
  CHECK(result.said == said);
}

void check_silence(const std::string& program, const std::string& way, const std::string& more = {}) {
  CAPTURE(way);
  const outcome result = run(program, way, more);
  CHECK(result.status == 0);
  CHECK(result.said == "");
}

void check_with_plugin(const std::string& way) {
  const auto here = std::filesystem::read_symlink("/proc/self/exe");
  check_silence("process_host", way, std::filesystem::path{here}.replace_filename("process_plugin.so").string());
}

TEST_CASE("contexts in static and thread-local storage are destroyed after main, in any order") {
  check_exit("contexts_everywhere");
}

TEST_CASE("a destructor after main sets a deadline and waits for it") {
  check_exit("destructors_that_wait", "thread's main's late early \n");
  check_exit("first_deadline_in_a_destructor", "early \n");
}

TEST_CASE("a process with a million deadlines exits with its own status") {
  check_exit("million_armed");
  check_exit("million_destroyed");
}

TEST_CASE("deadlines may pass while a process exits") { check_exit("deadlines_pass_meanwhile"); }

TEST_CASE("a callback may exit") {
  check_exit("exit_on_the_timers_thread");
  check_exit("exit_in_after_func");
}

TEST_CASE("a process exits while its threads wait, arm and cancel") { check_exit("threads_go_on"); }

TEST_CASE("a process exits in the middle of a storm, in whatever way, with its own status") {
  for (int round = 0; round < 10; ++round) {
    check_exit("storm_return");
    check_exit("storm_exit");
    check_exit("storm_quick_exit");
    check_exit("storm_immediate_exit");
    check_exit("storm_exit_elsewhere");
  }
}

TEST_CASE("a child exits with its own status") { check_exit("in_a_child"); }

TEST_CASE("the first deadline reports that no thread can be started, and leaves nothing behind") {
  check_silence("process_start", "no_thread");
}

TEST_CASE("a child that can't start a thread at once does so at its next deadline") {
  check_silence("process_start", "no_thread_in_child");
  check_silence("process_start", "no_memory_in_child");
}

TEST_CASE("a child may make the first deadline") { check_silence("process_start", "fork_before"); }

TEST_CASE("a fork may come while another thread makes the first deadline") {
  check_silence("process_start", "fork_meanwhile");
}

TEST_CASE("the clock may be moved as soon as another thread has started the timer") {
  check_silence("process_start", "advance_afterwards");
}

TEST_CASE("another thread lets go of a function that ran while there was but one") {
  check_silence("process_start", "function_without_a_thread");
}

TEST_CASE("no signal is delivered to the timer's thread") { check_silence("process_idle", "signals"); }

TEST_CASE("a function that runs after a deadline receives signals") { check_silence("process_idle", "after_func"); }

TEST_CASE("idle means asleep") { check_silence("process_idle", "hour_away"); }

TEST_CASE("timeouts that are canceled in time wake the timer now and then") {
  check_silence("process_idle", "short_timeouts");
}

TEST_CASE("a plugin that is closed with deadlines armed leaves no thread without its code") {
  check_with_plugin("closed_while_armed");
  check_with_plugin("found_by_a_relative_name");
  check_with_plugin("use_deadlines_on_unload");
}

TEST_CASE("a plugin that armed nothing leaves nothing behind") { check_with_plugin("closed_after_waiting"); }

TEST_CASE("a plugin may set deadlines while it is loaded") {
  check_with_plugin("use_deadlines_on_load");
  check_with_plugin("first_deadline_while_loading");
}

TEST_CASE("what one copy of the library makes another may use, end and destroy") { check_with_plugin("cross"); }

TEST_CASE("one copy of the library waits for what another ends") { check_with_plugin("cross_waits"); }

TEST_CASE("two copies of the library keep to their own timers") { check_with_plugin("cross_timers"); }

}  // namespace
