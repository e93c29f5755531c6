// 4. Children, and how far a cancel reaches
//
// Work starts other work: a request asks two servers, and the answer of one needs a third. Each part
// derives its context from that of the part that started it, and so the contexts form a tree:
//
//   request ─┬─ search ─┬─ local
//            │          └─ remote
//            └─ billing                (without_cancel: takes the values along, nothing else)
//
// - A cancel reaches downwards. The whole tree below is done before the call returns, however deep.
// - It does not reach up or aside. That one part is given up says nothing about the others.
// - What must be finished although the request ended derives with `without_cancel`.
//
// Nobody keeps lists of who works for whom, and no part has to know what it is a part of.
//
// Prints:
//   at first:         request live, search live, local live, remote live, billing live
//   remote canceled:  request live, search live, local live, remote done, billing live
//   request canceled: request done, search done, local done, remote done, billing live

#include <ctx/context.hpp>

#include <iostream>

int main() {
  auto [request, cancel_request] = ctx::with_cancel(ctx::background());
  auto [search, cancel_search] = ctx::with_cancel(request);
  auto [local, cancel_local] = ctx::with_cancel(search);
  auto [remote, cancel_remote] = ctx::with_cancel(search);
  const ctx::context billing = ctx::without_cancel(request);

  const auto state = [](const ctx::context& ctx) { return ctx.done() ? "done" : "live"; };
  const auto show = [&](const char* when) {
    std::cout << when << " request " << state(request) << ", search " << state(search) << ", local " << state(local)
              << ", remote " << state(remote) << ", billing " << state(billing) << '\n';
  };

  show("at first:        ");
  cancel_remote();
  show("remote canceled: ");
  cancel_request();
  show("request canceled:");
}
