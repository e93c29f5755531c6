#pragma once

// What the modules of this program share. Each is compiled with hidden visibility; what it exports says so.

#include <ctx/context.hpp>

#include <chrono>
#include <string>

/// A key by identity. The library `account` owns and exports it: there is one, however many modules there are.
[[gnu::visibility("default")]] extern const ctx::key<std::string> user_key;

/// A key by value: every module has the type for itself.
struct header {
  using context_value = std::string;
  std::string name;
  bool operator==(const header&) const = default;
};

/// Of the library `account`: a context for a user, with a header, that ends in time.
[[gnu::visibility("default")]] ctx::cancel_scope log_in(const ctx::context& parent, std::string user,
                                                        std::chrono::nanoseconds time);

/// Of the library `report`: whose context it is, and, once it is done, why.
[[gnu::visibility("default")]] std::string report(const ctx::context& c);

/// Of the plugin, which a function `plugin_functions` gives.
struct plugin {
  std::string (*report)(const ctx::context& c);
  ctx::cancel_scope (*derive)(const ctx::context& parent);
  bool (*cancel)(const ctx::cancel_func& cancel);
};
