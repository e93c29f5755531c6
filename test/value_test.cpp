// Exists for values that are found under the wrong key, or not under the right one; for those that are
// copied, moved, destroyed too early, twice or never; and for code that should not compile.

#include "value_elsewhere.hpp"

#include <ctx/context.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using ctx::background;
using ctx::context;
using ctx::merge;
using ctx::with_cancel;
using ctx::with_value;
using ctx::without_cancel;

constexpr ctx::key<int> number{"number"};
constexpr ctx::key<int> same_name{"number"};
constexpr ctx::key<std::string> text{"text"};

struct header {
  using context_value = std::string;
  std::string name;
  bool operator==(const header&) const = default;
};
struct trailer {  // the same content as a header, and yet another key
  using context_value = std::string;
  std::string name;
  bool operator==(const trailer&) const = default;
};
struct special_header : header {};
struct tag {  // no content: the type is the key
  using context_value = int;
  bool operator==(const tag&) const = default;
};
struct caseless {
  using context_value = int;
  std::string name;
  friend bool operator==(const caseless& a, const caseless& b) {
    return std::equal(a.name.begin(), a.name.end(), b.name.begin(), b.name.end(),
                      [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
  }
};

// What is a key, and what is not.
struct nameless {
  bool operator==(const nameless&) const = default;
};
struct incomparable {
  using context_value = int;
};
struct of_reference : nameless {
  using context_value = int&;
};
struct of_nothing : nameless {
  using context_value = void;
};
enum plain_enum { plain };
enum class scoped_enum { scoped };

template <class Key>
concept usable = requires(const context& c, const Key& key) { c.value(key); };
template <class Key, class Value>
concept stores = requires(const context& c, const Key& key, Value given) { with_value(c, key, std::move(given)); };
template <class... Keys>
constexpr bool none_is_a_key =
    (!usable<Keys> && ...) && (!stores<Keys, int> && ...) && (!stores<Keys, std::string> && ...);

static_assert(none_is_a_key<int, char, bool, double, std::nullptr_t, int*, void*, void (*)()>);
static_assert(
    none_is_a_key<const char*, char[5], std::string, std::string_view, plain_enum, scoped_enum, std::vector<int>>);
static_assert(none_is_a_key<nameless, incomparable, of_reference, of_nothing>);
static_assert(usable<header> && usable<tag> && usable<special_header> && usable<ctx::key<int>>);
static_assert(stores<header, std::string> && stores<header, const char*> && stores<tag, int>);
static_assert(stores<ctx::key<std::string>, const char*> && stores<ctx::key<int>, short>);
static_assert(!stores<ctx::key<int>, std::string> && !stores<header, std::vector<int>>);
static_assert(!stores<ctx::key<std::unique_ptr<int>>, std::unique_ptr<long>>);

// Values are destroyed where nothing may throw, so those which say that they do, and keys which do, are refused.
struct may_throw {
  may_throw() = default;
  may_throw(const may_throw&) = default;
  ~may_throw() noexcept(false) {}
};
struct may_throw_too : may_throw {
  using context_value = int;
  bool operator==(const may_throw_too&) const { return true; }
};
struct of_may_throw : nameless {
  using context_value = may_throw;
};
static_assert(!stores<ctx::key<may_throw>, may_throw> && !stores<of_may_throw, may_throw>);
static_assert(none_is_a_key<may_throw_too>);

// A value may go with a temporary context, so it can't be asked for one.
template <class Context, class Key>
concept answers = requires(Context&& c, const Key& key) { std::forward<Context>(c).value(key); };
static_assert(answers<context&, ctx::key<int>> && answers<const context&, ctx::key<int>>);
static_assert(answers<context&, header> && answers<const context&, header>);
static_assert(!answers<context, ctx::key<int>> && !answers<const context, ctx::key<int>>);
static_assert(!answers<context, header> && !answers<const context, header>);

static_assert(std::is_same_v<decltype(std::declval<const context&>().value(text)), const std::string*>);
static_assert(std::is_same_v<decltype(std::declval<const context&>().value(header{})), const std::string*>);
static_assert(noexcept(std::declval<const context&>().value(number)));
static_assert(noexcept(std::declval<const context&>().value(std::declval<const header&>())));
static_assert(!std::is_copy_constructible_v<ctx::key<int>> && !std::is_copy_assignable_v<ctx::key<int>>);
static_assert(!std::is_convertible_v<const char*, ctx::key<int>>);
static_assert(!std::is_default_constructible_v<ctx::key<int>>);

/// Every way to derive a context that shares its parent's values.
std::vector<context> derived_from(const context& c) {
  const auto kept = [](ctx::cancel_scope scope) {
    scope.cancel.release();
    return std::move(scope.ctx);
  };
  return {c,
          kept(with_cancel(c)),
          kept(with_timeout(c, 1h)),
          kept(with_deadline(c, ctx::clock::time_point::max())),
          kept(with_stop_token(c, {})),
          kept(merge(c, background())),
          with_value(c, tag{}, 1),
          without_cancel(c)};
}

TEST_CASE("a value is found from where it was stored and below, under its key alone") {
  const context c = with_value(with_value(background(), number, 7), header{"x-trace-id"}, "abc");
  for (const context& child : derived_from(c)) {
    for (const context& each : derived_from(child)) {
      REQUIRE(each.value(number) != nullptr);
      CHECK(*each.value(number) == 7);
      REQUIRE(each.value(header{"x-trace-id"}) != nullptr);
      CHECK(*each.value(header{"x-trace-id"}) == "abc");
      CHECK(each.value(text) == nullptr);
      CHECK(each.value(header{"x-user"}) == nullptr);
    }
  }
  const context root = background();
  CHECK(root.value(number) == nullptr);
  CHECK(root.value(header{"x-trace-id"}) == nullptr);
}

TEST_CASE("keys with the same name are different keys") {
  const context a = with_value(background(), number, 1);
  CHECK(a.value(same_name) == nullptr);
  const context b = with_value(a, same_name, 2);
  CHECK(*b.value(number) == 1);
  CHECK(*b.value(same_name) == 2);
  CHECK(std::string_view{same_name.name()} == number.name());
  CHECK(to_string(b) == "background.with_value(number).with_value(number)");
  constexpr static ctx::key<int> nameless_key{""};
  CHECK(to_string(with_value(b, nameless_key, 3)).ends_with(".with_value()"));

  const std::array<ctx::key<int>, 2> neighbours{ctx::key<int>{"key"}, ctx::key<int>{"key"}};
  const context c = with_value(background(), neighbours[0], 1);
  CHECK(c.value(neighbours[0]) != nullptr);
  CHECK(c.value(neighbours[1]) == nullptr);
}

TEST_CASE("the same content under another type is another key") {
  const context c = with_value(with_value(background(), header{"name"}, "header"), trailer{"name"}, "trailer");
  CHECK(*c.value(header{"name"}) == "header");
  CHECK(*c.value(trailer{"name"}) == "trailer");
  CHECK(c.value(special_header{{"name"}}) == nullptr);
  const context d = with_value(c, special_header{{"name"}}, "special");
  CHECK(*d.value(header{"name"}) == "header");
  CHECK(*d.value(special_header{{"name"}}) == "special");
  const special_header special{{"name"}};
  const header& as_header = special;
  CHECK(*d.value(as_header) == "header");
}

TEST_CASE("keys of a type of one's own are found by their equality") {
  context c;
  {
    std::string name = "X-Trace-Id";
    c = with_value(background(), caseless{name}, 7);  // the context has its own copy of the key
    name.assign(name.size(), '?');
  }
  CHECK(*c.value(caseless{"x-trace-id"}) == 7);
  CHECK(c.value(caseless{"x-trace"}) == nullptr);
  const context d = with_value(c, tag{}, 8);
  CHECK(*d.value(tag{}) == 8);
}

TEST_CASE("the nearest value shadows, and only from there on down") {
  const context outer = with_value(with_value(background(), number, 1), header{"name"}, "one");
  const context between = with_value(with_cancel(outer).ctx, text, "between");
  const context inner = with_value(with_value(between, number, 2), header{"name"}, "two");
  const context sibling = with_value(outer, number, 3);
  CHECK(*inner.value(number) == 2);
  CHECK(*inner.value(header{"name"}) == "two");
  CHECK(*inner.value(text) == "between");
  CHECK(*between.value(number) == 1);
  CHECK(*outer.value(header{"name"}) == "one");
  CHECK(*sibling.value(number) == 3);
  CHECK(*sibling.value(header{"name"}) == "one");
}

TEST_CASE("every layer of a tall stack has its value, before and after the end") {
  std::vector<std::unique_ptr<ctx::key<int>>> owners;
  auto [c, cancel] = with_cancel(background());
  context top = c;
  for (int i = 0; i < 200; ++i) {
    owners.push_back(std::make_unique<ctx::key<int>>("layer"));
    top = with_value(top, *owners.back(), i);
  }
  for (int round = 0; round < 2; ++round, cancel())
    for (std::size_t i = 0; i < owners.size(); ++i) CHECK(*top.value(*owners[i]) == static_cast<int>(i));
}

TEST_CASE("the pointer to a value is the same for everybody, and lives as long as any context below") {
  const int* stored = nullptr;
  context below;
  {
    const context c = with_value(background(), number, 7);
    stored = c.value(number);
    for (const context& each : derived_from(c)) CHECK(each.value(number) == stored);
    below = without_cancel(with_cancel(c).ctx);
  }
  CHECK(below.value(number) == stored);
  CHECK(*stored == 7);
}

// How values are made

/// What happened to the objects of this test.
struct ledger {
  int constructed = 0, copied = 0, moved = 0, destroyed = 0;
  int alive() const { return constructed + copied + moved - destroyed; }
};
struct counted {
  ledger* in;
  explicit counted(ledger& in_) : in{&in_} { ++in->constructed; }
  counted(const counted& other) : in{other.in} { ++in->copied; }
  counted(counted&& other) noexcept : in{other.in} { ++in->moved; }
  counted& operator=(const counted&) = delete;
  ~counted() { ++in->destroyed; }
};
constexpr ctx::key<counted> counted_key{"counted"};
struct counted_tag {
  using context_value = counted;
  bool operator==(const counted_tag&) const = default;
};

void check_made_once(auto&& key) {
  ledger made, copied, moved;
  {
    const context c = with_value(background(), key, made);
    CHECK((made.constructed == 1 && made.copied == 0 && made.moved == 0));
    const counted original{copied};
    const context from_copy = with_value(c, key, original);
    CHECK((copied.constructed == 1 && copied.copied == 1 && copied.moved == 0));
    const context from_temporary = with_value(from_copy, key, counted{moved});
    CHECK((moved.constructed == 1 && moved.copied == 0 && moved.moved == 1));
    for (const context& each : derived_from(from_temporary)) CHECK(each.value(key)->in == &moved);
  }
  for (const ledger* each : {&made, &copied, &moved}) CHECK(each->alive() == 0);
  CHECK((made.destroyed == 1 && copied.destroyed == 2 && moved.destroyed == 2));
}

TEST_CASE("a value is constructed once, from what was given, and never copied or moved again") {
  check_made_once(counted_key);
  check_made_once(counted_tag{});
}

struct immovable {
  int content;
  explicit immovable(int given) : content{given} {}
  immovable(immovable&&) = delete;
};
constexpr ctx::key<immovable> immovable_key{"immovable"};
constexpr ctx::key<std::unique_ptr<int>> move_only{"move-only"};
struct point {
  int x, y;
};
constexpr ctx::key<point> point_key{"point"};
struct alignas(256) aligned {
  char content = 'a';
};
constexpr ctx::key<aligned> aligned_key{"aligned"};
constexpr ctx::key<context> context_key{"context"};

TEST_CASE("a value need be neither copyable nor movable, and may have any type") {
  const context c = with_value(background(), immovable_key, 7);
  CHECK(c.value(immovable_key)->content == 7);
  const context d = with_value(c, move_only, std::make_unique<int>(8));
  CHECK(**d.value(move_only) == 8);
  const context e = with_value(d, point_key, {1, 2});
  CHECK(e.value(point_key)->y == 2);
  const context f = with_value(e, aligned_key, aligned{});
  CHECK(reinterpret_cast<std::uintptr_t>(f.value(aligned_key)) % alignof(aligned) == 0);
  const context g = with_value(f, context_key, e);
  CHECK(*g.value(context_key) == e);
  CHECK(g.value(context_key)->value(aligned_key) == nullptr);
}

struct failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct throwing {
  counted first;
  explicit throwing(ledger& in) : first{in} { throw failure{"constructor"}; }
};
constexpr ctx::key<throwing> throwing_key{"throwing"};
struct throwing_tag {
  using context_value = int;
  counted content;
  bool armed;
  throwing_tag(ledger& in, bool armed_) : content{in}, armed{armed_} {}
  throwing_tag(const throwing_tag& other) : content{other.content}, armed{other.armed} {
    if (armed) throw failure{"key"};
  }
  bool operator==(const throwing_tag&) const { return true; }
};

TEST_CASE("a value or a key whose constructor throws leaves the parent as it was, and nothing behind") {
  ledger all;
  {
    auto [parent, cancel] = with_cancel(with_value(background(), number, 7));
    CHECK_THROWS_AS(static_cast<void>(with_value(parent, throwing_key, all)), failure);
    const throwing_tag key{all, true};
    CHECK_THROWS_AS(static_cast<void>(with_value(parent, key, 1)), failure);
    CHECK_FALSE(parent.done());
    CHECK(parent.value(throwing_key) == nullptr);
    CHECK(parent.value(throwing_tag{all, false}) == nullptr);
    CHECK(*parent.value(number) == 7);
    const context child = with_value(parent, counted_key, all);
    cancel();
    CHECK(child.done());
  }
  CHECK(all.constructed >= 4);
  CHECK(all.alive() == 0);
}

// How values go

/// Tells a log when it is destroyed.
struct witness {
  std::function<void()> on_destruction;
  explicit witness(std::function<void()> told) : on_destruction{std::move(told)} {}
  witness(witness&&) = delete;
  ~witness() { on_destruction(); }
};
constexpr ctx::key<witness> witness_key{"witness"};

TEST_CASE("values go once, with the last context below, those of a child before those of its parent") {
  std::string log;
  const auto add = [&](const context& c, char name) {
    return with_value(c, witness_key, [&log, name] { log += name; });
  };
  {
    context a = add(background(), 'a');
    context b = add(with_cancel(a).ctx, 'b');
    context sibling = add(a, 's');
    context c = add(without_cancel(b), 'c');
    a = b = {};
    CHECK(log.empty());
    sibling = {};
    CHECK(log == "s");
    c = {};
    CHECK(log == "scba");
    c = add(merge(add(background(), 'x'), add(background(), 'y')).ctx, 'z');
  }
  CHECK(log.substr(0, 5) == "scbaz");
  CHECK(log.size() == 7);
}

TEST_CASE("a value goes with its last context, on whatever thread, canceled or not") {
  for (const bool canceled : {false, true}) {
    std::thread::id destroyed_on, dropped_on;
    const auto note = [&] { destroyed_on = std::this_thread::get_id(); };
    auto scope = with_cancel(with_value(background(), witness_key, note));
    if (canceled) scope.cancel();
    std::jthread{[&] {
      dropped_on = std::this_thread::get_id();
      scope = {};
    }}.join();
    CHECK(destroyed_on == dropped_on);
    CHECK(destroyed_on != std::this_thread::get_id());
  }
}

TEST_CASE("the destructor of a value may use contexts, also the one that is being assigned to") {
  context c, seen;
  auto [other, cancel] = with_cancel(background());
  c = with_value(background(), witness_key, [&, &other = other, &cancel = cancel] {
    seen = with_value(c, number, 7);
    cancel();
    const context nested = with_value(with_cancel(other).ctx, text, "nested");
    CHECK(nested.done());
  });
  c = other;
  CHECK(seen.done());
  CHECK(*seen.value(number) == 7);
}

TEST_CASE("a value may hold the contexts of another tree, with their values") {
  const auto alive = std::make_shared<int>();
  constexpr static ctx::key<std::shared_ptr<int>> probe{"probe"};
  {
    const context inner = with_value(background(), probe, alive);
    const context outer = with_value(background(), context_key, inner);
    CHECK(alive.use_count() == 2);
  }
  CHECK(alive.use_count() == 1);
}

struct local_key {
  using context_value = int;
  int number;
  bool operator==(const local_key&) const = default;
};

TEST_CASE("key types of two source files that are spelled alike are different keys") {
  const auto here = ctx::with_value(ctx::background(), local_key{1}, 42);
  CHECK(look_up_local_key(here) == nullptr);
  const auto both = with_local_value(here);
  REQUIRE(look_up_local_key(both) != nullptr);
  CHECK(*look_up_local_key(both) == "elsewhere");
  REQUIRE(both.value(local_key{1}) != nullptr);
  CHECK(*both.value(local_key{1}) == 42);
}

}  // namespace
