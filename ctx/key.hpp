#pragma once

#include <concepts>
#include <type_traits>

namespace ctx {

/// A key under which contexts carry a `T`.
///
/// A key has identity: two keys are equal only if they are the same object, whatever their names.
/// Declare each once, at namespace scope, in the module that owns it:
/// ```cpp
/// inline constexpr ctx::key<user> user_key{"user"};
/// ```
/// A key must outlive the contexts that hold a value under it. Where shared libraries with hidden
/// visibility use one key, export it from the library that owns it, as any variable they share.
template <class T>
class key {
 public:
  static_assert(std::is_object_v<T> && !std::is_const_v<T> && !std::is_volatile_v<T>,
                "ctx::key<T>: T is the type of the value: an object type, without const or volatile");
  using context_value = T;

  /// `name` is for people: `to_string` prints it. It is kept, not copied: give a string literal.
  explicit constexpr key(const char* name) noexcept : name_{name} {}
  key(const key&) = delete;
  key& operator=(const key&) = delete;

  /// The name it was given.
  constexpr const char* name() const noexcept { return name_; }

 private:
  const char* name_;
};

/// A type of one's own that serves as a key by its value: any class that can be compared for equality
/// and copied, and that names the type of its values as `context_value`. For example:
/// ```cpp
/// struct header {
///   using context_value = std::string;
///   std::string name;
///   bool operator==(const header&) const = default;
/// };
/// ```
/// Built-in types and strings are no keys: two modules that use the same number or text for
/// different things would read each other's values.
template <class K>
concept value_key = std::equality_comparable<K> && std::move_constructible<K> &&
                    requires { requires std::is_object_v<typename K::context_value>; };

namespace detail {

template <class T>
void as_key(const key<T>&);

/// Neither kind of key.
template <class K>
concept no_key = !value_key<K> && !requires(const K& k) { detail::as_key(k); };

}  // namespace detail

}  // namespace ctx
