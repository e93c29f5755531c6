#pragma once

// The tree: nodes that can be canceled, and how an end travels from one to all below it.
//
// The given shape is `std::stop_source` for parents and `std::stop_callback` for children. Built
// directly from those, ending a parent runs the child's callback, which ends the child, which runs
// its child's callback, and so on: a deep tree overflows the stack, and in between run callbacks of
// users, which may cancel other parts of the same tree, in this thread or another, while half of it
// has not heard yet. So a node here has two stop sources, each made when it is first needed:
//
//   children_source_  stopped by the library alone; only the library's callbacks are on it
//   token_source_     behind context::stop_token(); users' callbacks are on it
//
// and one operation, on the thread that ends a context, the origin, takes these steps:
//
//   1. Claim. The origin's state is set, its error with it (its cause and place are written before). Stopping
//      its children_source_ calls child after child, which each claim themselves for the origin and,
//      where they have children of their own or somebody to tell, enter the operation's list. The
//      list is worked off until nothing is left to sweep. No user code runs, nothing blocks.
//   2. Announce. Threads that wait on what is claimed are woken. Then the token_source_ of each claimed
//      node that has one is stopped, a parent's before its children's; users' callbacks run.
//   3. Help. A child that was claimed already belongs to another operation, on another thread or
//      further up on this one. All below it must be done when this operation returns, so what the
//      other has left to announce is announced here, and what that one ran into in turn.
//   4. Unlink. What was claimed takes itself off its remaining parents.
//
// Why nobody waits for user code. Say thread A ends C and runs a callback on it, while D, below C,
// still waits for its announcement; thread B, or that very callback, ends P, above C:
//
//   A: claims C and D | announces C: a callback runs …                          | announces D: done already
//   B:                |     claims P, finds C claimed by A's operation, announces D | returns: all is done
//
// C can't escape B's sweep: it takes itself off P in A's step 4, when D has been announced. If A is
// still in its step 1 when B comes to help, B waits for the rest of that step: it takes no lock that
// B holds, runs no user code, and so ends. Announcing twice is harmless: `request_stop` stops once.
//
// Losing the race for a single context is alike: whoever finds it claimed announces it, or its herald,
// and so can promise that it is done.

#include <ctx/detail/node.hpp>
#include <ctx/error.hpp>
#include <ctx/src/wheel.hpp>

#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <source_location>
#include <stop_token>
#include <utility>

namespace ctx::detail {

struct operation;
struct help_chain;
class timer;

/// A node's place in the lists of an operation.
struct list_entry {
  cancelable* child;                 // owns: one reference
  list_entry* next = nullptr;        // in the order in which nodes were claimed
  list_entry* next_heard = nullptr;  // the same, of those with somebody to tell
};

/// The storage of a child's registration on a parent. Once the registration has fired and was
/// destroyed, the list entry of its child takes its place, so that canceling needs no memory.
template <class OnEnd>
union link {
  link() noexcept {}
  ~link() {}
  std::stop_callback<OnEnd> registration;
  list_entry entry;
};

/// The small parts of a cancelable, which fit into the room that a node leaves at its end.
class flagged_node : public node {
 protected:
  using node::node;

  unsigned char registered_ = 0;        // guarded by the lock; with whom: see cancelable
  bool has_waiters_ = false;            // guarded by the lock; immutable once claimed
  std::atomic<bool> has_cause_{false};  // of an origin: whether its cause is there for good
};

/// A node that can be canceled.
class cancelable : public flagged_node, public completion {
 public:
  /// A child of `parent`, born with two references: its context's and its cancel_func's.
  cancelable(node* parent, factory made_by, std::source_location where, std::exception_ptr deadline_cause = {}) noexcept
      : flagged_node{parent, made_by, 2}, cause_{std::move(deadline_cause)}, where_{where} {}

  cancelable* nearest_cancelable() const noexcept final { return const_cast<cancelable*>(this); }

  /// Enters the node into the tree: registers it with its parents, or ends it where they, or its own
  /// deadline, ended already. Called once, by the factory, at the instant `now`.
  void enter(clock::time_point now) noexcept;

  /// Makes sure that children can register here; may throw `std::bad_alloc`.
  void expect_children();

  /// Ends the node and all below it: see the steps above. A deadline that passed (`where` null, no
  /// cause) keeps the cause and place it was given. Returns whether this call did it; the node is done
  /// either way. The caller holds a reference, which a callback may drop.
  bool end(errc error, std::exception_ptr cause, const std::source_location* where) noexcept;

  /// The same for a thread of the library's own, which goes with a fork, and whose work another one takes up in the
  /// child: no fork comes before all of the tree is claimed, and what was then left to tell is told.
  void end_amid_forks(errc error, std::exception_ptr cause) noexcept;

  std::stop_token stop_token();
  std::exception_ptr cause() const noexcept;

  /// Asks for wake() when the node is done. False where it was claimed already.
  bool expect_waiters() noexcept;

  /// Blocks until the node is done or `until` passed; wakes those who do. Virtual, so that both use the
  /// parking lot of the copy of the library that made the node.
  virtual bool wait_until(clock::time_point until);
  virtual void wake() const noexcept;

  /// In the child of a fork: the thread that held the lock is gone.
  void break_lock() noexcept;

  /// In the child of a fork: the thread that was ending this node, or one above it, may be gone, and its stack,
  /// where the operation is, be used again. Keeps the operation, as far as it came, so that what is left to announce
  /// can be; where memory is short, forgets it.
  void adopt_operation() noexcept;

 protected:
  ~cancelable() override = default;
  void detach() noexcept override;

  // The registrations that a node can have, as bits of registered_.
  static constexpr unsigned char none = 0;
  static constexpr unsigned char on_first = 1;   // first_
  static constexpr unsigned char on_second = 2;  // merged::second_
  static constexpr unsigned char on_token = 4;   // driven::on_stop_

  // Whether anything else can end it, besides itself and one parent.
  bool has_two_causes() const noexcept { return made_by() == factory::merge || made_by() == factory::with_stop_token; }

  // What the kinds of nodes do in their own way.
  virtual unsigned char register_with_parents() noexcept;
  virtual void unlink(unsigned char registered) noexcept;
  virtual void arm(clock::time_point) noexcept {}  // requires that nobody else knows the node yet
  virtual void disarm() noexcept {}                // requires the lock held

  // The tiny lock of a node: held for a few instructions, never while user code runs. Locks nest
  // from a node to one of its ancestors, and to the timer's, which is innermost.
  word lock() noexcept;
  void unlock(word state) noexcept;

  template <class OnEnd>
  unsigned char register_with(cancelable& parent, link<OnEnd>& link, OnEnd on_end, unsigned char bit) noexcept;
  template <class OnEnd>
  void parent_ended(cancelable& parent, link<OnEnd>& link, unsigned char bit) noexcept;

  // What end() does: step 1, which runs no code of users, and returns false where the node was claimed already; and the
  // other steps.
  bool claim_all(operation& work, errc error, std::exception_ptr cause, const std::source_location* where) noexcept;
  void announce_all(operation& work) noexcept;
  void ensure_done() noexcept;

  // Claiming sets all but the state, and returns what that is to be.
  static bool claimed(word state) noexcept { return herald_of(state) != nullptr; }
  static word claim(word state, const completion* herald, word why) noexcept {
    return (state & ~has_children) | reinterpret_cast<word>(herald) | why;  // the bit of which `why` takes over
  }
  word claim_for(cancelable& parent, word state) noexcept;
  word claim_as_origin(errc error, operation* work, word state) noexcept;
  cancelable& origin() const noexcept;

 private:
  friend operation;
  friend void help(cancelable& origin, const help_chain* before) noexcept;

  struct on_parent_end {
    cancelable* child;
    void operator()() const noexcept;
  };

  void await_sweep() noexcept;
  cancelable* unvisited_conflict(const help_chain& visited) noexcept;
  void announce() noexcept;
  bool has_audience(word state) const noexcept { return (state & has_token) != 0 || has_waiters_; }
  unsigned char take_registrations() noexcept;
  std::exception_ptr make_cause() const;

  std::stop_source children_source_{std::nostopstate};  // guarded by the lock until has_children is set; may stay empty
  link<on_parent_end> first_;         // its registration while on_first is in registered_, else its list entry
  union {                             // guarded by the lock
    operation* operation_ = nullptr;  // of an origin: the operation while it runs, else null
    cancelable* origin_;              // of what else is claimed: borrows: its ancestor
  };
  std::exception_ptr cause_;    // guarded by the lock until has_cause_; before the end what the deadline gives
  std::source_location where_;  // of an origin: where it was ended; before: where it was derived
};

/// A node with a deadline of its own, kept on the process's timer.
class timed final : public cancelable, public wheel_entry {
 public:
  /// `due` governs; it is `own` unless it is an ancestor's.
  timed(node* parent, factory made_by, std::source_location where, clock::time_point due, bool own,
        std::exception_ptr cause) noexcept;

  /// When the deadline that governs passes.
  clock::time_point due() const noexcept { return clock::time_point{clock::duration{due_}}; }

  /// Whether that is its own, not an ancestor's.
  bool has_own_deadline() const noexcept { return own_; }

  deadline_source deadline(clock::time_point& at) const noexcept override;
  void describe(std::string& out) const override;

 private:
  friend timer;

  void arm(clock::time_point now) noexcept override;
  void disarm() noexcept override;

  const bool own_;
  unsigned char shard_ = 0;  // the timer's: where it is armed
};

/// The child of two parents.
class merged final : public cancelable {
 public:
  /// `second_nearest` is null where the second parent can't be canceled, or only with the first.
  merged(node* first, node* second, cancelable* second_nearest, std::source_location where,
         std::optional<clock::time_point> deadline) noexcept;

  deadline_source deadline(clock::time_point& at) const noexcept override;

 private:
  struct on_second_end {
    merged* child;
    void operator()() const noexcept;
  };

  node* second_parent() const noexcept override { return second_parent_; }
  unsigned char register_with_parents() noexcept override;
  void unlink(unsigned char registered) noexcept override;

  const std::optional<clock::time_point> deadline_;
  node* const second_parent_;         // owns: one reference; null for the background
  cancelable* const second_nearest_;  // borrows: second_parent_ or an ancestor of it
  link<on_second_end> second_;
};

/// A node that a foreign stop token ends, besides its parent.
class driven final : public cancelable {
 public:
  driven(node* parent, std::stop_token token, std::source_location where) noexcept;
  ~driven() override {}

 private:
  struct on_stop {
    driven* child;
    void operator()() const noexcept { child->token_stopped(); }
  };
  void token_stopped() noexcept;

  unsigned char register_with_parents() noexcept override;
  void unlink(unsigned char registered) noexcept override;

  std::stop_token token_;  // until on_stop_ takes it over
  union {
    std::stop_callback<on_stop> on_stop_;
  };
};

/// Announces what the operation that ended `origin` has left to announce, if it still runs.
void help(cancelable& origin, const help_chain* before = nullptr) noexcept;

}  // namespace ctx::detail
