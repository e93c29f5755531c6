#pragma once

// Groups: tasks that run at the same time for one purpose, and end together.
//
//   ctx::group group{parent};
//   for (const auto& part : parts) {
//     group.spawn([&](const ctx::context& ctx) { process(ctx, part); });
//   }
//   group.wait();   // all are over; throws what the first of them threw that failed
//
// Each task runs on a `std::jthread` of its own, under a context that all tasks of the group share. The
// first exception that leaves a task ends that context, with the exception as its cause: the others see
// that their work is no longer wanted, and why. So does the end of the parent. Nothing is stopped by
// force: a group lasts until its last task has returned.
//
// For those who know Go: an errgroup, where throwing takes the place of returning an error.

#include <ctx/context.hpp>
#include <ctx/detail/export.hpp>

#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <source_location>
#include <stop_token>
#include <thread>
#include <type_traits>
#include <utility>

namespace ctx {
namespace detail {

/// A function that a group calls once.
class CTX_API group_task {
 public:
  group_task() noexcept = default;
  group_task(const group_task&) = delete;
  group_task& operator=(const group_task&) = delete;
  virtual ~group_task() = default;
  virtual void call(const context& ctx) = 0;
};

template <class F>
class group_task_of final : public group_task {
 public:
  template <class G>
  explicit group_task_of(G&& f) : f_(std::forward<G>(f)) {}
  void call(const context& ctx) override { std::invoke(std::move(f_), ctx); }

 private:
  F f_;
};

}  // namespace detail

/// Tasks on threads of their own, under one context. Neither copied nor moved, as its tasks refer to it.
/// All functions may be called from any threads at once, those of the tasks included, except for the
/// destructor, and for `wait()` in a task. The threads are not in the child of a fork: there, a group whose
/// tasks were running can be neither waited for nor destroyed.
class CTX_API group {
 public:
  /// A group whose context is a child of `parent`: it has its values and its deadline, and ends with it.
  /// Where the destructor ends the context, its `cause()` names `where`. May throw `std::bad_alloc`.
  explicit group(const ctx::context& parent, std::source_location where = std::source_location::current());

  /// A group that runs at most `limit` tasks at a time. Throws `std::invalid_argument` for zero.
  group(const ctx::context& parent, std::size_t limit, std::source_location where = std::source_location::current());

  group(const group&) = delete;
  group& operator=(const group&) = delete;

  /// Cancels the context and joins all tasks. What they throw, or threw since the last `wait()`, is lost.
  /// Must not be called by a task of this group: as it can't join itself, that terminates the process.
  ~group();

  /// The context that all tasks are given.
  [[nodiscard]] const ctx::context& context() const noexcept { return scope_.ctx; }

  /// Starts a task: calls `f(context())`, once, on a new thread. Copies or moves `f` first, on this thread,
  /// as `std::jthread` does; it is destroyed on the task's thread, before the task is over. Its result is
  /// dropped. An exception that leaves it ends the group's context, if no other did before.
  ///
  /// Without a limit, the task is started whether the context is done or not, and true returned. As with
  /// `std::jthread`, and with Go's errgroup, it is for the task to see that it is not wanted; one
  /// that gives up with `throw_if_done()` shows in `wait()`, where a task that was silently left out would not.
  ///
  /// With a limit, blocks until fewer tasks than that are running. False where the context is done first,
  /// or was before the call: then `f` is not called. A task that spawns another keeps its place
  /// meanwhile: where all tasks do that, they wait for each other until the context is done.
  ///
  /// Waits for the threads of tasks that were over before, as far as they are still exiting.
  ///
  /// Throws what copying or moving `f` does, `std::bad_alloc`, and `std::system_error` where no thread can be
  /// started; then the group is as it was.
  template <class F>
    requires std::constructible_from<std::decay_t<F>, F> && std::invocable<std::decay_t<F>, const ctx::context&>
  bool spawn(F&& f) {
    return start(std::make_unique<detail::group_task_of<std::decay_t<F>>>(std::forward<F>(f)));
  }

  /// Blocks until no task is left and all their threads are joined: those too that are spawned meanwhile.
  /// Then rethrows the first exception that left a task, if any did, at every call. Neither ends the context
  /// nor is ended by it: tasks that don't look keep it waiting. Where none failed, the group can be used again.
  ///
  /// Throws `std::system_error` with `std::errc::resource_deadlock_would_occur` in a task of this group, which
  /// would wait for itself. (One that waits for another group, a task of which waits for this one, waits for
  /// ever.)
  void wait();

 private:
  using threads = std::list<std::jthread>;

  bool start(std::unique_ptr<detail::group_task> task);
  void run(detail::group_task* task, threads::iterator self) noexcept;
  void fail(std::exception_ptr error) noexcept;
  void finish(threads::iterator self) noexcept;
  void join_finished(std::unique_lock<std::mutex>& lock) noexcept;
  void join_all();

  const std::size_t limit_;  // zero: none
  const std::source_location where_;
  const cancel_scope scope_;    // immutable; ended by fail() and the destructor
  const std::stop_token done_;  // of its context, where there is a limit

  std::mutex mutex_;
  std::exception_ptr error_;           // guarded by mutex_; the first that left a task
  threads running_;                    // guarded by mutex_; their tasks are not over
  threads finished_;                   // guarded by mutex_; to be joined by whoever takes it out
  int joining_ = 0;                    // guarded by mutex_; how many calls of join_finished() join
  std::condition_variable_any place_;  // for start(): running_ is shorter
  std::condition_variable idle_;       // for join_all(): running_ is empty, or joining_ zero
};

}  // namespace ctx
