#pragma once

// A log whose lines name the request that they belong to. Nobody hands the id on: it is a value of the
// context, which everybody has.

#include <ctx/context.hpp>

#include <chrono>
#include <iostream>
#include <string>

inline constexpr ctx::key<std::string> request_id{"request_id"};

/// Writes a line to stderr: when, in seconds of the monotonic clock, for which request, and what.
inline void log(const ctx::context& c, const std::string& what) {
  const std::chrono::duration<double> now = ctx::clock::now().time_since_epoch();
  const std::string* const id = c.value(request_id);
  std::clog << std::to_string(now.count()) + " " + (id != nullptr ? *id : "-") + " " + what + "\n";
}
