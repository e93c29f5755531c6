#pragma once

// The handler of signals, and what it shares with the rest: see signal.cpp for what comes of them.
//
// In a handler, next to nothing is allowed: no lock, no memory. This one puts the earlier disposition back,
// notes in which order signals came, and posts a semaphore. There is one for all signals, on whatever
// thread it runs, and one record for each signal, with a state that says whose its disposition is:
//
//   released  not ours
//   taken     ours
//   changing  somebody is just setting it, and nobody else may: a lock. Who needs it yields until it is free, but
//             for the handler, which may have interrupted anything: it raises the signal again, and returns.
//             Who holds it has all signals blocked, so that it is never the handler's own thread.
//   late      put back just now: a handler that the system had chosen before may only now begin
//
// Two signals at nearly the same time, on two threads. The second must do what it always did, say, kill:
//
//   T1: handler: taken → changing |                                  | puts back, → late, posts |
//   T2:                           | handler: raises it, returns; again |                        | is killed
//
// If T2's handler was chosen before T1 put back, but begins later, it finds `late` and raises the signal
// as well: once, so that a handler of somebody else's that calls this one is not called for ever.
//
// A signal, and the release of its disposition, on two threads. Whoever moves the state on from `taken` puts back;
// the other waits for that, or has the signal do what it always did:
//
//   T1: handler: taken → changing, puts back, → late, posts |
//   T2:                                                     | release: `late`, nothing to put back
//
//   T1:                                              | handler: `late`, raises it; what it always did
//   T2: release: taken → changing, puts back, → late |
//
// Somebody else may set a disposition while it is ours. That is left alone; if our handler is called all the same,
// from another or as it was put back once more, it gives way again.

namespace ctx::detail {

constexpr int signal_limit = 129;  // numbers are less; no system has more

/// Prepares what the handler posts. Returns 0, or an error number.
int prepare_signals() noexcept;

/// Whether there is such a signal, and it can be caught.
bool can_be_caught(int number) noexcept;

/// Makes the disposition of a signal that can be caught ours. Requires that it is not ours, and all signals blocked.
void take_signal(int number) noexcept;

/// Puts back what it was before, unless the signal came. Then that has been done when this returns, too.
/// Requires all signals blocked.
void release_signal(int number) noexcept;

/// The first signal that came while its disposition was ours, and was not asked for yet; 0: none.
int next_signal() noexcept;

/// Blocks until a signal came since the last call.
void wait_for_signal() noexcept;

/// In the child of a fork: does what a handler would still have done, whose thread is gone. `ours` says
/// whether the disposition was ours. Requires all signals blocked.
void complete_handler(int number, bool ours) noexcept;

}  // namespace ctx::detail
