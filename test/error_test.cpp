// Exists for contexts that end with the wrong error, somebody else's cause or another one at the next
// call; for causes that name the wrong place; and for texts that people and programs read.

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <doctest/doctest.h>

#include <cctype>
#include <chrono>
#include <exception>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

namespace error_test {

struct header {
  using context_value = int;
  std::string name;
  bool operator==(const header&) const = default;
};

}  // namespace error_test

// On which line a call stands is what is checked.
// clang-format off

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::context;
using ctx::errc;
using ctx::merge;
using ctx::to_string;
using ctx::todo;
using ctx::with_cancel;
using ctx::with_deadline;
using ctx::with_stop_token;
using ctx::with_timeout;
using ctx::with_value;
using ctx::without_cancel;

static_assert(std::is_error_code_enum_v<errc> && !std::is_error_condition_enum_v<errc>);
static_assert(std::is_convertible_v<errc, std::error_code>);
static_assert(noexcept(ctx::context_category()) && noexcept(make_error_code(errc::canceled)));
static_assert(static_cast<int>(errc::canceled) == 1 && static_cast<int>(errc::deadline_exceeded) == 2);

constexpr ctx::key<int> user_key{"user"};

std::exception_ptr make_cause(const char* what) { return std::make_exception_ptr(std::runtime_error{what}); }

std::string what(const std::exception_ptr& cause) {
  try {
    std::rethrow_exception(cause);
  } catch (const std::exception& e) {
    return e.what();
  }
}

std::error_code code(const std::exception_ptr& cause) {
  try {
    std::rethrow_exception(cause);
  } catch (const std::system_error& e) {
    return e.code();
  }
}

using std::source_location;

source_location here(source_location caller = source_location::current()) { return caller; }

std::string place(source_location where) {
  return std::string{where.file_name()} + ':' + std::to_string(where.line());
}

/// Whether `text` names the place, and not one whose line has more digits.
bool names(const std::string& text, source_location where) {
  const auto at = text.find(place(where));
  return at != text.npos && std::isdigit(static_cast<unsigned char>(text[at + place(where).size()])) == 0;
}

/// Checks that `c` ended with a cause that was made where none was given: of `err`, at `where`.
void check_default(const context& c, errc err, source_location where) {
  CHECK(c.err() == err);
  REQUIRE(c.cause() != nullptr);
  CHECK(code(c.cause()) == err);
  CHECK_MESSAGE(what(c.cause()).find(c.err().message()) != std::string::npos, what(c.cause()));
  CHECK_MESSAGE(names(what(c.cause()), where), what(c.cause()), " names ", place(where));
}

/// Checks that `c` ended with this cause, null for one that tells no more than `err`.
void check_ended(const context& c, errc err, const std::exception_ptr& cause) {
  CHECK(c.done());
  CHECK(c.err() == err);
  if (cause == nullptr)
    CHECK(code(c.cause()) == err);
  else
    CHECK(c.cause() == cause);
}

// Codes

TEST_CASE("the category has its name, and a message for each code") {
  CHECK(ctx::context_category().name() == std::string{"context"});
  CHECK(make_error_code(errc::canceled).message() == "context canceled");
  CHECK(make_error_code(errc::deadline_exceeded).message() == "context deadline exceeded");
  CHECK_FALSE(ctx::context_category().message(0).empty());
  CHECK_FALSE(ctx::context_category().message(99).empty());
  const std::error_code error = errc::canceled;
  CHECK(error);
  CHECK(&error.category() == &ctx::context_category());
  CHECK(&ctx::context_category() == &ctx::context_category());
}

TEST_CASE("codes compare with each other and with the portable conditions") {
  const std::error_code canceled = errc::canceled, expired = errc::deadline_exceeded;
  CHECK(canceled != expired);
  CHECK(canceled == std::errc::operation_canceled);
  CHECK(canceled != std::errc::timed_out);
  CHECK(expired == std::errc::timed_out);
  CHECK(expired != std::errc::operation_canceled);
  CHECK(canceled != std::error_code{1, std::generic_category()});
  CHECK(expired.default_error_condition() == std::make_error_condition(std::errc::timed_out));
  const std::error_code unknown{99, ctx::context_category()};
  CHECK(unknown != std::errc::operation_canceled);
  CHECK(unknown != std::errc::timed_out);
  CHECK(unknown.default_error_condition().category() == ctx::context_category());
}

// Causes

TEST_CASE("while a context is live there is no error, no cause, and nothing to throw") {
  auto [c, cancel] = with_timeout(background(), 1h, make_cause("later"));
  for (const context& each : {background(), todo(), c, with_value(c, user_key, 1), without_cancel(c)}) {
    CHECK_FALSE(each.err());
    CHECK(each.cause() == nullptr);
    CHECK_NOTHROW(each.throw_if_done());
  }
}

TEST_CASE("whoever ends a context first gives its cause, with or without one") {
  for (const auto& parent_cause : {std::exception_ptr{}, make_cause("parent")}) {
    for (const auto& child_cause : {std::exception_ptr{}, make_cause("child")}) {
      for (const bool parent_first : {true, false}) {
        auto [parent, cancel_parent] = with_cancel(background());
        auto [child, cancel_child] = with_cancel(parent);
        CHECK((parent_first ? cancel_parent(parent_cause) : cancel_child(child_cause)));
        CHECK((parent_first ? cancel_child(child_cause) : cancel_parent(parent_cause)) == !parent_first);
        check_ended(parent, errc::canceled, parent_cause);
        check_ended(child, errc::canceled, parent_first ? parent_cause : child_cause);
        CHECK((child.cause() == parent.cause()) == parent_first);
      }
    }
  }
}

TEST_CASE("a deadline gives its cause where it passes, a cancelation gives its own") {
  for (const auto& cause : {std::exception_ptr{}, make_cause("too slow")}) {
    for (const auto& other : {std::exception_ptr{}, make_cause("other")}) {
      ctx::manual_clock clock;
      auto [expired, cancel_expired] = with_timeout(background(), 1h, cause);
      auto [canceled, cancel] = with_timeout(background(), 1h, cause);
      auto [past, cancel_past] = with_timeout(background(), 0s, cause);
      auto [point, cancel_point] = with_deadline(background(), ctx::clock::now() + 1h, cause);
      CHECK(cancel(other));
      check_ended(canceled, errc::canceled, other);
      clock.advance(1h);
      CHECK_FALSE(cancel_expired(other));
      check_ended(expired, errc::deadline_exceeded, cause);
      check_ended(past, errc::deadline_exceeded, cause);
      check_ended(point, errc::deadline_exceeded, cause);
      check_ended(canceled, errc::canceled, other);
    }
  }
}

TEST_CASE("of stacked deadlines the one that passes first gives the cause") {
  for (const auto& outer : {std::exception_ptr{}, make_cause("outer")}) {
    for (const auto& inner : {std::exception_ptr{}, make_cause("inner")}) {
      for (const bool canceled : {false, true}) {
        ctx::manual_clock clock;
        auto [parent, cancel_parent] = with_timeout(background(), 2h, outer);
        auto [shorter, cancel_shorter] = with_timeout(parent, 1h, inner);
        auto [longer, cancel_longer] = with_timeout(parent, 3h, inner);
        if (canceled) cancel_shorter(), cancel_longer();
        clock.advance(1h);
        check_ended(shorter, canceled ? errc::canceled : errc::deadline_exceeded, canceled ? nullptr : inner);
        CHECK(longer.done() == canceled);
        clock.advance(2h);
        check_ended(parent, errc::deadline_exceeded, outer);
        check_ended(longer, canceled ? errc::canceled : errc::deadline_exceeded, canceled ? nullptr : outer);
        CHECK((longer.cause() == parent.cause()) == !canceled);
        CHECK(shorter.cause() != parent.cause());
      }
    }
  }
}

TEST_CASE("behind without_cancel there is no cause, whatever ended the parent") {
  ctx::manual_clock clock;
  auto [canceled, cancel] = with_cancel(background());
  auto [expired, cancel_expired] = with_timeout(background(), 1h, make_cause("too slow"));
  const context shields[]{without_cancel(canceled), without_cancel(expired), without_cancel(background())};
  cancel(make_cause("cause"));
  clock.advance(1h);
  for (const context& each : shields) {
    CHECK_FALSE(each.err());
    CHECK(each.cause() == nullptr);
    CHECK_NOTHROW(each.throw_if_done());
    auto [child, cancel_child] = with_timeout(each, 0s);
    check_ended(child, errc::deadline_exceeded, nullptr);
    CHECK(child.cause() != expired.cause());
  }
}

TEST_CASE("the cause is the same pointer at every call, and in every descendant that ended with it") {
  for (const auto& given : {std::exception_ptr{}, make_cause("given")}) {
    auto [c, cancel] = with_cancel(background());
    const context value = with_value(c, user_key, 1);
    auto [child, cancel_child] = with_cancel(value);
    auto [merged, cancel_merged] = merge(background(), child);
    auto [ended_before, cancel_before] = with_cancel(c);
    cancel_before();
    cancel(given);
    auto [born_done, cancel_born_done] = with_timeout(merged, 1h, make_cause("never"));
    const auto cause = merged.cause();  // made by the one furthest down
    for (int i = 0; i < 2; ++i)
      for (const context& each : {c, value, child, merged, born_done}) CHECK(each.cause() == cause);
    CHECK((given == nullptr || cause == given));
    CHECK(ended_before.cause() != cause);
  }
}

TEST_CASE("throw_if_done throws the cause itself") {
  auto [c, cancel] = with_cancel(background());
  const context child = with_value(c, user_key, 1);
  cancel(std::out_of_range{"the given one"});
  for (const context& each : {c, child}) {
    try {
      each.throw_if_done();
      FAIL("did not throw");
    } catch (const std::out_of_range& e) {
      CHECK(e.what() == std::string{"the given one"});
      CHECK(std::current_exception() == c.cause());
    }
  }
  const auto expired = with_timeout(background(), 0s);
  CHECK_THROWS_AS(expired.ctx.throw_if_done(), std::system_error);
}

TEST_CASE("a cause may be an exception object of any type") {
  const auto ended_with = [](auto&& cause) {
    auto [c, cancel] = with_cancel(background());
    CHECK(cancel(std::forward<decltype(cause)>(cause)));
    return context{c};
  };
  const context full = ended_with(std::runtime_error{"disk full"});
  CHECK_THROWS_WITH_AS(full.throw_if_done(), "disk full", std::runtime_error);
  CHECK_THROWS_AS(ended_with(7).throw_if_done(), int);
  const std::out_of_range kept{"kept"};
  CHECK_THROWS_AS(ended_with(kept).throw_if_done(), std::out_of_range);
  CHECK(kept.what() == std::string{"kept"});
  const std::system_error system{make_error_code(std::errc::no_space_on_device)};
  const context c = ended_with(system);
  CHECK(c.err() == errc::canceled);
  CHECK(code(c.cause()) == std::errc::no_space_on_device);
}

TEST_CASE("cause_message tells the cause, or what the code says where the cause is no std::exception") {
  auto [c, cancel] = with_cancel(background());
  auto [child, cancel_child] = with_timeout(c, 1h);
  CHECK(ctx::cause_message(c).empty());
  CHECK(ctx::cause_message(background()).empty());
  cancel(std::runtime_error{"disk full"});
  CHECK(ctx::cause_message(c) == "disk full");
  CHECK(ctx::cause_message(child) == "disk full");

  auto [other, cancel_other] = with_cancel(background());
  cancel_other(17);
  CHECK(ctx::cause_message(other) == "context canceled");

  auto [silent, cancel_silent] = with_cancel(background());
  cancel_silent();
  CHECK_THROWS_WITH(silent.throw_if_done(), ctx::cause_message(silent).c_str());
}

// Where

TEST_CASE("the cause names the call that canceled") {
  auto [a, cancel_a] = with_cancel(background());
  auto [b, cancel_b] = with_timeout(a, 1h, make_cause("too slow"));
  auto [c, cancel_c] = with_cancel(b);
  cancel_c(); const auto c_at = here();
  cancel_b(nullptr); const auto b_at = here();
  cancel_a(std::exception_ptr{}); const auto a_at = here();
  check_default(a, errc::canceled, a_at);
  check_default(b, errc::canceled, b_at);
  check_default(c, errc::canceled, c_at);
  CHECK_FALSE(cancel_c());  // too late to be named
  check_default(c, errc::canceled, c_at);

  auto [d, cancel_d] = with_cancel(background());
  const auto elsewhere = here();
  cancel_d(elsewhere);
  check_default(with_value(d, user_key, 1), errc::canceled, elsewhere);
}

TEST_CASE("the cause names the call that derived the context, where nobody called to cancel it") {
  context destroyed, overwritten;
  source_location destroyed_at, overwritten_at;
  {
    auto [c, cancel] = with_cancel(background()); destroyed_at = here();
    destroyed = c;
    auto [d, cancel_d] = merge(c, background()); overwritten_at = here();
    overwritten = d;
    cancel_d = {};
  }
  check_default(destroyed, errc::canceled, destroyed_at);
  check_default(overwritten, errc::canceled, overwritten_at);

  std::stop_source source;
  auto [driven, cancel] = with_stop_token(background(), source.get_token()); const auto driven_at = here();
  source.request_stop();
  check_default(driven, errc::canceled, driven_at);
  auto [born, cancel_born] = with_stop_token(background(), source.get_token()); const auto born_at = here();
  check_default(born, errc::canceled, born_at);
}

TEST_CASE("the cause names the call that set the deadline which passed") {
  ctx::manual_clock clock;
  auto [outer, cancel_outer] = with_timeout(background(), 1h); const auto outer_at = here();
  auto [inner, cancel_inner] = with_deadline(outer, ctx::clock::now() + 30min); const auto inner_at = here();
  auto [longer, cancel_longer] = with_timeout(outer, 2h);
  auto [merged, cancel_merged] = merge(background(), longer);
  auto [past, cancel_past] = with_deadline(background(), ctx::clock::now()); const auto past_at = here();
  check_default(past, errc::deadline_exceeded, past_at);
  clock.advance(30min);
  check_default(inner, errc::deadline_exceeded, inner_at);
  clock.advance(30min);
  for (const context& each : {outer, longer, merged}) check_default(each, errc::deadline_exceeded, outer_at);
  auto [elsewhere, cancel_elsewhere] = with_timeout(background(), 0s, nullptr, outer_at);
  check_default(elsewhere, errc::deadline_exceeded, outer_at);
}

// Texts

TEST_CASE("to_string tells how a context came about") {
  ctx::manual_clock clock;
  CHECK(to_string(context{}) == "background");
  CHECK(to_string(todo()) == "todo");
  auto [c, cancel] = with_cancel(background());
  CHECK(to_string(c) == "background.with_cancel");
  const context user = with_value(c, user_key, 1);
  auto [d, cancel_d] = with_deadline(user, ctx::clock::now() + 5s);
  clock.advance(2ms);
  CHECK(to_string(d) == "background.with_cancel.with_value(user).with_deadline(4.998s)");
  CHECK(to_string(without_cancel(d)) == to_string(d) + ".without_cancel");
  CHECK(to_string(with_stop_token(todo(), {}).ctx) == "todo.with_stop_token");
  CHECK(to_string(merge(user, todo()).ctx) == "background.with_cancel.with_value(user).merge");
  CHECK(to_string(merge(todo(), user).ctx) == "todo.merge");
  const std::string own = to_string(with_value(background(), error_test::header{"x-trace-id"}, 1));
  CHECK(own == "background.with_value(error_test::header)");
  cancel();
  CHECK(to_string(c) == "background.with_cancel");
}

TEST_CASE("to_string tells the time left") {
  ctx::manual_clock clock;
  const auto shown = [](auto timeout) { return to_string(with_timeout(background(), timeout).ctx); };
  CHECK(shown(1h) == "background.with_timeout(3600.000s)");
  CHECK(shown(1500ms) == "background.with_timeout(1.500s)");
  CHECK(shown(7ms) == "background.with_timeout(0.007s)");
  CHECK(shown(0s) == "background.with_timeout(0.000s)");
  CHECK(shown(-1h) == "background.with_timeout(0.000s)");
  CHECK(shown(std::chrono::hours::max()).starts_with("background.with_timeout("));
  auto [c, cancel] = with_timeout(background(), 1s);
  clock.advance(1h);
  CHECK(to_string(c) == "background.with_timeout(0.000s)");
}

TEST_CASE("a context is written to a stream as to_string tells it") {
  const ctx::manual_clock clock;
  auto [c, cancel] = with_timeout(with_value(todo(), user_key, 1), 90s);
  std::ostringstream out;
  std::ostream& result = out << c << '|' << background();
  CHECK(out.str() == "todo.with_value(user).with_timeout(90.000s)|background");
  CHECK(&result == &out);
}

TEST_CASE("a deadline takes an exception object as its cause, as a cancel does") {
  ctx::manual_clock time;
  auto timeout = ctx::with_timeout(background(), 1h, std::runtime_error{"too slow"});
  auto deadline = ctx::with_deadline(background(), ctx::clock::now() + 1h, std::string{"too late"});
  auto canceled = ctx::with_timeout(background(), 1h, std::runtime_error{"too slow"});
  canceled.cancel();
  time.advance(1h);
  CHECK(ctx::cause_message(timeout.ctx) == "too slow");
  CHECK_THROWS_AS(timeout.ctx.throw_if_done(), std::runtime_error);
  CHECK_THROWS_AS(deadline.ctx.throw_if_done(), std::string);
  CHECK(code(canceled.ctx.cause()) == errc::canceled);
}

}  // namespace
