#include "counting.hpp"

#include <cstdlib>
#include <new>

namespace bench {
namespace {

// Of the program itself, so an increment is one instruction: the times are those without it.
constinit thread_local allocations counted;

void* check(void* memory, std::size_t size) {
  if (memory == nullptr) throw std::bad_alloc{};
  ++counted.count;
  counted.bytes += size;
  return memory;
}

}  // namespace

allocations allocated() noexcept { return counted; }

}  // namespace bench

// All other forms of new and delete call one of these.

void* operator new(std::size_t size) { return bench::check(std::malloc(size), size); }

void* operator new(std::size_t size, std::align_val_t alignment) {
  const auto align = static_cast<std::size_t>(alignment);
  return bench::check(std::aligned_alloc(align, (size + align - 1) / align * align), size);
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
