// 6. Values of a request, under typed keys
//
// Who asks, under which number: a log line at the bottom wants to know, and the functions in between
// have no use for it. `with_value` puts such a thing into the context that is passed through anyway.
//
// A key is an object, and only that object finds the value again: two modules that both name theirs
// "user" do not meet. And it has the type of its value: `value()` returns a `const user*`, null where
// there is none, and what does not fit does not compile. So a module can keep its key to itself and
// show two functions with names that tell. This is the package `user` of the documentation of Go's
// `context`, in C++.
//
// Where keys come as data, as the names of HTTP headers do, a type of one's own can be one; it is
// compared by value.
//
// A value never changes. A child may store another under the same key, for itself and what is below.
//
// Prints:
//   nobody, trace -: start
//   ada, trace 7f3a: read
//   root, trace 7f3a: rotate the logs
//   ada, trace 7f3a: read again

#include <ctx/context.hpp>

#include <iostream>
#include <string>
#include <utility>

namespace user {  // as in user.hpp and user.cpp

struct user {
  std::string name;
};

namespace {
constexpr ctx::key<user> key{"user"};
}

ctx::context new_context(const ctx::context& parent, user who) { return with_value(parent, key, std::move(who)); }
const user* from_context(const ctx::context& ctx) { return ctx.value(key); }

}  // namespace user

struct header {
  using context_value = std::string;
  std::string name;
  bool operator==(const header&) const = default;
};

void log(const ctx::context& ctx, const char* what) {
  const user::user* who = user::from_context(ctx);
  const std::string* trace = ctx.value(header{"x-trace-id"});
  std::cout << (who ? who->name : "nobody") << ", trace " << (trace ? *trace : "-") << ": " << what << '\n';
}

int main() {
  log(ctx::background(), "start");
  const auto traced = ctx::with_value(ctx::background(), header{"x-trace-id"}, "7f3a");
  const auto request = user::new_context(traced, {"ada"});
  log(request, "read");
  log(user::new_context(request, {"root"}), "rotate the logs");
  log(request, "read again");
}
