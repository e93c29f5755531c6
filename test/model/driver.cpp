// Does each step of a program twice, to the library and to the model, and compares them after it.
//
// Steps run where the library runs callbacks: on this thread, on the timer's, on those of after_func; but always one
// after another, as the thread that caused it waits. Functions wait at a gate until the step that started them is
// over.
//
// Left out is what no program may do: destroying a stop_callback while it runs on another thread, which waits for
// the present step; waiting for what nobody is going to end; destroying a function's own handle in it, after which
// nobody knows when its context is let go.

#include "driver.hpp"

#include "model.hpp"
#include "program.hpp"

#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace model {

/// A value that is counted.
struct stored {
  static inline std::atomic<int> alive{0};

  explicit stored(int given) : number{given} { ++alive; }
  stored(const stored&) = delete;
  stored& operator=(const stored&) = delete;
  ~stored() { --alive; }

  const int number;
};

// Keys of both kinds: two of the same name, two of the same type, and two of the same content.
inline constexpr ctx::key<stored> first_key{"key"}, second_key{"key"};

struct tag {
  using context_value = stored;
  int number;
  bool operator==(const tag&) const = default;
};

struct other_tag {
  using context_value = stored;
  int number;
  bool operator==(const other_tag&) const = default;
};

namespace {

using ctx::after_func_handle;
using ctx::cancel_func;
using ctx::cancel_scope;
using ctx::context;

template <class F>
auto with_key(unsigned which, F f) {
  switch (which) {
    case 0:
      return f(first_key);
    case 1:
      return f(second_key);
    case 2:
      return f(tag{0});
    case 3:
      return f(tag{1});
    default:
      return f(other_tag{0});
  }
}

/// A place for each step, so that causes tell by which step they were made: by its line.
// clang-format off
constexpr std::array places{
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
    std::source_location::current(),
};
// clang-format on
static_assert(places.size() == most_steps);

std::string text_of(const std::source_location& place) {
  return std::string{place.file_name()} + ":" + std::to_string(place.line());
}

std::string text_of(std::error_code code) { return code ? code.message() : "none"; }

std::string text_of(const std::exception_ptr& cause) {
  if (cause == nullptr) return "null";
  try {
    std::rethrow_exception(cause);
  } catch (const std::exception& thrown) {
    return thrown.what();
  } catch (...) {
    return "of an unknown type";
  }
}

std::string text_of(const ending& why) {
  if (why.given != nullptr) return text_of(why.given);
  return why.object.value_or("one that names " + why.place);
}

/// Where the thread of a function waits until it may go on.
class gate {
 public:
  enum state { closed, open, open_without_body };

  void set(state next) {
    state_ = next;
    state_.notify_all();
  }
  state pass() {
    state_.wait(closed);
    return state_;
  }

 private:
  std::atomic<state> state_{closed};
};

class machine {
 public:
  explicit machine(const program& given) : program_{given}, asking_{!given.ask_late} {
    contexts_.fill({{}, world_.background()});
  }
  machine(const machine&) = delete;
  machine& operator=(const machine&) = delete;
  ~machine() {
    for (const auto& each : functions_) each->turn.set(gate::open_without_body);
  }

  std::optional<std::string> run() {
    run_steps(0, program_.steps.size());
    doing_ = "at the end";
    asking_ = true;
    compare();
    doing_ = "when all handles are destroyed";
    destroy_all();
    return failure_;
  }

 private:
  // The variables

  struct held_context {
    context real;
    node_ptr model;
  };

  struct held_right {
    cancel_func real;
    node_ptr model;
  };

  struct held_source {
    std::stop_source real;
    std::shared_ptr<signal> model = std::make_shared<signal>(signal::quiet);
  };

  struct body {
    std::size_t first, last;
  };

  struct caller {
    machine* self;
    std::size_t which;
    void operator()() const noexcept {
      // The callback may be destroyed in here.
      machine& machine = *self;
      machine.called(machine.callbacks_.at(which));
    }
  };

  struct callback {
    callback(std::size_t made_by, body given, held_context context)
        : step{made_by}, steps{given}, on{std::move(context)} {}

    std::size_t step;
    body steps;
    held_context on;
    std::optional<std::stop_callback<caller>> registration;
    bool building = true;
    bool destroyed = false;
    int calls = 0;
    std::thread::id running_on = {};
  };

  struct function {
    function(std::size_t made_by, body given, node_ptr context) : step{made_by}, steps{given}, on{std::move(context)} {}

    std::size_t step;
    body steps;
    node_ptr on;
    gate turn = {};
    std::atomic<int> calls = 0;
    std::atomic<bool> over = false;
    enum { waiting, stopped, running, ran, destroyed } state = waiting;
    int last_calls = 0;  // before it was destroyed
  };

  struct held_function {
    after_func_handle real;
    std::shared_ptr<function> model;
  };

  struct seen_token {
    std::stop_token token;
    std::weak_ptr<node> of;
    std::shared_ptr<signal> model;  // null: of what is never done
  };

  // Differences

  void fail(const std::string& what) {
    if (!failure_) failure_ = doing_ + ": " + what;
  }
  void expect(bool fine, const char* what) {
    if (!fine) fail(what);
  }
  bool failed() const { return failure_.has_value(); }

  // Steps

  void run_steps(std::size_t first, std::size_t last) {
    while (first < last && !failed()) {
      const step& next = program_.steps[first];
      const std::size_t behind = first + 1;
      const std::size_t end = next.has_body() ? std::min(last, behind + next.c()) : behind;
      const std::string outer = std::exchange(doing_, "");
      doing_ = (outer.empty() ? "step " : outer + ", step ") + std::to_string(first);
      const int depth = depth_;
      meddled_ = depth != 0;
      world_.begin();
      try {
        run_step(next, first, {behind, end});
      } catch (const std::exception& thrown) {
        fail(std::string{"threw "} + thrown.what());
      }
      const bool over = depth_ == depth;
      while (depth_ != depth) std::this_thread::yield();
      expect(over, "it returned in the middle of a callback, which went on on another thread");
      world_.follow();
      world_.complete();
      if (depth_ == 0) run_functions();
      compare();
      doing_ = outer;
      first = end;
    }
  }

  void run_step(const step& s, std::size_t i, body steps) {
    switch (s.what) {
      case op::root:
        contexts_[s.a()] = s.b() == 0 ? held_context{ctx::background(), world_.background()}
                                      : held_context{ctx::todo(), world_.todo()};
        break;
      case op::with_cancel: {
        node_ptr model = world_.derive({.made_by = kind::with_cancel, .parents = {contexts_[s.b()].model}});
        hold(s.a(), ctx::with_cancel(contexts_[s.b()].real, places[i]), std::move(model), i);
        break;
      }
      case op::with_timeout:
        with_timeout(s, i);
        break;
      case op::with_deadline:
        with_deadline(s, i);
        break;
      case op::with_stop_token:
        with_stop_token(s, i);
        break;
      case op::merge: {
        held_context &first = contexts_[s.b()], &second = contexts_[s.c()];
        node_ptr model = world_.derive({.made_by = kind::merge, .parents = {first.model, second.model}});
        hold(s.a(), ctx::merge(first.real, second.real, places[i]), std::move(model), i);
        break;
      }
      case op::with_value: {
        const int value = static_cast<int>(i);
        held_context& parent = contexts_[s.b()];
        with_key(s.c(), [&](const auto& key) {
          contexts_[s.a()] =
              held_context{ctx::with_value(parent.real, key, value), world_.derive({.made_by = kind::with_value,
                                                                                    .parents = {parent.model},
                                                                                    .key = static_cast<int>(s.c()),
                                                                                    .value = value})};
        });
        break;
      }
      case op::without_cancel: {
        held_context& parent = contexts_[s.b()];
        contexts_[s.a()] = {ctx::without_cancel(parent.real),
                            world_.derive({.made_by = kind::without_cancel, .parents = {parent.model}})};
        break;
      }
      case op::cancel:
        cancel(s, i);
        break;
      case op::pass_right:
        pass_right(s);
        break;
      case op::pass_context:
        pass_context(s);
        break;
      case op::on_stop:
        on_stop(s, i, steps);
        break;
      case op::off_stop:
        destroy_callback(s.a());
        break;
      case op::after_func:
        after_func(s, i, steps);
        break;
      case op::pass_function:
        pass_function(s);
        break;
      case op::advance:
        advance(s);
        break;
      case op::stop_source:
        stop_source(s);
        break;
      case op::wait:
        wait(s);
        break;
      case op::look:
        look(s);
        break;
    }
  }

  // Deriving

  std::exception_ptr cause_of_step(std::size_t i) const {
    return std::make_exception_ptr(std::runtime_error{"cause(" + std::to_string(i) + ")"});
  }

  /// Takes what a factory gave. The handles that were there before go, and may cancel.
  void hold(std::size_t where, cancel_scope real, node_ptr model, std::size_t i) {
    model->place = text_of(places[i]);
    contexts_[where] = {std::move(real.ctx), model};
    world_.follow();
    replace_right(where, {std::move(real.cancel), std::move(model)});
  }

  void hold_timed(std::size_t where, kind made_by, const node_ptr& parent, instant due, std::exception_ptr cause,
                  std::size_t i, const std::function<cancel_scope()>& derive) {
    node_ptr model = world_.derive({
        .made_by = made_by,
        .parents = {parent},
        .own_end = std::make_shared<ending>(
            ending{.error = ctx::errc::deadline_exceeded, .given = std::move(cause), .place = text_of(places[i])}),
        .due = due,
    });
    hold(where, derive(), std::move(model), i);
  }

  void with_timeout(const step& s, std::size_t i) {
    held_context& parent = contexts_[s.b()];
    const auto cause = s.d() != 0 ? cause_of_step(i) : nullptr;
    const auto derive = [&] {
      return with_time(s.c(), [&](auto time) { return ctx::with_timeout(parent.real, time, cause, places[i]); });
    };
    if (const auto time = time_of(s.c()).in_clock) {
      hold_timed(s.a(), kind::with_timeout, parent.model, later(world_.now(), *time), cause, i, derive);
      return;
    }
    expect_invalid_argument(derive);
  }

  template <class F>
  void expect_invalid_argument(F f) {
    try {
      static_cast<void>(f());
      fail("took a time that is not a number");
    } catch (const std::invalid_argument&) {
    }
  }

  instant deadline_or_now(std::size_t which) const {
    return deadline_of(*contexts_[which].model).value_or(world_.now());
  }

  void with_deadline(const step& s, std::size_t i) {
    held_context& parent = contexts_[s.b()];
    const instant relative = deadline_or_now(s.d() / 2), now = world_.now();
    const nanoseconds one{1}, five{5};
    const std::array instants{relative, later(relative, -one), later(relative, one), later(now, five),
                              never,    never - one,           instant::min(),       now};
    const instant due = instants[s.c()];
    const auto cause = s.d() % 2 != 0 ? cause_of_step(i) : nullptr;
    hold_timed(s.a(), kind::with_deadline, parent.model, due, cause, i,
               [&] { return ctx::with_deadline(parent.real, due, cause, places[i]); });
  }

  void with_stop_token(const step& s, std::size_t i) {
    held_context& parent = contexts_[s.b()];
    std::stop_token token;
    std::shared_ptr<signal> driver;
    if (s.c() < sources) {
      token = sources_[s.c()].real.get_token();
      driver = sources_[s.c()].model;
    } else if (s.c() > sources) {
      token = contexts_[s.d()].real.stop_token();
      if (const node_ptr by = governor(contexts_[s.d()].model)) driver = by->token;
    }
    node_ptr model = world_.derive({
        .made_by = kind::with_stop_token,
        .parents = {parent.model},
        .own_end = std::make_shared<ending>(ending{.error = ctx::errc::canceled, .place = text_of(places[i])}),
        .driver = driver,
    });
    hold(s.a(), ctx::with_stop_token(parent.real, std::move(token), places[i]), std::move(model), i);
  }

  // Canceling

  void cancel(const step& s, std::size_t i) {
    held_right& right = rights_[s.a()];
    const auto why = std::make_shared<ending>(ending{.error = ctx::errc::canceled, .place = text_of(places[i])});
    if (s.b() == 2) why->given = cause_of_step(i);
    if (s.b() == 3) why->object = "reason{" + std::to_string(i) + "}";

    const std::weak_ptr<node> target = right.model;
    const bool live = right.model != nullptr && right.model->end == nullptr;
    const bool unknown = live && is_unknown(right.model);
    if (live) world_.end(right.model, why);
    const bool did_it = [&] {
      switch (s.b()) {
        case 0:
          return right.real(places[i]);
        case 1:
          return right.real(std::exception_ptr{}, places[i]);
        case 2:
          return right.real(why->given, places[i]);
        default:
          return right.real(reason{*why->object}, places[i]);
      }
    }();
    if (did_it && !live) fail("a cancel did it, though the context had ended, or there was none");
    if (!did_it && live && !unknown) fail("a cancel did not do it, though the context was live");
    if (const node_ptr alive = target.lock()) ended(alive, did_it);
  }

  void ended(const node_ptr& target, bool with_all_below) {
    world_.tell(target);
    if (with_all_below) world_.tell_all_below(target);
  }

  /// Whether nobody can see if `n` ended by itself.
  bool is_unknown(const node_ptr& n) const {
    return world_.is_open(n) &&
           std::ranges::none_of(sightings(false), [&](const sighting& each) { return ends_with(each.node, n); });
  }

  void replace_right(std::size_t where, held_right with) {
    std::swap(rights_[where].model, with.model);
    const bool live = with.model != nullptr && with.model->end == nullptr;
    if (live)
      world_.end(with.model,
                 std::make_shared<ending>(ending{.error = ctx::errc::canceled, .place = with.model->place}));
    const std::weak_ptr<node> target = std::exchange(with.model, nullptr);
    rights_[where].real = std::move(with.real);
    if (const node_ptr alive = target.lock()) ended(alive, live);
  }

  void pass_right(const step& s) {
    held_right &right = rights_[s.a()], &other = rights_[s.c()];
    switch (s.b()) {
      case 0:
        right.model.reset();
        right.real.release();
        break;
      case 1:
        replace_right(s.a(), {});
        break;
      case 2:
        if (s.a() == s.c()) {
          cancel_func& same = other.real;
          right.real = std::move(same);
        } else {
          replace_right(s.a(), {std::move(other.real), std::exchange(other.model, nullptr)});
        }
        break;
      default:
        std::swap(right.real, other.real), std::swap(right.model, other.model);
    }
  }

  void pass_context(const step& s) {
    held_context &at = contexts_[s.a()], &other = contexts_[s.c()];
    switch (s.b()) {
      case 0:
        at.model = node_ptr{other.model};
        at.real = other.real;
        break;
      case 1:
        if (s.a() != s.c()) at.model = std::exchange(other.model, world_.background());
        at.real = std::move(other.real);
        break;
      default:
        at = {context{}, world_.background()};
    }
  }

  void stop_source(const step& s) {
    held_source& source = sources_[s.a()];
    if (s.b() != 0) {
      source = {};
      return;
    }
    if (*source.model == signal::quiet) world_.stop(source.model);
    std::stop_source kept = source.real;  // a callback may put another one in its place
    kept.request_stop();
  }

  // Callbacks

  bool may_destroy(const callback& each) const {
    const std::thread::id nobody;
    return !each.building && (each.running_on == nobody || each.running_on == std::this_thread::get_id());
  }

  bool destroy_callback(std::size_t where) {
    callback* const there = callback_at_[where];
    if (there == nullptr) return true;
    if (!may_destroy(*there)) return false;
    callback_at_[where] = nullptr;
    there->destroyed = true;
    there->registration.reset();
    there->on = {};
    return true;
  }

  void on_stop(const step& s, std::size_t i, body steps) {
    if (!destroy_callback(s.a())) return;
    held_context& on = contexts_[s.b()];
    callback& made = callbacks_.try_emplace(i, i, steps, on).first->second;
    callback_at_[s.a()] = &made;
    made.registration.emplace(made.on.real.stop_token(), caller{this, i});
    made.building = false;
  }

  void called(callback& by) noexcept {
    if (failed()) return;
    const std::string outer = std::exchange(doing_, "");
    doing_ = outer + ", in the callback of step " + std::to_string(by.step);
    ++depth_;
    by.running_on = std::this_thread::get_id();
    expect(!by.destroyed, "it ran after it was destroyed");
    expect(++by.calls == 1, "it ran twice");
    follow_clock();
    if (!failed() && !by.destroyed) {
      world_.follow();
      if (const node_ptr on = governor(by.on.model); on == nullptr || on->end == nullptr) {
        fail("it ran, though nothing ended its context");
      } else {
        world_.tell(on);
        expect(meddled_ || world_.meets_a_token(*on->end) || ran_above(*on), "it ran before those of its parents");
      }
    }
    compare();
    run_steps(by.steps.first, by.steps.last);
    by.running_on = {};
    --depth_;
    doing_ = outer;
  }

  bool has_to_run_before(const callback& each, const node& n) const {
    return !each.destroyed && each.calls == 0 && governor(each.on.model).get() == &n;
  }

  /// Whether the callbacks ran on some line of ancestors that ended together with `n`: of a merge's two parents, one
  /// may come after it.
  bool ran_above(const node& n) const {
    bool is_origin = true;
    for (const node_ptr& parent : n.parents) {
      const node_ptr above = governor(parent);
      if (above == nullptr || above->end != n.end) continue;
      is_origin = false;
      const auto before = [&](const auto& each) { return has_to_run_before(each.second, *above); };
      if (std::ranges::none_of(callbacks_, before) && ran_above(*above)) return true;
    }
    return is_origin;
  }

  // Functions

  void after_func(const step& s, std::size_t i, body steps) {
    if (!may_destroy(functions_at_[s.a()])) return;
    held_context& on = contexts_[s.b()];
    const auto made = std::make_shared<function>(i, steps, on.model);
    functions_.push_back(made);
    after_func_handle real = ctx::after_func(on.real, [this, made] {
      ++made->calls;
      if (made->turn.pass() == gate::open) run_function(*made);
      made->over = true;
      made->over.notify_all();
    });
    replace_function(s.a(), {std::move(real), made});
  }

  bool may_destroy(const held_function& held) const {
    return held.model == nullptr || held.model->state != function::running;
  }

  void replace_function(std::size_t where, held_function with) {
    held_function& at = functions_at_[where];
    const std::shared_ptr<function> old = std::exchange(at.model, std::move(with.model));
    if (old != nullptr) old->turn.set(gate::open_without_body);
    at.real = std::move(with.real);
    if (old == nullptr) return;
    const bool has_ended = ending_of(old->on) != nullptr || world_.is_open(old->on);
    expect(has_ended || old->calls == 0, "a function ran, though nothing ended its context");
    expect(old->calls == 0 || old->over, "a handle is destroyed, and its function still runs");
    old->on.reset();
    old->state = function::destroyed;
    old->last_calls = old->calls;
  }

  void pass_function(const step& s) {
    held_function& at = functions_at_[s.a()];
    switch (s.b()) {
      case 0:
        stop_function(at);
        break;
      case 1:
        if (may_destroy(at)) replace_function(s.a(), {});
        break;
      default:
        if (s.a() == s.c() || !may_destroy(at)) break;
        replace_function(s.a(), std::exchange(functions_at_[s.c()], {}));
    }
  }

  void stop_function(held_function& at) {
    const bool did_it = at.real.stop();
    if (at.model == nullptr || at.model->state != function::waiting) {
      expect(!did_it, "a stop did it, though the function had run, or was stopped before");
      return;
    }
    // While its context is ending, it may have been started, or not yet.
    const bool ending = ending_of(at.model->on) != nullptr || world_.is_open(at.model->on);
    expect(did_it || ending, "a stop did not do it, though the context was live");
    if (did_it) at.model->state = function::stopped;
  }

  /// Lets those run that were started: their contexts are done.
  void run_functions() {
    for (std::size_t i = 0; i < functions_.size() && !failed(); ++i) {
      const std::shared_ptr<function> each = functions_[i];
      if (each->state != function::waiting || ending_of(each->on) == nullptr) continue;
      const auto holds_it = [&](const held_function& held) { return held.model == each; };
      if (std::ranges::find_if(functions_at_, holds_it)->real.stop()) {
        fail("a function was not started, though its context is done");
        return;
      }
      each->state = function::running;
      const std::string outer = doing_;
      doing_ += ", in the function of step " + std::to_string(each->step);
      each->turn.set(gate::open);
      each->over.wait(false);
      doing_ = outer;
      each->state = function::ran;
    }
  }

  void run_function(const function& each) {
    if (failed()) return;
    run_steps(each.steps.first, each.steps.last);
  }

  // Time

  void follow_clock() {
    const instant now = ctx::clock::now();
    if (now < world_.now() || now > world_.goal()) fail("the clock is not where it was moved");
    if (!failed()) world_.move_to(now);
  }

  void advance(const step& s) {
    std::optional<nanoseconds> time;
    if (s.a() < times) {
      time = time_of(s.a()).in_clock;
      if (!time) {
        expect_invalid_argument([&] { return with_time(s.a(), [&](auto nan) { return clock_.advance(nan), 0; }); });
        return;
      }
    } else {
      const instant to = deadline_or_now(s.b());
      time = to < world_.now() ? nanoseconds{-1} : to - world_.now();
      if (s.a() > times) *time -= nanoseconds{1};
    }
    const instant least = later(world_.now(), *time);
    world_.set_out(*time);
    if (s.a() < times) {
      with_time(s.a(), [&](auto given) { clock_.advance(given); });
    } else {
      clock_.advance(*time);
    }
    follow_clock();
    if (failed()) return;
    expect(world_.now() >= least, "the clock did not move as far as it was told");
    expect(depth_ != 0 || world_.now() == world_.goal(), "the clock moved too far");
    world_.end_what_is_due();
  }

  void wait(const step& s) {
    using namespace std::chrono;
    const context c = contexts_[s.a()].real;
    switch (s.b()) {
      case 0:
        expect(c.wait_for(nanoseconds{0}) == c.done(), "a wait returned another thing than done()");
        break;
      case 1:
        expect(c.wait_until(ctx::clock::now()) == c.done(), "a wait returned another thing than done()");
        break;
      case 2:
        expect(c.wait_for(hours{-1}) == c.done(), "a wait returned another thing than done()");
        break;
      case 3:
        expect_invalid_argument([&] { return c.wait_for(duration<double>{std::numeric_limits<double>::quiet_NaN()}); });
        break;
      default:
        if (!c.done()) break;
        c.wait();
        expect(c.wait_for(hours{1}), "a wait returned false, though the context is done");
    }
  }

  // Comparing

  std::vector<sighting> sightings(bool with_causes) const {
    std::vector<sighting> all;
    const auto add = [&](const held_context& each) {
      if (each.model == nullptr || governor(each.model) == nullptr) return;
      const bool done = each.real.done();
      all.push_back({each.model, done, done && with_causes ? each.real.cause() : nullptr});
    };
    for (const held_context& each : contexts_) add(each);
    for (const auto& [step, each] : callbacks_) add(each.on);
    return all;
  }

  void look(const step& s) {
    held_context& at = contexts_[s.a()];
    std::exception_ptr thrown;
    try {
      at.real.throw_if_done();
    } catch (...) {
      thrown = std::current_exception();
    }
    expect(thrown == at.real.cause(), "throw_if_done() did not throw the cause");
    std::ostringstream out;
    out << at.real;
    expect(out.str() == to_string(at.real), "<< and to_string() differ");
    if (at.model->looked) return;
    const node_ptr by = governor(at.model);
    at.model->looked = tokens_.size();
    tokens_.push_back({at.real.stop_token(), by, by != nullptr ? by->token : nullptr});
  }

  void compare() {
    if (failed()) return;
    expect(ctx::clock::now() == world_.now(), "the clock is not where it was moved");
    for (std::size_t i = 0; i < contexts; ++i) compare(contexts_[i], "c", i);
    for (const auto& [step, each] : callbacks_)
      if (!each.destroyed) compare(each.on, "the context of the callback of step ", step);
    for (const held_context& a : contexts_)
      for (const held_context& b : contexts_)
        expect((a.real == b.real) == (a.model == b.model), "the wrong contexts are equal");
    for (const auto& [step, each] : callbacks_) compare(each);
    for (const auto& each : functions_) compare(*each);
    const int values = static_cast<int>(world_.values());
    const int alive = stored::alive - alive_before_;
    if (depth_ == 0 && alive > values) fail("a value outlived the last context below it");
    if (alive < values) fail("a value is gone before the last context below it");
    // Of tokens whose contexts are gone, too.
    if (depth_ != 0) return;
    for (const seen_token& each : tokens_) {
      const bool stopped = each.model != nullptr && *each.model != signal::quiet;
      expect(each.token.stop_requested() == stopped, "a token is not stopped exactly when its context is done");
      expect(each.token.stop_possible() == (stopped || !each.of.expired()),
             "a token's stop_possible() is not whether there is a context to end");
    }
  }

  void compare(const held_context& held, const char* kind_of_variable, std::size_t which) {
    if (failed()) return;
    const context& c = held.real;
    const auto differs = [&](const char* member, const std::string& is, const std::string& should_be) {
      fail(kind_of_variable + std::to_string(which) + "." + member + " is " + is + ", not " + should_be);
    };
    const auto why = ending_of(held.model);
    const bool done = c.done();
    if (done != (why != nullptr)) {
      if (done) return differs("done()", "true", "false");
      if (is_told(held.model)) return differs("done()", "false", "true");
    }
    if (done) world_.tell(held.model);
    const std::error_code error =
        done ? std::error_code{static_cast<int>(why->error), ctx::context_category()} : std::error_code{};
    if (c.err() != error) differs("err()", text_of(c.err()), text_of(error));
    if (done) {
      const auto condition = why->error == ctx::errc::canceled ? std::errc::operation_canceled : std::errc::timed_out;
      if (c.err() != condition) differs("err()", text_of(c.err()), "what others call the same");
    }
    if (asking_) {
      const std::exception_ptr cause = c.cause();
      if (done ? !why->is(cause) : cause != nullptr) {
        differs("cause()", text_of(cause), done ? text_of(*why) : "null");
      } else if (done) {
        why->seen = cause;
      }
    }

    const auto deadline = deadline_of(*held.model);
    const auto count = [](std::optional<instant> at) {
      return at ? std::to_string(at->time_since_epoch().count()) : "none";
    };
    if (c.deadline() != deadline) differs("deadline()", count(c.deadline()), count(deadline));
    const auto left = time_left(deadline, world_.now());
    if (c.remaining() != left)
      differs("remaining()", std::to_string(c.remaining().count()), std::to_string(left.count()));
    for (unsigned key = 0; key < 5; ++key) compare_value(c, *held.model, key, differs);
    const std::string text = model::to_text(*held.model, world_.now());
    if (to_string(c) != text) differs("to_string()", to_string(c), text);

    if (!held.model->looked) return;
    const std::stop_token& token = tokens_[*held.model->looked].token;
    if (c.stop_token() != token) differs("stop_token()", "another one", "that of before");
    if (token.stop_requested() != done) differs("stop_token()", done ? "live" : "stopped", "as done()");
  }

  template <class Differs>
  void compare_value(const context& c, node& n, unsigned key, Differs differs) {
    const stored* const value = with_key(key, [&](const auto& k) { return c.value(k); });
    node* const where = find_value(n, static_cast<int>(key));
    const auto text = [](bool there, int number) { return there ? std::to_string(number) : "null"; };
    if ((value != nullptr) != (where != nullptr) || (where != nullptr && value->number != where->value)) {
      return differs("value()", text(value != nullptr, value != nullptr ? value->number : 0),
                     text(where != nullptr, where != nullptr ? where->value : 0));
    }
    if (where == nullptr) return;
    if (where->address == nullptr) where->address = value;
    if (where->address != value) differs("value()", "moved", "where it was");
  }

  void compare(const callback& each) {
    if (failed() || each.destroyed) return;
    const node_ptr on = governor(each.on.model);
    const std::string name = "the callback of step " + std::to_string(each.step);
    if (each.calls != 0 && (on == nullptr || on->end == nullptr)) fail(name + " ran too soon");
    if (each.calls == 0 && on != nullptr && on->settled && !each.building) fail(name + " did not run");
  }

  void compare(const function& each) {
    if (failed()) return;
    const std::string name = "the function of step " + std::to_string(each.step);
    const int calls = each.calls;
    switch (each.state) {
      case function::waiting:
        if (calls != 0 && ending_of(each.on) == nullptr && !world_.is_open(each.on)) fail(name + " ran too soon");
        break;
      case function::stopped:
        if (calls != 0) fail(name + " ran, though it was stopped");
        break;
      case function::destroyed:
        if (calls != each.last_calls) fail(name + " ran, though its handle is gone");
        break;
      case function::running:
      case function::ran:
        if (calls != 1) fail(name + " did not run once");
    }
  }

  /// The end of every program. What is left then, nobody holds.
  void destroy_all() {
    if (failed()) return;
    for (std::size_t i = 0; i < functions; ++i) replace_function(i, {});
    for (std::size_t i = 0; i < callbacks; ++i) destroy_callback(i);
    for (std::size_t i = 0; i < rights; ++i) {
      world_.begin();
      replace_right(i, {});
      world_.complete();
    }
    for (held_context& each : contexts_) each = {context{}, world_.background()};
    compare();
    expect(world_.values() == 0, "the model is wrong: it keeps values that nobody holds");
  }

  // Callbacks reach all of this, so it is destroyed after the handles, which are behind it.
  const program& program_;
  const int alive_before_ = stored::alive;  // left behind by programs that failed
  std::optional<std::string> failure_ = {};
  std::string doing_ = {};
  std::atomic<int> depth_ = 0;  // callbacks that are running
  bool meddled_ = false;        // whether callbacks did anything in this step
  bool asking_;                 // for causes
  ctx::manual_clock clock_ = {};
  world world_{ctx::clock::now(), [this] { return sightings(true); }};
  std::vector<std::shared_ptr<function>> functions_ = {};
  std::vector<seen_token> tokens_ = {};

  std::array<held_context, contexts> contexts_ = {};
  std::array<held_right, rights> rights_ = {};
  std::array<held_source, sources> sources_ = {};
  std::map<std::size_t, callback> callbacks_ = {};
  std::array<callback*, callbacks> callback_at_ = {};
  std::array<held_function, functions> functions_at_ = {};
};

}  // namespace

std::optional<std::string> difference(const program& given) { return machine{given}.run(); }

std::string report(const program& failing, const std::string& difference) {
  return difference + "\n" + to_text(failing) + "replay it with CTX_TEST_PROGRAM=" + to_hex(failing) + "\n";
}

}  // namespace model
