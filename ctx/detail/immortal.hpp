#pragma once

#include <type_traits>

namespace ctx::detail {

/// An object in static storage that is there before any other is made and never destroyed: contexts in static and
/// thread-local storage may need it to the very end. To be declared `constinit`; what has a mutex, which some systems
/// can't make without code, `static` in a function, which costs nothing where no code is needed.
template <class T>
union immortal {
  constexpr immortal() noexcept : value{} {}
  ~immortal() = default;
  ~immortal()
    requires(!std::is_trivially_destructible_v<T>)
  {}
  T value;
};

}  // namespace ctx::detail
