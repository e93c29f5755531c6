#pragma once

// The nodes of the immutable linked list in which values live, and the search in it. Both are
// templates: nodes are made by the code that stores a value and destroyed through their virtual
// destructor; the search is inlined, as all it does is to follow pointers.

#include <ctx/detail/node.hpp>
#include <ctx/key.hpp>

#include <memory>
#include <source_location>
#include <string_view>
#include <typeinfo>
#include <utility>

namespace ctx::detail {

/// What all values have in common: they pass every question but that for a value to their parent.
class CTX_API value_node : public node {
 public:
  cancelable* nearest_cancelable() const noexcept final;

 protected:
  value_node(node* parent, factory made_by, const completion* nearest, const void* found_by) noexcept
      : node{parent, made_by, 1, found_by}, nearest_{nearest} {}
  void describe_value(std::string& out, std::string_view key) const;

 private:
  const completion* const nearest_;  // borrows: an ancestor, which outlives its descendants
};

/// A value under a `ctx::key`, found by the identity of the key.
template <class T>
class keyed_value final : public value_node {
 public:
  template <class V>
  keyed_value(node* parent, const completion* nearest, const key<T>& key, V&& value)
      : value_node{parent, factory::with_value, nearest, &key}, value_(std::forward<V>(value)) {}

  /// The nearest value at or above `from` under that key, null where there is none.
  static const T* find(const node* from, const key<T>& key) noexcept {
    while (from != nullptr && from->found_by() != &key) from = from->parent();
    return from != nullptr ? std::addressof(static_cast<const keyed_value*>(from)->value_) : nullptr;
  }

  void describe(std::string& out) const override {
    describe_value(out, static_cast<const key<T>*>(found_by())->name());
  }

 private:
  const T value_;
};

/// A value under a key that is found by equality.
class CTX_API matched_node : public value_node {
 public:
  /// The value, where the key at `key` is of that type and equal to this one; else null.
  virtual const void* value_under(const std::type_info& type, const void* key) const noexcept = 0;

 protected:
  matched_node(node* parent, const completion* nearest, const std::type_info& type) noexcept
      : value_node{parent, factory::with_matched_value, nearest, &type} {}
};

/// Whether both are the same type, which each of two shared libraries may have a type_info of. That of a type which is
/// local to a source file is unique; its name is not.
CTX_API bool same_type(const std::type_info& a, const std::type_info& b) noexcept;

/// The name of a type as its source spells it, for people.
template <class T>
constexpr std::string_view type_name() noexcept {
  // The name of this very function ends in "[with T = name; …]" or "[T = name]".
  std::string_view name = std::source_location::current().function_name();
  if (const auto start = name.find("T = "); start != name.npos) name.remove_prefix(start + 4);
  return name.substr(0, name.find_first_of(";]"));
}

/// A value under a key of the user's own type.
template <class Key>
class matched_value final : public matched_node {
 public:
  using value_type = typename Key::context_value;

  template <class V>
  matched_value(node* parent, const completion* nearest, Key key, V&& value)
      : matched_node{parent, nearest, typeid(Key)}, key_(std::move(key)), value_(std::forward<V>(value)) {}

  /// The nearest value at or above `from` under a key that equals this one, null where there is none.
  static const value_type* find(const node* from, const Key& key) noexcept {
    for (; from != nullptr; from = from->parent()) {
      const void* value = nullptr;
      if (from->found_by() == &typeid(Key)) {
        value = static_cast<const matched_value*>(from)->value_under(key);
      } else if (from->made_by() == factory::with_matched_value) {
        // Another type, or the same one as another shared library knows it.
        value = static_cast<const matched_node*>(from)->value_under(typeid(Key), std::addressof(key));
      }
      if (value != nullptr) return static_cast<const value_type*>(value);
    }
    return nullptr;
  }

  const void* value_under(const std::type_info& type, const void* key) const noexcept override {
    return same_type(type, typeid(Key)) ? value_under(*static_cast<const Key*>(key)) : nullptr;
  }
  void describe(std::string& out) const override { describe_value(out, type_name<Key>()); }

 private:
  const void* value_under(const Key& key) const noexcept { return key == key_ ? std::addressof(value_) : nullptr; }

  const Key key_;
  const value_type value_;
};

}  // namespace ctx::detail
