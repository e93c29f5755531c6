#pragma once

// Counts what a thread asks of the allocator, by replacing `operator new`.

#include <cstddef>

namespace bench {

struct allocations {
  std::size_t count = 0;
  std::size_t bytes = 0;  // as asked for; the allocator's own overhead is not seen

  allocations& operator+=(const allocations& other) noexcept {
    count += other.count;
    bytes += other.bytes;
    return *this;
  }
  friend allocations operator-(const allocations& a, const allocations& b) noexcept {
    return {a.count - b.count, a.bytes - b.bytes};
  }
};

/// What the calling thread has allocated so far.
allocations allocated() noexcept;

}  // namespace bench
