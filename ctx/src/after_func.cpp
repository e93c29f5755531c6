#include <ctx/context.hpp>

#include <system_error>
#include <utility>

// A function that after_func registered goes one of two ways, whichever takes it first: stop(), and then
// it never runs; or start(), called as a std::stop_callback by the thread that ends the context.

namespace ctx {
namespace detail {

void after_func_state::start_when_done(const context& ctx) {
  std::stop_token done = ctx.stop_token();
  ctx_ = ctx;
  on_done_.emplace(std::move(done), starter{this});
  registration_ = registration::complete;
}

bool after_func_state::stop() noexcept {
  if (taken_.exchange(true)) return false;
  leave();  // where start() has just lost to this call on another thread, that returns at once
  return true;
}

void after_func_state::leave() noexcept {
  auto complete = registration::complete;
  if (!registration_.compare_exchange_strong(complete, registration::leaving)) return;
  on_done_.reset();
  registration_ = registration::gone;
  registration_.notify_all();
}

void after_func_state::start() noexcept {
  // The function may destroy its handle: it must not go with it while it runs.
  const std::shared_ptr<after_func_state> self = shared_from_this();
  if (!taken_.exchange(true)) {
    try {
      // The timer's thread, which may be the one that starts this, has others.
      thread_ = std::thread{[self] {
        self->settings_.apply();
        self->call();
      }};
    } catch (...) {
      // No thread to be had, or no memory for one.
      call();
    }
  }
  // A registration that has fired is best destroyed from inside: libstdc++ 12 forgets to tell that a
  // callback has returned if there was one thread then, and another thread that destroys it waits for ever.
  leave();
}

void after_func_state::finish() noexcept {
  stop();
  leave();  // waits for start() where another thread is in it
  registration_.wait(registration::leaving);
  if (!thread_.joinable()) return;
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

}  // namespace detail

after_func_handle& after_func_handle::operator=(after_func_handle&& other) noexcept {
  after_func_handle taken{std::move(other)};
  state_.swap(taken.state_);
  return *this;
}

after_func_handle::~after_func_handle() {
  if (state_ != nullptr) state_->finish();
}

bool after_func_handle::stop() noexcept { return state_ != nullptr && state_->stop(); }

}  // namespace ctx
