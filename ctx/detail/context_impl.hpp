#pragma once

// The templates of ctx/context.hpp: each converts what it was given and calls the library.

#include <ctx/context.hpp>
#include <ctx/detail/thread_settings.hpp>

#include <atomic>
#include <thread>

namespace ctx {
namespace detail {

/// The way from the public classes to their nodes, for the library alone.
struct access {
  static node* node_of(const context& ctx) noexcept { return ctx.node_; }
  static const completion* completion_of(const context& ctx) noexcept { return ctx.completion_; }
  static context make(node* node, const completion* completion) noexcept { return {node, completion}; }
  static cancel_func make(cancelable* target) noexcept { return cancel_func{target}; }
  static after_func_handle make(std::shared_ptr<after_func_state> state) noexcept {
    return after_func_handle{std::move(state)};
  }
};

CTX_API cancel_scope with_deadline(const context& parent, clock::time_point now, clock::time_point deadline,
                                   std::exception_ptr cause, std::source_location where, factory made_by);

/// The same instant by `clock`, where the far future is `time_point::max()`.
template <class Clock, class Duration>
clock::time_point to_clock(const std::chrono::time_point<Clock, Duration>& time) {
  if constexpr (std::is_same_v<Clock, clock::time_point::clock> || std::is_same_v<Clock, clock>) {
    return clock::time_point{ceil_saturate(time.time_since_epoch())};
  } else {
    // In this order: the time that passes between the two readings makes the result later, not earlier.
    const std::chrono::nanoseconds left = until(time);
    return clock::time_point{add_saturate(clock::now().time_since_epoch(), left)};
  }
}

/// The instant `time` after `now`.
template <class Rep, class Period>
clock::time_point after(clock::time_point now, const std::chrono::duration<Rep, Period>& time) {
  return clock::time_point{add_saturate(now.time_since_epoch(), ceil_saturate(time))};
}

/// A function that waits for a context to be done, shared by its handle and the thread it runs on.
class CTX_API after_func_state : public std::enable_shared_from_this<after_func_state> {
 public:
  after_func_state() noexcept = default;
  after_func_state(const after_func_state&) = delete;
  after_func_state& operator=(const after_func_state&) = delete;
  virtual ~after_func_state() = default;

  void start_when_done(const context& ctx);
  bool stop() noexcept;

  /// Stops the function, or waits for it unless this is its own thread.
  void finish() noexcept;

 private:
  struct starter {
    after_func_state* state;  // borrows: outlived by the state, which holds the callback
    void operator()() const noexcept { state->start(); }
  };

  virtual void call() noexcept = 0;
  void start() noexcept;
  void leave() noexcept;

  enum class registration { building, complete, leaving, gone };

  std::atomic<bool> taken_{false};                      // by start() or stop(), whichever is first
  const thread_settings settings_;                      // of the thread that called after_func
  context ctx_;                                         // immutable once start_when_done() returned
  std::thread thread_;                                  // written by start(), which is over once on_done_ is gone
  std::optional<std::stop_callback<starter>> on_done_;  // destroyed by whoever made its state leaving
  std::atomic<registration> registration_{registration::building};
};

/// Derives a node of type `Node` that stores a value.
template <class Node, class Key, class V>
context add_value(const context& parent, Key&& key, V&& value) {
  node* const above = access::node_of(parent);
  auto* const made = new Node(above, std::forward<Key>(key), std::forward<V>(value));
  if (above != nullptr) above->retain();
  return access::make(made, access::completion_of(parent));
}

template <class F>
class after_func_of final : public after_func_state {
 public:
  template <class G>
  explicit after_func_of(G&& f) : f_(std::forward<G>(f)) {}

 private:
  void call() noexcept override { std::invoke(f_); }

  F f_;
};

}  // namespace detail

template <class Rep, class Period>
bool context::wait_for(const std::chrono::duration<Rep, Period>& time) const {
  return wait_until_clock(detail::after(clock::now(), time));
}

template <class Clock, class Duration>
bool context::wait_until(const std::chrono::time_point<Clock, Duration>& time) const {
  return wait_until_clock(detail::to_clock(time));
}

template <class Clock, class Duration>
cancel_scope with_deadline(const context& parent, const std::chrono::time_point<Clock, Duration>& deadline,
                           std::exception_ptr cause, std::source_location where) {
  const clock::time_point at = detail::to_clock(deadline);
  return detail::with_deadline(parent, clock::now(), at, std::move(cause), where, detail::factory::with_deadline);
}

template <class Clock, class Duration, detail::exception_object Exception>
cancel_scope with_deadline(const context& parent, const std::chrono::time_point<Clock, Duration>& deadline,
                           Exception cause, std::source_location where) {
  return with_deadline(parent, deadline, std::make_exception_ptr(std::move(cause)), where);
}

template <class Rep, class Period>
cancel_scope with_timeout(const context& parent, const std::chrono::duration<Rep, Period>& timeout,
                          std::exception_ptr cause, std::source_location where) {
  const clock::time_point now = clock::now();
  return detail::with_deadline(parent, now, detail::after(now, timeout), std::move(cause), where,
                               detail::factory::with_timeout);
}

template <class Rep, class Period, detail::exception_object Exception>
cancel_scope with_timeout(const context& parent, const std::chrono::duration<Rep, Period>& timeout, Exception cause,
                          std::source_location where) {
  return with_timeout(parent, timeout, std::make_exception_ptr(std::move(cause)), where);
}

template <class T, class V>
  requires std::constructible_from<T, V>
context with_value(const context& parent, const key<T>& key, V&& value) {
  return detail::add_value<detail::keyed_value<T>>(parent, key, std::forward<V>(value));
}

template <value_key Key, class V>
  requires std::constructible_from<typename Key::context_value, V>
context with_value(const context& parent, Key key, V&& value) {
  return detail::add_value<detail::matched_value<Key>>(parent, std::move(key), std::forward<V>(value));
}

template <class F>
  requires std::invocable<std::decay_t<F>&>
after_func_handle after_func(const context& ctx, F&& f) {
  auto state = std::make_shared<detail::after_func_of<std::decay_t<F>>>(std::forward<F>(f));
  state->start_when_done(ctx);
  return detail::access::make(std::move(state));
}

}  // namespace ctx
