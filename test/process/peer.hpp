#pragma once

// What one copy of the library does for another: the same code, compiled into both the host and the
// plugin, each with its own static copy of the library.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <chrono>
#include <memory>
#include <string>

struct peer {
  ctx::cancel_scope (*with_cancel)(const ctx::context& parent);
  ctx::cancel_scope (*with_timeout)(const ctx::context& parent, std::chrono::nanoseconds timeout);
  ctx::context (*with_value)(const ctx::context& parent, const ctx::key<std::string>& key, std::string value);
  ctx::context (*todo)();

  bool (*cancel)(const ctx::cancel_func& cancel);
  void (*destroy)(ctx::cancel_scope&& scope);
  bool (*done)(const ctx::context& ctx);
  bool (*has)(const ctx::context& ctx, ctx::errc error);
  std::exception_ptr (*cause)(const ctx::context& ctx);
  const std::string* (*value)(const ctx::context& ctx, const ctx::key<std::string>& key);
  std::string (*describe)(const ctx::context& ctx);
  void (*wait)(const ctx::context& ctx);
  bool (*wait_for)(const ctx::context& ctx, std::chrono::nanoseconds time);

  void (*hold_clock)();
  void (*advance)(std::chrono::nanoseconds time);
  void (*let_clock_run)();
};

namespace {

std::unique_ptr<ctx::manual_clock> manual_clock_of_this_copy;

/// The copy that the code around this is compiled with.
constexpr peer this_copy{
    .with_cancel = [](const ctx::context& parent) { return ctx::with_cancel(parent); },
    .with_timeout = [](const ctx::context& parent,
                       std::chrono::nanoseconds timeout) { return ctx::with_timeout(parent, timeout); },
    .with_value = [](const ctx::context& parent, const ctx::key<std::string>& key,
                     std::string value) { return ctx::with_value(parent, key, std::move(value)); },
    .todo = [] { return ctx::todo(); },
    .cancel = [](const ctx::cancel_func& cancel) { return cancel(); },
    .destroy = [](ctx::cancel_scope&& scope) { const ctx::cancel_scope here = std::move(scope); },
    .done = [](const ctx::context& ctx) { return ctx.done(); },
    .has = [](const ctx::context& ctx, ctx::errc error) { return ctx.err() == error; },
    .cause = [](const ctx::context& ctx) { return ctx.cause(); },
    .value = [](const ctx::context& ctx, const ctx::key<std::string>& key) -> const std::string* {
      return ctx.value(key);
    },
    .describe = [](const ctx::context& ctx) { return to_string(ctx); },
    .wait = [](const ctx::context& ctx) { ctx.wait(); },
    .wait_for = [](const ctx::context& ctx, std::chrono::nanoseconds time) { return ctx.wait_for(time); },
    .hold_clock = [] { manual_clock_of_this_copy = std::make_unique<ctx::manual_clock>(); },
    .advance = [](std::chrono::nanoseconds time) { manual_clock_of_this_copy->advance(time); },
    .let_clock_run = [] { manual_clock_of_this_copy.reset(); },
};

}  // namespace
