#pragma once

// What the server is asked for, and the search that answers it: nothing here knows of connections.

#include "duration.hpp"
#include "log.hpp"
#include "search_file.hpp"

#include <ctx/context.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

/// The value of a parameter in a target such as `/search?q=two+words&timeout=1s`; empty where it is not there.
inline std::string parameter(std::string_view target, std::string_view name) {
  std::string value;
  for (auto at = target.find('?'); at != target.npos; at = target.find('&', at + 1)) {
    auto given = target.substr(at + 1);
    given = given.substr(0, given.find('&'));
    if (given.substr(0, given.find('=')) != name) continue;
    given.remove_prefix(std::min(given.size(), name.size() + 1));
    for (std::size_t i = 0; i < given.size(); ++i) {
      if (given[i] == '%' && i + 2 < given.size()) {
        value += static_cast<char>(std::strtol(std::string{given.substr(i + 1, 2)}.c_str(), nullptr, 16));
        i += 2;
      } else {
        value += given[i] == '+' ? ' ' : given[i];
      }
    }
    break;
  }
  return value;
}

struct search_request {
  /// Throws `std::invalid_argument` for what is no request for a search.
  explicit search_request(std::string_view target) : text{parameter(target, "q")} {
    if (target.substr(0, target.find('?')) != "/search" || text.empty())
      throw std::invalid_argument{"ask for /search?q=TEXT&first=10&timeout=1s"};
    if (const auto given = parameter(target, "timeout"); !given.empty()) timeout = parse_duration("timeout", given);
    if (const auto given = parameter(target, "first"); !given.empty()) first = std::strtoul(given.c_str(), nullptr, 10);
  }

  std::string text;
  std::size_t first = 1000;
  std::chrono::duration<double> timeout{10};
};

/// Takes the lines found, until there are enough.
struct found_lines {
  std::size_t wanted;
  const ctx::cancel_func& enough;
  std::string text;

  void count_file() {}
  void print(const ctx::context&, const batch& found) {
    const auto taken = std::min(found.size(), wanted);
    text.append(found.text, 0, found.ends[taken]);
    wanted -= taken;
    if (wanted == 0) enough();
  }
};

/// The first lines below a directory that hold the text; some of them where the context ends before.
inline std::string search(const ctx::context& request, const std::filesystem::path& directory,
                          const search_request& what) {
  using walk = std::filesystem::recursive_directory_iterator;
  log(request, "searches for '" + what.text + "'");
  const auto [c, enough] = ctx::with_cancel(request);
  found_lines found{what.first, enough, {}};
  std::error_code failed;
  for (walk entry{directory, failed}; !c.done() && entry != walk{}; entry.increment(failed))
    if (entry->symlink_status(failed).type() == std::filesystem::file_type::regular)
      search_file(c, entry->path(), what.text, found);
  log(request, request.done() ? "stopped searching" : "finished searching");
  return std::move(found.text);
}
