#pragma once

#include "program.hpp"

#include <optional>
#include <string>

namespace model {

/// Runs a program against the library and the model, step by step, and compares all that there is to see of either.
/// Returns the first difference, in words; empty where there is none. Makes a manual clock: there must be no other.
std::optional<std::string> difference(const program& given);

/// What a person needs to know of a failure: the difference, the program as text, and in the form that replays it.
std::string report(const program& failing, const std::string& difference);

}  // namespace model
