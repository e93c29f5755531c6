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

}  // namespace ctx::detail
