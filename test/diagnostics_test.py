"""What the compiler says of mistakes: diagnostics_test.py COMPILER [FLAG...].

Exists for mistakes that compile, and for messages that do not tell what to do. Each line of code that
is wrong must be an error, or give a warning, and the compiler say the phrase beside it of each; and what
is right instead must compile without any.
"""

import re
import subprocess
import sys

COMPILER = sys.argv[1:]

PREFACE = """
#include <ctx/context.hpp>

#include <stdexcept>
#include <string>

using namespace std::chrono_literals;

struct header {
  using context_value = std::string;
  std::string name;
  bool operator==(const header&) const = default;
};
struct incomparable {
  using context_value = std::string;
};
inline constexpr ctx::key<int> user_key{"user"};
void use(auto&&...) {}
"""

# What is wrong, in words and in code; what the compiler says; what is right. `parent` is a context.
CASES = [
    ("a number, a text or a class without equality as a key",
     ['use(ctx::with_value(parent, "user", 1));',
      "use(ctx::with_value(parent, 1, std::string{}));",
      "use(parent.value(42));",
      'use(parent.value("user"));',
      "use(parent.value(incomparable{}));"],
     "error", "a_key_is_a_ctx_key_or_a_movable_class_with_equality_and_a_context_value",
     ["use(ctx::with_value(parent, user_key, 1));",
      'use(ctx::with_value(parent, header{"accept"}, "text/plain"));',
      "use(parent.value(user_key));",
      'use(parent.value(header{"accept"}));']),
    ("a key that ends before the context",
     ['use(ctx::with_value(parent, ctx::key<int>{"user"}, 1));'],
     "error", "declare_the_key_once_at_namespace_scope",
     ['static constexpr ctx::key<int> key{"user"}; use(ctx::with_value(parent, key, 1));']),
    ("a key of a type that no value has",
     ['use(ctx::key<const int>{"user"}.name());', 'use(ctx::key<int&>{"user"}.name());'],
     "error", "ctx::key<T>: T is the type of the value: an object type, without const or volatile",
     ['use(ctx::key<int>{"user"}.name());', 'use(ctx::key<int*>{"user"}.name());']),
    ("a value that does not fit its key",
     ['use(ctx::with_value(parent, user_key, "one"));', 'use(ctx::with_value(parent, header{"accept"}, 1.5));'],
     "error", "constructible_from",
     ["use(ctx::with_value(parent, user_key, short{1}));"]),
    ("a value taken for one of another type",
     ["const std::string* found = parent.value(user_key); use(found);"],
     "error", "const int ?[*]",
     ["const int* found = parent.value(user_key); use(found);"]),
    ("a value asked of a temporary context",
     ["use(ctx::with_value(parent, user_key, 1).value(user_key));",
      'use(ctx::with_cancel(parent).ctx.value(header{"accept"}));'],
     "error", "name_the_context_before_you_ask_it_for_a_value",
     ["const auto child = ctx::with_value(parent, user_key, 1); use(child.value(user_key));"]),
    ("a text as the cause",
     ['auto [c, cancel] = ctx::with_cancel(parent); cancel("disk full"); use(c);'],
     "error", "a_cause_is_an_exception_such_as_a_std_runtime_error_of_the_text",
     ['auto [c, cancel] = ctx::with_cancel(parent); cancel(std::runtime_error{"disk full"}); use(c);',
      "auto [c, cancel] = ctx::with_cancel(parent); cancel(nullptr); cancel(42); use(c);"]),
    ("a value stored, and the context that has it discarded",
     ["ctx::with_value(parent, user_key, 1);", 'ctx::with_value(parent, header{"accept"}, "*/*");'],
     "warning", "the value is in the context that is returned, not in its parent",
     ["const auto child = ctx::with_value(parent, user_key, 1); use(child);"]),
    ("a scope discarded",
     ["ctx::with_cancel(parent);",
      "ctx::with_timeout(parent, 5s);",
      "ctx::with_deadline(parent, std::chrono::system_clock::now());",
      "ctx::with_stop_token(parent, {});",
      "ctx::merge(parent, parent);"],
     "warning", "the context is canceled at once where its scope is discarded",
     ["auto [c, cancel] = ctx::with_cancel(parent); use(c);",
      "auto [c, cancel] = ctx::with_timeout(parent, 5s); use(c);",
      "auto scope = ctx::with_deadline(parent, std::chrono::system_clock::now()); use(scope.ctx);",
      "auto [c, cancel] = ctx::with_stop_token(parent, std::stop_token{}); use(c);",
      "auto [c, cancel] = ctx::merge(parent, parent); use(c);"]),
    ("the handle of after_func discarded",
     ["ctx::after_func(parent, [] {});"],
     "warning", "after_func is stopped at once where its handle is discarded",
     ["const auto handle = ctx::after_func(parent, [] {});"]),
    ("an answer discarded",
     ["parent.done();", "parent.remaining();", "ctx::background();", "ctx::without_cancel(parent);"],
     "warning", "nodiscard",
     ["if (parent.done()) return;"]),
    ("a timeout without a unit",
     ["use(ctx::with_timeout(parent, 5));"],
     "error", "duration<.*int",
     ["use(ctx::with_timeout(parent, 5s));"]),
    ("a function for after_func that wants an argument",
     ["use(ctx::after_func(parent, [](int) {}));"],
     "error", "invocable",
     ["use(ctx::after_func(parent, [] {}));"]),
    ("the right to cancel copied",
     ["const auto scope = ctx::with_cancel(parent); auto second = scope.cancel; use(second);"],
     "error", "deleted",
     ["auto scope = ctx::with_cancel(parent); auto second = std::move(scope.cancel); use(second);"]),
]


def compile_lines(lines):
    """The status and the words of the compiler, for which line n is `line:n`."""
    functions = "\n".join(f"void f{n}(const ctx::context& parent) {{ use(parent); {line} }}"
                          for n, line in enumerate(lines, 1))
    done = subprocess.run([*COMPILER, "-Wall", "-Wextra", "-fsyntax-only", "-fno-diagnostics-color", "-x", "c++", "-"],
                          input=f'{PREFACE}\n#line 1 "line"\n{functions}\n', capture_output=True, text=True)
    return done.returncode, done.stderr


def fault(wrong, kind, phrase):
    """What is not as it should be in the compiler's view of these lines; None where all is."""
    status, said = compile_lines(wrong)
    if (status != 0) != (kind == "error"):
        return f"status {status} for {kind}s"
    for n, line in enumerate(wrong, 1):
        if not re.search(rf"^line:{n}:", said, re.M):
            return f"not a word about {line}"
    heard = re.findall(rf"warning:.*{phrase}" if kind == "warning" else phrase, said)
    if len(heard) < len(wrong):
        return f"{len(heard)} times '{phrase}' in\n{said[:4000]}"
    return None


def main():
    faults = [(sentence, fault(wrong, kind, phrase)) for sentence, wrong, kind, phrase, _ in CASES]
    status, said = compile_lines([line for *_, right in CASES for line in right])
    faults.append(("what is right", f"status {status}: {said[:4000]}" if status != 0 or said else None))
    for sentence, found in faults:
        if found:
            print(f"FAILED: {sentence}: {found}")
    failed = sum(found is not None for _, found in faults)
    print(f"{len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
