// poll_fd: an echo server on one thread and a reader of stdin on another, both of which sleep in
// poll(), where a context ends them.
//
// A blocking call on a descriptor knows nothing of contexts. But poll() waits for many descriptors
// at once, and `done_fd` is one that becomes readable when a context ends. That is all it takes:
// whoever polls adds it to the others, and whoever would call read() or accept() polls first.
//
// Usage: poll_fd SECONDS
// Prints the port it listens on. Ends when the time is up, or stdin is.

#include <ctx/context.hpp>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <list>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

int checked(int result, const char* what) {
  if (result < 0) throw std::system_error{errno, std::generic_category(), what};
  return result;
}

/// Owns a descriptor.
struct descriptor {
  explicit descriptor(int number_) noexcept : number{number_} {}
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  ~descriptor() {
    if (number >= 0) ::close(number);
  }
  const int number;
};

/// A descriptor to poll for input: readable from the moment that the context ends, for ever, as
/// nobody reads from it. Where there is no eventfd, a pipe serves as well.
class done_fd {
 public:
  explicit done_fd(const ctx::context& c)
      : event_{checked(::eventfd(0, EFD_CLOEXEC), "eventfd")}, on_end_{c.stop_token(), signal{event_.number}} {}
  int number() const noexcept { return event_.number; }

 private:
  struct signal {
    int event;
    void operator()() const noexcept { ::eventfd_write(event, 1); }
  };

  const descriptor event_;
  const std::stop_callback<signal> on_end_;  // last: has run, or never will, when the event is closed
};

/// Blocks until one of `watched` is ready. False once the context is done, whose done_fd is among them.
bool wait_for_any(const ctx::context& c, std::vector<pollfd>& watched) {
  while (!c.done()) {
    const int ready = ::poll(watched.data(), watched.size(), -1);
    if (ready > 0 && !c.done()) return true;
    if (ready < 0 && errno != EINTR) checked(ready, "poll");
  }
  return false;
}

/// Cancels when nothing more comes from stdin.
void watch_stdin(const ctx::context& c, const ctx::cancel_func& cancel) {
  const done_fd done{c};
  std::vector<pollfd> watched{{STDIN_FILENO, POLLIN, 0}, {done.number(), POLLIN, 0}};
  char bytes[4096];
  while (wait_for_any(c, watched))
    if (::read(STDIN_FILENO, bytes, sizeof bytes) <= 0) cancel(std::runtime_error{"stdin ended"});
}

void listen_on_loopback(const descriptor& socket) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  checked(::bind(socket.number, any, size), "bind");
  checked(::listen(socket.number, SOMAXCONN), "listen");
  checked(::getsockname(socket.number, any, &size), "getsockname");
  std::cout << "port " << ntohs(address.sin_port) << std::endl;
}

/// Sends back what a client sent. False where the client is gone, or leaves its echo lying: waiting
/// for it would hold up the others.
bool echo(const descriptor& client) {
  char bytes[4096];
  const auto got = ::recv(client.number, bytes, sizeof bytes, MSG_DONTWAIT);
  const auto size = got > 0 ? static_cast<std::size_t>(got) : 0;
  return size > 0 && ::send(client.number, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) == got;
}

/// Serves all clients, until the context ends.
void serve(const ctx::context& c) {
  const done_fd done{c};
  const descriptor listener{checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket")};
  listen_on_loopback(listener);
  std::list<descriptor> clients;
  for (;;) {
    std::vector<pollfd> watched{{done.number(), POLLIN, 0}, {listener.number, POLLIN, 0}};
    for (const auto& client : clients) watched.push_back({client.number, POLLIN, 0});
    if (!wait_for_any(c, watched)) return;
    auto watched_client = watched.begin() + 2;
    clients.remove_if([&](const descriptor& client) { return watched_client++->revents != 0 && !echo(client); });
    const int client = ::accept4(listener.number, nullptr, nullptr, SOCK_CLOEXEC);
    if (client >= 0) clients.emplace_back(client);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::chrono::duration<double> seconds{argc == 2 ? std::atof(argv[1]) : 0};
  const auto scope = ctx::with_timeout(ctx::background(), seconds);
  {
    // Whatever ends the server, be it an exception, ends the console: its own token drives its context.
    const std::jthread console{
        [&](const std::stop_token& over) { watch_stdin(ctx::with_stop_token(scope.ctx, over).ctx, scope.cancel); }};
    serve(scope.ctx);
  }
  std::cout << scope.ctx.err().message() << ": " << ctx::cause_message(scope.ctx) << std::endl;
}
