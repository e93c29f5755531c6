#pragma once

// Makes a failing program short: removes ever smaller runs of steps, then makes operands small, for as long as the
// program still fails.

#include "program.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace model {

/// The program without `count` steps from `first` on. The bodies around them keep the other steps that they had.
inline program without(const program& given, std::size_t first, std::size_t count) {
  const auto removed = [&](std::size_t i) { return i >= first && i < first + count; };
  program result{given.ask_late};
  for (std::size_t i = 0; i < given.steps.size(); ++i) {
    if (removed(i)) continue;
    step kept = given.steps[i];
    if (kept.has_body()) {
      const std::size_t end = std::min(i + 1 + kept.c(), given.steps.size());
      for (std::size_t inside = i + 1; inside < end; ++inside)
        if (removed(inside)) --kept.operand[2];
    }
    result.steps.push_back(kept);
  }
  return result;
}

/// A program as short as can be found by small changes for which `fails` is still true. It is true for `failing`.
template <class Fails>
program shrink(program failing, Fails fails) {
  const auto try_instead = [&](program smaller) {
    if (smaller == failing || !fails(smaller)) return false;
    failing = std::move(smaller);
    return true;
  };
  for (bool smaller = true; smaller;) {
    smaller = false;
    for (std::size_t run = failing.steps.size(); run > 0; run /= 2)
      for (std::size_t first = 0; first < failing.steps.size();)
        if (try_instead(without(failing, first, run))) {
          smaller = true;
        } else {
          first += run;
        }
    if (failing.ask_late) smaller |= try_instead({false, failing.steps});
    for (std::size_t i = 0; i < failing.steps.size(); ++i)
      for (std::size_t which = 0; which < 4; ++which) {
        const unsigned value = failing.steps[i].operand[which];
        for (const unsigned instead : {0U, value / 2, value - 1}) {
          if (instead >= failing.steps[i].operand[which]) continue;
          program changed = failing;
          changed.steps[i].operand[which] = static_cast<unsigned char>(instead);
          smaller |= try_instead(std::move(changed));
        }
      }
  }
  return failing;
}

}  // namespace model
