// Exists for ends that get lost on their way through the tree, come twice, too late or with another's
// cause; for children that stay linked to a parent, or go while a callback still needs them; and for
// recursion: the threads of this program have stacks of 256 KiB.
//
// The random test prints its seed; CTX_TEST_SEED replays one.

#include "sanitizer.hpp"

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <filesystem>
#endif
#if defined(__GLIBC__)
#include <pthread.h>
#endif

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::cancel_func;
using ctx::cancel_scope;
using ctx::context;
using ctx::merge;
using ctx::todo;
using ctx::with_cancel;
using ctx::with_deadline;
using ctx::with_stop_token;
using ctx::with_timeout;
using ctx::with_value;
using ctx::without_cancel;

// A context is a value that is never empty.
static_assert(std::is_nothrow_default_constructible_v<context>);
static_assert(std::is_nothrow_copy_constructible_v<context> && std::is_nothrow_copy_assignable_v<context>);
static_assert(std::is_nothrow_move_constructible_v<context> && std::is_nothrow_move_assignable_v<context>);
static_assert(std::is_nothrow_destructible_v<context> && std::is_nothrow_swappable_v<context>);
static_assert(std::equality_comparable<context>);
static_assert(noexcept(std::declval<const context&>() == std::declval<const context&>()));
static_assert(noexcept(background()) && noexcept(todo()));
static_assert(noexcept(std::declval<const context&>().done()));
static_assert(noexcept(std::declval<const context&>().err()));
static_assert(noexcept(std::declval<const context&>().cause()));
static_assert(noexcept(std::declval<const context&>().deadline()));
static_assert(noexcept(std::declval<const context&>().remaining()));

// The right to cancel has one owner.
static_assert(std::is_nothrow_default_constructible_v<cancel_func>);
static_assert(!std::is_copy_constructible_v<cancel_func> && !std::is_copy_assignable_v<cancel_func>);
static_assert(std::is_nothrow_move_constructible_v<cancel_func>);
static_assert(std::is_nothrow_move_assignable_v<cancel_func>);
static_assert(std::is_nothrow_destructible_v<cancel_func> && std::is_nothrow_swappable_v<cancel_func>);
static_assert(std::is_nothrow_invocable_r_v<bool, const cancel_func&>);
static_assert(std::is_nothrow_invocable_r_v<bool, const cancel_func&, std::exception_ptr>);
static_assert(std::is_nothrow_invocable_r_v<bool, const cancel_func&, std::nullptr_t>);
static_assert(std::is_nothrow_invocable_r_v<bool, const cancel_func&, std::runtime_error>);
static_assert(noexcept(std::declval<cancel_func&>().release()));
static_assert(!std::is_constructible_v<cancel_func, context> && !std::is_convertible_v<cancel_func, bool>);
static_assert(!std::is_copy_constructible_v<cancel_scope> && !std::is_copy_assignable_v<cancel_scope>);
static_assert(std::is_nothrow_move_constructible_v<cancel_scope>);
static_assert(std::is_nothrow_move_assignable_v<cancel_scope>);

// Sanitizers need more stack, for themselves, and much more memory.
constexpr int depth = sanitized ? 50'000 : 1'000'000;
[[maybe_unused]] constexpr std::size_t stack_size = sanitized ? 2 << 20 : 256 << 10;

#if defined(__GLIBC__)
// Before anything starts a thread, so that the timer's has a small stack, too. Elsewhere stacks are
// small, or larger than this by default.
[[maybe_unused]] const int small_stacks = [] {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, stack_size);
  return pthread_setattr_default_np(&attributes);
}();
#endif

void on_small_stack(auto f) { std::jthread{f}.join(); }

constexpr ctx::key<int> number{"number"};
constexpr ctx::key<std::shared_ptr<int>> probe{"probe"};

std::exception_ptr make_cause(const char* what = "cause") { return std::make_exception_ptr(std::runtime_error{what}); }

context kept(cancel_scope scope) {
  scope.cancel.release();
  return std::move(scope.ctx);
}

/// All ways to derive a context that ends with its parent.
struct derivation {
  const char* name;
  context (*derive)(const context& parent);
};
constexpr derivation derivations[] = {
    {"with_cancel", [](const context& c) { return kept(with_cancel(c)); }},
    {"with_value", [](const context& c) { return with_value(c, number, 1); }},
    {"with_timeout", [](const context& c) { return kept(with_timeout(c, 1h)); }},
    {"with_deadline", [](const context& c) { return kept(with_deadline(c, ctx::clock::now() + 1h)); }},
    {"with_stop_token", [](const context& c) { return kept(with_stop_token(c, {})); }},
    {"merge, first", [](const context& c) { return kept(merge(c, background())); }},
    {"merge, second", [](const context& c) { return kept(merge(background(), c)); }},
    {"merge, both", [](const context& c) { return kept(merge(c, c)); }},
    {"with_value and with_cancel", [](const context& c) { return kept(with_cancel(with_value(c, number, 1))); }},
    {"merge with a relative, first", [](const context& c) { return kept(merge(kept(with_cancel(c)), c)); }},
    {"merge with a relative, second", [](const context& c) { return kept(merge(c, kept(with_cancel(c)))); }},
};

void check_live(const context& c) {
  CHECK_FALSE(c.done());
  CHECK_FALSE(c.err());
  CHECK(c.cause() == nullptr);
  CHECK_FALSE(c.stop_token().stop_requested());
  CHECK_NOTHROW(c.throw_if_done());
}

void check_ended(const context& c, ctx::errc err, const std::exception_ptr& cause) {
  CHECK(c.done());
  CHECK(c.err() == err);
  CHECK(c.cause() == cause);
  CHECK(c.stop_token().stop_requested());
}

/// A callback on the end of a context that can be stored, whatever it does.
using callback = std::stop_callback<std::function<void()>>;

// Roots and handles

TEST_CASE("background and todo are never done, and nothing can end them") {
  for (const context& root : {background(), todo()}) {
    check_live(root);
    CHECK_FALSE(root.stop_token().stop_possible());
    CHECK_FALSE(root.deadline());
    CHECK(root.remaining() == ctx::clock::duration::max());
    CHECK(root.value(number) == nullptr);
    CHECK_FALSE(root.wait_for(1ns));
  }
  CHECK(background() == background());
  CHECK(todo() == todo());
  CHECK(background() != todo());
}

TEST_CASE("a default-constructed or moved-from context is the background") {
  CHECK(context{} == background());
  auto [c, cancel] = with_cancel(background());
  const context kept_alive = c;
  const context moved = std::move(c);
  CHECK(c == background());
  CHECK(moved == kept_alive);
  context assigned;
  c = moved;
  assigned = std::move(c);
  CHECK(c == background());
  CHECK(assigned == moved);
  cancel();
  check_live(c);
  CHECK(moved.done());
  auto [child, cancel_child] = with_timeout(with_value(c, number, 7), 1h);  // not a null context to derive from
  CHECK(*child.value(number) == 7);
  CHECK(cancel_child());
}

TEST_CASE("whatever was moved from can be given to every function, and can be used again") {
  auto scope = with_cancel(with_value(background(), number, 1));
  const cancel_scope owner = std::move(scope);
  CHECK(scope.ctx == background());
  CHECK_FALSE(scope.cancel());
  std::stop_source source;
  std::stop_token token = source.get_token();
  const std::stop_token taken = std::move(token);
  for (const auto& [name, derive] : derivations) {
    CAPTURE(name);
    check_live(derive(scope.ctx));
  }
  check_live(kept(with_stop_token(scope.ctx, token)));
  check_live(kept(merge(scope.ctx, scope.ctx)));
  check_live(without_cancel(scope.ctx));
  CHECK(to_string(scope.ctx) == "background");
  CHECK_FALSE(scope.ctx.wait_for(1ns));
  int calls = 0;
  auto handle = ctx::after_func(scope.ctx, [&] { ++calls; });
  const auto other = std::move(handle);
  CHECK_FALSE(handle.stop());
  source.request_stop();
  check_live(owner.ctx);
  scope = with_cancel(owner.ctx);
  CHECK(scope.ctx.value(number) != nullptr);
  CHECK(owner.cancel());
  CHECK(scope.ctx.done());
  CHECK_FALSE(scope.cancel());
  CHECK(calls == 0);
}

TEST_CASE("contexts are equal if they are the same node") {
  auto [c, cancel] = with_cancel(background());
  const context copy = c;
  CHECK(copy == c);
  CHECK(c != background());
  CHECK(with_value(c, number, 1) != c);
  CHECK(with_value(c, number, 1) != with_value(c, number, 1));
  CHECK(without_cancel(background()) != background());
}

TEST_CASE("assigning and swapping contexts, also to themselves, keeps what they are") {
  auto [a, cancel_a] = with_cancel(background());
  auto [b, cancel_b] = with_cancel(background());
  const context was_a = a, was_b = b;
  std::swap(a, b);
  CHECK((a == was_b && b == was_a));
  context& same = a;
  a = same;
  CHECK(a == was_b);
  a = std::move(same);
  CHECK(a == was_b);
  std::swap(a, same);
  CHECK(a == was_b);
  b = a;
  CHECK(b == was_b);
}

TEST_CASE("canceling ends a context before it returns, and only the first call did it") {
  auto [c, cancel] = with_cancel(background());
  const context copy = c, below = with_value(c, number, 1);
  check_live(c);
  CHECK(c.stop_token().stop_possible());
  const auto cause = make_cause();
  CHECK(cancel(cause));
  for (const context& each : {c, copy, below}) check_ended(each, ctx::errc::canceled, cause);
  CHECK_FALSE(cancel());
  CHECK_FALSE(cancel(make_cause("too late")));
  check_ended(c, ctx::errc::canceled, cause);
  c.wait();
  CHECK(c.wait_for(1h));
}

TEST_CASE("destroying the right to cancel cancels") {
  context c, inner;
  {
    auto scope = with_cancel(background());
    c = scope.ctx;
    {
      auto [inner_ctx, cancel] = with_timeout(c, 1h);
      inner = inner_ctx;
      CHECK_FALSE(inner.done());
    }
    CHECK(inner.done());
    CHECK_FALSE(c.done());
  }
  CHECK(c.err() == ctx::errc::canceled);
}

TEST_CASE("overwriting the right to cancel cancels what it was for, and only that") {
  auto [a, cancel_a] = with_cancel(background());
  auto [b, cancel_b] = with_cancel(background());
  cancel_a = std::move(cancel_b);
  CHECK(a.done());
  CHECK_FALSE(b.done());
  CHECK_FALSE(cancel_b());
  CHECK_FALSE(b.done());
  CHECK(cancel_a());
  CHECK(b.done());
}

TEST_CASE("moving and swapping the right to cancel cancels nothing") {
  auto [a, cancel_a] = with_cancel(background());
  auto [b, cancel_b] = with_cancel(background());
  std::swap(cancel_a, cancel_b);
  std::vector<cancel_func> many;
  many.push_back(std::move(cancel_a));
  many.insert(many.begin(), std::move(cancel_b));
  cancel_scope scope{a, std::move(many.front())};
  cancel_scope moved = std::move(scope);
  CHECK_FALSE(a.done());
  CHECK_FALSE(b.done());
  CHECK_FALSE(scope.cancel());
  CHECK(moved.cancel());
  CHECK(a.done());
  many.clear();
  CHECK(b.done());
}

TEST_CASE("moving the right to cancel to itself has no effect, as for std::jthread") {
  auto [c, cancel] = with_cancel(background());
  cancel_func& same = cancel;
  cancel = std::move(same);
  CHECK_FALSE(c.done());
  std::swap(cancel, same);
  CHECK_FALSE(c.done());
  CHECK(cancel());
}

TEST_CASE("a right that is empty cancels nothing") {
  cancel_func empty;
  CHECK_FALSE(empty());
  CHECK_FALSE(empty(make_cause()));
  CHECK_FALSE(empty(std::runtime_error{"nothing"}));
  empty.release();
  auto [c, cancel] = with_cancel(background());
  const cancel_func owner = std::move(cancel);
  CHECK_FALSE(cancel());
  cancel.release();
  cancel = cancel_func{};
  CHECK_FALSE(c.done());
  CHECK(owner());
}

TEST_CASE("once the right is released, the parent and the deadline alone end a context") {
  ctx::manual_clock clock;
  auto [parent, cancel] = with_cancel(background());
  auto by_parent = with_cancel(parent);
  auto by_deadline = with_timeout(parent, 1h);
  for (auto* const scope : {&by_parent, &by_deadline}) {
    scope->cancel.release();
    CHECK_FALSE(scope->cancel());
    scope->cancel.release();
    scope->cancel = {};
    CHECK_FALSE(scope->ctx.done());
  }
  clock.advance(1h);
  CHECK(by_deadline.ctx.err() == ctx::errc::deadline_exceeded);
  CHECK_FALSE(by_parent.ctx.done());
  CHECK(cancel());
  CHECK(by_parent.ctx.err() == ctx::errc::canceled);
}

TEST_CASE("what was not canceled before its last context went cancels nobody else") {
  cancel_func cancel;
  std::stop_token token;
  {
    auto scope = with_cancel(background());
    token = scope.ctx.stop_token();
    cancel = std::move(scope.cancel);
  }
  CHECK_FALSE(token.stop_requested());
  CHECK(cancel());
  CHECK(token.stop_requested());
}

// Parents and children

TEST_CASE("canceling a parent ends its descendants of every kind before cancel returns") {
  auto [parent, cancel] = with_cancel(background());
  std::vector<context> below;
  for (const auto& each : derivations) {
    below.push_back(each.derive(parent));
    for (const auto& grandchild : derivations) below.push_back(grandchild.derive(below.back()));
  }
  for (std::size_t i = 0; i < below.size(); i += 2) check_live(below[i]);  // the others have no token yet
  const auto cause = make_cause();
  cancel(cause);
  for (const context& each : below) check_ended(each, ctx::errc::canceled, cause);
}

TEST_CASE("the child of a done context is born done, with its err and cause") {
  ctx::manual_clock clock;
  for (const auto& each : derivations) {
    CAPTURE(each.name);
    auto [canceled, cancel] = with_cancel(background());
    const auto cause = make_cause(), deadline_cause = make_cause("deadline");
    cancel(cause);
    auto [expired, cancel_expired] = with_timeout(background(), 0s, deadline_cause);
    check_ended(each.derive(canceled), ctx::errc::canceled, cause);
    check_ended(each.derive(expired), ctx::errc::deadline_exceeded, deadline_cause);
    auto [child, cancel_child] = with_cancel(each.derive(canceled));
    CHECK_FALSE(cancel_child(make_cause("too late")));
    check_ended(child, ctx::errc::canceled, cause);
  }
}

TEST_CASE("a child that ends leaves its parent and its siblings alone") {
  for (const bool under_background : {true, false}) {
    auto [root, cancel_root] = with_cancel(background());
    const context parent = under_background ? background() : root;
    auto [sibling, cancel_sibling] = with_cancel(parent);
    auto [child, cancel] = with_cancel(parent);
    auto [expired, cancel_expired] = with_timeout(parent, 0s);
    auto [below, cancel_below] = with_cancel(child);
    cancel();
    CHECK(child.done());
    CHECK(below.done());
    CHECK(expired.done());
    check_live(parent);
    check_live(sibling);
    CHECK(cancel_sibling());
  }
}

TEST_CASE("a child whose handles are gone is gone at once, canceled or not, and its parent goes on") {
  for (const auto& each : derivations) {
    CAPTURE(each.name);
    auto [parent, cancel] = with_cancel(background());
    auto [sibling, cancel_sibling] = with_cancel(parent);
    const auto alive = std::make_shared<int>();
    {
      const context live = with_value(each.derive(parent), probe, alive);
      const context observed = with_value(each.derive(parent), probe, alive);
      const auto token = observed.stop_token();
      auto [canceled, cancel_child] = with_cancel(with_value(each.derive(parent), probe, alive));
      cancel_child();
      auto [expired, cancel_expired] = with_timeout(with_value(each.derive(parent), probe, alive), 0s);
      CHECK(alive.use_count() == 5);
    }
    CHECK(alive.use_count() == 1);
    cancel();  // reaches no child that is gone
    CHECK(sibling.done());
  }
}

TEST_CASE("a child keeps its ancestors alive, with their values and their deadlines") {
  ctx::manual_clock clock;
  const auto alive = std::make_shared<int>();
  context child;
  {
    auto [root, cancel] = with_timeout(with_value(background(), probe, alive), 1h);
    child = kept(with_cancel(kept(with_cancel(root))));
    cancel.release();
  }
  CHECK(child.value(probe)->get() == alive.get());
  clock.advance(1h);
  CHECK(child.err() == ctx::errc::deadline_exceeded);
  child = {};
  CHECK(alive.use_count() == 1);
}

TEST_CASE("without_cancel keeps the values, has no deadline and is never done") {
  ctx::manual_clock clock;
  auto [parent, cancel] = with_timeout(with_value(background(), number, 7), 1h);
  const context c = without_cancel(parent), value = with_value(c, probe, nullptr);
  auto [below, cancel_below] = with_timeout(c, 3h);
  cancel();
  for (const context& each : {c, value, without_cancel(parent), without_cancel(without_cancel(c))}) {
    check_live(each);
    CHECK_FALSE(each.stop_token().stop_possible());
    CHECK_FALSE(each.deadline());
    CHECK(*each.value(number) == 7);
  }
  clock.advance(2h);
  check_live(below);
  CHECK(below.remaining() == 1h);
  clock.advance(1h);
  CHECK(below.err() == ctx::errc::deadline_exceeded);
  check_live(c);
}

TEST_CASE("a hundred thousand siblings end with their parent, and go in any order") {
  auto [parent, cancel] = with_cancel(background());
  std::vector<context> children;
  for (int i = 0; i < 100'000; ++i) children.push_back(kept(with_cancel(parent)));
  std::shuffle(children.begin(), children.end(), std::minstd_rand{});
  children.resize(children.size() / 2);
  cancel();
  CHECK(std::ranges::all_of(children, [](const context& c) { return c.done(); }));
}

// Tokens

TEST_CASE("a context's token is equal at every call, before and after its end") {
  for (const auto& each : derivations) {
    CAPTURE(each.name);
    auto [parent, cancel] = with_cancel(background());
    const context c = each.derive(parent), copy = c, asked_late = each.derive(parent);
    const auto before = c.stop_token();
    CHECK(before.stop_possible());
    CHECK(copy.stop_token() == before);
    CHECK(each.derive(background()).stop_token() != before);
    cancel();
    CHECK(c.stop_token() == before);
    CHECK(before.stop_requested());
    CHECK(asked_late.stop_token() == asked_late.stop_token());
    CHECK(asked_late.stop_token().stop_requested());
  }
}

TEST_CASE("a token tells of the end of a child that has none of its own yet") {
  auto [parent, cancel] = with_cancel(background());
  auto [child, cancel_child] = with_cancel(parent);
  auto [late, cancel_late] = with_cancel(parent);
  bool told = false;
  const std::stop_callback on_parent{parent.stop_token(), [&, &late = late] {
                                       // The parent is done; its child has yet to hear of it, or has heard.
                                       CHECK(late.stop_token().stop_requested() == late.done());
                                       told = true;
                                     }};
  cancel();
  CHECK(told);
  CHECK(child.stop_token().stop_requested());
  bool at_once = false;
  const std::stop_callback on_child{child.stop_token(), [&] { at_once = true; }};
  CHECK(at_once);
}

TEST_CASE("callbacks run once, on the canceling thread, before cancel returns, those of a parent first") {
  auto [parent, cancel] = with_cancel(background());
  const context middle = kept(with_cancel(parent)), child = kept(with_cancel(middle));
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  const auto heard = [&](int which) {
    return [&, which] { order.push_back(which), threads.push_back(std::this_thread::get_id()); };
  };
  const callback on_child{child.stop_token(), heard(2)}, on_parent{parent.stop_token(), heard(1)};
  const callback on_value{with_value(child, number, 1).stop_token(), heard(2)};
  std::size_t before_return = 0;
  std::thread::id canceling;
  std::jthread{[&, &cancel = cancel] {
    canceling = std::this_thread::get_id();
    cancel();
    before_return = order.size();
  }}.join();
  CHECK(before_return == 3);
  CHECK(order == std::vector{1, 2, 2});
  CHECK(threads == std::vector(3, canceling));
}

TEST_CASE("what has no token of its own is done with the context above that has one, not before") {
  const auto root = with_cancel(background());
  struct line {
    explicit line(const context& parent) : top{with_cancel(parent)} {}
    cancel_scope top, middle = with_cancel(top.ctx), bottom = with_cancel(middle.ctx);
  };
  const line one{root.ctx}, other{root.ctx};
  int live = 0;
  const auto compare = [&] {
    for (const line* each : {&one, &other}) {
      const bool done = each->top.ctx.done();
      CHECK(each->middle.ctx.done() == done);
      CHECK(each->bottom.ctx.done() == done);
      live += done ? 0 : 1;
    }
  };
  const std::stop_callback first{one.top.ctx.stop_token(), compare};
  const std::stop_callback second{other.top.ctx.stop_token(), compare};
  root.cancel();
  CHECK(live == 1);  // one of the lines, while the other's callback ran
}

TEST_CASE("whoever sees the stop sees err and cause") {
  auto [parent, cancel] = with_cancel(background());
  const auto cause = make_cause();
  int seen = 0;
  std::vector<std::unique_ptr<callback>> callbacks;
  for (const auto& each : derivations) {
    const context c = each.derive(parent);
    callbacks.push_back(std::make_unique<callback>(c.stop_token(), [&, c] {
      check_ended(c, ctx::errc::canceled, cause);
      check_ended(parent, ctx::errc::canceled, cause);
      ++seen;
    }));
  }
  cancel(cause);
  CHECK(seen == std::size(derivations));
}

TEST_CASE("the token of a context that is gone can't be stopped any more") {
  std::stop_token token;
  {
    const context c = kept(with_cancel(background()));
    token = c.stop_token();
    CHECK(token.stop_possible());
  }
  CHECK_FALSE(token.stop_possible());
  CHECK_FALSE(token.stop_requested());
}

// Foreign stop tokens

TEST_CASE("a std::jthread's token drives a context, and all below it") {
  context child;
  std::error_code seen;
  std::jthread thread{[&](std::stop_token stop) {
    auto [c, cancel] = with_stop_token(background(), stop);
    child = kept(with_cancel(c));
    child.wait();
    seen = c.err();
  }};
  thread.request_stop();
  thread.join();
  CHECK(seen == ctx::errc::canceled);
  CHECK(child.err() == ctx::errc::canceled);
}

TEST_CASE("a stopped token gives a context that is done") {
  std::stop_source source;
  source.request_stop();
  auto [c, cancel] = with_stop_token(background(), source.get_token());
  CHECK(c.err() == ctx::errc::canceled);
  CHECK(c.cause() == with_value(c, number, 1).cause());
  CHECK_FALSE(cancel());

  auto [parent, cancel_parent] = with_cancel(background());
  const auto cause = make_cause();
  cancel_parent(cause);
  check_ended(with_stop_token(parent, source.get_token()).ctx, ctx::errc::canceled, cause);
}

TEST_CASE("a context on a token is canceled as any other, and leaves the token alone") {
  std::stop_source source;
  auto [parent, cancel_parent] = with_cancel(background());
  auto [a, cancel_a] = with_stop_token(parent, source.get_token());
  auto [b, cancel_b] = with_stop_token(parent, source.get_token());
  auto [c, cancel_c] = with_stop_token(parent, source.get_token());
  const auto cause = make_cause();
  CHECK(cancel_a(cause));
  check_ended(a, ctx::errc::canceled, cause);
  check_live(b);
  CHECK_FALSE(source.stop_requested());
  source.request_stop();
  CHECK(b.done());
  CHECK(c.done());
  check_ended(a, ctx::errc::canceled, cause);
  check_live(parent);
}

// Not inlined, as g++ 12 sees a use after free in a token that outlives its source.
[[gnu::noinline]] std::stop_token token_without_source() { return std::stop_source{}.get_token(); }

TEST_CASE("a token that can't be stopped, or whose source is gone, ends nothing") {
  const std::stop_token orphan = token_without_source();
  for (const std::stop_token& token : {std::stop_token{}, orphan}) {
    auto [parent, cancel_parent] = with_cancel(background());
    auto [c, cancel] = with_stop_token(parent, token);
    check_live(c);
    CHECK(cancel_parent());
    CHECK(c.done());
  }
}

TEST_CASE("a context that is gone is off the token it was on") {
  std::stop_source source;
  const auto alive = std::make_shared<int>();
  for (const bool canceled : {true, false}) {
    auto [c, cancel] = with_stop_token(with_value(background(), probe, alive), source.get_token());
    if (canceled) cancel();
    cancel.release();
  }
  CHECK(alive.use_count() == 1);
  CHECK(source.request_stop());
}

TEST_CASE("a context may be driven by the token of any other, also of a relative") {
  auto [root, cancel] = with_cancel(background());
  auto [stranger, cancel_stranger] = with_cancel(background());
  auto [child, cancel_child] = with_cancel(root);
  auto on_root = with_stop_token(root, root.stop_token());
  auto on_child = with_stop_token(root, child.stop_token());
  auto below_child = with_stop_token(child, root.stop_token());
  auto on_stranger = with_stop_token(root, stranger.stop_token());
  auto back = with_stop_token(stranger, on_root.ctx.stop_token());
  cancel_child();
  CHECK(on_child.ctx.done());
  CHECK(below_child.ctx.done());
  check_live(on_root.ctx);
  const auto cause = make_cause();
  cancel(cause);
  check_ended(on_root.ctx, ctx::errc::canceled, cause);
  check_ended(on_stranger.ctx, ctx::errc::canceled, cause);
  CHECK(back.ctx.err() == ctx::errc::canceled);
  check_live(stranger);
}

// Merges

TEST_CASE("a merge ends with either, with that one's err and cause") {
  ctx::manual_clock clock;
  const auto cause = make_cause(), deadline_cause = make_cause("deadline");
  for (const bool first_ends : {true, false}) {
    for (const bool by_deadline : {true, false}) {
      auto [a, cancel_a] = with_timeout(background(), 1h, deadline_cause);
      auto [b, cancel_b] = with_timeout(background(), 2h);
      auto [c, cancel] = first_ends ? merge(a, b) : merge(b, a);
      auto [below, cancel_below] = with_cancel(c);
      check_live(c);
      if (by_deadline)
        clock.advance(1h);
      else
        cancel_a(cause);
      const auto err = by_deadline ? ctx::errc::deadline_exceeded : ctx::errc::canceled;
      for (const context& each : {a, c, below}) check_ended(each, err, by_deadline ? deadline_cause : cause);
      check_live(b);
    }
  }
}

TEST_CASE("a merge of contexts that are both done takes after the first") {
  auto [a, cancel_a] = with_cancel(background());
  auto [b, cancel_b] = with_cancel(background());
  auto [live, cancel_live] = with_cancel(background());
  const auto cause_a = make_cause("a"), cause_b = make_cause("b");
  cancel_a(cause_a);
  cancel_b(cause_b);
  check_ended(merge(a, b).ctx, ctx::errc::canceled, cause_a);
  check_ended(merge(b, a).ctx, ctx::errc::canceled, cause_b);
  check_ended(merge(a, live).ctx, ctx::errc::canceled, cause_a);
  check_ended(merge(live, a).ctx, ctx::errc::canceled, cause_a);
}

TEST_CASE("canceling a merge leaves both of its parents live") {
  auto [a, cancel_a] = with_cancel(background());
  auto [b, cancel_b] = with_cancel(background());
  auto [c, cancel] = merge(a, b);
  auto [other, cancel_other] = merge(b, a);
  CHECK(cancel());
  CHECK(c.done());
  for (const context& each : {a, b, other}) check_live(each);
  const auto cause = make_cause();
  cancel_b(cause);
  check_ended(other, ctx::errc::canceled, cause);
  check_live(a);
}

TEST_CASE("the values of a merge come from its first parent, its deadline is the earlier") {
  const ctx::manual_clock clock;
  auto [a, cancel_a] = with_timeout(with_value(background(), number, 1), 1h);
  auto [b, cancel_b] = with_timeout(with_value(background(), number, 2), 2h);
  const context only_b = with_value(b, probe, std::make_shared<int>());
  auto ab = merge(a, only_b), ba = merge(only_b, a);
  CHECK(*ab.ctx.value(number) == 1);
  CHECK(ab.ctx.value(probe) == nullptr);
  CHECK(*ba.ctx.value(number) == 2);
  CHECK(ba.ctx.value(probe) != nullptr);
  CHECK(ab.ctx.remaining() == 1h);
  CHECK(ba.ctx.remaining() == 1h);
  CHECK(merge(background(), b).ctx.remaining() == 2h);
  CHECK(merge(b, background()).ctx.remaining() == 2h);
  CHECK_FALSE(merge(without_cancel(a), without_cancel(b)).ctx.deadline());
  CHECK(merge(without_cancel(a), b).ctx.remaining() == 2h);
  CHECK(with_timeout(ab.ctx, 30min).ctx.remaining() == 30min);
  CHECK(with_timeout(ab.ctx, 90min).ctx.remaining() == 1h);
  CHECK_FALSE(merge(background(), todo()).ctx.deadline());
}

TEST_CASE("a merge with itself, an ancestor or a sibling ends once") {
  auto [root, cancel] = with_cancel(background());
  auto [child, cancel_child] = with_cancel(root);
  auto [sibling, cancel_sibling] = with_cancel(root);
  const context value = with_value(child, number, 1);
  const std::array pairs{std::pair{root, root},     std::pair{root, child},    std::pair{child, root},
                         std::pair{child, sibling}, std::pair{value, child},   std::pair{child, value},
                         std::pair{value, root},    std::pair{root, value},    std::pair{child, child},
                         std::pair{sibling, value}, std::pair{value, sibling}, std::pair{value, value}};
  int calls = 0;
  std::vector<cancel_scope> merges;
  std::vector<std::unique_ptr<callback>> callbacks;
  for (const auto& [first, second] : pairs) {
    merges.push_back(merge(first, second));
    callbacks.push_back(std::make_unique<callback>(merges.back().ctx.stop_token(), [&] { ++calls; }));
    merges.push_back(merge(first, second));  // nobody asks for the token of this one
  }
  const auto cause = make_cause();
  cancel(cause);
  for (const auto& each : merges) check_ended(each.ctx, ctx::errc::canceled, cause);
  CHECK(calls == pairs.size());
}

TEST_CASE("a merge with the background or a context that is never done ends with the other alone") {
  for (const context& never : {background(), todo(), without_cancel(background())}) {
    auto [a, cancel_a] = with_cancel(background());
    auto first = merge(a, never), second = merge(never, a), neither = merge(never, never);
    cancel_a();
    CHECK(first.ctx.done());
    CHECK(second.ctx.done());
    check_live(neither.ctx);
    CHECK(neither.cancel());
    CHECK(neither.ctx.done());
  }
}

TEST_CASE("a merge keeps both its parents alive, and unlinks itself from both") {
  const auto alive = std::make_shared<int>();
  auto [root_a, cancel_a] = with_cancel(background());
  auto [root_b, cancel_b] = with_cancel(background());
  const auto derived = [&](const context& root) { return kept(with_cancel(with_value(root, probe, alive))); };
  for (const bool canceled : {false, true}) {
    auto [c, cancel] = merge(derived(root_a), derived(root_b));
    auto [below, cancel_below] = merge(derived(c), c);
    CHECK(alive.use_count() == 4);
    if (canceled) cancel();
  }
  CHECK(alive.use_count() == 1);
  cancel_a();
  cancel_b();
}

TEST_CASE("merges of merges, a thousand deep, end with any of their roots") {
  for (const bool end_a : {true, false}) {
    auto [a, cancel_a] = with_timeout(with_value(background(), number, 1), 1h);
    auto [b, cancel_b] = with_timeout(with_value(background(), number, 2), 2h);
    const auto expected = a.deadline();
    // Between them 2^1000 ways lead to each root.
    std::vector<std::pair<context, context>> levels{{a, b}};
    for (int i = 0; i < 1000; ++i) {
      const auto [first, second] = levels.back();
      levels.emplace_back(kept(merge(first, second)), kept(merge(second, first)));
    }
    CHECK(levels.back().first.deadline() == expected);
    CHECK(*levels.back().first.value(number) == 1);
    CHECK(*levels.back().second.value(number) == 2);
    int calls = 0;
    const callback on_end{levels.back().second.stop_token(), [&] { ++calls; }};
    const auto cause = make_cause();
    (end_a ? cancel_a : cancel_b)(cause);
    for (std::size_t i = 1; i < levels.size(); ++i) {
      REQUIRE(levels[i].first.cause() == cause);
      REQUIRE(levels[i].second.cause() == cause);
    }
    CHECK(calls == 1);
    CHECK_FALSE((end_a ? b : a).done());
  }
}

TEST_CASE("merges with themselves, with values, children and parents of their own, a thousand deep, end once") {
  on_small_stack([] {
    for (const bool from_within : {false, true}) {
      const auto alive = std::make_shared<int>();
      auto [root, cancel] = with_timeout(with_value(background(), probe, alive), 1h);
      std::vector<context> levels{root};
      std::vector<std::unique_ptr<callback>> callbacks;
      int calls = 0;
      for (std::size_t i = 0; i < 250; ++i) {
        const context c = levels.back(), above = levels[i / 2];
        levels.push_back(kept(merge(c, c)));
        levels.push_back(kept(merge(levels.back(), with_value(levels.back(), number, 1))));
        levels.push_back(kept(merge(kept(with_cancel(levels.back())), levels.back())));
        levels.push_back(kept(merge(above, levels.back())));
        // Where a callback ends a merge further down, that finds its parents in the middle of their ends.
        auto again = std::make_shared<cancel_scope>(merge(levels.back(), above));
        callbacks.push_back(std::make_unique<callback>(levels.back().stop_token(), [&calls, from_within, again] {
          ++calls;
          if (from_within) again->cancel();
        }));
        levels.push_back(again->ctx);
      }
      CHECK(levels.back().deadline() == root.deadline());
      CHECK(levels.back().value(probe) != nullptr);
      const auto cause = make_cause();
      CHECK(cancel(cause));
      CHECK(calls == 250);
      for (const context& each : levels) REQUIRE(each.cause() == cause);
      // In whatever order they go.
      for (std::size_t i = 0; i < levels.size(); i += 2) levels[i] = background();
      callbacks.clear();
      levels.clear();
      root = background();
      cancel.release();
      CHECK(alive.use_count() == 1);
    }
  });
}

#if defined(__linux__)
TEST_CASE("foreign tokens, merges and cancelations need no thread") {
  const auto threads = [] { return std::distance(std::filesystem::directory_iterator{"/proc/self/task"}, {}); };
  const auto before = threads();
  std::stop_source source;
  auto driven = with_stop_token(background(), source.get_token());
  auto merged = merge(with_cancel(background()).ctx, driven.ctx);
  auto [c, cancel] = merge(driven.ctx, merged.ctx);
  const callback on_end{c.stop_token(), [] {}};
  CHECK(threads() == before);
  source.request_stop();
  CHECK(c.done());
  CHECK(threads() == before);
}
#endif

// What callbacks may do

TEST_CASE("a callback may destroy its own context, its right to cancel and its siblings") {
  ctx::manual_clock clock;
  for (const bool expires : {false, true}) {
    CAPTURE(expires);
    const auto alive = std::make_shared<int>();
    std::optional parent{with_timeout(with_value(background(), probe, alive), 1h)};
    std::vector<cancel_scope> siblings;
    for (const auto& each : derivations) siblings.push_back(with_cancel(each.derive(parent->ctx)));
    std::optional child{with_cancel(parent->ctx)};
    std::optional grandchild{with_cancel(child->ctx)};
    int calls = 0;
    const callback on_sibling{siblings.back().ctx.stop_token(), [&] { ++calls; }};
    const callback on_child{child->ctx.stop_token(), [&] {
                              ++calls;
                              child.reset();
                              siblings.clear();
                              grandchild.reset();
                            }};
    const callback on_grandchild{grandchild->ctx.stop_token(), [&] { ++calls; }};
    if (expires)
      clock.advance(1h);
    else
      parent->cancel();
    CHECK(calls == 3);
    CHECK(siblings.empty());
    parent.reset();
    CHECK(alive.use_count() == 1);
  }
}

TEST_CASE("a callback may destroy the last handles of the tree that is ending") {
  enum class how { called, overwritten, expired, stopped };
  for (const how end : {how::called, how::overwritten, how::expired, how::stopped}) {
    for (const bool on_leaf : {false, true}) {
      CAPTURE(static_cast<int>(end));
      CAPTURE(on_leaf);
      ctx::manual_clock clock;
      std::stop_source source;
      const auto alive = std::make_shared<int>();
      std::optional root{end == how::expired   ? with_timeout(background(), 1h)
                         : end == how::stopped ? with_stop_token(background(), source.get_token())
                                               : with_cancel(background())};
      std::vector<context> rest{with_value(root->ctx, probe, alive)};
      for (const auto& each : derivations) rest.push_back(each.derive(rest.front()));
      rest.push_back(kept(with_cancel(rest.back())));
      bool called = false;
      const callback on_end{(on_leaf ? rest.back() : root->ctx).stop_token(), [&] {
                              called = true;
                              rest.clear();
                              root.reset();
                            }};
      switch (end) {
        case how::called:
          root->cancel();
          break;
        case how::overwritten:
          root->cancel = {};
          break;
        case how::expired:
          clock.advance(1h);
          break;
        case how::stopped:
          source.request_stop();
          break;
      }
      CHECK(called);
      CHECK_FALSE(root);
      CHECK(alive.use_count() == 1);
    }
  }
}

TEST_CASE("a callback may destroy the callbacks and contexts that are still to be told") {
  auto [parent, cancel] = with_cancel(background());
  std::vector<std::unique_ptr<callback>> callbacks;
  std::vector<context> children;
  int calls = 0;
  for (int i = 0; i < 10; ++i) {
    children.push_back(kept(with_cancel(parent)));
    callbacks.push_back(std::make_unique<callback>(children.back().stop_token(), [&, i] {
      ++calls;
      for (auto& each : callbacks)
        if (each != callbacks[static_cast<std::size_t>(i)]) each.reset();
      children.clear();
    }));
  }
  CHECK(cancel());
  CHECK(calls == 1);
}

TEST_CASE("a tree that a callback cancels is complete when that cancel returns") {
  auto [outer, cancel_outer] = with_cancel(background());
  auto [inner, cancel_inner] = with_cancel(background());
  auto inner_child = with_cancel(inner), inner_leaf = with_cancel(inner_child.ctx);
  auto outer_child = with_cancel(outer);
  int calls = 0;
  const callback on_inner{inner_leaf.ctx.stop_token(), [&] { ++calls; }};
  const callback on_outer_child{outer_child.ctx.stop_token(), [&] { calls += 10; }};
  const callback on_outer{outer.stop_token(), [&, &cancel_inner = cancel_inner] {
                            CHECK(cancel_inner());
                            CHECK(calls % 10 == 1);
                            CHECK(inner_child.ctx.done());
                            CHECK(inner_leaf.ctx.done());
                          }};
  cancel_outer();
  CHECK(calls == 11);
}

TEST_CASE("an ancestor that a callback cancels is complete, with all below it, when that cancel returns") {
  auto [root, cancel_root] = with_cancel(background());
  auto [middle, cancel_middle] = with_cancel(root);
  auto [start, cancel_start] = with_cancel(middle);
  std::vector<context> below_root, below_start;
  for (const auto& each : derivations) {
    below_root.push_back(each.derive(root));
    below_start.push_back(each.derive(start));
  }
  std::vector<std::unique_ptr<callback>> callbacks;
  std::vector<context> heard;
  const auto listen = [&](const context& c) {
    callbacks.push_back(std::make_unique<callback>(c.stop_token(), [&, c] { heard.push_back(c); }));
  };
  for (std::size_t i = 0; i < below_root.size(); i += 2) listen(below_root[i]), listen(below_start[i]);
  const auto cause = make_cause(), root_cause = make_cause("root");
  const callback on_start{start.stop_token(),
                          [&, &cancel_root = cancel_root, &cancel_middle = cancel_middle, &middle = middle] {
                            CHECK(cancel_root(root_cause));
                            for (const context& each : below_root) check_ended(each, ctx::errc::canceled, root_cause);
                            for (const context& each : below_start) check_ended(each, ctx::errc::canceled, cause);
                            check_ended(middle, ctx::errc::canceled, root_cause);
                            CHECK_FALSE(cancel_middle());
                          }};
  CHECK(cancel_start(cause));
  CHECK(root.done());
  CHECK(heard.size() == callbacks.size());
}

TEST_CASE("a descendant that a callback cancels is done when that cancel returns, with its parent's cause") {
  auto [parent, cancel] = with_cancel(background());
  std::vector<cancel_scope> below;
  for (const auto& each : derivations) below.push_back(with_cancel(each.derive(parent)));
  int calls = 0;
  std::vector<std::unique_ptr<callback>> callbacks;
  for (std::size_t i = 0; i < below.size(); i += 2)
    callbacks.push_back(std::make_unique<callback>(below[i].ctx.stop_token(), [&] { ++calls; }));
  const auto cause = make_cause();
  const callback on_parent{parent.stop_token(), [&, &cancel = cancel] {
                             CHECK_FALSE(cancel());  // itself
                             for (const auto& each : below) {
                               CHECK_FALSE(each.cancel(make_cause("too late")));
                               check_ended(each.ctx, ctx::errc::canceled, cause);
                             }
                           }};
  cancel(cause);
  CHECK(calls == callbacks.size());
}

TEST_CASE("callbacks cancel each other's trees to any depth") {
  constexpr std::size_t trees = 20;
  std::vector<cancel_scope> roots;
  for (std::size_t i = 0; i < trees; ++i) roots.push_back(with_cancel(background()));
  std::vector<std::unique_ptr<callback>> callbacks;
  std::size_t returned = 0;
  for (std::size_t i = 0; i < trees; ++i) {
    callbacks.push_back(std::make_unique<callback>(roots[i].ctx.stop_token(), [&, i] {
      CHECK(roots[(i + 1) % trees].cancel() == (i + 1 < trees));
      ++returned;
    }));
  }
  CHECK(roots[0].cancel());
  CHECK(returned == trees);
}

TEST_CASE("a tangle of merges whose parents cancel each other is ended in a moment") {
  // The ways through it, from each context to all that come after, are more than could ever be taken.
  constexpr std::size_t count = 64;
  std::vector<ctx::cancel_scope> contexts;
  for (std::size_t i = 0; i < count; ++i) contexts.push_back(ctx::with_cancel(background()));
  std::vector<ctx::cancel_scope> merges;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = i + 1; j < count; ++j) merges.push_back(ctx::merge(contexts[i].ctx, contexts[j].ctx));
  }
  std::deque<std::stop_callback<std::function<void()>>> callbacks;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    callbacks.emplace_back(contexts[i].ctx.stop_token(), [&, i] { contexts[i + 1].cancel(); });
  }
  CHECK(contexts.front().cancel());
  CHECK(std::all_of(merges.begin(), merges.end(), [](const auto& each) { return each.ctx.done(); }));
}

TEST_CASE("a child derived in a callback of its parent is born done, whatever it is derived from below") {
  auto [parent, cancel] = with_cancel(background());
  const context child = kept(with_cancel(parent));
  const auto cause = make_cause();
  bool called = false;
  const callback on_end{parent.stop_token(), [&, &parent = parent] {
                          called = true;
                          for (const auto& each : derivations) {
                            check_ended(each.derive(parent), ctx::errc::canceled, cause);
                            check_ended(each.derive(child), ctx::errc::canceled, cause);
                          }
                        }};
  cancel(cause);
  CHECK(called);
}

TEST_CASE("a callback may register and remove callbacks on the context that is ending") {
  auto [c, cancel] = with_cancel(background());
  std::optional<callback> second;
  int calls = 0;
  std::optional<callback> first;
  first.emplace(c.stop_token(), [&, &c = c] {
    second.emplace(c.stop_token(), [&] { ++calls; });
    first.reset();
  });
  cancel();
  CHECK(calls == 1);
  CHECK_FALSE(first);
}

// Depth

/// Chains of every kind of derivation, and of two in turn.
std::vector<std::pair<std::string, std::function<context(const context&, int)>>> chains(const context& live) {
  std::vector<std::pair<std::string, std::function<context(const context&, int)>>> result;
  for (const auto& each : derivations)
    result.emplace_back(each.name, [each](const context& c, int) { return each.derive(c); });
  result.emplace_back("merge with a live one, first", [live](const context& c, int) { return kept(merge(c, live)); });
  result.emplace_back("merge with a live one, second", [live](const context& c, int) { return kept(merge(live, c)); });
  result.emplace_back("with_cancel and with_value in turn", [](const context& c, int i) {
    return i % 2 != 0 ? with_value(c, number, i) : kept(with_cancel(c));
  });
  result.emplace_back("with_cancel, each tenth with a token", [](const context& c, int i) {
    context child = kept(with_cancel(c));
    if (i % 10 == 0) static_cast<void>(child.stop_token());
    return child;
  });
  return result;
}

TEST_CASE("chains of a million contexts end and are destroyed on a stack of 256 KiB") {
  ctx::manual_clock clock;
  auto [live, cancel_live] = with_cancel(background());
  for (const auto& [name, derive] : chains(live)) {
    for (const std::string end : {"cancel", "deadline", "stop token", "destroy"}) {
      CAPTURE(name);
      CAPTURE(end);
      // A tenth still leaves less than three bytes of stack to a level.
      const int levels = end == "cancel" ? depth : depth / 10;
      std::error_code err, live_err;
      bool same_cause = false;
      const auto alive = std::make_shared<int>();
      on_small_stack([&, &derive = derive] {
        std::stop_source source;
        const context holder = with_value(background(), probe, alive);
        auto [root, cancel] = end == "deadline"     ? with_timeout(holder, 1h)
                              : end == "stop token" ? with_stop_token(holder, source.get_token())
                                                    : with_cancel(holder);
        context leaf = root;
        for (int i = 0; i < levels; ++i) leaf = derive(leaf, i);
        live_err = leaf.err();
        if (end == "cancel") cancel();
        if (end == "deadline") clock.advance(1h);
        if (end == "stop token") source.request_stop();
        err = leaf.err();
        same_cause = leaf.cause() == root.cause();
        cancel.release();
        root = {};
        leaf = {};  // holds all of the chain
      });
      CHECK_FALSE(live_err);
      CHECK((err == ctx::errc::deadline_exceeded) == (end == "deadline"));
      CHECK(static_cast<bool>(err) == (end != "destroy"));
      CHECK(same_cause);
      CHECK(alive.use_count() == 1);
    }
  }
}

TEST_CASE("a chain of a million without_cancel is destroyed on a stack of 256 KiB") {
  on_small_stack([] {
    context c = kept(with_cancel(background()));
    for (int i = 0; i < depth; ++i) c = without_cancel(i % 2 != 0 ? c : kept(with_cancel(c)));
  });
}

TEST_CASE("a chain of a million whose every context has handles ends and goes from either end") {
  for (const bool root_first : {true, false}) {
    bool all_done = false;
    on_small_stack([&] {
      std::vector<cancel_scope> chain;
      chain.push_back(with_cancel(background()));
      for (int i = 0; i < depth / 2; ++i) chain.push_back(with_cancel(chain.back().ctx));
      if (root_first) std::ranges::reverse(chain);
      chain.pop_back();  // either the root, then all end; or the leaf
      all_done = std::ranges::all_of(chain, [](const cancel_scope& each) { return each.ctx.done(); });
    });
    CHECK(all_done == root_first);
  }
}

// Random trees

/// What a tree should do, as a recursive toy. Contexts are numbers.
struct toy {
  using instant = std::optional<ctx::clock::time_point>;
  struct node {
    std::vector<std::size_t> parents = {};  // with which it ends
    int value = 0;
    instant due = {};
    std::exception_ptr due_cause = {};
    std::error_code err = {};
    std::exception_ptr cause = {};  // null where none was given
  };
  std::vector<node> nodes;

  std::size_t add(node made) {
    nodes.push_back(made);
    const std::size_t which = nodes.size() - 1;
    for (const auto parent : made.parents)
      if (nodes[parent].err) end(which, nodes[parent].err, nodes[parent].cause);
    expire();
    return which;
  }

  bool end(std::size_t which, std::error_code err, std::exception_ptr cause) {
    if (nodes[which].err) return false;
    nodes[which].err = err;
    nodes[which].cause = cause;
    for (std::size_t child = which + 1; child < nodes.size(); ++child)
      if (std::ranges::count(nodes[child].parents, which) != 0) end(child, err, cause);
    return true;
  }

  void expire() {
    const auto due = [](const node& each) { return each.err || !each.due ? ctx::clock::time_point::max() : *each.due; };
    for (;;) {
      const auto next = std::ranges::min_element(nodes, {}, due);
      if (due(*next) > ctx::clock::now()) return;
      end(static_cast<std::size_t>(next - nodes.begin()), ctx::errc::deadline_exceeded, next->due_cause);
    }
  }

  instant deadline(std::size_t which) const {
    instant earliest = nodes[which].due;
    for (const auto parent : nodes[which].parents)
      if (const auto other = deadline(parent); other && (!earliest || *other < *earliest)) earliest = other;
    return earliest;
  }
};

/// A context with its number in the model.
struct twin {
  std::size_t model;
  cancel_scope scope;
  bool cancelable;
  std::shared_ptr<int> calls = std::make_shared<int>(0);
  std::unique_ptr<callback> on_end = {};
};

void check_same(const twin& each, const toy& model) {
  const context& c = each.scope.ctx;
  const toy::node& expected = model.nodes[each.model];
  REQUIRE(c.err() == expected.err);
  REQUIRE(c.done() == static_cast<bool>(expected.err));
  if (expected.err && expected.cause == nullptr)
    REQUIRE(c.cause() != nullptr);
  else
    REQUIRE(c.cause() == expected.cause);
  REQUIRE(c.deadline() == model.deadline(each.model));
  REQUIRE((c.value(number) != nullptr ? *c.value(number) : 0) == expected.value);
  if (each.on_end != nullptr) REQUIRE(*each.calls == (expected.err ? 1 : 0));
}

TEST_CASE("random trees do what a recursive toy does") {
  const char* const given = std::getenv("CTX_TEST_SEED");
  const std::uint64_t seed = given != nullptr ? std::stoull(given) : std::random_device{}();
  MESSAGE("CTX_TEST_SEED=", seed);
  std::mt19937_64 random{seed};
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random() % bound); };

  ctx::manual_clock clock;
  for (int round = 0; round < (sanitized ? 100 : 500); ++round) {
    toy model;
    std::vector<twin> twins;
    const auto add = [&](toy::node node, cancel_scope scope, bool cancelable = true) {
      twins.push_back({model.add(std::move(node)), std::move(scope), cancelable});
      if (twin& made = twins.back(); below(2) == 0)
        made.on_end = std::make_unique<callback>(made.scope.ctx.stop_token(), [calls = made.calls] { ++*calls; });
    };
    add({}, {background(), {}}, false);
    const auto start = ctx::clock::now();
    for (int step = 1; step <= 120; ++step) {
      twin& at = twins[below(twins.size())];
      const context parent = at.scope.ctx, other = twins[below(twins.size())].scope.ctx;
      const std::size_t above = at.model;
      const int value = model.nodes[above].value;
      const auto cause = below(2) == 0 ? make_cause() : nullptr;
      switch (below(12)) {
        case 0:
        case 1:
        case 2:
          add({{above}, value}, with_cancel(parent));
          break;
        case 3:
          add({{above}, step}, {with_value(parent, number, step), {}}, false);
          break;
        case 4:
          add({{}, value}, {without_cancel(parent), {}}, false);
          break;
        case 5:
        case 6: {
          const auto second = std::ranges::find(twins, other, [](const twin& each) { return each.scope.ctx; });
          add({{above, second->model}, value}, merge(parent, other));
          break;
        }
        case 7:
        case 8: {
          // No two deadlines are the same instant, as their order would not be known.
          const auto due = start + below(200) * 1ms + step * 1ns;
          add({{above}, value, due, cause}, with_deadline(parent, due, cause));
          break;
        }
        case 9:
          clock.advance(below(10) * 1ms);
          model.expire();
          break;
        case 10:
          REQUIRE(at.scope.cancel(cause) == (at.cancelable && model.end(above, ctx::errc::canceled, cause)));
          break;
        default:
          if (twins.size() == 1) break;
          if (below(2) == 0) {
            at.scope.cancel.release();
            at.cancelable = false;
          }
          if (at.cancelable) model.end(above, ctx::errc::canceled, nullptr);
          std::swap(at, twins.back());
          twins.pop_back();
      }
      for (const twin& each : twins) check_same(each, model);
    }
  }
}

}  // namespace
