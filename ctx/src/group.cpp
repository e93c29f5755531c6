#include <ctx/group.hpp>

#include <stdexcept>
#include <system_error>

// Who joins the threads. A long-lived group must not keep those whose tasks are over, and nobody may be around
// to join them. So each finishing thread joins the one that finished before it, which it finds in finished_,
// leaving itself there; join_all() joins the last:
//
//   A: over: takes {}, leaves A | exits
//   B:                          |   over: takes {A}, leaves B | joins A, exits
//   join_all:                   |                             | no task runs: takes {B}, joins it, and so A
//
// The thread that is in finished_ joins before it exits, so who joined it has joined all, and the group may go.
// That leaves those that are just exiting, which may be many where the system is slow to let them go. So
// start() joins the last, too, and no more threads are started before those that were over are gone.
//
// Nobody waits in a circle: each waits for threads that were over before it looked. To that end, a thread that
// is exiting does not join for start(), which it may call when it destroys what is local to it; the threads
// that were over after it wait for it.

namespace ctx {
namespace {

/// The group whose task the calling thread runs; also in what is destroyed with the thread afterwards.
constinit thread_local const group* runs_for = nullptr;

/// Whether that task is over, and the thread exits.
constinit thread_local bool exits = false;

std::size_t checked(std::size_t limit) {
  if (limit == 0) throw std::invalid_argument{"ctx::group: a limit of 0 tasks"};
  return limit;
}

}  // namespace

group::group(const ctx::context& parent, std::source_location where)
    : limit_{0}, where_{where}, scope_{with_cancel(parent, where)} {}

group::group(const ctx::context& parent, std::size_t limit, std::source_location where)
    : limit_{checked(limit)}, where_{where}, scope_{with_cancel(parent, where)}, done_{scope_.ctx.stop_token()} {}

group::~group() {
  scope_.cancel(where_);
  join_all();
}

bool group::start(std::unique_ptr<detail::group_task> task) {
  threads thread(1);
  std::unique_lock lock{mutex_};
  if (!exits) join_finished(lock);
  if (limit_ != 0) {
    place_.wait(lock, done_, [this] { return running_.size() < limit_; });
    // Also where a place came free: the end of the context is what makes places free.
    if (scope_.ctx.done()) return false;
  }
  try {
    // With the lock held, so that the thread is in its place before its task can be over. Nothing that is
    // the user's runs here: the task is still owned by our caller, who destroys it where there is no thread.
    thread.front() = std::jthread{[this, task = task.get(), self = thread.begin()] { run(task, self); }};
  } catch (...) {
    place_.notify_one();  // the place that another one was not told of
    throw;
  }
  (void)task.release();  // run() has it
  running_.splice(running_.begin(), thread);
  return true;
}

void group::run(detail::group_task* task, threads::iterator self) noexcept {
  runs_for = this;
  {
    const std::unique_ptr<detail::group_task> owned{task};
    try {
      owned->call(context());
    } catch (...) {
      fail(std::current_exception());
    }
  }
  finish(self);
}

void group::fail(std::exception_ptr error) noexcept {
  {
    const std::lock_guard lock{mutex_};
    if (error_ != nullptr) return;
    error_ = error;
  }
  scope_.cancel(std::move(error), where_);
}

void group::finish(threads::iterator self) noexcept {
  exits = true;
  threads before;
  const std::lock_guard lock{mutex_};
  before.swap(finished_);
  finished_.splice(finished_.begin(), running_, self);
  place_.notify_one();
  if (running_.empty()) idle_.notify_all();
}  // unlocks, then joins what is in `before`

// requires mutex_ held, which it gives up meanwhile
void group::join_finished(std::unique_lock<std::mutex>& lock) noexcept {
  if (finished_.empty()) return;
  threads last;
  last.swap(finished_);
  ++joining_;
  lock.unlock();
  last.clear();
  lock.lock();
  if (--joining_ == 0) idle_.notify_all();
}

void group::join_all() {
  if (runs_for == this) {
    throw std::system_error{std::make_error_code(std::errc::resource_deadlock_would_occur),
                            "ctx::group: waited for by one of its tasks"};
  }
  std::unique_lock lock{mutex_};
  const auto idle = [this] { return running_.empty() && joining_ == 0; };
  for (idle_.wait(lock, idle); !finished_.empty(); idle_.wait(lock, idle)) join_finished(lock);
}

void group::wait() {
  join_all();
  const std::unique_lock lock{mutex_};
  if (error_ != nullptr) std::rethrow_exception(error_);
}

}  // namespace ctx
