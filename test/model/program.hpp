#pragma once

// A program: up to 48 small steps on a few numbered variables. The random generator, the fuzzer and the shrinker
// share its form in bytes, of which any are a program; people read it as text.
//
//   c0 … c7  contexts, at first the background          s0 … s2  std::stop_sources
//   f0 … f7  rights to cancel, at first empty           k0 … k3  std::stop_callbacks
//   clock    a manual clock                             h0 … h2  handles of after_func
//
// What a step derives goes into the context and the right of one number; the right that was there cancels, as
// always when it is overwritten. Callbacks and functions have a body: the steps that follow theirs.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <ratio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace model {

inline constexpr std::size_t contexts = 8, rights = contexts, sources = 3, callbacks = 4, functions = 3;
inline constexpr std::size_t most_steps = 48;

enum class op : unsigned char {
  root,             // a: context; b: which
  with_cancel,      // a: context and right; b: parent
  with_timeout,     // the same; c: time; d: whether with a cause
  with_deadline,    // the same; c: instant; d: the context that it is relative to, and whether with a cause
  with_stop_token,  // the same; c: a source, none, or another context; d: which
  merge,            // the same; c: second parent
  with_value,       // a: context; b: parent; c: key
  without_cancel,   // a: context; b: parent
  cancel,           // a: right; b: how
  pass_right,       // a: right; b: how; c: another right
  pass_context,     // a: context; b: how; c: another context
  on_stop,          // a: callback; b: context; c: steps in its body
  off_stop,         // a: callback
  after_func,       // a: handle; b: context; c: steps in its body
  pass_function,    // a: handle; b: how; c: another handle
  advance,          // a: time; b: the context that it is relative to
  stop_source,      // a: source; b: how
  wait,             // a: context; b: how
  look,             // a: context
};

struct step {
  op what;
  std::array<unsigned char, 4> operand;

  unsigned a() const { return operand[0]; }
  unsigned b() const { return operand[1]; }
  unsigned c() const { return operand[2]; }
  unsigned d() const { return operand[3]; }
  bool has_body() const { return what == op::on_stop || what == op::after_func; }
  friend bool operator==(const step&, const step&) = default;
};

struct program {
  bool ask_late = false;  // for causes only at the end, not after every step: the first question makes them
  std::vector<step> steps = {};
  friend bool operator==(const program&, const program&) = default;
};

// Times, of as many types as there may be, with what they are in nanoseconds

inline constexpr unsigned times = 18;

template <class F>
auto with_time(unsigned which, F f) {
  using namespace std::chrono;
  switch (which) {
    default:
      return f(nanoseconds{0});
    case 1:
      return f(nanoseconds{1});
    case 2:
      return f(nanoseconds{2});
    case 3:
      return f(nanoseconds{3});
    case 4:
      return f(nanoseconds{64});
    case 5:
      return f(duration<double, std::nano>{0.25});
    case 6:
      return f(duration<int, std::ratio<1, 3>>{1});
    case 7:
      return f(microseconds{1});
    case 8:
      return f(seconds{1});
    case 9:
      return f(hours{1});
    case 10:
      return f(duration<std::int64_t, std::ratio<31'556'952>>{100});
    case 11:
      return f(nanoseconds::max());
    case 12:
      return f(hours::max());
    case 13:
      return f(duration<float>{std::numeric_limits<float>::infinity()});
    case 14:
      return f(nanoseconds{-1});
    case 15:
      return f(hours::min());
    case 16:
      return f(duration<double>{-std::numeric_limits<double>::infinity()});
    case 17:
      return f(duration<double>{std::numeric_limits<double>::quiet_NaN()});
  }
}

struct known_time {
  const char* text;
  std::optional<std::chrono::nanoseconds> in_clock;  // empty: not a number
};

inline const known_time& time_of(unsigned which) {
  using std::chrono::nanoseconds;
  static const std::array<known_time, times> all{{{"0ns", nanoseconds{0}},
                                                  {"1ns", nanoseconds{1}},
                                                  {"2ns", nanoseconds{2}},
                                                  {"3ns", nanoseconds{3}},
                                                  {"64ns", nanoseconds{64}},
                                                  {"duration<double, nano>{0.25}", nanoseconds{1}},
                                                  {"duration<int, ratio<1, 3>>{1}", nanoseconds{333'333'334}},
                                                  {"1us", nanoseconds{1'000}},
                                                  {"1s", nanoseconds{1'000'000'000}},
                                                  {"1h", nanoseconds{3'600'000'000'000}},
                                                  {"years{100}", nanoseconds{3'155'695'200'000'000'000}},
                                                  {"nanoseconds::max()", nanoseconds::max()},
                                                  {"hours::max()", nanoseconds::max()},
                                                  {"duration<float>{infinity}", nanoseconds::max()},
                                                  {"-1ns", nanoseconds{-1}},
                                                  {"hours::min()", nanoseconds::min()},
                                                  {"duration<double>{-infinity}", nanoseconds::min()},
                                                  {"duration<double>{NaN}", std::nullopt}}};
  return all[which];
}

// What operands there are, and how often the generator takes a step

struct shape {
  std::array<unsigned char, 4> operands;  // how many values each has; none where it means nothing
  int weight;
};

inline constexpr std::array<shape, 19> shapes{{
    {{contexts, 2}, 2},                    // root
    {{contexts, contexts}, 18},            // with_cancel
    {{contexts, contexts, times, 2}, 16},  // with_timeout
    {{contexts, contexts, 8, 16}, 10},     // with_deadline
    {{contexts, contexts, 5, 8}, 9},       // with_stop_token
    {{contexts, contexts, contexts}, 14},  // merge
    {{contexts, contexts, 5}, 9},          // with_value
    {{contexts, contexts}, 3},             // without_cancel
    {{rights, 4}, 12},                     // cancel
    {{rights, 4, rights}, 10},             // pass_right
    {{contexts, 3, contexts}, 10},         // pass_context
    {{callbacks, contexts, 6}, 16},        // on_stop
    {{callbacks}, 4},                      // off_stop
    {{functions, contexts, 6}, 4},         // after_func
    {{functions, 3, functions}, 3},        // pass_function
    {{times + 2, contexts}, 12},           // advance
    {{sources, 2}, 5},                     // stop_source
    {{contexts, 5}, 4},                    // wait
    {{contexts}, 6},                       // look
}};

inline const shape& shape_of(op what) { return shapes[static_cast<std::size_t>(what)]; }

// Bytes: one for the program, five for each step. All are taken modulo what there is.

inline program decode(std::span<const std::uint8_t> bytes) {
  program result;
  if (bytes.empty()) return result;
  result.ask_late = bytes.front() % 2 != 0;
  for (bytes = bytes.subspan(1); bytes.size() >= 5 && result.steps.size() < most_steps; bytes = bytes.subspan(5)) {
    step made{static_cast<op>(bytes[0] % shapes.size()), {}};
    for (std::size_t i = 0; i < 4; ++i) {
      const unsigned values = shape_of(made.what).operands[i];
      made.operand[i] = static_cast<unsigned char>(values != 0 ? bytes[i + 1] % values : 0);
    }
    result.steps.push_back(made);
  }
  return result;
}

inline std::vector<std::uint8_t> encode(const program& given) {
  std::vector<std::uint8_t> bytes{static_cast<std::uint8_t>(given.ask_late)};
  for (const step& each : given.steps) {
    bytes.push_back(static_cast<std::uint8_t>(each.what));
    bytes.insert(bytes.end(), each.operand.begin(), each.operand.end());
  }
  return bytes;
}

inline std::string to_hex(const program& given) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const auto byte : encode(given)) (text += digits[byte / 16]) += digits[byte % 16];
  return text;
}

inline program from_hex(std::string_view text) {
  std::vector<std::uint8_t> bytes;
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (; text.size() >= 2; text.remove_prefix(2))
    bytes.push_back(static_cast<std::uint8_t>(digit(text[0]) * 16 + digit(text[1])));
  return decode(bytes);
}

// Text

inline std::string to_text(const step& s, std::size_t number) {
  const auto name = [](const std::string& kind, unsigned which) { return kind + std::to_string(which); };
  const auto a = [&](const char* kind) { return name(kind, s.a()); };
  const auto b = [&](const char* kind) { return name(kind, s.b()); };
  const auto c = [&](const char* kind) { return name(kind, s.c()); };
  const auto derived = [&] { return "[" + a("c") + ", " + a("f") + "] = "; };
  const auto cause = [&](bool given) { return given ? ", cause(" + std::to_string(number) + ")" : std::string{}; };
  const auto at = [&](unsigned which) { return name("c", which) + ".deadline().value_or(clock::now())"; };
  switch (s.what) {
    case op::root:
      return a("c") + " = " + (s.b() == 0 ? "background();" : "todo();");
    case op::with_cancel:
      return derived() + "with_cancel(" + b("c") + ");";
    case op::with_timeout:
      return derived() + "with_timeout(" + b("c") + ", " + time_of(s.c()).text + cause(s.d() != 0) + ");";
    case op::with_deadline: {
      const std::string relative = at(s.d() / 2);
      const std::array instants{relative,
                                relative + " - 1ns",
                                relative + " + 1ns",
                                std::string{"clock::now() + 5ns"},
                                std::string{"time_point::max()"},
                                std::string{"time_point::max() - 1ns"},
                                std::string{"time_point::min()"},
                                std::string{"clock::now()"}};
      return derived() + "with_deadline(" + b("c") + ", " + instants[s.c()] + cause(s.d() % 2 != 0) + ");";
    }
    case op::with_stop_token: {
      const std::string token = s.c() < sources    ? c("s") + ".get_token()"
                                : s.c() == sources ? "{}"
                                                   : name("c", s.d()) + ".stop_token()";
      return derived() + "with_stop_token(" + b("c") + ", " + token + ");";
    }
    case op::merge:
      return derived() + "merge(" + b("c") + ", " + c("c") + ");";
    case op::with_value: {
      constexpr std::array keys{"first_key", "second_key", "tag{0}", "tag{1}", "other_tag{0}"};
      return a("c") + " = with_value(" + b("c") + ", " + keys[s.c()] + ", " + std::to_string(number) + ");";
    }
    case op::without_cancel:
      return a("c") + " = without_cancel(" + b("c") + ");";
    case op::cancel: {
      const std::string given = std::to_string(number);
      const std::array forms{std::string{}, std::string{"exception_ptr{}"}, "cause(" + given + ")",
                             "reason{" + given + "}"};
      return a("f") + "(" + forms[s.b()] + ");";
    }
    case op::pass_right: {
      const std::array forms{a("f") + ".release();", a("f") + " = {};", a("f") + " = move(" + c("f") + ");",
                             "swap(" + a("f") + ", " + c("f") + ");"};
      return forms[s.b()];
    }
    case op::pass_context: {
      const std::array forms{a("c") + " = " + c("c") + ";", a("c") + " = move(" + c("c") + ");", a("c") + " = {};"};
      return forms[s.b()];
    }
    case op::on_stop:
      return a("k") + " = stop_callback(" + b("c") + ".stop_token(), []";
    case op::off_stop:
      return a("k") + ".reset();";
    case op::after_func:
      return a("h") + " = after_func(" + b("c") + ", []";
    case op::pass_function: {
      const std::array forms{a("h") + ".stop();", a("h") + " = {};", a("h") + " = move(" + c("h") + ");"};
      return forms[s.b()];
    }
    case op::advance:
      if (s.a() < times) return std::string{"clock.advance("} + time_of(s.a()).text + ");";
      return "clock.advance(" + at(s.b()) + (s.a() == times ? "" : " - 1ns") + " - clock::now());";
    case op::stop_source:
      return a("s") + (s.b() == 0 ? ".request_stop();" : " = {};");
    case op::wait: {
      constexpr std::array forms{"wait_for(0ns)", "wait_until(clock::now())", "wait_for(-1h)",
                                 "wait_for(duration<double>{NaN})", "wait()"};
      return s.b() == 4 ? "if (" + a("c") + ".done()) " + a("c") + ".wait();" : a("c") + "." + forms[s.b()] + ";";
    }
    case op::look:
      return "look at " + a("c") + ".stop_token(), also from now on;";
  }
  return {};
}

inline std::string to_text(std::span<const step> steps, std::size_t first, const std::string& indent) {
  std::string text;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    text += std::to_string(first + i) + (first + i < 10 ? ":  " : ": ") + indent + to_text(steps[i], first + i);
    if (steps[i].has_body()) {
      const auto body = steps.subspan(i + 1).first(std::min<std::size_t>(steps[i].c(), steps.size() - i - 1));
      text += body.empty() ? " {});" : " {";
      if (!body.empty()) text += "\n" + to_text(body, first + i + 1, indent + "  ") + "    " + indent + "});";
      i += body.size();
    }
    text += '\n';
  }
  return text;
}

inline std::string to_text(const program& given) {
  return to_text(given.steps, 0, {}) + (given.ask_late ? "and only now look at causes\n" : "");
}

// Random programs

inline program random_program(std::uint64_t seed) {
  std::mt19937_64 random{seed};
  const auto below = [&](std::size_t bound) { return static_cast<unsigned>(random() % bound); };
  int all = 0;
  for (const shape& each : shapes) all += each.weight;

  program result;
  result.ask_late = below(4) == 0;
  const std::size_t length = 8 + below(most_steps - 7);
  const unsigned crowd = 3 + below(contexts - 2);  // few variables meet more often, many live longer
  unsigned last = 0, left_in_body = 0;
  while (result.steps.size() < length) {
    int at = static_cast<int>(below(static_cast<std::size_t>(all)));
    std::size_t which = 0;
    while (at >= shapes[which].weight) at -= shapes[which++].weight;
    // What is just ending is worth meeting.
    if (left_in_body > 0) {
      --left_in_body;
      if (const unsigned chance = below(6); chance < 3)
        which = static_cast<std::size_t>(chance < 2 ? op::cancel : op::merge);
    }
    step made{static_cast<op>(which), {}};
    for (std::size_t i = 0; i < 4; ++i) {
      const unsigned values = shapes[which].operands[i];
      made.operand[i] = static_cast<unsigned char>(values != 0 ? below(values == contexts ? crowd : values) : 0);
    }
    // Small steps in time, so that deadlines are equal, or pass together.
    constexpr std::array<unsigned char, 7> near{0, 1, 1, 2, 3, 4, 7};
    if (made.what == op::with_timeout && below(3) != 0) made.operand[2] = near[below(near.size())];
    if (made.what == op::advance && below(3) != 0) made.operand[0] = near[below(near.size())];
    // Derive into one variable after another, as what is overwritten ends; and from what was derived last, so that
    // trees are deep.
    if (made.what >= op::with_cancel && made.what <= op::without_cancel) {
      if (below(4) != 0) made.operand[0] = static_cast<unsigned char>((last + 1) % crowd);
      if (below(3) == 0) made.operand[1] = static_cast<unsigned char>(last);
      last = made.a();
    }
    if (made.has_body()) left_in_body = made.c();
    result.steps.push_back(made);
    // Many rights have to go without canceling, or all ends soon.
    if (made.what >= op::with_cancel && made.what <= op::merge && below(4) == 0) {
      result.steps.push_back({op::pass_right, {made.operand[0], 0, 0, 0}});
    }
  }
  result.steps.resize(std::min(result.steps.size(), most_steps));
  return result;
}

}  // namespace model
