#pragma once

// Signals that end a context: Ctrl-C, and what a service manager sends.
//
//   int main() {
//     auto [ctx, cancel] = ctx::with_signals(ctx::background(), {SIGINT, SIGTERM});
//     serve(ctx);   // returns once ctx is done; ctx.cause() tells which signal it was
//   }
//
// While such a context lives, a signal of its list does not do what it otherwise does: it cancels the context.
// It does so once. From that moment on it is as if the list had not been: a second Ctrl-C kills a program that
// hangs while shutting down.

#include <ctx/context.hpp>
#include <ctx/detail/export.hpp>

#include <csignal>  // the names of signals
#include <initializer_list>
#include <source_location>
#include <system_error>

namespace ctx {

/// The cause of a context that a signal ended. Its `code()` is `errc::canceled`, like that of the cause of any
/// context that was canceled without one: who only asks whether work was canceled need not know of signals.
/// Its `what()` names the signal: `received SIGINT: context canceled`.
class CTX_API signal_error : public std::system_error {
 public:
  explicit signal_error(int number);
  signal_error(const signal_error&) noexcept = default;
  signal_error& operator=(const signal_error&) noexcept = default;
  ~signal_error() override;

  /// The signal: `SIGINT`, say. A shell would report `128 + number()`.
  [[nodiscard]] int number() const noexcept { return number_; }

 private:
  int number_;
};

/// A child of `parent` that also ends, with `errc::canceled` and a `signal_error` as its cause, when the process
/// receives one of these signals; the first counts. Order and duplicates in the list do not matter.
///
/// From here to the end of the context, the dispositions of these signals are the library's. They are put back
/// exactly as they were, even where that was to ignore the signal:
/// - that of the signal which comes, at once, in its handler. No thread has to be scheduled, or free, for it;
/// - those of the others before the context is done, whatever ends it: the signal, a cancel, the end of the
///   parent. Also where all its handles are gone.
///
/// A signal ends all contexts that wait for it. Where there are several, its disposition is put back, without the
/// signal, when the last of them ends, in whatever order they do, and to what it was before the first. What
/// somebody else sets in the meantime is left alone. A signal that comes while the last context is just ending
/// for another reason either counts as one that came before the end, and does nothing more, or does what it
/// always did.
///
/// No thread has a signal blocked for this, and it does not matter which thread receives it. System calls that it
/// interrupts are restarted where they can be (`SA_RESTART`). Like any handler, it does not outlast `exec`: a
/// program started meanwhile finds the signal at its default, even where it was to be ignored.
///
/// When a signal ends the context, the `std::stop_callback`s on it run on a thread of the library's own, which
/// the first call starts. It serves all signals of the process, and has them all blocked: there, be short. It
/// holds up no exit. In the child of a fork, these contexts go on waiting for signals, each process for its own;
/// Ctrl-C in a terminal reaches both.
///
/// Throws `std::system_error` with `std::errc::invalid_argument` for a number that is no signal, or one that
/// can't be caught (`SIGKILL`, `SIGSTOP`); with another code where the thread can't be started; with
/// `std::errc::not_supported` on systems without these signals. Throws `std::invalid_argument` for an empty list,
/// and `std::bad_alloc`. Then nothing has changed. Where `parent` is done, no disposition is touched.
[[nodiscard]] CTX_API cancel_scope with_signals(const context& parent, std::initializer_list<int> signals,
                                                std::source_location where = std::source_location::current());

}  // namespace ctx
