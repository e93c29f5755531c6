#pragma once

// What the contract says, as a plain toy that knows no threads, no locks and no speed: contexts are nodes, an end is
// carried down by recursion, and every question is answered by walking up.
//
// The contract leaves a few orders open: which of two deadlines of the same instant comes first, and which of the
// callbacks on one context, or on siblings. Programs can tell, as a callback may do anything, and as a merge of both
// has the cause of the first. So the model does not decide: where an end comes by itself and nothing says when, it
// looks at what the library shows, and follows that if it is one of the orders that the contract allows. Where it has
// to have come by now, the model ends it, whatever the library shows.
//
// In between, while callbacks run, what has ended need not be done yet: it is, for sure, if somebody was told so.

#include <ctx/context.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace model {

using instant = ctx::clock::time_point;
using nanoseconds = std::chrono::nanoseconds;

inline constexpr instant never = instant::max();  // what `clock` can't represent

/// The sum, or the limit that it is beyond.
inline instant later(instant from, nanoseconds time) {
  const nanoseconds at = from.time_since_epoch();
  if (time > nanoseconds::zero() && at > nanoseconds::max() - time) return never;
  if (time < nanoseconds::zero() && at < nanoseconds::min() - time) return instant::min();
  return from + time;
}

/// The cause that programs give as an object, not as a pointer.
struct reason : std::runtime_error {
  using runtime_error::runtime_error;
};

/// Why a context ended. There is one for each that ends by itself; all that end with it share it.
struct ending {
  ctx::errc error;
  std::exception_ptr given = {};           // the cause, where it is known before
  std::optional<std::string> object = {};  // what() of the `reason` given instead
  std::string place = {};                  // where nothing is given: `file:line`, to be found in what()
  std::exception_ptr seen = {};            // the cause that the library showed first

  /// Whether the library's cause is this.
  bool is(const std::exception_ptr& cause) const {
    if (cause == nullptr) return false;
    if (given != nullptr) return cause == given;
    if (seen != nullptr) return cause == seen;
    try {
      std::rethrow_exception(cause);
    } catch (const reason& thrown) {
      return object == thrown.what();
    } catch (const std::system_error& thrown) {
      const char* const message = error == ctx::errc::canceled ? "context canceled" : "context deadline exceeded";
      const std::string_view what = thrown.what();
      const std::size_t at = what.find(place), behind = at + place.size();
      const bool placed = at != what.npos && (behind == what.size() || what[behind] < '0' || what[behind] > '9');
      return !object && thrown.code() == error && placed && what.find(message) != what.npos;
    } catch (...) {
      return false;
    }
  }
};

/// A stop source, one of the program's own or that behind a context's token.
enum class signal {
  quiet,
  stopping,  // asked to stop: what is on it ends now, or did
  stopped,   // all that is on it was told
};

enum class kind {
  background,
  todo,
  with_cancel,
  with_deadline,
  with_timeout,
  with_stop_token,
  merge,
  with_value,
  without_cancel
};

struct node;
using node_ptr = std::shared_ptr<node>;

/// A context. As in the library, it keeps its parents alive, and not its children.
struct node {
  kind made_by;
  std::vector<node_ptr> parents = {};
  std::string place = {};                // where it was derived
  std::shared_ptr<ending> own_end = {};  // how it ends by itself: by its deadline or a foreign token

  instant due = never;                     // with_deadline, with_timeout: what was asked for
  bool fires = false;                      // whether it is that deadline which would end it
  std::shared_ptr<signal> driver = {};     // with_stop_token
  int key = 0, value = 0;                  // with_value
  const void* address = nullptr;           // where the library keeps the value, once it was seen
  std::optional<std::size_t> looked = {};  // which of the tokens that the driver keeps is this context's

  std::shared_ptr<ending> end = {};
  bool told = false;     // it is done: somebody saw it, or a call that promised it returned
  bool settled = false;  // whoever ended it has returned
  std::shared_ptr<signal> token = std::make_shared<signal>(signal::quiet);
  std::vector<std::weak_ptr<node>> children = {};
};

/// Whether it can end at all by itself, or by a right. The others are as their parent, or never done.
inline bool is_cancelable(const node& n) {
  switch (n.made_by) {
    case kind::with_cancel:
    case kind::with_deadline:
    case kind::with_timeout:
    case kind::with_stop_token:
    case kind::merge:
      return true;
    default:
      return false;
  }
}

/// The context whose end is that of `n`: itself, or that from which it is derived by with_value. Null: never done.
inline node_ptr governor(const node_ptr& n) {
  if (is_cancelable(*n)) return n;
  return n->made_by == kind::with_value ? governor(n->parents[0]) : nullptr;
}

inline std::shared_ptr<ending> ending_of(const node_ptr& n) {
  const node_ptr by = governor(n);
  return by != nullptr ? by->end : nullptr;
}

inline bool is_told(const node_ptr& n) {
  const node_ptr by = governor(n);
  return by != nullptr && by->told;
}

/// Whether `n` would end with `above`.
inline bool ends_with(const node_ptr& n, const node_ptr& above) {
  if (n == above) return true;
  if (n->made_by == kind::without_cancel) return false;
  return std::ranges::any_of(n->parents, [&](const node_ptr& each) { return ends_with(each, above); });
}

inline bool is_timed(const node& n) { return n.made_by == kind::with_deadline || n.made_by == kind::with_timeout; }

inline std::optional<instant> deadline_of(const node& n) {
  std::optional<instant> earliest;
  if (is_timed(n)) earliest = n.due;
  if (n.made_by == kind::without_cancel) return earliest;
  for (const node_ptr& parent : n.parents) {
    const auto other = deadline_of(*parent);
    if (other && (!earliest || *other < *earliest)) earliest = other;
  }
  return earliest;
}

/// The node that stores the value under `key`, null where there is none.
inline node* find_value(node& n, int key) {
  if (n.made_by == kind::with_value && n.key == key) return &n;
  return n.parents.empty() ? nullptr : find_value(*n.parents[0], key);
}

inline nanoseconds time_left(std::optional<instant> deadline, instant now) {
  if (!deadline) return nanoseconds::max();
  if (*deadline <= now) return nanoseconds::zero();
  return *deadline - now;  // `now` is not negative
}

inline std::string to_text(const node& n, instant now) {
  const auto name = [&]() -> std::string {
    switch (n.made_by) {
      case kind::background:
        return "background";
      case kind::todo:
        return "todo";
      case kind::with_cancel:
        return "with_cancel";
      case kind::with_deadline:
        return "with_deadline";
      case kind::with_timeout:
        return "with_timeout";
      case kind::with_stop_token:
        return "with_stop_token";
      case kind::merge:
        return "merge";
      case kind::without_cancel:
        return "without_cancel";
      case kind::with_value:
        break;
    }
    const char* const keys[] = {"key", "key", "model::tag", "model::tag", "model::other_tag"};
    return std::string{"with_value("} + keys[n.key] + ")";
  };
  std::string text = n.parents.empty() ? std::string{} : to_text(*n.parents[0], now) + ".";
  text += name();
  if (is_timed(n)) {
    const auto thousandths = time_left(deadline_of(n), now).count() / 1'000'000;
    const std::string fraction = std::to_string(thousandths % 1000 + 1000).substr(1);
    text += "(" + std::to_string(thousandths / 1000) + "." + fraction + "s)";
  }
  return text;
}

/// A context of the library that is there to be seen.
struct sighting {
  node_ptr node;
  bool done;
  std::exception_ptr cause;
};

/// All nodes, and the time.
class world {
 public:
  world(instant start, std::function<std::vector<sighting>()> look)
      : look_{std::move(look)}, now_{start}, goal_{start} {}

  instant now() const { return now_; }
  instant goal() const { return goal_; }  // where the clock is being moved to
  const node_ptr& background() const { return background_; }
  const node_ptr& todo() const { return todo_; }

  /// How many values are stored.
  std::size_t values() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(all(), [](const node_ptr& each) { return each->made_by == kind::with_value; }));
  }

  node_ptr derive(node made) {
    const node_ptr n = std::make_shared<node>(std::move(made));
    nodes_.push_back(n);
    const auto governing = n->parents.empty() ? std::nullopt : deadline_of_parents(*n);
    // What is set when the clock itself stands at the end of time has passed; what was set before never does.
    const bool passed = is_timed(*n) && n->due <= now_;
    n->fires = is_timed(*n) && !passed && n->due < governing.value_or(never);
    for (const node_ptr& parent : n->parents) {
      parent->children.push_back(n);
      if (!is_cancelable(*n)) continue;
      const node_ptr above = governor(parent);
      if (above == nullptr || above->end == nullptr) continue;
      // Born with the end of a parent. If that is not done yet, the child will be, together with it.
      if (n->end == nullptr) mark(n, above->end, outermost());
      n->told = n->told || above->told;
      n->settled = n->settled || above->settled;
    }
    const bool stopped = n->driver != nullptr && *n->driver == signal::stopped;
    if ((passed || stopped) && n->end == nullptr) {
      mark(n, n->own_end, nullptr);
      n->told = n->settled = true;
    }
    if (n->settled) *n->token = signal::stopped;
    return n;
  }

  /// Ends `n` and all below it. To be called between begin() and complete().
  void end(const node_ptr& n, const std::shared_ptr<ending>& why) {
    if (n->made_by == kind::without_cancel) return;
    if (is_cancelable(*n)) {
      if (n->end != nullptr) return;
      mark(n, why, &calls_.back());
    }
    for (const auto& child : std::vector{n->children})
      if (const node_ptr alive = child.lock()) end(alive, why);
  }

  void stop(const std::shared_ptr<signal>& source) {
    *source = signal::stopping;
    calls_.back().stopped.push_back(source);
  }

  /// Says that somebody was told that `n` is done.
  void tell(const node_ptr& n) {
    if (const node_ptr by = governor(n)) by->told = true;
  }
  void tell_all_below(const node_ptr& n) {
    if (n->made_by == kind::without_cancel) return;
    tell(n);
    for (const auto& child : n->children)
      if (const node_ptr alive = child.lock()) tell_all_below(alive);
  }

  /// A call of the library begins that ends something or moves the clock; calls nest, by callbacks. When it returned,
  /// all that it ended is done, with what hung on the tokens of that, and the callbacks on it ran.
  void begin() { calls_.emplace_back(); }
  void complete() {
    std::size_t before = 0;
    do {
      before = calls_.back().ended.size();
      for (const auto& each : calls_.back().ended)
        if (const node_ptr alive = each.lock()) alive->told = alive->settled = true;
      for (const auto& each : calls_.back().stopped) *each = signal::stopped;
      follow([&](const node& n) { return n.driver != nullptr && *n.driver == signal::stopped; });
    } while (before != calls_.back().ended.size());
    calls_.pop_back();
    if (calls_.empty()) goal_ = now_;
  }

  /// The clock is to move, by a call that began.
  void set_out(nanoseconds time) { goal_ = std::max(goal_, later(now_, time)); }

  /// The clock moved: what was due before ended first, in order, and is over; what is due at that very instant ends
  /// now.
  void move_to(instant time) {
    for (;;) {
      instant next = never;
      for (const node_ptr& each : all())
        if (each->fires && each->end == nullptr) next = std::min(next, each->due);
      if (next >= time) break;
      now_ = next;
      begin();
      end_what_is_due();
      complete();
    }
    now_ = time;
  }
  void end_what_is_due() {
    follow([&](const node& n) { return n.fires && n.due <= now_; });
  }

  /// Takes over from the library what ended by itself so far.
  void follow() {
    follow([](const node&) { return false; });
  }

  /// Whether some context ended for this reason while the token was stopping that drives it as well. Whoever stops
  /// that has it done, in an order of its own.
  bool meets_a_token(const ending& why) const {
    return std::ranges::any_of(all(), [&](const node_ptr& each) {
      return each->end.get() == &why && each->driver != nullptr && *each->driver != signal::quiet;
    });
  }

  /// Whether `n` may have ended, unseen.
  bool is_open(const node_ptr& n) const {
    return std::ranges::any_of(all(), [&](const node_ptr& each) { return may_end(*each) && ends_with(n, each); });
  }

 private:
  struct call {
    std::vector<std::weak_ptr<node>> ended = {};
    std::vector<std::shared_ptr<signal>> stopped = {};
  };

  std::vector<node_ptr> all() const {
    std::vector<node_ptr> alive;
    for (const auto& each : nodes_)
      if (node_ptr node = each.lock()) alive.push_back(std::move(node));
    return alive;
  }

  static std::optional<instant> deadline_of_parents(const node& n) {
    return deadline_of({.made_by = kind::merge, .parents = n.parents});
  }

  call* outermost() { return calls_.empty() ? nullptr : &calls_.front(); }

  static void mark(const node_ptr& n, const std::shared_ptr<ending>& why, call* by) {
    n->end = why;
    *n->token = signal::stopping;
    if (by == nullptr) return;
    by->ended.push_back(n);
    by->stopped.push_back(n->token);
  }

  /// Whether `n` may be ending by itself right now.
  bool may_end(const node& n) const {
    if (n.end != nullptr) return false;
    return (n.fires && n.due <= now_) || (n.driver != nullptr && *n.driver != signal::quiet);
  }

  /// Ends what ended by itself: first what can be seen to have, each before what it can be seen to have come before;
  /// then the rest of what has to.
  template <class HasTo>
  void follow(HasTo has_to) {
    for (;;) {
      std::vector<node_ptr> able = all();
      std::erase_if(able, [&](const node_ptr& each) { return !may_end(*each); });
      if (able.empty()) return;
      node_ptr next = able.size() == 1 && has_to(*able[0]) ? able[0] : nullptr;
      if (next == nullptr) {
        const std::vector<sighting> sightings = look_();
        const auto shown = std::ranges::find_if(able, [&](const node_ptr& each) { return was_next(each, sightings); });
        const auto due = std::ranges::find_if(able, [&](const node_ptr& each) { return has_to(*each); });
        if (shown == able.end() && due == able.end()) return;
        next = shown != able.end() ? *shown : *due;
      }
      end(next, next->own_end);
    }
  }

  /// Whether some of what would end with `n` is seen done for that reason, and none for another; or what that would
  /// end in turn, by its token.
  bool was_next(const node_ptr& n, const std::vector<sighting>& sightings) const {
    bool shown = false;
    for (const sighting& each : sightings) {
      if (!each.done || ending_of(each.node) != nullptr || !ends_with(each.node, n)) continue;
      if (!n->own_end->is(each.cause)) return false;
      shown = true;
    }
    return shown || std::ranges::any_of(all(), [&](const node_ptr& each) {
             return each->end == nullptr && is_driven_by_any_below(*each, n) && was_next(each, sightings);
           });
  }

  bool is_driven_by_any_below(const node& driven, const node_ptr& n) const {
    return std::ranges::any_of(all(), [&](const node_ptr& each) {
      return each->token == driven.driver && each->end == nullptr && ends_with(each, n);
    });
  }

  std::function<std::vector<sighting>()> look_;
  std::vector<std::weak_ptr<node>> nodes_ = {};
  std::vector<call> calls_ = {};
  instant now_, goal_;
  node_ptr background_ = std::make_shared<node>(node{.made_by = kind::background});
  node_ptr todo_ = std::make_shared<node>(node{.made_by = kind::todo});
};

}  // namespace model
