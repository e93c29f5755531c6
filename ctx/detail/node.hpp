#pragma once

// What a `ctx::context` points to, as far as its inlined members read it: a node of the tree of
// derivations, and the word that says whether a cancelable node is done. The rest of the tree is
// in ctx/src/tree.hpp.

#include <ctx/clock.hpp>
#include <ctx/detail/export.hpp>
#include <ctx/error.hpp>

#include <atomic>
#include <cstdint>
#include <stop_token>
#include <string>

namespace ctx::detail {

class cancelable;

/// What a node was derived by.
enum class factory : unsigned char {
  todo,
  with_value,          // under a ctx::key
  with_matched_value,  // under a key type of the user's own
  without_cancel,
  with_cancel,
  with_deadline,
  with_timeout,
  with_stop_token,
  merge
};

/// One derivation. A node keeps its parent alive, never the reverse, so that a long-lived parent
/// does not grow. Everything in it but the count of references is immutable after construction;
/// what changes in a cancelable node is in the classes below.
class CTX_API node {
 public:
  node(const node&) = delete;
  node& operator=(const node&) = delete;

  /// Adds a reference. The caller has one already, so nothing has to be ordered.
  void retain() noexcept {
    // order: relaxed suffices; the reference that the caller holds keeps the count from zero.
    references_.fetch_add(1, std::memory_order_relaxed);
  }

  /// Adds a reference for somebody who has none, unless the last one is gone already.
  bool retain_if_alive() noexcept;

  /// Drops a reference; with the last one destroys the node, lets go of its parents, and so on
  /// upwards: in a loop, so that the depth of a tree is not limited by the stack.
  static void release(node* last) noexcept;

  node* parent() const noexcept { return parent_; }

  /// The parent that a merge has besides `parent()`. Owned like it.
  virtual node* second_parent() const noexcept { return nullptr; }

  factory made_by() const noexcept { return made_by_; }

  /// The address of what the value in this node is found by: its ctx::key, or the type_info of its key's
  /// type. Null where there is no value, so that a look-up needs no other question.
  const void* found_by() const noexcept { return found_by_; }

  /// The nearest node at or above this one that can be canceled, null where there is none.
  virtual cancelable* nearest_cancelable() const noexcept = 0;

  /// The deadline that governs this node, where it knows one.
  enum class deadline_source : unsigned char { here, none, parent };
  virtual deadline_source deadline(clock::time_point& at) const noexcept;

  /// Appends the segment of `to_string` for this derivation.
  virtual void describe(std::string& out) const;

 protected:
  /// Born with `references` references. Whoever makes it adds the reference to `parent` that it owns
  /// once its construction can't fail any more.
  node(node* parent, factory made_by, std::uint32_t references, const void* found_by = nullptr) noexcept
      : parent_{parent}, found_by_{found_by}, references_{references}, made_by_{made_by} {}
  virtual ~node() = default;

  /// Takes the node out of everything that knows it without holding a reference: the last
  /// reference is gone, and it is about to be destroyed.
  virtual void detach() noexcept {}

  /// Appends the name of the factory.
  void describe_factory(std::string& out) const;

 private:
  node* parent_;                // owns: one reference; null for what derives from the background
  const void* const found_by_;  // borrows: keys outlive the contexts that use them
  std::atomic<std::uint32_t> references_;
  const factory made_by_;
};

/// A node that can be done, in a form that polling can read without a lock.
///
/// A context ends in two steps. First it is *claimed*, with the whole tree below it and before any
/// code of users runs: from then on it is decided who ended it. Then it is *announced*: the stop
/// sources whose tokens users hold are stopped, top down, which runs their callbacks. A context is
/// done once it is announced, so that `done()` can never disagree with a token.
///
/// A claimed context refers to its *herald*: the context whose announcement is its own. That is
/// itself where somebody has its token; else the nearest claimed ancestor of whom that is true; and
/// where there is none, the origin: the context at which the cancelation began.
class CTX_API alignas(8) completion : public node {
 public:
  /// One load while live.
  bool done() const noexcept {
    // order: acquire pairs with the release in unlock(): whoever sees the end sees who caused it.
    const word state = state_.load(std::memory_order_acquire);
    const completion* herald = herald_of(state);
    if (herald == nullptr) [[likely]]
      return false;
    return (state & has_token) != 0 ? token_source_.stop_requested() : herald == this || herald->announced();
  }

  /// Why it is done. Requires that done() was true.
  errc error() const noexcept {
    // order: relaxed suffices; whoever saw that it is done sees this.
    return static_cast<errc>(error_.load(std::memory_order_relaxed) & ~cause_is_set);
  }

 protected:
  using word = std::uintptr_t;

  // The state: the address of the herald, null while live, and three flags in its low bits.
  static constexpr word busy = 1;          // one thread holds the lock of this node
  static constexpr word has_token = 2;     // token_source_ has a state: immutable from then on
  static constexpr word has_children = 4;  // the same for cancelable::children_source_
  static constexpr word flags = busy | has_token | has_children;

  using node::node;

  static const completion* herald_of(word state) noexcept {
    return reinterpret_cast<const completion*>(state & ~flags);
  }

  // requires this to be claimed
  bool announced() const noexcept {
    // order: as in done().
    const word state = state_.load(std::memory_order_acquire);
    return (state & has_token) == 0 || token_source_.stop_requested();
  }

  // In front, where the node leaves room for them.
  static constexpr unsigned char cause_is_set = 0x80;
  std::atomic<unsigned char> error_{0};  // once claimed an errc; and of an origin, whether its cause is there for good
  unsigned char registered_ = 0;         // guarded by `busy`; with whom: see cancelable
  bool has_waiters_ = false;             // guarded by `busy`; immutable once claimed

  std::atomic<word> state_{0};                       // written only by the holder of `busy`
  std::stop_source token_source_{std::nostopstate};  // guarded by `busy` until has_token is set
};

static_assert(alignof(completion) > 7, "the low three bits of a completion's address hold flags");

}  // namespace ctx::detail
