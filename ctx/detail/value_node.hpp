#pragma once

// The nodes of the immutable linked list in which values live. They are templates, so they are
// made by the code that stores a value and destroyed through their virtual destructor.

#include <ctx/detail/node.hpp>
#include <ctx/key.hpp>

#include <source_location>
#include <string_view>
#include <typeinfo>
#include <utility>

namespace ctx::detail {

/// What all values have in common: they pass every question but that for a value to their parent.
class CTX_API value_node : public node {
 public:
  cancelable* nearest_cancelable() const noexcept final;

  /// The value, where it is stored under the key object at `key`; else null.
  const void* value_under(const void* key) const noexcept { return key == key_ ? value_ : nullptr; }

  /// The value, where it is stored under a key of that type that equals the one at `key`; else null.
  virtual const void* value_under(const std::type_info& type, const void* key) const noexcept;

 protected:
  /// `key` is null for a value that is not found by identity. At `value` it is going to be.
  value_node(node* parent, const completion* nearest, const void* key, const void* value) noexcept
      : node{parent, 1, true}, key_{key}, value_{value}, nearest_{nearest} {}
  const void* identity() const noexcept { return key_; }
  static void describe_value(std::string& out, std::string_view key);

 private:
  const void* const key_;    // borrows: keys outlive the contexts that use them
  const void* const value_;  // borrows: in the derived class
  const completion* const nearest_;  // borrows: an ancestor, which outlives its descendants
};

/// A value under a `ctx::key`, found by the identity of the key.
template <class T>
class keyed_value final : public value_node {
 public:
  template <class V>
  keyed_value(node* parent, const completion* nearest, const key<T>& key, V&& value)
      : value_node{parent, nearest, &key, std::addressof(value_)},
        value_(std::forward<V>(value)) {}

  void describe(std::string& out) const override {
    describe_value(out, static_cast<const key<T>*>(identity())->name());
  }

 private:
  const T value_;
};

/// The name of a type as its source spells it, for people.
template <class T>
constexpr std::string_view type_name() noexcept {
  // The name of this very function ends in "[with T = name; …]" or "[T = name]".
  std::string_view name = std::source_location::current().function_name();
  if (const auto start = name.find("T = "); start != name.npos) name.remove_prefix(start + 4);
  return name.substr(0, name.find_first_of(";]"));
}

/// A value under a key of the user's own type, found by equality.
template <class Key>
class matched_value final : public value_node {
 public:
  using value_type = typename Key::context_value;

  template <class V>
  matched_value(node* parent, const completion* nearest, Key key, V&& value)
      : value_node{parent, nearest, nullptr, std::addressof(value_)},
        key_(std::move(key)),
        value_(std::forward<V>(value)) {}

  const void* value_under(const std::type_info& type, const void* key) const noexcept override {
    return type == typeid(Key) && *static_cast<const Key*>(key) == key_ ? std::addressof(value_)
                                                                      : nullptr;
  }
  void describe(std::string& out) const override { describe_value(out, type_name<Key>()); }

 private:
  const Key key_;
  const value_type value_;
};

}  // namespace ctx::detail
