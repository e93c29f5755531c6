// server: the search of a directory tree behind HTTP, as in the article that made Go's contexts known:
//   GET /search?q=TEXT&first=10&timeout=1s      the first 10 lines that hold TEXT, as 'path:line: text'
// Whatever a connection does, it does under one context, derived from the server's: read, search, answer.
// So a search ends with its timeout (504), with a client that goes away, and with a signal that shuts the
// server down (503); what is idle ends with that, too. The id of a request is a value, for the log. One thread
// does input and output, others search; what waits for them is answered all the same when its context ends.
// Usage: server PORT DIR

#include "log.hpp"
#include "search_request.hpp"

#include <ctx/context.hpp>
#include <ctx/signal.hpp>

#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using namespace std::chrono_literals;
using asio::ip::tcp;

struct service {
  ctx::context ctx;
  std::filesystem::path directory;
  std::size_t requests = 0;
  asio::io_context io{1};
  asio::thread_pool searchers{std::max(1U, std::thread::hardware_concurrency())};
};

/// A connection. Lives as long as an operation or a search refers to it.
class session : public std::enable_shared_from_this<session> {
 public:
  session(tcp::socket socket, service& owner) : socket_{std::move(socket)}, service_{owner} {}

  void read() {
    until(ctx::with_timeout(service_.ctx, 30s), &session::close);
    request_ = {};
    http::async_read(socket_, buffer_, request_,
                     [self = shared_from_this()](auto failed, auto) { failed ? self->close() : self->handle(); });
  }

 private:
  /// From now on, does something that is over when a context ends; `then` is what it does then.
  void until(ctx::cancel_scope scope, void (session::*then)()) {
    on_end_.reset();
    scope_ = std::move(scope);
    on_end_.emplace(scope_.ctx.stop_token(), [&io = service_.io, then, weak = weak_from_this(), c = scope_.ctx] {
      asio::post(io, [then, self = weak.lock(), c] {
        if (self && self->scope_.ctx == c) (self.get()->*then)();
      });
    });
  }

  void handle() {
    const auto named = ctx::with_value(service_.ctx, request_id, std::to_string(++service_.requests));
    try {
      const search_request what{{request_.target().data(), request_.target().size()}};
      until(ctx::with_timeout(named, what.timeout), &session::give_up);
      asio::post(service_.searchers,
                 [=, self = shared_from_this(), c = scope_.ctx, at_work = asio::make_work_guard(service_.io)] {
                   if (c.done()) return;
                   asio::post(self->service_.io, [self, c, found = search(c, self->service_.directory, what)] {
                     if (self->scope_.ctx == c && !c.done()) self->answer(c, http::status::ok, found);
                   });
                 });
      watch();
    } catch (const std::invalid_argument& wrong) {
      answer(named, http::status::bad_request, wrong.what());
    }
  }

  /// Cancels when the client closes the connection, or breaks it. One that sends more is still there.
  void watch() {
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this(), c = scope_.ctx](auto failed) {
      char byte = 0;
      if (!failed) self->socket_.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, failed);
      if (failed && self->scope_.ctx == c) self->scope_.cancel(std::runtime_error{"the client went away"});
    });
  }

  void give_up() {
    const auto c = scope_.ctx;
    if (c.err() == ctx::errc::deadline_exceeded) return answer(c, http::status::gateway_timeout, ctx::cause_message(c));
    if (service_.ctx.done()) return answer(c, http::status::service_unavailable, ctx::cause_message(c));
    log(c, "is not answered: " + ctx::cause_message(c));
    close();
  }

  void answer(const ctx::context& request, http::status status, const std::string& text) {
    until(ctx::with_timeout(ctx::without_cancel(request), 10s), &session::close);
    socket_.cancel();  // the watch
    response_ = {status, request_.version(), text};
    response_.keep_alive(request_.keep_alive() && !service_.ctx.done());
    response_.prepare_payload();
    log(request, "is answered " + std::to_string(response_.result_int()));
    http::async_write(socket_, response_, [self = shared_from_this()](auto failed, auto) {
      failed || !self->response_.keep_alive() ? self->close() : self->read();
    });
  }

  void close() { socket_ = tcp::socket{service_.io}; }

  tcp::socket socket_;
  service& service_;  // borrows: outlived by main's
  boost::beast::flat_buffer buffer_;
  http::request<http::string_body> request_;
  http::response<http::string_body> response_;
  ctx::cancel_scope scope_;  // of what is being done
  std::optional<std::stop_callback<std::function<void()>>> on_end_;
};

void accept(tcp::acceptor& acceptor, service& owner) {
  acceptor.async_accept([&](auto failed, tcp::socket socket) {
    if (owner.ctx.done()) return;
    failed ? void(owner.ctx.wait_for(10ms)) : std::make_shared<session>(std::move(socket), owner)->read();
    accept(acceptor, owner);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "usage: server PORT DIR\n", 2;
  const auto [c, cancel] = ctx::with_signals(ctx::background(), {SIGINT, SIGTERM});
  service here{.ctx = c, .directory = argv[2]};
  tcp::acceptor acceptor{here.io, {asio::ip::address_v4::loopback(), static_cast<unsigned short>(std::stoi(argv[1]))}};
  const std::stop_callback at_end{c.stop_token(), [&] { asio::post(here.io, [&] { acceptor.close(); }); }};
  std::cout << "port " << acceptor.local_endpoint().port() << std::endl;
  accept(acceptor, here);
  here.io.run();
  log(c, "ends: " + ctx::cause_message(c));
}
