#pragma once

// Durations as people write them: 50ms, 1.5s, 1h30m.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

/// Reads a duration as Go does: numbers, each with its unit. Throws `std::invalid_argument`, with a message
/// that names the option, for anything else.
inline std::chrono::duration<double> parse_duration(const std::string& option, const std::string& given) {
  constexpr std::pair<std::string_view, double> units[] = {{"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3},
                                                           {"s", 1},     {"m", 60},    {"h", 3600}};
  constexpr std::string_view digits = "0123456789.";
  double seconds = 0;
  std::string_view rest = given;
  do {
    const std::string number{rest.substr(0, rest.find_first_not_of(digits))};
    rest.remove_prefix(number.size());
    const auto unit = rest.substr(0, rest.find_first_of(digits));
    rest.remove_prefix(unit.size());
    char* end = nullptr;
    const double value = std::strtod(number.c_str(), &end);
    const auto* const known = std::ranges::find(units, unit, [](auto& each) { return each.first; });
    if (number.empty() || *end != '\0' || known == std::end(units))
      throw std::invalid_argument{"bad duration '" + given + "' for " + option +
                                  ": write it like 50ms, 1.5s, 2m or 1h30m"};
    seconds += value * known->second;
  } while (!rest.empty());
  return std::chrono::duration<double>{seconds};
}
