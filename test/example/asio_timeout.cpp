// asio_timeout: prints the lines that a TCP server sends, with a coroutine or with callbacks. Shows both
// directions between contexts and Asio:
// - A context ends an operation, or a whole coroutine: `until_done` binds its handler to a cancellation
//   slot, and emits the signal of that slot when the context ends.
// - A signal and a timer of Asio end a context: SIGINT, and a server that is silent for too long.
//
// Boost has cancellation slots since 1.77; where it is older, Asio without Boost is taken. Before, there was
// only the cancel() of whole objects, which is to be posted in the same way: see server.cpp.
//
// Usage: asio_timeout coroutine|callback PORT TIMEOUT SILENCE        both in milliseconds

#include <ctx/context.hpp>

#if __has_include(<boost/asio/cancellation_signal.hpp>)
#include <boost/asio.hpp>
namespace asio = boost::asio;
using boost::system::error_code;
using boost::system::system_error;
#else
#include <asio.hpp>
using asio::error_code;
using asio::system_error;
#endif

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>

namespace {

using asio::ip::tcp;
using std::chrono::milliseconds;

/// Makes an operation end when the context does. Both start on `executor`, which runs one handler at a
/// time: a signal of Asio may not be emitted by another thread, as the one that cancels may be.
template <class Handler>
auto until_done(const ctx::context& c, const asio::any_io_executor& executor, Handler handler) {
  const auto signal = std::make_shared<asio::cancellation_signal>();
  auto emit = [executor, weak = std::weak_ptr{signal}] {
    asio::post(executor, [weak] {
      if (const auto alive = weak.lock()) alive->emit(asio::cancellation_type::terminal);
    });
  };
  const auto at_end = std::make_shared<std::stop_callback<decltype(emit)>>(c.stop_token(), std::move(emit));
  return asio::bind_cancellation_slot(signal->slot(),
                                      [signal, at_end, handler](auto... results) { handler(std::move(results)...); });
}

/// Reads lines in either style, and prints them.
class client {
 public:
  client(unsigned short port, milliseconds timeout, milliseconds silence)
      : server_{asio::ip::address_v4::loopback(), port},
        silence_{silence},
        scope_{ctx::with_timeout(ctx::background(), timeout)} {
    signals_.async_wait([this](error_code failed, int number) {
      if (!failed) scope_.cancel(std::runtime_error{"signal " + std::to_string(number)});
    });
  }

  /// Throws what cut the lines short.
  void run(std::string_view style) {
    const auto finished = [this](std::exception_ptr, error_code end) { finish(end); };
    const auto connected = [this](error_code end) { end ? finish(end) : print_line(); };
    if (style == "coroutine")
      asio::co_spawn(io_, print_lines(), until_done(scope_.ctx, io_.get_executor(), finished));
    else
      socket_.async_connect(server_, until_done(scope_.ctx, io_.get_executor(), connected));
    io_.run();
    scope_.ctx.throw_if_done();
    if (end_ != asio::error::eof) throw system_error{end_};
  }

 private:
  asio::awaitable<error_code> print_lines() {
    try {
      co_await socket_.async_connect(server_, asio::use_awaitable);
      for (;;) {
        restart_silence();
        co_await asio::async_read_until(socket_, received_, '\n', asio::use_awaitable);
        print();
      }
    } catch (const system_error& end) {
      co_return end.code();
    }
  }

  void print_line() {
    restart_silence();
    const auto read = [this](error_code end, std::size_t) {
      if (end) return finish(end);
      print();
      print_line();
    };
    asio::async_read_until(socket_, received_, '\n', until_done(scope_.ctx, io_.get_executor(), read));
  }

  void print() {
    std::string line;
    std::getline(std::istream{&received_}, line);
    std::cout << line << std::endl;
  }

  void restart_silence() {
    silent_.expires_after(silence_);  // which ends the wait before
    silent_.async_wait([this](error_code failed) {
      if (!failed) scope_.cancel(std::runtime_error{"the server is silent"});
    });
  }

  void finish(error_code end) {
    end_ = end;
    signals_.cancel();
    silent_.cancel();
  }

  asio::io_context io_{1};
  tcp::socket socket_{io_};
  asio::signal_set signals_{io_, SIGINT, SIGTERM};
  asio::steady_timer silent_{io_};
  const tcp::endpoint server_;
  const milliseconds silence_;
  const ctx::cancel_scope scope_;
  asio::streambuf received_;
  error_code end_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return std::cerr << "usage: asio_timeout coroutine|callback PORT TIMEOUT SILENCE\n", 2;
  try {
    client reader{static_cast<unsigned short>(std::atoi(argv[2])), milliseconds{std::atoi(argv[3])},
                  milliseconds{std::atoi(argv[4])}};
    reader.run(argv[1]);
  } catch (const std::exception& why) {
    return std::cout << "cut short: " << why.what() << std::endl, 1;
  }
}
