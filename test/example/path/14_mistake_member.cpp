// 14. Mistake: the context kept in a member
//
// A context belongs to one piece of work. A client, a cache, a connection lives longer and serves many.
// If it keeps the context of whoever happened to make it, the others get what is not theirs: they end
// when that one ends, and when they are canceled themselves, nobody hears it.
//
// Right: the context is the first parameter of each function that does work, not of the constructor.
// So each call says for whom it works. (What an object may keep is the scope of work that it starts
// itself and ends in its destructor, as a thread pool does with its own threads.)
//
// Prints:
//   wrong: second request, first one gone: given up
//   wrong: third request, canceled: page
//   right: second request, first one gone: page
//   right: third request, canceled: given up

#include <ctx/context.hpp>

#include <iostream>
#include <string>
#include <utility>

std::string load(const ctx::context& ctx) { return ctx.done() ? "given up" : "page"; }

class client_wrong {
 public:
  explicit client_wrong(ctx::context ctx) : ctx_{std::move(ctx)} {}
  std::string fetch() { return load(ctx_); }

 private:
  ctx::context ctx_;  // wrong: whose is it?
};

class client_right {
 public:
  std::string fetch(const ctx::context& ctx) { return load(ctx); }
};

int main() {
  auto [first, cancel_first] = ctx::with_cancel(ctx::background());
  auto [second, cancel_second] = ctx::with_cancel(ctx::background());
  auto [third, cancel_third] = ctx::with_cancel(ctx::background());

  client_wrong made_for_first{first};
  client_wrong made_for_second{second};
  client_right client;
  cancel_first();
  std::cout << "wrong: second request, first one gone: " << made_for_first.fetch() << '\n';
  cancel_third();
  std::cout << "wrong: third request, canceled: " << made_for_second.fetch() << '\n';

  std::cout << "right: second request, first one gone: " << client.fetch(second) << '\n'
            << "right: third request, canceled: " << client.fetch(third) << '\n';
}
