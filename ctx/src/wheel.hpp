#pragma once

// A hierarchical timing wheel, after Varghese and Lauck: integer ticks in, expired entries out. No
// thread, clock, lock or allocation, and nothing that throws. The timer drives it and guards it.
//
// The idea. A slot says where an entry is kept, not when it fires: entries keep their deadline to
// the nanosecond. The wheel remembers an instant, `elapsed_`. An entry is on the level of the
// highest six-bit digit in which its deadline differs from `elapsed_`, in the slot that this digit
// of the deadline numbers:
//
//   level   a slot spans   a level reaches       level   a slot spans   a level reaches
//     0       1 ns           64 ns                 6       68.7 s         73.3 min
//     1       64 ns          4.1 us                7       73.3 min       78.2 h
//     2       4.1 us         262 us                8       78.2 h         209 d
//     3       262 us         16.8 ms               9       209 d          36.5 y
//     4       16.8 ms        1.07 s               10       36.5 y         292 y, in 8 slots, where
//     5       1.07 s         68.7 s                                       63 bits end
//
// Digits are compared, not distances, as in a radix heap. So nothing wraps around, no deadline is
// out of reach, and the first occupied slot of the lowest occupied level is always the earliest
// span of time with anything in it. Two instructions find it: one bitmap says which levels are
// occupied, and one a level says which of its slots. Time in which nothing is due, an hour or a
// century, is never visited.
//
// Each slot has a lower bound of its deadlines, `earliest`. Once that is reached, `elapsed_` moves
// there and the entries of the slot cascade: they are placed anew, and as they now share with
// `elapsed_` all digits down to that of the slot, each drops by at least one level. That bounds
// the cascades: at most one a level, so at most ten between arm and expiry. An entry that gave its
// slot the bound drops to level 0 in one; one that is disarmed in time, as most are, mostly has
// none.
//
// Invariants, which the tests verify:
// - An entry is where its deadline and `elapsed_` place it: above level 0, after `elapsed_` itself.
// - A slot of level 0 holds equal deadlines, except that of `elapsed_` itself, where all that was
//   armed late is kept.
// - A bit is set if and only if its slot, or level, is occupied. Back pointers lead to their entry.
// - `earliest` is in the span of its slot, and no deadline there is before it. It is exact until
//   its entry is disarmed. To search for the next one would cost more than the early wake-up that
//   we risk, and disarms are many.
// `elapsed_` moves only while no lower level is occupied, and only to instants that were reached.
//
// Costs. arm, disarm and next take O(1), without a loop. expire takes amortised O(1), ten moves an
// entry at worst; but one call may move a whole slot, at 40 to 160 ns an entry, which the cache
// decides: 40 to 160 ms if a million share it. 24 bytes an entry, 11 KiB a wheel.
//
// Rejected:
// - A binary heap, as in Go, libuv and Asio: O(log n), on cold cache lines, to disarm what is
//   mostly disarmed; and an array that grows, so that arming can fail.
// - One tick a slot, and a wheel that ticks: it wakes an idle process or rounds deadlines to its
//   tick, and what is beyond its reach needs a list that every turn of the wheel has to sift.
// - A sorted map: O(log n), wider entries, and rotations that touch the cache lines of others.

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdint>
#include <limits>

namespace ctx::detail {

/// Nanoseconds since some epoch, not negative.
using tick = std::int64_t;

/// Later than any instant.
inline constexpr tick never = std::numeric_limits<tick>::max();

/// What a deadline carries to be kept in a wheel. Its life must not end while it is armed.
struct wheel_entry {
  constexpr wheel_entry() noexcept = default;
  wheel_entry(const wheel_entry&) = delete;
  wheel_entry& operator=(const wheel_entry&) = delete;

  bool armed() const noexcept { return prev_ != nullptr; }

  wheel_entry* next_ = nullptr;   // borrows: outlived by its own time in the wheel
  wheel_entry** prev_ = nullptr;  // borrows: what points here, in a slot or in another entry
  tick due_ = 0;
};

/// Keeps armed entries by deadline. Not synchronised. All zeros at first, and trivially
/// destructible, so that a static wheel is there before and after every other object.
class wheel {
 public:
  constexpr wheel() noexcept = default;
  wheel(const wheel&) = delete;
  wheel& operator=(const wheel&) = delete;

  bool empty() const noexcept { return occupied_levels_ == 0; }

  /// The next instant at which anything can fall due, or `never` if the wheel is empty. Not later
  /// than the earliest deadline, and earlier only after disarms, each of which costs at most one
  /// call of expire() that comes back with nothing; or where both have passed.
  tick next() const noexcept { return empty() ? never : slots_[first_occupied()].earliest; }

  /// Calls `f(entry)` for every entry, in no particular order; `f` must not arm or disarm any.
  template <class F>
  void for_each(F f) {
    for (slot& each : slots_) {
      const auto number = static_cast<unsigned>(&each - slots_);
      if ((occupied_slots_[number / slots_a_level] >> number % slots_a_level & 1U) == 0) continue;
      for (wheel_entry* entry = each.first; entry != nullptr; entry = entry->next_) f(*entry);
    }
  }

  /// Keeps an entry, which must not be armed, until `due`. If that has passed already, the entry
  /// comes out before all that is due from now on, but in no order with what is late as well.
  void arm(wheel_entry& entry, tick due) noexcept {
    assert(!entry.armed());
    entry.due_ = due;
    place(entry);
  }

  /// Takes an entry out; does nothing if it is not armed.
  void disarm(wheel_entry& entry) noexcept;

  /// Takes out and returns an entry that is due at or before `now`, or null if there is none.
  /// Successive calls return them in the order of their deadlines, equal ones in any order. If
  /// `now` is before that of an earlier call, what was due by then may come out as well.
  wheel_entry* expire(tick now) noexcept;

  /// Sets the wheel to an earlier or later instant and places all entries anew: O(n). For when a
  /// clock that ran ahead is gone. On an empty wheel it takes no time, and spares the entries that
  /// follow the cascades through all the levels in which a wheel left behind differs from now.
  void rewind(tick now) noexcept;

 private:
  friend bool invariants_hold(const wheel& all) noexcept;  // of the tests

  static constexpr unsigned digit_bits = 6;
  static constexpr unsigned slots_a_level = 1U << digit_bits;
  static constexpr unsigned levels = 11;

  struct slot {
    wheel_entry* first;  // borrows: outlived by its own time in the wheel
    tick earliest;       // means nothing while the slot is empty, so that all zeros is a wheel
  };

  unsigned slot_of(tick due) const noexcept {
    const auto at = static_cast<std::uint64_t>(std::max(due, elapsed_));
    // Filled up in the lowest digit, so that what differs nowhere is on level 0, too.
    const auto differing = (at ^ static_cast<std::uint64_t>(elapsed_)) | (slots_a_level - 1);
    const auto level = (63U - static_cast<unsigned>(std::countl_zero(differing))) / digit_bits;
    return level * slots_a_level + static_cast<unsigned>(at >> level * digit_bits) % slots_a_level;
  }

  /// The slot of the earliest deadlines of a wheel that is not empty.
  unsigned first_occupied() const noexcept {
    const auto level = static_cast<unsigned>(std::countr_zero(occupied_levels_));
    const auto index = static_cast<unsigned>(std::countr_zero(occupied_slots_[level]));
    return level * slots_a_level + index;
  }

  void place(wheel_entry& entry) noexcept;
  void mark_empty(unsigned number) noexcept;
  wheel_entry* take_all(unsigned number) noexcept;

  tick elapsed_ = 0;
  std::uint64_t occupied_levels_ = 0;
  std::uint64_t occupied_slots_[levels] = {};
  slot slots_[levels * slots_a_level] = {};  // with their bounds, so that arming touches one line
};

inline void wheel::place(wheel_entry& entry) noexcept {
  const unsigned number = slot_of(entry.due_);
  const unsigned level = number / slots_a_level;
  slot& home = slots_[number];
  wheel_entry* const second = home.first;
  home.earliest = second != nullptr ? std::min(home.earliest, entry.due_) : entry.due_;
  entry.next_ = second;
  entry.prev_ = &home.first;
  if (second != nullptr) second->prev_ = &entry.next_;
  home.first = &entry;
  occupied_slots_[level] |= std::uint64_t{1} << number % slots_a_level;
  occupied_levels_ |= std::uint64_t{1} << level;
}

inline void wheel::mark_empty(unsigned number) noexcept {
  const unsigned level = number / slots_a_level;
  occupied_slots_[level] &= ~(std::uint64_t{1} << number % slots_a_level);
  if (occupied_slots_[level] == 0) occupied_levels_ &= ~(std::uint64_t{1} << level);
}

inline void wheel::disarm(wheel_entry& entry) noexcept {
  if (!entry.armed()) return;
  wheel_entry** const prev = entry.prev_;
  wheel_entry* const next = entry.next_;
  *prev = next;
  entry.prev_ = nullptr;
  if (next != nullptr) {
    next->prev_ = prev;
    return;
  }
  // It was the last of its slot; also the first, if what pointed to it is a slot. Which one follows
  // from the address, so entries need not carry it. As integers, since pointers into different
  // objects must not be subtracted; what is in front of the slots becomes a huge offset.
  const auto slots = reinterpret_cast<std::uintptr_t>(slots_);
  const auto offset = reinterpret_cast<std::uintptr_t>(prev) - slots;
  if (offset < sizeof slots_) mark_empty(static_cast<unsigned>(offset / sizeof(slot)));
}

}  // namespace ctx::detail
