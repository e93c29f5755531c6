#pragma once

// Finds the lines of one file that hold a text, until a context ends: what is common to the search on
// the command line and to the one behind HTTP. The loop asks the context before each block: that is
// how soon it ends.

#include <ctx/context.hpp>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

inline std::error_code last_error() { return {errno, std::generic_category()}; }

/// Lines to print, and where in `text` each of them ends.
struct batch {
  std::string text;
  std::vector<std::size_t> ends = {0};
  std::size_t size() const { return ends.size() - 1; }
};

/// Finds the lines that hold a text in a file that comes in blocks. No line outgrows its buffer: of
/// one that is longer, it keeps what a match across two blocks needs.
class line_finder {
 public:
  line_finder(const std::filesystem::path& path, std::string_view text)
      : path_{path}, text_{text}, buffer_(64 * 1024 + text.size(), '\0') {}

  /// Where to put the next block. Never empty.
  std::span<char> space() { return std::span{buffer_}.subspan(held_); }

  /// The matches in the `size` bytes just put into `space()`; size 0 is the end of the file.
  batch take(std::size_t size) {
    batch found;
    std::string_view rest{buffer_.data(), held_ + size};
    for (auto end = rest.find('\n'); end != rest.npos; end = rest.find('\n')) {
      look_at(rest.substr(0, end), found);
      rest.remove_prefix(end + 1);
      reported_ = false;
      ++number_;
    }
    const bool too_long = rest.size() == buffer_.size();
    if (too_long || (size == 0 && !rest.empty())) look_at(rest, found);
    if (reported_)
      rest = {};
    else if (too_long)
      rest.remove_prefix(rest.size() - (text_.size() - 1));
    held_ = rest.size();
    if (held_ > 0) std::memmove(buffer_.data(), rest.data(), held_);
    return found;
  }

 private:
  void look_at(std::string_view line, batch& found) {
    if (reported_ || line.find(text_) == line.npos) return;
    found.text.append(path_).append(":").append(std::to_string(number_)).append(": ");
    found.text.append(line).append("\n");
    found.ends.push_back(found.text.size());
    reported_ = true;
  }

  const std::string path_;
  const std::string text_;
  std::string buffer_;
  std::size_t held_ = 0;    // bytes of an unfinished line, at the front of buffer_
  std::size_t number_ = 1;  // of that line
  bool reported_ = false;   // whether that line was
};

struct descriptor {
  const int number;  // owns: closes it
  ~descriptor() { ::close(number); }
};

/// Hands the matches in one file to `out`, for each block that has some: `out.print(c, batch)`. Reads until
/// the context is done, and tells `out.count_file()` where it is a file of text. Returns why it could not
/// be read.
template <class Output>
std::error_code search_file(const ctx::context& c, const std::filesystem::path& path, std::string_view text,
                            Output& out) {
  // Does not block, not even where a fifo has taken the place of the file.
  constexpr int how = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  const descriptor file{::open(path.c_str(), how)};
  if (file.number < 0) return last_error();

  line_finder finder{path, text};
  for (bool first = true; !c.done(); first = false) {
    const auto space = finder.space();
    const auto got = ::read(file.number, space.data(), space.size());
    if (got < 0) return last_error();
    const auto block = space.first(static_cast<std::size_t>(got));
    if (first && std::memchr(block.data(), '\0', block.size()) != nullptr) return {};  // binary
    if (first) out.count_file();
    if (const batch found = finder.take(block.size()); found.size() > 0) out.print(c, found);
    if (block.empty()) break;
  }
  return {};
}
