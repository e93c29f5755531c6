#include <ctx/context.hpp>

#include <ctx/src/timer.hpp>
#include <ctx/src/tree.hpp>
#include <ctx/src/waiting.hpp>

#include <algorithm>
#include <exception>
#include <ostream>
#include <thread>
#include <vector>

namespace ctx {
namespace detail {
namespace {

cancelable* nearest(const context& ctx) noexcept {
  node* const node = access::node_of(ctx);
  return node != nullptr ? node->nearest_cancelable() : nullptr;
}

/// The deadline that governs `from`.
std::optional<clock::time_point> deadline_of(const node* from) noexcept {
  clock::time_point at;
  while (from != nullptr) {
    switch (from->deadline(at)) {
      case node::deadline_source::here:
        return at;
      case node::deadline_source::none:
        return std::nullopt;
      case node::deadline_source::parent:
        from = from->parent();
    }
  }
  return std::nullopt;
}

/// The context whose own deadline, at `at`, governs `from`; null where nobody's does.
timed* holder_of(node* from, clock::time_point at) noexcept {
  while (from != nullptr) {
    if (from->made_by() == factory::with_deadline || from->made_by() == factory::with_timeout) {
      auto* const holder = static_cast<timed*>(from);
      if (holder->has_own_deadline() && holder->due() == at) return holder;
    }
    const bool is_of_second = from->made_by() == factory::merge && deadline_of(from->parent()) != at;
    from = is_of_second ? from->second_parent() : from->parent();
  }
  return nullptr;
}

/// Takes over the two references that `made` was born with.
cancel_scope scope_of(cancelable* made) noexcept { return {access::make(made, made), access::make(made)}; }

void retain(node* parent) noexcept {
  if (parent != nullptr) parent->retain();
}

class todo_node final : public node {
 public:
  todo_node() noexcept : node{nullptr, factory::todo, 1} {}
  cancelable* nearest_cancelable() const noexcept override { return nullptr; }
};

class without_cancel_node final : public node {
 public:
  explicit without_cancel_node(node* parent) noexcept : node{parent, factory::without_cancel, 1} {}
  cancelable* nearest_cancelable() const noexcept override { return nullptr; }
  deadline_source deadline(clock::time_point&) const noexcept override { return deadline_source::none; }
};

}  // namespace

constinit const immortal<completion> never_done;

cancel_scope with_deadline(const context& parent, clock::time_point now, clock::time_point deadline,
                           std::exception_ptr cause, std::source_location where, factory made_by) {
  node* const above = access::node_of(parent);
  const clock::time_point governing = deadline_of(above).value_or(clock::time_point::max());
  // A deadline that is not earlier than the parent's never has to end the context.
  const bool passed = deadline <= now;
  const bool own = deadline < governing;
  if (own && !passed) timer::instance().start();
  if (passed && !own) {
    // The timer may not have come to it yet.
    if (timed* const holder = holder_of(above, governing)) holder->end(errc::deadline_exceeded, nullptr, nullptr);
  }
  if (cancelable* const up = nearest(parent)) up->expect_children();

  auto* const made = new timed{above, made_by, where, std::min(deadline, governing), own, std::move(cause)};
  retain(above);
  made->enter(now);
  if (passed) made->end(errc::deadline_exceeded, nullptr, nullptr);
  return scope_of(made);
}

}  // namespace detail

using namespace detail;

std::stop_token context::stop_token() const {
  cancelable* const up = nearest(*this);
  return up != nullptr ? up->stop_token() : std::stop_token{};
}

std::exception_ptr context::cause() const noexcept {
  const cancelable* const up = nearest(*this);
  return up != nullptr ? up->cause() : nullptr;
}

std::optional<clock::time_point> context::deadline() const noexcept { return deadline_of(node_); }

clock::duration context::remaining() const noexcept {
  const auto until = deadline();
  if (!until) return clock::duration::max();
  const auto left = subtract_saturate(until->time_since_epoch(), clock::now().time_since_epoch());
  return std::max(left, clock::duration::zero());
}

void context::wait() const { wait_until_clock(clock::time_point::max()); }

bool context::wait_until_clock(clock::time_point time) const {
  cancelable* const up = nearest(*this);
  return up != nullptr ? up->wait_until(time) : detail::wait_until(nullptr, time);
}

cancel_func::~cancel_func() {
  if (target_ == nullptr) return;
  target_->end(errc::canceled, nullptr, nullptr);
  node::release(target_);
}

bool cancel_func::operator()(location where) const noexcept { return (*this)(nullptr, where); }

bool cancel_func::operator()(std::exception_ptr cause, location where) const noexcept {
  return target_ != nullptr && target_->end(errc::canceled, std::move(cause), &where);
}

void cancel_func::release() noexcept {
  if (target_ != nullptr) node::release(std::exchange(target_, nullptr));
}

context todo() noexcept {
  // Never destroyed, as contexts may outlive any static object.
  alignas(todo_node) static std::byte storage[sizeof(todo_node)];
  static todo_node* const the_todo = new (storage) todo_node;
  the_todo->retain();
  return access::make(the_todo, &never_done.value);
}

cancel_scope with_cancel(const context& parent, std::source_location where) {
  node* const above = access::node_of(parent);
  if (cancelable* const up = nearest(parent)) up->expect_children();
  auto* const made = new cancelable{above, factory::with_cancel, where};
  retain(above);
  made->enter({});
  return scope_of(made);
}

cancel_scope with_stop_token(const context& parent, std::stop_token token, std::source_location where) {
  node* const above = access::node_of(parent);
  if (cancelable* const up = nearest(parent)) up->expect_children();
  auto* const made = new driven{above, std::move(token), where};
  retain(above);
  made->enter({});
  return scope_of(made);
}

cancel_scope merge(const context& first, const context& second, std::source_location where) {
  node* const above = access::node_of(first);
  node* const beside = access::node_of(second);
  cancelable* const up = nearest(first);
  cancelable* const other = nearest(second) != up ? nearest(second) : nullptr;
  if (up != nullptr) up->expect_children();
  if (other != nullptr) other->expect_children();

  auto deadline = deadline_of(above);
  if (const auto another = deadline_of(beside)) deadline = std::min(deadline.value_or(*another), *another);
  auto* const made = new merged{above, beside, other, where, deadline};
  retain(above);
  retain(beside);
  made->enter({});
  return scope_of(made);
}

context without_cancel(const context& parent) {
  node* const above = access::node_of(parent);
  auto* const made = new without_cancel_node{above};
  retain(above);
  return access::make(made, &never_done.value);
}

std::string cause_message(const context& ctx) {
  const std::exception_ptr cause = ctx.cause();
  if (cause == nullptr) return {};
  try {
    std::rethrow_exception(cause);
  } catch (const std::exception& why) {
    return why.what();
  } catch (...) {
    return ctx.err().message();
  }
}

std::string to_string(const context& ctx) {
  std::vector<const node*> path;
  for (const node* at = access::node_of(ctx); at != nullptr; at = at->parent()) path.push_back(at);
  std::string out = !path.empty() && path.back()->made_by() == factory::todo ? "" : "background";
  for (auto each = path.rbegin(); each != path.rend(); ++each) {
    if (!out.empty()) out += '.';
    (*each)->describe(out);
  }
  return out;
}

std::ostream& operator<<(std::ostream& out, const context& ctx) { return out << to_string(ctx); }

}  // namespace ctx
