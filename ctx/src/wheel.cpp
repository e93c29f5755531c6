#include <ctx/src/wheel.hpp>

#include <utility>

namespace ctx::detail {

wheel_entry* wheel::expire(tick now) noexcept {
  while (!empty()) {
    const unsigned first = first_occupied();
    const tick earliest = slots_[first].earliest;
    if (earliest > now) return nullptr;
    if (first < slots_a_level) {
      wheel_entry* const entry = slots_[first].first;
      disarm(*entry);
      return entry;
    }
    // Not to `now`, where what is due would be in no order, nor to the start of the slot's span,
    // from where the entry that is due would have further to fall. Other slots stay where they are:
    // they are on this level or above, and the digits that tell them from `elapsed_` do not change.
    wheel_entry* entry = take_all(first);
    elapsed_ = earliest;
    while (entry != nullptr) place(*std::exchange(entry, entry->next_));
  }
  return nullptr;
}

void wheel::rewind(tick now) noexcept {
  wheel_entry* all = nullptr;
  while (!empty()) {
    wheel_entry* entry = take_all(first_occupied());
    while (entry != nullptr) {
      wheel_entry* const next = std::exchange(entry->next_, all);
      all = std::exchange(entry, next);
    }
  }
  elapsed_ = now;
  while (all != nullptr) place(*std::exchange(all, all->next_));
}

wheel_entry* wheel::take_all(unsigned number) noexcept {
  mark_empty(number);
  return std::exchange(slots_[number].first, nullptr);
}

bool wheel::check() const noexcept {
  if (elapsed_ < 0 || occupied_levels_ >> levels != 0) return false;
  for (unsigned level = 0; level < levels; ++level) {
    const bool occupied = (occupied_levels_ >> level & 1) != 0;
    if (occupied != (occupied_slots_[level] != 0)) return false;
  }
  for (unsigned number = 0; number < levels * slots_a_level; ++number) {
    const slot& home = slots_[number];
    const std::uint64_t occupied_slots = occupied_slots_[number / slots_a_level];
    const bool occupied = (occupied_slots >> number % slots_a_level & 1) != 0;
    if (occupied != (home.first != nullptr)) return false;
    if (!occupied) continue;
    // invariant: `earliest` and every deadline belong in this very slot. That above level 0 nothing
    // is in or before the slot of `elapsed_` follows, since slot_of() names no such slot.
    if (slot_of(home.earliest) != number) return false;
    // A list that bites its tail ends here as well: some entry has two before it, and points back
    // to one.
    wheel_entry* const* prev = &home.first;
    for (const wheel_entry* entry = home.first; entry != nullptr; entry = entry->next_) {
      if (entry->prev_ != prev || slot_of(entry->due_) != number) return false;
      if (entry->due_ < home.earliest) return false;
      prev = &entry->next_;
    }
  }
  return true;
}

}  // namespace ctx::detail
