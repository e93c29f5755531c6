#include <ctx/detail/saturate.hpp>
#include <ctx/detail/value_node.hpp>
#include <ctx/src/platform.hpp>
#include <ctx/src/timer.hpp>
#include <ctx/src/tree.hpp>
#include <ctx/src/waiting.hpp>

#include <algorithm>
#include <mutex>
#include <new>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace ctx::detail {

// Nodes

bool node::retain_if_alive() noexcept {
  std::uint32_t count = references_.load(std::memory_order_relaxed);
  while (count != 0) {
    // order: relaxed, as in retain(); what the node holds is read under its lock or the timer's.
    if (references_.compare_exchange_weak(count, count + 1, std::memory_order_relaxed)) return true;
  }
  return false;
}

void node::release(node* last) noexcept {
  // A dead merge has two parents to let go of. It goes on as its first parent's turn, and stays
  // behind, linked through parent_, until that whole line is done.
  node* dead_merges = nullptr;
  for (;;) {
    // order: release makes what this owner did visible to the one who drops the last reference, whose
    // acquire makes that precede the destruction.
    while (last != nullptr && last->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      last->detach();
      node* const parent = last->parent_;
      if (last->second_parent() != nullptr) {
        last->parent_ = dead_merges;
        dead_merges = last;
      } else {
        delete last;
      }
      last = parent;
    }
    if (dead_merges == nullptr) return;
    node* const merge = dead_merges;
    dead_merges = merge->parent_;
    last = merge->second_parent();
    delete merge;
  }
}

node::deadline_source node::deadline(clock::time_point&) const noexcept { return deadline_source::parent; }

void node::describe(std::string& out) const { describe_factory(out); }

void node::describe_factory(std::string& out) const {
  switch (made_by_) {
    case factory::todo:
      out += "todo";
      break;
    case factory::with_value:
    case factory::with_matched_value:
      out += "with_value";
      break;
    case factory::without_cancel:
      out += "without_cancel";
      break;
    case factory::with_cancel:
      out += "with_cancel";
      break;
    case factory::with_deadline:
      out += "with_deadline";
      break;
    case factory::with_timeout:
      out += "with_timeout";
      break;
    case factory::with_stop_token:
      out += "with_stop_token";
      break;
    case factory::merge:
      out += "merge";
      break;
  }
}

cancelable* value_node::nearest_cancelable() const noexcept { return nearest_; }

void value_node::describe_value(std::string& out, std::string_view key) const {
  describe_factory(out);
  out.append("(").append(key).append(")");
}

bool same_type(const std::type_info& a, const std::type_info& b) noexcept {
  // As the Itanium ABI mangles what is in an unnamed namespace, or in a function that is static.
  const std::string_view name = a.name();
  const bool is_local = name.find("_GLOBAL__N_") != name.npos || name.starts_with("ZL");
  return &a == &b || (!is_local && a == b);
}

// The operation that ends a context

/// Lives on the stack of the thread that ends `origin`. Only that thread touches it, except for
/// `swept` and `to_announce`, which are guarded by the origin's lock; once it is swept, all else stays as it is.
struct operation {
  explicit operation(cancelable& origin) noexcept : self{&origin}, claimed_last{&self} {}

  void add_claimed(list_entry& entry, bool has_audience) noexcept {
    claimed_last = claimed_last->next = &entry;
    if (has_audience) heard_last = heard_last->next_heard = &entry;
  }

  /// Whether a conflict with the operation at `other` is known.
  bool ran_into(const cancelable& other) const noexcept {
    const list_entry* each = conflicts;
    while (each != nullptr && &each->child->origin() != &other) each = each->next;
    return each != nullptr;
  }

  list_entry self;                  // of the origin, without a reference: its owner has one
  list_entry* claimed_last;         // self, then what was claimed and needs more than that
  list_entry* heard_last = &self;   // self, then those of them with somebody to tell
  list_entry* conflicts = nullptr;  // children that other operations had claimed before, one for each of these
  list_entry* to_announce = &self;
  bool swept = false;
  bool alone = false;            // nobody below, nobody to tell: then the rest is not used, but for
  unsigned char registered = 0;  // the origin's registrations
};

/// The origins of the operations that a call of help() has come to, the last first.
struct help_chain {
  cancelable* origin;
  const help_chain* before;

  bool contains(const cancelable& wanted) const noexcept {
    const help_chain* each = this;
    while (each != nullptr && each->origin != &wanted) each = each->before;
    return each != nullptr;
  }
};

/// Announces what the operation that ended `origin` has claimed, as far as it is not yet announced, and
/// what the operations have that it ran into. Several threads may do so at once: each announces the first
/// that is left, and only then takes it off the list.
void help(cancelable& origin, const help_chain* before) noexcept {
  origin.await_sweep();
  for (list_entry* announced = nullptr;;) {
    const auto state = origin.lock();
    operation* const running = origin.operation_;
    if (running != nullptr && announced != nullptr && running->to_announce == announced) {
      running->to_announce = announced->next_heard;
    }
    announced = running != nullptr ? running->to_announce : nullptr;
    cancelable* const target = announced != nullptr ? announced->child : nullptr;
    if (target != nullptr) target->retain();
    origin.unlock(state);
    if (target == nullptr) break;
    target->announce();
    node::release(target);
  }
  // Each operation once, however many ways lead to it: the chain only grows, until nothing on it leads any further, and
  // is then left as a whole. A search that forgot where it had been would take every way through a tangle of merges.
  const help_chain visited{&origin, before};
  for (const help_chain* each = &visited; each != nullptr; each = each->before) {
    cancelable* const next = each->origin->unvisited_conflict(visited);
    if (next == nullptr) continue;
    help(next->origin(), &visited);
    node::release(next);
    return;
  }
}

void cancelable::await_sweep() noexcept {
  for (;;) {
    const word state = lock();
    const bool swept = operation_ == nullptr || operation_->swept;
    unlock(state);
    if (swept) return;
    std::this_thread::yield();
  }
}

cancelable* cancelable::unvisited_conflict(const help_chain& visited) noexcept {
  const word state = lock();
  const list_entry* entry = operation_ != nullptr ? operation_->conflicts : nullptr;
  while (entry != nullptr && visited.contains(entry->child->origin())) entry = entry->next;
  cancelable* const found = entry != nullptr ? entry->child : nullptr;
  if (found != nullptr) found->retain();
  unlock(state);
  return found;
}

bool cancelable::end(errc error, std::exception_ptr cause, const std::source_location* where) noexcept {
  operation work{*this};
  if (!claim_all(work, error, std::move(cause), where)) {
    ensure_done();
    return false;
  }
  announce_all(work);
  return true;
}

void cancelable::end_amid_forks(errc error, std::exception_ptr cause) noexcept {
  operation work{*this};
  std::unique_lock lock{fork_mutex()};
  const bool did_it = claim_all(work, error, std::move(cause), nullptr);
  lock.unlock();
  if (did_it) {
    announce_all(work);
  } else {
    ensure_done();
    help(origin());  // in the child of a fork, the thread that ended it may be gone
  }
}

bool cancelable::claim_all(operation& work, errc error, std::exception_ptr cause,
                           const std::source_location* where) noexcept {
  // order: relaxed suffices; ensure_done() looks again.
  if (claimed(state_.load(std::memory_order_relaxed))) return false;
  word state = lock();
  if (claimed(state)) {
    unlock(state);
    return false;
  }
  work.alone = (state & has_children) == 0 && !has_audience(state);
  if (work.alone) work.registered = std::exchange(registered_, none);
  if (error == errc::canceled) std::swap(cause_, cause);  // what was in it goes at the return, unlocked
  if (where != nullptr) where_ = *where;
  state = claim_as_origin(error, work.alone ? nullptr : &work, state);
  unlock(state);
  if (work.alone) return true;

  for (list_entry* entry = &work.self; entry != nullptr; entry = entry->next) {
    entry->child->children_source_.request_stop();  // where it has none, does nothing
  }
  state = lock();
  work.swept = true;
  unlock(state);
  return true;
}

void cancelable::announce_all(operation& work) noexcept {
  if (work.alone) {
    unlink(work.registered);
    return;
  }
  retain();  // a callback may let go of every handle, that of the caller too
  // Those who wait are woken before any callback. They go as soon as what they wait on is announced.
  for (list_entry* entry = &work.self; entry != nullptr; entry = entry->next_heard) {
    if (entry->child->has_waiters_) entry->child->wake();
  }
  help(*this);

  const word state = lock();
  operation_ = nullptr;
  const unsigned char registered = std::exchange(registered_, none);
  unlock(state);

  for (list_entry* entry = work.self.next; entry != nullptr;) {
    cancelable* const child = entry->child;
    entry = entry->next;  // the entry goes with the child
    child->unlink(child->take_registrations());
    release(child);
  }
  for (list_entry* entry = work.conflicts; entry != nullptr;) {
    cancelable* const child = entry->child;
    entry = entry->next;
    release(child);
  }
  unlink(registered);
  release(this);
}

/// Runs in step 1 of the operation that ended `parent`, on its thread; or, where `parent` ended just
/// before this node registered, on the thread that is building it.
template <class OnEnd>
void cancelable::parent_ended(cancelable& parent, link<OnEnd>& link, unsigned char bit) noexcept {
  const word before = lock();
  const bool claiming = !claimed(before);
  const word state = claiming ? claim_for(parent, before) : before;
  if ((registered_ & bit) == 0) {
    // The node is still being built, and has nobody below it or waiting; or another thread is just
    // taking it off this parent, and waits in ~stop_callback for this callback to return.
    unlock(state);
    return;
  }
  cancelable& origin = parent.origin();
  const bool listed = claiming ? (before & has_children) != 0 || has_audience(before) || registered_ != bit
                               : &this->origin() != &origin && !origin.operation_->ran_into(this->origin());
  // Without a reference left, the node is about to be detached by the thread that dropped the last
  // one, and nobody is below it or waiting. It is left as it was, for that thread to take off its parents.
  if (listed && !retain_if_alive()) {
    unlock(before);
    return;
  }
  registered_ = static_cast<unsigned char>(registered_ & ~bit);
  // A callback that destroys its own registration never waits, and spares the stop state telling
  // another thread, which might wait, that it has returned.
  std::destroy_at(&link.registration);
  if (listed) {
    list_entry& entry = *std::construct_at(&link.entry, list_entry{this});
    operation& work = *origin.operation_;
    if (claiming) {
      work.add_claimed(entry, has_audience(state));
    } else {
      entry.next = std::exchange(work.conflicts, &entry);
    }
  }
  unlock(state);  // last: without a reference, the node may be gone from here on
}

void cancelable::on_parent_end::operator()() const noexcept {
  cancelable* const self = child;
  self->parent_ended(*self->parent()->nearest_cancelable(), self->first_, on_first);
}

cancelable::word cancelable::claim_for(cancelable& parent, word state) noexcept {
  // order: relaxed suffices; the caller has seen that the parent is claimed, and with it its origin_.
  const word above = parent.state_.load(std::memory_order_relaxed);
  const completion* const herald = (above & has_token) != 0 ? &parent : herald_of(above);
  origin_ = &parent.origin();
  disarm();
  return claim(state, herald, above & expired);
}

cancelable::word cancelable::claim_as_origin(errc error, operation* work, word state) noexcept {
  // order: relaxed suffices; the lock's release publishes it.
  has_cause_.store(cause_ != nullptr, std::memory_order_relaxed);
  operation_ = work;
  disarm();
  return claim(state, this, error == errc::deadline_exceeded ? expired : 0);
}

cancelable& cancelable::origin() const noexcept {
  // order: relaxed suffices; whoever asks has seen that this is claimed, and with it what it reads here.
  const word state = state_.load(std::memory_order_relaxed);
  const bool here = herald_of(state) == static_cast<const completion*>(this);
  return here ? const_cast<cancelable&>(*this) : *origin_;
}

void cancelable::announce() noexcept {
  // order: acquire, as in done().
  if ((state_.load(std::memory_order_acquire) & has_token) != 0) token_source_.request_stop();
}

void cancelable::ensure_done() noexcept {
  if (done()) return;
  retain();  // as in announce_all()
  origin().await_sweep();
  while (!done()) {
    // order: relaxed suffices; announce() looks again.
    const word state = state_.load(std::memory_order_relaxed);
    const completion& herald = (state & has_token) != 0 ? *this : *herald_of(state);
    const_cast<cancelable&>(static_cast<const cancelable&>(herald)).announce();
  }
  release(this);
}

// Entering the tree and leaving it

void cancelable::enter(clock::time_point now) noexcept {
  // First, so that whoever claims the node finds it armed; and not locked, as fork() holds the timer's
  // lock, and would leave this one locked in the child.
  arm(now);
  unsigned char registered = register_with_parents();
  if (registered == none && !has_two_causes()) return;
  const word state = lock();
  if (!claimed(state)) std::swap(registered_, registered);
  unlock(state);
  unlink(registered);
  // One parent is claimed and to be announced. If another one ends now it does not know this child, and
  // yet promises that all its children are done.
  if (claimed(state) && has_two_causes()) ensure_done();
}

template <class OnEnd>
unsigned char cancelable::register_with(cancelable& parent, link<OnEnd>& link, OnEnd on_end,
                                        unsigned char bit) noexcept {
  // order: acquire pairs with the release in unlock(): what claimed the parent is there, or its children_source_.
  if (claimed(parent.state_.load(std::memory_order_acquire))) {
    word state = lock();
    if (!claimed(state)) state = claim_for(parent, state);
    unlock(state);
    return none;
  }
  // Not claimed after expect_children() means that the source is there.
  ::new (static_cast<void*>(&link.registration)) std::stop_callback<OnEnd>{parent.children_source_.get_token(), on_end};
  return bit;
}

unsigned char cancelable::register_with_parents() noexcept {
  if (parent() == nullptr) return none;
  cancelable* const above = parent()->nearest_cancelable();
  return above != nullptr ? register_with(*above, first_, on_parent_end{this}, on_first) : none;
}

void cancelable::expect_children() {
  // order: relaxed suffices; register_with() looks again.
  const word seen = state_.load(std::memory_order_relaxed);
  if (claimed(seen) || (seen & has_children) != 0) return;
  std::stop_source made;
  word state = lock();
  if (!claimed(state) && (state & has_children) == 0) {
    children_source_ = std::move(made);
    state |= has_children;
  }
  unlock(state);
}

void cancelable::detach() noexcept {
  // A node with one parent that is claimed and not locked has left it, and the timer, for good. Either its own end took
  // it off, before its caller dropped the reference that it holds throughout. Or the parent's did: parent_ended() does
  // so before it unlocks, which is the last that it does to the node; or holds a reference; or leaves the node live.
  // order: acquire pairs with the release in unlock(): the node is destroyed after what that callback did to it.
  const word seen = state_.load(std::memory_order_acquire);
  if (claimed(seen) && (seen & busy) == 0 && !has_two_causes()) return;
  const word state = lock();
  const unsigned char registered = std::exchange(registered_, none);
  if (!claimed(state)) disarm();
  unlock(state);
  unlink(registered);
}

unsigned char cancelable::take_registrations() noexcept {
  const word state = lock();
  const unsigned char registered = std::exchange(registered_, none);
  unlock(state);
  return registered;
}

void cancelable::unlink(unsigned char registered) noexcept {
  if ((registered & on_first) != 0) std::destroy_at(&first_.registration);
}

cancelable::word cancelable::lock() noexcept {
  word state = state_.load(std::memory_order_relaxed);
  for (;;) {
    if ((state & busy) != 0) {
      std::this_thread::yield();
      state = state_.load(std::memory_order_relaxed);
      // order: acquire pairs with the release in unlock(): what the lock guards is seen as it was left.
    } else if (state_.compare_exchange_weak(state, state | busy, std::memory_order_acquire,
                                            std::memory_order_relaxed)) {
      return state;
    }
  }
}

void cancelable::unlock(word state) noexcept {
  // order: release pairs with the acquire in lock(), and in all that reads the state without it. A
  // plain store will do: nobody else writes while it is locked.
  state_.store(state, std::memory_order_release);
}

void cancelable::break_lock() noexcept {
  // order: relaxed suffices; there is one thread.
  const word state = state_.load(std::memory_order_relaxed);
  if ((state & busy) != 0) state_.store(state & ~busy, std::memory_order_relaxed);
}

void cancelable::adopt_operation() noexcept {
  // order: as in break_lock().
  if (!claimed(state_.load(std::memory_order_relaxed))) return;
  cancelable& from = origin();
  from.break_lock();
  if (from.operation_ == nullptr) return;
  auto* const adopted = new (std::nothrow) operation{*from.operation_};  // for good: nobody will finish it
  if (adopted != nullptr) {
    if (adopted->to_announce == &from.operation_->self) adopted->to_announce = &adopted->self;
    adopted->swept = true;  // or all who come to help would wait for ever
  }
  from.operation_ = adopted;
}

// Observing

std::stop_token cancelable::stop_token() {
  // order: acquire pairs with the release in unlock(): has_token means token_source_ is there.
  const word seen = state_.load(std::memory_order_acquire);
  if ((seen & has_token) != 0) return token_source_.get_token();

  // A context that is claimed and has no token of its own shares that of its herald, so that it is not
  // seen done before its token is stopped, or after.
  const auto shared = [](word state) -> const cancelable* {
    const auto* const herald = static_cast<const cancelable*>(herald_of(state));
    // order: acquire, as in done().
    return herald != nullptr && (herald->state_.load(std::memory_order_acquire) & has_token) != 0 ? herald : nullptr;
  };
  std::stop_source made{std::nostopstate};
  if (shared(seen) == nullptr) made = std::stop_source{};
  // Whose token it is going to be is decided with the lock held, so that it is equal at every call.
  word state = lock();
  const cancelable* herald = nullptr;
  if ((state & has_token) == 0) {
    herald = shared(state);
    if (herald == nullptr) {
      if (claimed(state)) made.request_stop();  // done already; there is no callback on it yet
      std::construct_at(&token_source_, std::move(made));
      state |= has_token;
    }
  }
  unlock(state);
  return (herald != nullptr ? *herald : *this).token_source_.get_token();
}

std::exception_ptr cancelable::cause() const noexcept {
  if (!done()) return nullptr;
  cancelable& from = origin();
  // order: acquire pairs with the release below: the cause is there, for good.
  if (from.has_cause_.load(std::memory_order_acquire)) return from.cause_;
  try {
    std::exception_ptr made = from.make_cause();
    const word state = from.lock();
    if (from.cause_ == nullptr) {
      std::swap(from.cause_, made);
      // order: release pairs with the acquire above.
      from.has_cause_.store(true, std::memory_order_release);
    }
    from.unlock(state);
    return from.cause_;
  } catch (...) {
    return std::current_exception();
  }
}

std::exception_ptr cancelable::make_cause() const {
  const std::string place = std::string{where_.file_name()} + ':' + std::to_string(where_.line());
  return std::make_exception_ptr(std::system_error{error(), context_category(), place});
}

bool cancelable::expect_waiters() noexcept {
  const word state = lock();
  const bool live = !claimed(state);
  if (live) has_waiters_ = true;
  unlock(state);
  return live;
}

bool cancelable::wait_until(clock::time_point until) { return detail::wait_until(this, until); }

void cancelable::wake() const noexcept { wake_waiters(*this); }

// Deadlines

namespace {

/// Appends a duration in seconds, cut to milliseconds: `4.998s`.
void append_seconds(std::string& out, clock::duration time) {
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
  const std::string fraction = std::to_string(milliseconds % 1000);
  out += std::to_string(milliseconds / 1000) + '.' + std::string(3 - fraction.size(), '0') + fraction + 's';
}

}  // namespace

timed::timed(node* parent, factory made_by, std::source_location where, clock::time_point due, bool own,
             std::exception_ptr cause) noexcept
    : cancelable{parent, made_by, where, std::move(cause)}, own_{own} {
  due_ = due.time_since_epoch().count();
}

node::deadline_source timed::deadline(clock::time_point& at) const noexcept {
  at = due();
  return deadline_source::here;
}

void timed::describe(std::string& out) const {
  describe_factory(out);
  out += '(';
  const auto left = subtract_saturate(due().time_since_epoch(), clock::now().time_since_epoch());
  append_seconds(out, std::max(left, clock::duration::zero()));
  out += ')';
}

void timed::arm(clock::time_point now) noexcept {
  if (own_ && due() > now) timer::instance().arm(*this, now);
}

void timed::disarm() noexcept {
  if (own_) timer::instance().disarm(*this);
}

// Merges

merged::merged(node* first, node* second, cancelable* second_nearest, std::source_location where,
               std::optional<clock::time_point> deadline) noexcept
    : cancelable{first, factory::merge, where},
      deadline_{deadline},
      second_parent_{second},
      second_nearest_{second_nearest} {}

node::deadline_source merged::deadline(clock::time_point& at) const noexcept {
  if (!deadline_) return deadline_source::none;
  at = *deadline_;
  return deadline_source::here;
}

unsigned char merged::register_with_parents() noexcept {
  const unsigned char first = cancelable::register_with_parents();
  const unsigned char second =
      second_nearest_ != nullptr ? register_with(*second_nearest_, second_, on_second_end{this}, on_second) : none;
  return static_cast<unsigned char>(first | second);
}

void merged::unlink(unsigned char registered) noexcept {
  cancelable::unlink(registered);
  if ((registered & on_second) != 0) std::destroy_at(&second_.registration);
}

void merged::on_second_end::operator()() const noexcept {
  merged* const self = child;
  self->parent_ended(*self->second_nearest_, self->second_, on_second);
}

// Foreign tokens

driven::driven(node* parent, std::stop_token token, std::source_location where) noexcept
    : cancelable{parent, factory::with_stop_token, where}, token_{std::move(token)} {}

unsigned char driven::register_with_parents() noexcept {
  const unsigned char first = cancelable::register_with_parents();
  ::new (static_cast<void*>(&on_stop_)) std::stop_callback<on_stop>{std::move(token_), on_stop{this}};
  return static_cast<unsigned char>(first | on_token);
}

void driven::unlink(unsigned char registered) noexcept {
  cancelable::unlink(registered);
  if ((registered & on_token) != 0) std::destroy_at(&on_stop_);
}

void driven::token_stopped() noexcept {
  word state = lock();
  if ((registered_ & on_token) == 0) {
    // Still being built: end it where it stands. Or just being unlinked, and then claimed or dying.
    if (!claimed(state)) state = claim_as_origin(errc::canceled, nullptr, state);
    unlock(state);
    return;
  }
  const bool alive = retain_if_alive();
  if (alive) registered_ = static_cast<unsigned char>(registered_ & ~on_token);
  unlock(state);
  if (!alive) return;  // the thread that dropped the last reference waits for this callback
  std::destroy_at(&on_stop_);
  end(errc::canceled, nullptr, nullptr);
  release(this);
}

}  // namespace ctx::detail
