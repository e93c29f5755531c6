// grpc_deadline: a context that leaves the process. A caller asks a server, which asks another:
//
//   call --Work--> serve --Work--> serve, which works
//
// gRPC has deadlines and cancelation of its own, and carries them. `call` gives those of a context to a
// call; `handler` makes a context of those that come with one. So the context of a handler ends with the
// caller's, wherever that is, and what the handler calls on inherits what is left. A value, the id of the
// request, crosses as metadata.
//
// Usage: grpc_deadline serve [PORT]              works, or lets the server at that port work
//        grpc_deadline call PORT TIMEOUT WORK    both in milliseconds

#include "grpc_deadline.grpc.pb.h"
#include "log.hpp"

#include <ctx/context.hpp>
#include <ctx/signal.hpp>

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <csignal>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

#include <unistd.h>

namespace {

using std::chrono::milliseconds;

/// How gRPC says why a context is done.
grpc::Status status_of(const ctx::context& c) {
  const bool late = c.err() == ctx::errc::deadline_exceeded;
  return {late ? grpc::StatusCode::DEADLINE_EXCEEDED : grpc::StatusCode::CANCELLED, ctx::cause_message(c)};
}

/// Calls a server. The deadline of the context is the call's, and its end cancels the call.
grpc::Status ask(const ctx::context& c, example::Worker::Stub& server, const example::Task& task,
                 example::Result* result) {
  grpc::ClientContext call;
  if (const auto* const id = c.value(request_id)) call.AddMetadata("request-id", *id);
  // Late, if at all: what is left is asked for before it is now; and servers, where gRPC counts in whole milliseconds
  // from one that has begun, are given one more. The end of the context is not late: that cancels the call.
  const auto left = c.remaining();
  if (c.deadline()) call.set_deadline(std::chrono::system_clock::now() + left + milliseconds{1});
  const std::stop_callback cancel{c.stop_token(), [&] { call.TryCancel(); }};
  const grpc::Status status = server.Work(&call, task, result);
  return c.done() ? status_of(c) : status;
}

/// Answers a call on a thread of its own, under a context that ends with the call: at its deadline, where the
/// caller cancels, is gone, or has its answer.
class handler final : public grpc::ServerUnaryReactor {
 public:
  template <class Work>
  handler(const ctx::context& parent, const grpc::CallbackServerContext& call, Work work)
      : scope_{ctx::with_deadline(with_id(parent, call), call.deadline())},
        thread_{[this, work] { Finish(work(scope_.ctx)); }} {}

  void OnCancel() override { scope_.cancel(std::runtime_error{"canceled by the caller"}); }
  void OnDone() override { delete this; }

 private:
  static ctx::context with_id(const ctx::context& parent, const grpc::CallbackServerContext& call) {
    const auto id = call.client_metadata().find("request-id");
    if (id == call.client_metadata().end()) return parent;
    return ctx::with_value(parent, request_id, std::string{id->second.data(), id->second.size()});
  }

  const ctx::cancel_scope scope_;
  const std::jthread thread_;
};

/// Does the work, or lets the next server do it.
class worker final : public example::Worker::CallbackService {
 public:
  worker(ctx::context c, std::unique_ptr<example::Worker::Stub> next) : ctx_{std::move(c)}, next_{std::move(next)} {}

  grpc::ServerUnaryReactor* Work(grpc::CallbackServerContext* call, const example::Task* task,
                                 example::Result* result) override {
    return new handler{ctx_, *call, [this, task, result](const ctx::context& c) {
                         log(c, "begins");
                         const auto status = next_ ? ask(c, *next_, *task, result) : work(c, *task, result);
                         log(c, c.done() ? "is cut short: " + ctx::cause_message(c) : "ends");
                         return status;
                       }};
  }

 private:
  static grpc::Status work(const ctx::context& c, const example::Task& task, example::Result* result) {
    if (c.wait_for(milliseconds{task.milliseconds()})) return status_of(c);
    result->set_text("worked");
    return grpc::Status::OK;
  }

  const ctx::context ctx_;
  const std::unique_ptr<example::Worker::Stub> next_;
};

std::unique_ptr<example::Worker::Stub> server_at(const std::string& port) {
  return example::Worker::NewStub(grpc::CreateChannel("127.0.0.1:" + port, grpc::InsecureChannelCredentials()));
}

void serve(const ctx::context& c, std::unique_ptr<example::Worker::Stub> next) {
  worker here{c, std::move(next)};
  int port = 0;
  grpc::ServerBuilder builder;
  builder.RegisterService(&here).AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  const auto server = builder.BuildAndStart();
  std::cout << "port " << port << std::endl;
  c.wait();
  server->Shutdown();  // returns when the handlers have, whose contexts are done
}

int call(const ctx::context& parent, const std::string& port, milliseconds timeout, milliseconds duration) {
  const auto named = ctx::with_value(parent, request_id, "call-" + std::to_string(::getpid()));
  const auto [c, cancel] = ctx::with_timeout(named, timeout);
  const std::chrono::duration<double> deadline = c.deadline()->time_since_epoch();
  log(c, "waits until " + std::to_string(deadline.count()));
  example::Task task;
  task.set_milliseconds(duration.count());
  example::Result result;
  const auto status = ask(c, *server_at(port), task, &result);
  std::cout << (status.ok() ? result.text() : status.error_message()) << std::endl;
  return status.error_code();
}

}  // namespace

int main(int argc, char** argv) {
  const auto [c, cancel] = ctx::with_signals(ctx::background(), {SIGINT, SIGTERM});
  if (argc == 2) return serve(c, nullptr), 0;
  if (argc == 3) return serve(c, server_at(argv[2])), 0;
  return call(c, argv[2], milliseconds{std::stoi(argv[3])}, milliseconds{std::stoi(argv[4])});
}
