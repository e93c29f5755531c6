// From a signal to the contexts that it ends. The handler (signal_handler.hpp) wakes the watcher, a thread that
// ends them. They are nodes of a kind of their own, in a list of the watcher's, which holds no reference: a
// node takes itself out when it is claimed or goes, whatever ends it, before it is done.
//
// A signal, and then, perhaps before the watcher has run, with_signals() for the same one. The new context must
// not be ended by that signal. So whoever adds a context first does the part of the watcher's work that
// can be done under the mutex, choosing what a signal is to end:
//
//   T1: raise() returns | with_signals(): chooses A, takes the disposition, adds B |
//   watcher:            |                                                          | ends A
//
// Where A and B wait for a signal, its disposition is taken once, and released when the last of them has left. If it
// comes while B is being added, B is among those to be ended or not, as it comes before with_signals() returns.
//
// The mutex is innermost, like the timer's: it is taken while a node is locked, so no node is locked, ended or
// destroyed while it is held. What is to be ended is pinned instead. Callbacks run with nothing held.
//
// Like the timer, the watcher is never destroyed nor its thread joined, and fork() takes its mutexes, so that the
// child finds the lists whole, and starts the thread anew. The child's handler posts a semaphore of the child's
// own, as that is memory, other than a pipe whose end the parent would read. The library stays loaded, and
// with it the handler.
//
// Rejected: signalfd and sigwait, for which every thread of the process must have the signals blocked, those too
// that the library knows nothing of.

#include <ctx/signal.hpp>

#include <string>

#if !defined(_WIN32)
#include <ctx/src/platform.hpp>
#include <ctx/src/signal_handler.hpp>
#include <ctx/src/tree.hpp>

#include <array>
#include <bitset>
#include <cstddef>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#endif

#include <signal.h>

namespace ctx {
namespace {

std::string name_of(int number) {
  switch (number) {
    case SIGABRT:
      return "SIGABRT";
    case SIGFPE:
      return "SIGFPE";
    case SIGILL:
      return "SIGILL";
    case SIGINT:
      return "SIGINT";
    case SIGSEGV:
      return "SIGSEGV";
    case SIGTERM:
      return "SIGTERM";
#if !defined(_WIN32)
    case SIGALRM:
      return "SIGALRM";
    case SIGBUS:
      return "SIGBUS";
    case SIGCHLD:
      return "SIGCHLD";
    case SIGCONT:
      return "SIGCONT";
    case SIGHUP:
      return "SIGHUP";
    case SIGKILL:
      return "SIGKILL";
    case SIGPIPE:
      return "SIGPIPE";
    case SIGPROF:
      return "SIGPROF";
    case SIGQUIT:
      return "SIGQUIT";
    case SIGSTOP:
      return "SIGSTOP";
    case SIGSYS:
      return "SIGSYS";
    case SIGTRAP:
      return "SIGTRAP";
    case SIGTSTP:
      return "SIGTSTP";
    case SIGTTIN:
      return "SIGTTIN";
    case SIGTTOU:
      return "SIGTTOU";
    case SIGURG:
      return "SIGURG";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    case SIGVTALRM:
      return "SIGVTALRM";
    case SIGWINCH:
      return "SIGWINCH";
    case SIGXCPU:
      return "SIGXCPU";
    case SIGXFSZ:
      return "SIGXFSZ";
#endif
    default:
      break;
  }
#if defined(SIGRTMIN)
  if (number >= SIGRTMIN && number <= SIGRTMAX) return "SIGRTMIN+" + std::to_string(number - SIGRTMIN);
#endif
  return "signal " + std::to_string(number);
}

}  // namespace

signal_error::signal_error(int number)
    : std::system_error{make_error_code(errc::canceled), "received " + name_of(number)}, number_{number} {}

signal_error::~signal_error() = default;

#if defined(_WIN32)

cancel_scope with_signals(const context&, std::initializer_list<int>, std::source_location) {
  throw std::system_error{std::make_error_code(std::errc::not_supported), "ctx::with_signals"};
}

#else

namespace detail {
namespace {

/// Signals, by number.
using signal_set = std::bitset<signal_limit>;

template <class F>
void for_each(const signal_set& signals, const F& f) {
  for (int number = 1; number < signal_limit; ++number) {
    if (signals[static_cast<std::size_t>(number)]) f(number);
  }
}

signal_set to_set(std::initializer_list<int> signals) {
  if (signals.size() == 0) throw std::invalid_argument{"ctx::with_signals: no signals"};
  signal_set set;
  for (const int number : signals) {
    if (!can_be_caught(number)) {
      const std::string what = name_of(number) + " (" + std::to_string(number) + ')';
      throw std::system_error{std::make_error_code(std::errc::invalid_argument),
                              "ctx::with_signals: can't catch " + what};
    }
    set.set(static_cast<std::size_t>(number));
  }
  return set;
}

/// A node that signals end, besides its parent.
class signaled final : public cancelable {
 public:
  signaled(node* parent, const signal_set& signals, std::source_location where)
      : cancelable{parent, factory::with_cancel, where}, signals_{signals}, self_{this} {}

  void describe(std::string& out) const override;

 private:
  friend class signal_watcher;
  using list = std::list<signaled*>;
  enum class place : unsigned char { outside, waiting, chosen };

  void disarm() noexcept override;

  const signal_set signals_;
  list self_;                                // guarded by the watcher's mutex, as are the others; its place in a list,
  const list::iterator at_ = self_.begin();  // which stands in that list while it is in one
  place place_ = place::outside;
  int ended_by_ = 0;  // of one that is chosen: the signal
};

/// Blocks all signals for the calling thread while it lives.
class no_signals {
 public:
  no_signals() noexcept {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  no_signals(const no_signals&) = delete;
  no_signals& operator=(const no_signals&) = delete;
  ~no_signals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

/// All nodes that wait for signals, and the thread that ends them.
class signal_watcher {
 public:
  static signal_watcher& instance();

  signal_watcher();
  signal_watcher(const signal_watcher&) = delete;
  signal_watcher& operator=(const signal_watcher&) = delete;

  /// Has the first of its signals end the node, which nobody else knows yet. Where it throws, nothing has changed.
  void add(signaled& node);

  /// Makes sure that no signal will end the node, unless it is being ended by one, and that no disposition is taken
  /// for it.
  void remove(signaled& node) noexcept;

 private:
  void start();
  void run() noexcept;
  void choose_locked() noexcept;
  void remove_locked(signaled& node) noexcept;
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;
  void restart();

  std::mutex starting_;   // held while the thread is started, with all signals blocked; taken before mutex_
  bool started_ = false;  // guarded by starting_
  int error_ = 0;         // immutable after construction; why there can be no signals

  std::mutex mutex_;  // whoever has it has all signals blocked; on the watcher's thread they always are
  std::array<int, signal_limit> count_{};  // guarded by mutex_; how many wait for each signal
  signaled::list waiting_;                 // guarded by mutex_; borrows: nodes take themselves out
  signaled::list chosen_;                  // guarded by mutex_; owns: one reference each; to be ended
  signaled::list ending_;                  // guarded by mutex_; the same, of the one that is being ended
  std::jthread thread_;                    // never joined
};

signal_watcher& signal_watcher::instance() {
  static signal_watcher& the_watcher = *new signal_watcher;
  return the_watcher;
}

signal_watcher::signal_watcher() : error_{prepare_signals()} {
  at_fork(fork_part::signals, {[] { instance().before_fork(); }, [] { instance().after_fork_in_parent(); },
                               [] { instance().after_fork_in_child(); }, [] { instance().restart(); }});
}

// When the library is loaded, so that no fork comes in the middle of making it. The timer sees to it that
// the library stays loaded.
[[maybe_unused]] const signal_watcher& at_load = signal_watcher::instance();

void signal_watcher::start() {
  const no_signals here;  // nor on the thread that starts here, ever
  const std::lock_guard lock{starting_};
  if (started_) return;
  if (error_ != 0) throw std::system_error{error_, std::generic_category(), "ctx::with_signals"};
  thread_ = std::jthread{[this] { run(); }};
  started_ = true;
}

void signal_watcher::add(signaled& node) {
  start();
  const no_signals here;
  const std::lock_guard lock{mutex_};
  choose_locked();  // what is ended by a signal that came before
  for_each(node.signals_, [&](int number) {
    if (count_[static_cast<std::size_t>(number)]++ == 0) take_signal(number);
  });
  waiting_.splice(waiting_.end(), node.self_);
  node.place_ = signaled::place::waiting;
}

void signal_watcher::remove(signaled& node) noexcept {
  const no_signals here;
  const std::lock_guard lock{mutex_};
  if (node.place_ == signaled::place::waiting) remove_locked(node);
}

void signal_watcher::remove_locked(signaled& node) noexcept {
  node.self_.splice(node.self_.end(), waiting_, node.at_);
  node.place_ = signaled::place::outside;
  for_each(node.signals_, [&](int number) {
    if (--count_[static_cast<std::size_t>(number)] == 0) release_signal(number);
  });
}

void signal_watcher::choose_locked() noexcept {
  while (const int number = next_signal()) {
    for (auto at = waiting_.begin(); at != waiting_.end();) {
      signaled& node = **at++;
      if (!node.signals_[static_cast<std::size_t>(number)]) continue;
      remove_locked(node);
      // Pinned, or else it is being destroyed: then it finds itself removed.
      if (!node.retain_if_alive()) continue;
      node.place_ = signaled::place::chosen;
      node.ended_by_ = number;
      chosen_.splice(chosen_.end(), node.self_);
    }
  }
}

/// Where there is no memory for it, the cause is that.
std::exception_ptr cause_of(int number) noexcept {
  try {
    return std::make_exception_ptr(signal_error{number});
  } catch (...) {
    return std::current_exception();
  }
}

void signal_watcher::run() noexcept {
  std::unique_lock lock{mutex_};
  for (;;) {
    choose_locked();
    if (chosen_.empty()) {
      lock.unlock();
      wait_for_signal();
      lock.lock();
      continue;
    }
    signaled& node = *chosen_.front();
    ending_.splice(ending_.end(), chosen_, node.at_);
    lock.unlock();
    node.end_amid_forks(errc::canceled, cause_of(node.ended_by_));
    lock.lock();
    node.self_.splice(node.self_.end(), ending_);
    node.place_ = signaled::place::outside;
    lock.unlock();
    node::release(&node);
    lock.lock();
  }
}

void signal_watcher::before_fork() noexcept {
  starting_.lock();
  mutex_.lock();
}

void signal_watcher::after_fork_in_parent() noexcept {
  mutex_.unlock();
  starting_.unlock();
}

void signal_watcher::after_fork_in_child() noexcept {
  const no_signals here;
  for (int number = 1; number < signal_limit; ++number) {
    complete_handler(number, count_[static_cast<std::size_t>(number)] > 0);
  }
  prepare_signals();  // whatever was just being done with it; who waited is gone, or in a callback, and looks first
  // A callback on the watcher's thread may fork: then that is the thread which lives on.
  const bool thread_is_gone = started_ && thread_.get_id() != std::this_thread::get_id();
  if (thread_is_gone) {
    abandon(thread_);
    started_ = false;
    chosen_.splice(chosen_.begin(), ending_);  // nobody finishes what it was ending: that is ended again
  }
  // Threads are gone, too, that had locked a node and waited for the mutex to remove it.
  for (signaled* const node : waiting_) node->break_lock();
  for (signaled* const node : chosen_) {
    node->break_lock();
    node->adopt_operation();
  }
  after_fork_in_parent();
}

void signal_watcher::restart() {
  {
    const no_signals here;
    const std::lock_guard lock{mutex_};
    if (waiting_.empty() && chosen_.empty()) return;
  }
  start();
}

void signaled::disarm() noexcept { signal_watcher::instance().remove(*this); }

void signaled::describe(std::string& out) const {
  out += "with_signals(";
  const char* separator = "";
  for_each(signals_, [&](int number) {
    out += std::exchange(separator, ", ");
    out += name_of(number);
  });
  out += ')';
}

}  // namespace
}  // namespace detail

cancel_scope with_signals(const context& parent, std::initializer_list<int> signals, std::source_location where) {
  using namespace detail;
  const signal_set set = to_set(signals);
  node* const above = access::node_of(parent);
  cancelable* const up = above != nullptr ? above->nearest_cancelable() : nullptr;
  if (up != nullptr) up->expect_children();

  auto* const made = new signaled{above, set, where};
  if (above != nullptr) above->retain();
  cancel_scope scope{access::make(made, made), access::make(made)};
  if (!parent.done()) signal_watcher::instance().add(*made);
  made->enter({});
  return scope;
}

#endif

}  // namespace ctx
