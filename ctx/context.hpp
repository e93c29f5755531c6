#pragma once

// ctx: contexts for C++.
//
// A context tells a piece of work when to stop, and why. Whoever starts the work derives a context
// for it and keeps the right to cancel; the work takes the context as its first parameter, and
// polls it, waits on it, or hands it on:
//
// ```cpp
// void worker(const ctx::context& ctx) {
//   while (!ctx.done()) step();
// }
//
// auto [ctx, cancel] = ctx::with_timeout(parent, 5s);
// std::jthread thread{[ctx = ctx] { worker(ctx); }};
// …
// cancel();   // or leave the scope, or let the five seconds pass, or let the parent end
// ```
//
// Contexts form a tree. A context ends when it is canceled, when its deadline passes, or when the
// context that it was derived from ends; a child that ends leaves its parent alone. Nobody is
// killed: a context asks, and the work decides where it is safe to stop. `cause()` and `err()` say
// why, `value()` finds what belongs to the request that the work is done for.
//
// What holds throughout:
// - All functions may be called from any threads at once, also on the same object, as long as none
//   of them assigns to or destroys that object.
// - Canceling, destroying and observing never throw and never allocate, but for `cause()`,
//   `to_string()`, `cause_message()`, the first `stop_token()` of a context, and causes made from an exception object.
// - A factory that throws (`std::bad_alloc`; `std::system_error` where the first deadline of the
//   process can't start the timer's thread) leaves its parent as it was.
// - No user code runs while the library holds a lock. When a context ends, it and all below it are
//   claimed first; then the `std::stop_callback`s on them run, those of a parent before those of
//   its children, on the thread that cancels. On expiry that is the timer's one thread, which
//   serves every deadline of the process: there, be short; `after_func` is for what takes longer.
// - After fork(), the child can go on using its contexts, with all their deadlines; what the timer was
//   ending at that moment ends in the child as well. A context that another thread was just canceling,
//   deriving from or letting go of is the exception, and so is what is above it: that thread is not
//   there to finish.

#include <ctx/clock.hpp>
#include <ctx/detail/export.hpp>
#include <ctx/detail/node.hpp>
#include <ctx/detail/saturate.hpp>
#include <ctx/detail/value_node.hpp>
#include <ctx/error.hpp>
#include <ctx/key.hpp>

#include <chrono>
#include <concepts>
#include <exception>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <source_location>
#include <stop_token>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

/// Contexts, what derives them, and what ends them.
namespace ctx {

class context;
class cancel_func;
struct cancel_scope;

namespace detail {

struct access;

// The results of deleted functions. Compilers print them where one is called.
struct a_key_is_a_ctx_key_or_a_movable_class_with_equality_and_a_context_value;
struct declare_the_key_once_at_namespace_scope;
struct name_the_context_before_you_ask_it_for_a_value;
struct a_cause_is_an_exception_such_as_a_std_runtime_error_of_the_text;

template <class T>
concept text = std::same_as<T, const char*> || std::same_as<T, char*>;

// What is thrown, not what refers to it, nor the place that follows it in a list of parameters.
template <class T>
concept exception_object = std::copy_constructible<T> && !std::convertible_to<T, std::exception_ptr> &&
                           !std::same_as<T, std::source_location> && !text<T>;

}  // namespace detail

/// A value that tells work when to stop, and carries what belongs to the request. Cheap to copy (one
/// atomic increment) and to move. Never empty: a default-constructed or moved-from context is the
/// background, which is never done. Keeps all its ancestors alive.
class CTX_API context {
 public:
  /// The background context.
  context() noexcept = default;
  context(const context& other) noexcept : node_{other.node_}, completion_{other.completion_} {
    if (node_ != nullptr) node_->retain();
  }
  context(context&& other) noexcept
      : node_{std::exchange(other.node_, nullptr)},
        completion_{std::exchange(other.completion_, &detail::never_done.value)} {}
  context& operator=(const context& other) noexcept { return *this = context{other}; }
  context& operator=(context&& other) noexcept {
    context taken{std::move(other)};
    std::swap(node_, taken.node_);
    std::swap(completion_, taken.completion_);
    return *this;
  }
  ~context() {
    if (node_ != nullptr) detail::node::release(node_);
  }

  /// Whether the context ended: true from that moment on, for ever. Costs two loads while live: ask
  /// it in the hottest loop.
  [[nodiscard]] bool done() const noexcept { return completion_->done(); }

  /// The token whose stop is requested exactly when `done()`: for `std::stop_callback`, and for the
  /// waits of `std::condition_variable_any`. Equal at every call. Where the context can never be
  /// done, `stop_possible()` is false. The token holds no reference to the context: once all its
  /// handles are gone, nobody can stop it any more. The first call for a context may allocate, and
  /// then throw `std::bad_alloc`.
  [[nodiscard]] std::stop_token stop_token() const;

  /// Empty while live; then `errc::canceled` or `errc::deadline_exceeded`, the same at every call.
  [[nodiscard]] std::error_code err() const noexcept {
    // By the constructor, as whoever compares it with an errc. Two static copies of the library in a process that is not
    // optimized may share that one, but never make_error_code(), which knows each copy's own category.
    const int error = completion_->error();
    return error != 0 ? std::error_code{static_cast<errc>(error)} : detail::no_error();
  }

  /// Null while live; then why the context ended: the exception given by whoever ended it, the same
  /// pointer at every call and in every descendant that ended with it. Where none was given, a
  /// `std::system_error` whose `code()` is `err()` and whose `what()` names the file and the line of
  /// the call that canceled (or derived the context, where a `cancel_func` was only destroyed), or
  /// that set the deadline which passed. It is made at the first call; where memory is short,
  /// that call returns `std::bad_alloc` and a later one tries again.
  [[nodiscard]] std::exception_ptr cause() const noexcept;

  /// Throws `cause()` where the context is done.
  void throw_if_done() const {
    if (done()) std::rethrow_exception(cause());
  }

  /// The earliest deadline of this context and its ancestors, empty where there is none.
  [[nodiscard]] std::optional<clock::time_point> deadline() const noexcept;

  /// The time left to `deadline()`: zero once it passed, `duration::max()` where there is none.
  [[nodiscard]] clock::duration remaining() const noexcept;

  /// The nearest value stored under this key at or above this context, null where there is none. It
  /// lives as long as this context or any derived from it. The search takes a step a derivation.
  template <class T>
  [[nodiscard]] const T* value(const key<T>& key) const& noexcept {
    return detail::keyed_value<T>::find(node_, key);
  }
  /// The same for a key type of one's own, compared by `==`, which must not throw.
  template <value_key Key>
  [[nodiscard]] const typename Key::context_value* value(const Key& key) const& noexcept {
    return detail::matched_value<Key>::find(node_, key);
  }
  // Not on a temporary context, with which the value might go.
  template <class Key>
  detail::name_the_context_before_you_ask_it_for_a_value value(const Key&) const&& = delete;
  // Not under a number or a text.
  template <detail::no_key Key>
  detail::a_key_is_a_ctx_key_or_a_movable_class_with_equality_and_a_context_value value(const Key&) const& = delete;

  /// Blocks until the context is done: for ever, where it never is. A callback must not wait for a thread
  /// that waits here for what is below the context that just ends: what is below is done after it.
  void wait() const;

  /// Blocks until the context is done or the time is up, and returns `done()`: a sleep that can be
  /// interrupted. Times are converted as by `with_timeout` and `with_deadline`: a time that `clock`
  /// can't represent is no limit, NaN throws `std::invalid_argument`. The wait does not end early.
  template <class Rep, class Period>
  bool wait_for(const std::chrono::duration<Rep, Period>& time) const;
  /// The same until an instant of any clock.
  template <class Clock, class Duration>
  bool wait_until(const std::chrono::time_point<Clock, Duration>& time) const;

  /// Whether both are the same node of the tree.
  friend bool operator==(const context& a, const context& b) noexcept { return a.node_ == b.node_; }

 private:
  friend detail::access;

  context(detail::node* node, const detail::completion* completion) noexcept : node_{node}, completion_{completion} {}

  bool wait_until_clock(clock::time_point time) const;

  detail::node* node_ = nullptr;  // owns: one reference; null: the background
  // borrows: the nearest cancelable node, which node_ keeps alive
  const detail::completion* completion_ = &detail::never_done.value;
};

/// The right to cancel a context, owned as `std::jthread` owns its thread: it can be moved, not
/// copied, and destroying or overwriting it cancels.
class CTX_API cancel_func {
 public:
  using location = std::source_location;

  /// Owns nothing; calling it does nothing.
  cancel_func() noexcept = default;
  cancel_func(cancel_func&& other) noexcept : target_{std::exchange(other.target_, nullptr)} {}
  cancel_func& operator=(cancel_func&& other) noexcept {
    cancel_func taken{std::move(other)};
    std::swap(target_, taken.target_);
    return *this;
  }
  ~cancel_func();

  /// Cancels the context: `err()` becomes `errc::canceled`. True means that this call did it; where
  /// the context was done already, nothing changes. When the call returns, true or false, the
  /// context is done; when it returns true, so is every descendant, their timers are released, and
  /// the `std::stop_callback`s on them ran, on this thread (those which a second cancelation reached
  /// at the same moment, on that one's). What one of them throws ends the process, by
  /// `std::terminate`. May be called from many threads at once, and from inside such a callback.
  bool operator()(location where = location::current()) const noexcept;

  /// Also sets the cause; a null pointer sets none.
  bool operator()(std::exception_ptr cause, location where = location::current()) const noexcept;

  /// Also sets the cause, to a copy of `cause`: `cancel(std::runtime_error{"disk full"})`; where that can't
  /// be made, to the exception that says why.
  template <detail::exception_object Exception>
  bool operator()(Exception cause, location where = location::current()) const noexcept {
    try {
      return (*this)(std::make_exception_ptr(std::move(cause)), where);
    } catch (...) {
      return (*this)(std::current_exception(), where);  // of the move: what it threw is the cause
    }
  }

  // Not to a pointer, in which nobody would look for a text.
  template <detail::text Text>
  detail::a_cause_is_an_exception_such_as_a_std_runtime_error_of_the_text operator()(
      Text, location where = location::current()) const = delete;

  /// Gives the right up without canceling: from then on only the parent or the deadline ends the
  /// context.
  void release() noexcept;

 private:
  friend detail::access;

  explicit cancel_func(detail::cancelable* target) noexcept : target_{target} {}

  detail::cancelable* target_ = nullptr;  // owns: one reference
};

/// A derived context with the right to cancel it: `auto [ctx, cancel] = ctx::with_cancel(parent);`.
/// At the end of its scope the context is canceled.
struct [[nodiscard("the context is canceled at once where its scope is discarded")]] cancel_scope {
  context ctx;         ///< what the work is given
  cancel_func cancel;  ///< the right to cancel it
};

/// The root of every tree: never done, no deadline, no values. For `main`, tests, and what outlives
/// every request.
[[nodiscard]] inline context background() noexcept { return {}; }

/// A background under another name, for where it is not yet clear which context to pass. Greps well.
[[nodiscard]] CTX_API context todo() noexcept;

/// @name Deriving
/// The child of a context that is done is born done, with its `err()` and `cause()`. A context whose
/// handles (copies, `cancel_func`, derived contexts) are all gone takes itself off its parents at once,
/// canceled or not. `where` is the place that `cause()` names. What these functions return must not be
/// discarded; where it is a `cancel_scope`, that type says so, and why.
/// @{

/// A child that ends when it is canceled or `parent` ends.
CTX_API cancel_scope with_cancel(const context& parent, std::source_location where = std::source_location::current());

/// A child that also ends, with `errc::deadline_exceeded`, once `deadline` passed, never before. The
/// earlier of this deadline and the parent's governs. `cause` is what its `cause()` then is, if it was
/// this deadline that ended it. A deadline that has passed gives a context that is done.
///
/// The time point of any clock is converted once, here, by what is left of it now: when the system's
/// time is set later, nothing changes. A time that `clock` can't represent never comes, or has passed.
template <class Clock, class Duration>
cancel_scope with_deadline(const context& parent, const std::chrono::time_point<Clock, Duration>& deadline,
                           std::exception_ptr cause = {}, std::source_location where = std::source_location::current());

/// The same with an exception object as the cause: `with_deadline(parent, noon, std::runtime_error{"too late"})`.
template <class Clock, class Duration, detail::exception_object Exception>
cancel_scope with_deadline(const context& parent, const std::chrono::time_point<Clock, Duration>& deadline,
                           Exception cause, std::source_location where = std::source_location::current());

/// `with_deadline(parent, clock::now() + timeout)`, for a duration of any kind; one that `clock` can't
/// represent never passes. Throws `std::invalid_argument` for NaN.
template <class Rep, class Period>
cancel_scope with_timeout(const context& parent, const std::chrono::duration<Rep, Period>& timeout,
                          std::exception_ptr cause = {}, std::source_location where = std::source_location::current());

/// The same with an exception object as the cause: `with_timeout(parent, 5s, std::runtime_error{"too slow"})`.
template <class Rep, class Period, detail::exception_object Exception>
cancel_scope with_timeout(const context& parent, const std::chrono::duration<Rep, Period>& timeout, Exception cause,
                          std::source_location where = std::source_location::current());

/// A child that also ends, with `errc::canceled`, when stop is requested on `token`: with it, the token
/// of a `std::jthread` drives a context. Callbacks then run on the thread that requests the stop. Where
/// that is the token of a context, whose token drives another, and so on, each takes some of the stack.
CTX_API cancel_scope with_stop_token(const context& parent, std::stop_token token,
                                     std::source_location where = std::source_location::current());

/// A child of two: done as soon as either is, with that one's `err()` and `cause()` (that of `first`
/// where both were done before). Values come from `first`; the deadline is the earlier.
CTX_API cancel_scope merge(const context& first, const context& second,
                           std::source_location where = std::source_location::current());

/// A child that carries a `T` under `key`. The value is constructed in its place from `value`, once,
/// and never moved or copied again; it need be neither movable nor copyable. It is destroyed with the
/// last context derived from here. It may be read from many threads at once: keep it immutable, or
/// make it safe for that. For what belongs to a request and crosses interfaces (its id, who asks,
/// a trace), not for optional parameters.
template <class T, class V = T>
  requires std::constructible_from<T, V>
[[nodiscard("the value is in the context that is returned, not in its parent")]] context with_value(
    const context& parent, const key<T>& key, V&& value);

/// The same under a key type of one's own: see `value_key`.
template <value_key Key, class V = typename Key::context_value>
  requires std::constructible_from<typename Key::context_value, V>
[[nodiscard("the value is in the context that is returned, not in its parent")]] context with_value(
    const context& parent, Key key, V&& value);

// Not under a number or a text.
template <detail::no_key Key, class V>
detail::a_key_is_a_ctx_key_or_a_movable_class_with_equality_and_a_context_value with_value(const context&, const Key&,
                                                                                           V&&) = delete;

// Not under a key that ends before the context does.
template <class T, class V>
detail::declare_the_key_once_at_namespace_scope with_value(const context&, const key<T>&&, V&&) = delete;

/// A child with the values of `parent` that is never done and has no deadline: for what must be
/// finished although the request ended.
[[nodiscard]] CTX_API context without_cancel(const context& parent);

/// @}

namespace detail {
class after_func_state;
}

/// A function that waits for a context to be done: see `after_func`. Can be moved.
class [[nodiscard("after_func is stopped at once where its handle is discarded")]] CTX_API after_func_handle {
 public:
  /// Waits for nothing.
  after_func_handle() noexcept = default;
  after_func_handle(after_func_handle&&) noexcept = default;
  /// As if the old handle was destroyed.
  after_func_handle& operator=(after_func_handle&& other) noexcept;

  /// Stops the function where it did not start, waits for it where it runs on another thread.
  ~after_func_handle();

  /// True if this call kept the function from running: then nothing of it is left with the context.
  /// False if it ran, runs, or was stopped before. Does not wait for it.
  bool stop() noexcept;

 private:
  friend detail::access;

  explicit after_func_handle(std::shared_ptr<detail::after_func_state> state) noexcept : state_{std::move(state)} {}

  std::shared_ptr<detail::after_func_state> state_;
};

/// Calls `f` once, on a thread of its own, after `ctx` is done: at once where it is already. That thread
/// has the signals blocked that this one has. Canceling does not wait for it. What `f` throws ends the
/// process, by `std::terminate`. The handle keeps `ctx` and `f` alive. Where no thread can be started, `f`
/// runs on the canceling thread (the timer's, on expiry).
template <class F>
  requires std::invocable<std::decay_t<F>&>
after_func_handle after_func(const context& ctx, F&& f);

/// The cause as a text for people: its `what()`, or `err().message()` where it is no `std::exception`. Empty while
/// live.
[[nodiscard]] CTX_API std::string cause_message(const context& ctx);

/// How the context came about: `background` or `todo`, then a segment for each derivation:
/// `background.with_cancel.with_value(user).with_deadline(4.998s)`, with the name of the key and the
/// time left.
CTX_API std::string to_string(const context& ctx);
/// Writes `to_string(ctx)`.
CTX_API std::ostream& operator<<(std::ostream& out, const context& ctx);

}  // namespace ctx

#include <ctx/detail/context_impl.hpp>
