#include "value_elsewhere.hpp"

namespace {

struct local_key {
  using context_value = std::string;
  int number;
  bool operator==(const local_key&) const = default;
};

}  // namespace

ctx::context with_local_value(const ctx::context& parent) { return ctx::with_value(parent, local_key{1}, "elsewhere"); }

const std::string* look_up_local_key(const ctx::context& ctx) { return ctx.value(local_key{1}); }
