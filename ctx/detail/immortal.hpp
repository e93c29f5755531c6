#pragma once

namespace ctx::detail {

/// An object in static storage that is there before any other is made and never destroyed: contexts in static and
/// thread-local storage may need it to the very end. To be declared `constinit`.
template <class T>
union immortal {
  constexpr immortal() noexcept : value{} {}
  ~immortal() {}
  T value;
};

}  // namespace ctx::detail
