// 10. Cleaning up with after_func
//
// Some calls can neither look at a context nor wait with its token: read() on a socket, a library of
// somebody else's. But there is usually another call that ends them: shutdown() on that socket. Who
// makes it, and when? `after_func(ctx, f)` calls `f` once the context is done, on a thread of its own,
// so that `f` may take its time while the one who cancels goes on.
//
// The handle bounds the life of `f`. When it is destroyed, `f` will not start any more, and where it
// runs, its end is awaited: what `f` uses, here the socket, is safe to close afterwards. A call of
// `stop()` that returns true means that `f` was not needed.
//
// Prints:
//   first: hello
//   second: the caller hung up

#include <ctx/context.hpp>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

#include <sys/socket.h>
#include <unistd.h>

/// Waits for what comes next on the socket; throws why where the context is done first.
std::string receive(const ctx::context& ctx, int socket) {
  const auto end_read = ctx::after_func(ctx, [socket] { ::shutdown(socket, SHUT_RDWR); });
  char buffer[64];
  const auto size = ::read(socket, buffer, sizeof buffer);
  if (size > 0) return {buffer, static_cast<std::size_t>(size)};
  ctx.throw_if_done();
  throw std::runtime_error{"the other end is closed"};
}

int main() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  auto [call, hang_up] = ctx::with_cancel(ctx::background());

  if (::write(ends[0], "hello", 5) != 5) return 1;
  std::cout << "first: " << receive(call, ends[1]) << '\n';

  std::thread caller{[&hang_up = hang_up] { hang_up(std::runtime_error{"the caller hung up"}); }};
  try {
    receive(call, ends[1]);  // nobody writes: without after_func, it would not return
  } catch (const std::exception& why) {
    std::cout << "second: " << why.what() << '\n';
  }
  caller.join();
  ::close(ends[0]);
  ::close(ends[1]);
}
