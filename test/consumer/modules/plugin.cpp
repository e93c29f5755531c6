// Loaded with dlopen(), into a program that knows nothing of it but its functions.

#include "account.hpp"

#include <stdexcept>

namespace {

constexpr plugin functions{
    .report = [](const ctx::context& c) { return report(c); },
    .derive =
        [](const ctx::context& parent) {
          return ctx::with_timeout(ctx::with_value(parent, header{"agent"}, "plugin"), std::chrono::hours{1});
        },
    .cancel = [](const ctx::cancel_func& cancel) { return cancel(std::runtime_error{"by the plugin"}); },
};

}  // namespace

extern "C" [[gnu::visibility("default")]] const plugin* plugin_functions() { return &functions; }
