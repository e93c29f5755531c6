#pragma once

// Another source file of value_test, with a key type that is local to it.

#include <ctx/context.hpp>

#include <string>

ctx::context with_local_value(const ctx::context& parent);
const std::string* look_up_local_key(const ctx::context& ctx);
