// search: prints the lines of a directory tree that hold a text.
//
// The kind of program a context exists for. One thread walks the tree, others read files, and all
// end on whichever comes first: everything searched, N matches found, the timeout, Ctrl-C, an
// output that nobody reads any more. None of these is a flag to remember: each of them ends the one
// context that every function takes first, every loop asks and every wait listens to. Whoever ends
// it says why, and `conclude` makes the exit status of that.
//
// Threads give up by throwing. An exception that leaves a task of a `ctx::group` ends the others, and
// whoever waits for the group gets it: the first reason wins, and no reason is lost.

#include "duration.hpp"
#include "queue.hpp"
#include "search_file.hpp"

#include <ctx/context.hpp>
#include <ctx/group.hpp>
#include <ctx/signal.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <climits>
#include <csignal>
#include <exception>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <unistd.h>

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

/// What was asked for. A value of the context: what lies between main and its use need not know it.
struct settings {
  std::string text;
  fs::path directory;
  std::size_t first = std::numeric_limits<std::size_t>::max();
  std::size_t workers = std::max(1U, std::thread::hardware_concurrency());
  std::optional<std::chrono::duration<double>> timeout;
  std::string timeout_as_given;
};
constexpr ctx::key<settings> settings_key{"settings"};

const settings& settings_of(const ctx::context& c) { return *c.value(settings_key); }

/// Why a search ended early, and the exit status that tells. What the causes here are.
struct cut_short : std::runtime_error {
  cut_short(int status_, const std::string& why) : std::runtime_error{why}, status{status_} {}
  int status;
};

/// Writes all of `bytes`; gives up once the context is done and nobody reads. Where poll() says so,
/// PIPE_BUF bytes can be written without blocking: a stalled reader cannot hold up the end.
std::error_code write_all(const ctx::context& c, int to, std::string_view bytes) {
  while (!bytes.empty()) {
    pollfd output{to, POLLOUT, 0};
    if (::poll(&output, 1, 20) <= 0) {
      if (c.done()) return c.err();
      continue;
    }
    const auto written = ::write(to, bytes.data(), std::min<std::size_t>(bytes.size(), PIPE_BUF));
    if (written >= 0)
      bytes.remove_prefix(static_cast<std::size_t>(written));
    else if (errno != EINTR && errno != EAGAIN)
      return last_error();
  }
  return {};
}

/// Stdout and stderr, for all threads: lines stay whole, and the progress on a terminal makes way
/// for them. Keeps the score, too.
class console {
 public:
  /// Prints as many of these matches as are still wanted. Throws the reason to end the search where
  /// no more are wanted then, or where they cannot be written.
  void print(const ctx::context& c, const batch& found) {
    const std::lock_guard lock{mutex_};
    if (c.done()) return;
    const auto wanted = settings_of(c).first;
    const auto lines = std::min(found.size(), wanted - matches_);
    clear_progress_locked(c);
    const auto text = std::string_view{found.text}.substr(0, found.ends[lines]);
    if (const auto failed = write_all(c, STDOUT_FILENO, text))
      throw cut_short{failed == std::errc::broken_pipe ? 0 : 2, "stdout: " + failed.message()};
    matches_ += lines;
    if (matches_ == wanted) throw cut_short{0, "--first " + std::to_string(wanted) + " reached"};
  }

  /// Prints a line to stderr.
  void say(const ctx::context& c, const std::string& line) {
    const std::lock_guard lock{mutex_};
    clear_progress_locked(c);
    write_all(c, STDERR_FILENO, "search: " + line + "\n");
  }

  void complain(const ctx::context& c, const fs::path& path, std::error_code what) {
    ++failures_;
    say(c, path.native() + ": " + what.message());
  }

  void show_progress(const ctx::context& c) {
    const std::lock_guard lock{mutex_};
    write_all(c, STDERR_FILENO, "\r\33[K" + score());
    progress_shown_ = true;
  }

  void count_file() { ++files_; }
  std::size_t matches() const { return matches_; }
  std::size_t failures() const { return failures_; }

  std::string score() const {
    const std::chrono::duration<double> elapsed = ctx::clock::now() - start_;
    std::ostringstream line;
    line << "files searched: " << files_ << ", matches: " << matches_ << ", elapsed: " << std::fixed
         << std::setprecision(3) << elapsed.count() << "s";
    return line.str();
  }

 private:
  // requires mutex_ held
  void clear_progress_locked(const ctx::context& c) {
    if (std::exchange(progress_shown_, false)) write_all(c, STDERR_FILENO, "\r\33[K");
  }

  const ctx::clock::time_point start_ = ctx::clock::now();
  std::atomic<std::size_t> files_{0};
  std::atomic<std::size_t> failures_{0};
  std::atomic<std::size_t> matches_{0};  // written with mutex_ held
  std::mutex mutex_;
  bool progress_shown_ = false;  // guarded by mutex_
};

/// The files found and not yet read. Bounded: the walk keeps close to the work.
using file_queue = queue<fs::path>;

/// Puts every regular file below the directory into the queue. Follows no symbolic link.
void walk(const ctx::context& c, file_queue& files, console& out) {
  std::vector<fs::path> directories{settings_of(c).directory};
  while (!directories.empty() && !c.done()) {
    const fs::path here = std::move(directories.back());
    directories.pop_back();
    std::error_code failed;
    fs::directory_iterator entry{here, failed};
    for (; !c.done() && entry != fs::directory_iterator{}; entry.increment(failed)) {
      std::error_code unknown;
      const auto type = entry->symlink_status(unknown).type();
      if (type == fs::file_type::directory) directories.push_back(entry->path());
      if (type == fs::file_type::regular) files.push(c, entry->path());
      if (unknown) out.complain(c, entry->path(), unknown);
    }
    if (failed) out.complain(c, here, failed);
  }
}

/// What a worker does: searches files off the queue.
void search_files(const ctx::context& c, file_queue& files, console& out) {
  while (const auto path = files.pop(c))
    if (const auto failed = search_file(c, *path, settings_of(c).text, out)) out.complain(c, *path, failed);
}

/// Walks the tree on this thread and searches it on others; returns when all of them are done, or throws
/// what ended the first of them.
void search_tree(const ctx::context& parent, console& out) {
  file_queue files{256};
  ctx::group workers{parent};
  for (std::size_t i = 0; i < settings_of(parent).workers; ++i)
    workers.spawn([&](const ctx::context& c) { search_files(c, files, out); });
  walk(workers.context(), files, out);
  files.close();
  workers.wait();
}

/// Shows the score ten times a second. The sleep between ends with the search or, as its token
/// drives a context, with this very `std::jthread`.
void show_progress(const std::stop_token& over, const ctx::context& parent, console& out) {
  const auto [c, cancel] = ctx::with_stop_token(parent, over);
  while (!c.wait_for(100ms)) out.show_progress(c);
}

/// Prints how it went and returns the exit status.
int conclude(const ctx::context& c, const ctx::cancel_func& cancel, console& out) {
  int status = out.failures() > 0 ? 2 : out.matches() > 0 ? 0 : 1;
  std::string line = out.score();
  // To be through races with all that would cut it short, and the context decides: if it is this
  // call that cancels, nothing was.
  if (!cancel()) {
    try {
      c.throw_if_done();
    } catch (const std::exception& why) {
      const auto* const known = dynamic_cast<const cut_short*>(&why);
      const auto* const signal = dynamic_cast<const ctx::signal_error*>(&why);
      status = known != nullptr ? known->status : signal != nullptr ? 128 + signal->number() : 2;
      line += "; cut short: " + c.err().message() + " (" + why.what() + ")";
    }
  }
  out.say(ctx::background(), line);
  return status;
}

int search(const settings& wanted) {
  std::signal(SIGPIPE, SIG_IGN);  // writing to nobody fails instead
  console out;
  const auto [interruptible, ignore_signals] = ctx::with_signals(ctx::background(), {SIGINT, SIGTERM});
  const cut_short too_late{124, "--timeout " + wanted.timeout_as_given};
  const auto [limited, cancel] =
      wanted.timeout ? ctx::with_timeout(interruptible, *wanted.timeout, too_late) : ctx::with_cancel(interruptible);
  const ctx::context c = ctx::with_value(limited, settings_key, wanted);
  {
    std::jthread progress;
    if (::isatty(STDERR_FILENO) == 1) progress = std::jthread{show_progress, c, std::ref(out)};
    try {
      search_tree(c, out);
    } catch (...) {
      cancel(std::current_exception());
    }
  }
  return conclude(c, cancel, out);
}

// The rest is the command line.

constexpr std::string_view help = R"(usage: search [--first N] [--timeout D] [--workers N] TEXT DIR

Prints every line below DIR that holds TEXT, as 'path:line: text'. Skips binary
files, symbolic links and all else that is not a regular file. Of a line longer
than 64 KiB, prints the part that holds TEXT.

  --first N    stop after N matches
  --timeout D  stop after a time such as 50ms, 1.5s, 2m or 1h30m
  --workers N  read N files at a time (default: one for each processor)
  --help       print this help
  --           end of options

Exit status: 0 if TEXT was found, also where --first or a reader that closed the
output ended the search; 1 if not; 2 on an error, also if a file could not be
read; 124 if the timeout ended the search; 130 if Ctrl-C (143: SIGTERM) did.
)";

std::size_t parse_count(const std::string& option, const std::string& given, std::size_t most) {
  std::size_t count = 0;
  const char* const end = given.data() + given.size();
  const auto [stopped, error] = std::from_chars(given.data(), end, count);
  if (error != std::errc{} || stopped != end || count < 1 || count > most)
    throw std::invalid_argument{"bad number '" + given + "' for " + option + ": from 1 to " + std::to_string(most)};
  return count;
}

/// What the words of the command line ask for; nothing where that is the help.
std::optional<settings> parse(std::span<const char* const> words) {
  settings wanted;
  std::vector<std::string> operands;
  bool options_over = false;
  for (auto word = words.begin(); word != words.end(); ++word) {
    const std::string option = *word;
    const auto value = [&]() -> std::string {
      if (++word == words.end()) throw std::invalid_argument{"missing value for " + option};
      return *word;
    };
    if (options_over || option.size() < 2 || option[0] != '-')
      operands.push_back(option);
    else if (option == "--")
      options_over = true;
    else if (option == "--help")
      return {};
    else if (option == "--first")
      wanted.first = parse_count(option, value(), wanted.first);
    else if (option == "--workers")
      wanted.workers = parse_count(option, value(), 1024);
    else if (option == "--timeout")
      wanted.timeout = parse_duration(option, wanted.timeout_as_given = value());
    else
      throw std::invalid_argument{"unknown option '" + option + "'"};
  }
  if (operands.size() < 2) throw std::invalid_argument{operands.empty() ? "missing TEXT and DIR" : "missing DIR"};
  if (operands.size() > 2) throw std::invalid_argument{"unexpected argument '" + operands[2] + "'"};
  wanted.text = operands[0];
  wanted.directory = operands[1];
  std::error_code failed;
  const auto type = fs::status(wanted.directory, failed).type();
  if (!failed && type != fs::file_type::directory) failed = make_error_code(std::errc::not_a_directory);
  if (failed) throw std::invalid_argument{wanted.directory.native() + ": " + failed.message()};
  return wanted;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto wanted = parse(std::span{argv, static_cast<std::size_t>(argc)}.subspan(argc > 0));
    if (wanted) return search(*wanted);
    return write_all(ctx::background(), STDOUT_FILENO, help) ? 2 : 0;
  } catch (const std::exception& why) {
    write_all(ctx::background(), STDERR_FILENO, std::string{"search: "} + why.what() + "\n");
    return 2;
  }
}
