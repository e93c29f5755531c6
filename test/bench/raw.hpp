#pragma once

// The nearest thing to a context that the standard library has, as it is usually written: a shared
// `std::stop_source` that a `std::stop_callback` on its parent stops. No errors, causes or values; a
// child does not keep its parent alive; ending a chain is recursive.

#include <memory>
#include <optional>
#include <stop_token>

namespace raw {

struct stop {
  std::stop_source* source;  // borrows: outlived by the node that holds the callback
  void operator()() const noexcept { source->request_stop(); }
};

struct node {
  std::stop_source source;
  std::optional<std::stop_callback<stop>> on_parent;
};

/// Null is the background.
using context = std::shared_ptr<node>;

struct scope {
  context ctx;
  void cancel() const noexcept { ctx->source.request_stop(); }
};

inline scope with_cancel(const context& parent) {
  scope made{std::make_shared<node>()};
  if (parent != nullptr) {
    made.ctx->on_parent.emplace(parent->source.get_token(), stop{&made.ctx->source});
  }
  return made;
}

/// A link of a chain of values.
struct value {
  const void* key;
  int stored;
  std::unique_ptr<value> parent;
};

inline const int* find(const value* from, const void* key) noexcept {
  for (; from != nullptr; from = from->parent.get()) {
    if (from->key == key) return &from->stored;
  }
  return nullptr;
}

}  // namespace raw
