// 12. Mistake: the forgotten poll
//
// A function that takes a context but does not look at it is canceled like any other, and goes on all
// the same: nobody can stop it, for it is only ever asked. It happens one level down, mostly. The loop
// over the files looks before each of them, and then there is a file that takes an hour.
//
// Right: look in the loop that does the work, at least as often as somebody may be left waiting for
// the answer. `done()` is two loads, less than almost anything a round may do. And hand the context
// to every function that takes its time; one that has no such parameter can't be asked.
//
// Prints:
//   wrong: canceled at line 10, stopped at line 500
//   right: canceled at line 10, stopped at line 10

#include <ctx/context.hpp>

#include <functional>
#include <iostream>

using line_reader = std::function<void(int line)>;

/// Reads two files of 500 lines; returns how many lines it read.
int count_wrong(const ctx::context& ctx, const line_reader& read) {
  int lines = 0;
  const auto count_file = [&] {
    for (int i = 0; i < 500; ++i) read(++lines);  // wrong: here nobody looks
  };
  for (int file = 0; file < 2 && !ctx.done(); ++file) count_file();
  return lines;
}

int count_right(const ctx::context& ctx, const line_reader& read) {
  int lines = 0;
  const auto count_file = [&] {
    for (int i = 0; i < 500 && !ctx.done(); ++i) read(++lines);
  };
  for (int file = 0; file < 2 && !ctx.done(); ++file) count_file();
  return lines;
}

int stopped_at(int (*count)(const ctx::context&, const line_reader&)) {
  auto [ctx, cancel] = ctx::with_cancel(ctx::background());
  return count(ctx, [&cancel = cancel](int line) {
    if (line == 10) cancel();  // as another thread might, just then
  });
}

int main() {
  std::cout << "wrong: canceled at line 10, stopped at line " << stopped_at(count_wrong) << '\n'
            << "right: canceled at line 10, stopped at line " << stopped_at(count_right) << '\n';
}
