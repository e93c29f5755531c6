#pragma once

// Has memory run out for a test. To be included in one source of a program, as it replaces operator new.

#include "sanitizer.hpp"

#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(CTX_TEST_TSAN) && defined(__clang__)
// That brings an operator new along.
#define CTX_TEST_OWN_NEW 0
#else
#define CTX_TEST_OWN_NEW 1

inline thread_local long fails_in = 0;  // so many allocations of this thread from now, one fails; zero: none does

inline void* allocate(std::size_t size) {
  const bool fails = fails_in > 0 && --fails_in == 0;
  void* const memory = fails ? nullptr : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc{};
  return memory;
}

void* operator new(std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif
