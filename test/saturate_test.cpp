// For bugs of arithmetic at the edges: a deadline that overflows into the past, or fires early because it was rounded down.
// The model is exact: times are fractions of natural numbers of any size, and a result is compared with the fraction.
#include <ctx/detail/saturate.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <ratio>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace {

using ctx::detail::add_saturate;
using ctx::detail::ceil_saturate;
using ctx::detail::floor_saturate;
using ctx::detail::subtract_saturate;
using ctx::detail::until;
using namespace std::chrono;
using namespace std::chrono_literals;

constexpr nanoseconds never = nanoseconds::max();
constexpr nanoseconds passed = nanoseconds::min();
constexpr std::intmax_t largest = std::numeric_limits<std::intmax_t>::max();

#ifdef __SIZEOF_INT128__
__extension__ using int128 = __int128;
__extension__ using uint128 = unsigned __int128;
#else
using int128 = std::int64_t;
using uint128 = std::uint64_t;
#endif

// A number of a user, of which only this is known: it converts to long double.
struct real {
  long double value;
  explicit operator long double() const { return value; }
};

// A natural number of any size, the last digit first.
struct natural {
  std::vector<std::uint32_t> digits;

  explicit natural(uint128 n = 0) {
    for (; n != 0; n /= std::uint64_t{1} << 32) digits.push_back(static_cast<std::uint32_t>(n));
  }
  friend natural operator*(const natural& a, const natural& b) {
    natural product;
    product.digits.resize(a.digits.size() + b.digits.size());
    for (std::size_t i = 0; i < a.digits.size(); ++i) {
      std::uint64_t carry = 0;
      for (std::size_t j = 0; j < b.digits.size(); ++j) {
        carry += std::uint64_t{a.digits[i]} * b.digits[j] + product.digits[i + j];
        product.digits[i + j] = static_cast<std::uint32_t>(carry);
        carry >>= 32;
      }
      product.digits[i + b.digits.size()] = static_cast<std::uint32_t>(carry);
    }
    while (!product.digits.empty() && product.digits.back() == 0) product.digits.pop_back();
    return product;
  }
  friend bool operator<(const natural& a, const natural& b) {
    if (a.digits.size() != b.digits.size()) return a.digits.size() < b.digits.size();
    return std::lexicographical_compare(a.digits.rbegin(), a.digits.rend(), b.digits.rbegin(), b.digits.rend());
  }
};

natural power_of_two(int exponent) {
  natural n;
  n.digits.resize(static_cast<std::size_t>(exponent / 32) + 1);
  n.digits.back() = std::uint32_t{1} << exponent % 32;
  return n;
}

// A number of nanoseconds, exactly.
struct fraction {
  bool negative;
  natural above, below;

  bool less_than(std::int64_t n) const {
    if (negative != (n < 0)) return negative;
    const auto scaled = natural{n < 0 ? 0 - static_cast<std::uint64_t>(n) : static_cast<std::uint64_t>(n)} * below;
    return negative ? scaled < above : above < scaled;
  }
  bool more_than(std::int64_t n) const {
    if (negative != (n < 0)) return !negative;
    const auto scaled = natural{n < 0 ? 0 - static_cast<std::uint64_t>(n) : static_cast<std::uint64_t>(n)} * below;
    return negative ? above < scaled : scaled < above;
  }
};

fraction seconds_of(bool negative, natural above, natural below, std::intmax_t num, std::intmax_t den) {
  const auto ticks = natural{static_cast<std::uint64_t>(num)} * natural{1'000'000'000};
  return {negative, above * ticks, below * natural{static_cast<std::uint64_t>(den)}};
}

fraction model_of_integer(bool negative, uint128 magnitude, std::intmax_t num, std::intmax_t den) {
  return seconds_of(negative, natural{magnitude}, natural{1}, num, den);
}

fraction model_of_floating(long double count, std::intmax_t num, std::intmax_t den) {
  int exponent = 0;
  natural mantissa;
  for (auto rest = std::frexp(std::fabs(count), &exponent); rest > 0; exponent -= 32) {
    rest = std::ldexp(rest, 32);
    mantissa.digits.insert(mantissa.digits.begin(), static_cast<std::uint32_t>(rest));
    rest -= std::floor(rest);
  }
  return seconds_of(count < 0, mantissa * power_of_two(std::max(exponent, 0)), power_of_two(std::max(-exponent, 0)),
                    num, den);
}

template <class Rep, class Period>
fraction model(const duration<Rep, Period>& d) {
  if constexpr (!ctx::detail::integer<Rep>)
    return model_of_floating(d.count(), Period::num, Period::den);
  else {
    const bool negative = d.count() < Rep{};
    const auto count = static_cast<uint128>(d.count());
    return model_of_integer(negative, negative ? uint128{} - count : count, Period::num, Period::den);
  }
}

bool is_ceil(const fraction& exact, nanoseconds result) {
  const auto n = result.count();
  const bool not_early = result == never || !exact.more_than(n);
  return not_early && (result == passed || exact.more_than(n - 1));
}

bool is_floor(const fraction& exact, nanoseconds result) {
  const auto n = result.count();
  const bool not_late = result == passed || !exact.less_than(n);
  return not_late && (result == never || exact.less_than(n + 1));
}

void check(const fraction& exact, nanoseconds up, nanoseconds down, const char* rep, std::intmax_t num,
           std::intmax_t den) {
  if (is_ceil(exact, up) && is_floor(exact, down)) return;
  FAIL_CHECK("rep " << rep << ", period " << num << '/' << den << ": up " << up.count() << ", down " << down.count());
}

template <class Rep, class Period>
void check(const duration<Rep, Period>& d) {
  check(model(d), ceil_saturate(d), floor_saturate(d), typeid(Rep).name(), Period::num, Period::den);
}

using periods =
    std::tuple<std::atto, std::femto, std::pico, std::nano, std::ratio<1, 10'000'000>, std::micro, std::milli,
               std::ratio<1>, std::ratio<60>, std::ratio<86400>, years::period, std::giga, std::peta, std::exa,
               std::ratio<1, 3>, std::ratio<1001, 30000>, std::ratio<7, 3>, std::ratio<1, 1'000'000'007>,
               std::ratio<1, largest>, std::ratio<largest>, std::ratio<largest, largest - 1>,
               std::ratio<largest - 1, largest>, std::ratio<(1LL << 61) - 1, (1LL << 62) + 1>>;

template <class F>
void for_each_period(F f) {
  [&]<class... Period>(std::type_identity<std::tuple<Period...>>) {
    (f(Period{}), ...);
  }(std::type_identity<periods>{});
}

// Both limits, and the nearest counts on both sides of the first that does not fit.
template <class Rep>
void check_the_edges_of() {
  using limits = std::numeric_limits<Rep>;
  for_each_period([]<class Period>(Period) {
    const auto try_out = [](auto count) { check(duration<Rep, Period>{static_cast<Rep>(count)}); };
    for (int i = 0; i < 2; ++i) {
      try_out(limits::max() - static_cast<Rep>(i));
      try_out(limits::lowest() + static_cast<Rep>(i));
      try_out(i);
    }
    try_out(limits::max() / 2);
    try_out(limits::lowest() / 2);
    if constexpr (limits::is_integer) {
      Rep fits{}, saturates = limits::max();
      while (fits + 1 < saturates) {
        const auto middle = static_cast<Rep>(fits + (saturates - fits) / 2);
        (ceil_saturate(duration<Rep, Period>{middle}) == never ? saturates : fits) = middle;
      }
      for (int i = 0; i < 5 && saturates != 0; ++i, --saturates) {
        try_out(saturates);
        if constexpr (limits::is_signed) try_out(-saturates), try_out(~saturates);
      }
    } else {
      const auto edge = 0x1p63L / 1e9L / static_cast<long double>(Period::num) * static_cast<long double>(Period::den);
      for (auto up = static_cast<Rep>(edge), down = up, i = Rep{}; i < 4; ++i) {
        for (const Rep at : {up, down}) try_out(at), try_out(-at);
        up = std::nextafter(up, limits::infinity());
        down = std::nextafter(down, Rep{});
      }
      for (const Rep at :
           {limits::min(), limits::denorm_min(), limits::epsilon(), Rep{0.5}, Rep{1} - limits::epsilon() / 2})
        try_out(at), try_out(-at), try_out(1 + at), try_out(-1 - at);
    }
  });
}

// A clock that shows what it is told.
template <class Rep, class Period>
struct frozen_clock {
  using rep = Rep;
  using period = Period;
  using duration = std::chrono::duration<Rep, Period>;
  using time_point = std::chrono::time_point<frozen_clock>;
  static constexpr bool is_steady = false;
  static inline time_point time{};
  static time_point now() noexcept { return time; }

  static void show(duration since_epoch) { time = time_point{since_epoch}; }
  template <class Duration>
  static std::chrono::time_point<frozen_clock, Duration> at(Duration since_epoch) {
    return std::chrono::time_point<frozen_clock, Duration>{since_epoch};
  }
};

struct throwing_clock : frozen_clock<int, std::ratio<1>> {
  using time_point = std::chrono::time_point<throwing_clock>;
  static time_point now() { throw std::runtime_error{"no time"}; }
};

template <class Duration>
constexpr bool never_throws =
    noexcept(ceil_saturate(std::declval<Duration>()))&& noexcept(floor_saturate(std::declval<Duration>()));
static_assert(never_throws<seconds> && never_throws<duration<std::uint64_t>> &&
              never_throws<duration<int128, std::atto>>);
static_assert(!never_throws<duration<float>> && !never_throws<duration<double>> && !never_throws<duration<real>>);
static_assert(noexcept(add_saturate(std::declval<nanoseconds>(), std::declval<nanoseconds>())));
static_assert(noexcept(subtract_saturate(std::declval<nanoseconds>(), std::declval<nanoseconds>())));

template <class TimePoint>
constexpr bool until_never_throws = noexcept(until(std::declval<TimePoint>()));
static_assert(until_never_throws<system_clock::time_point> && until_never_throws<sys_days>);
static_assert(!until_never_throws<time_point<system_clock, duration<double>>> &&
              !until_never_throws<throwing_clock::time_point>);
static_assert(!until_never_throws<time_point<frozen_clock<double, std::milli>, seconds>>);

// All of it works at compile time, where there is no undefined behaviour.
static_assert(ceil_saturate(1h) == 1h && floor_saturate(-3ms) == -3ms &&
              ceil_saturate(years{1}) == nanoseconds{years{1}});
static_assert(ceil_saturate(duration<bool>{true}) == 1s && ceil_saturate(duration<bool, std::exa>{true}) == never);
static_assert(ceil_saturate(years::max()) == never && ceil_saturate(hours::min()) == passed);
static_assert(ceil_saturate(duration<double>{0.5}) == 500ms &&
              ceil_saturate(duration<double, std::exa>{-1e300}) == passed);
static_assert(ceil_saturate(duration<long double, std::atto>{std::numeric_limits<long double>::infinity()}) == never);
static_assert(ceil_saturate(duration<std::uint64_t>{std::numeric_limits<std::uint64_t>::max()}) == never);
static_assert(ceil_saturate(duration<int128, std::atto>{std::numeric_limits<int128>::min() + 1}) < nanoseconds::zero());

}  // namespace

TEST_CASE("durations round up, and time that a clock shows rounds down, on both sides of zero") {
  CHECK(ceil_saturate(duration<double, std::nano>{-0.5}) == 0ns);
  CHECK(ceil_saturate(duration<double, std::nano>{0.5}) == 1ns);
  CHECK(floor_saturate(duration<double, std::nano>{-0.5}) == -1ns);
  CHECK(floor_saturate(duration<double, std::nano>{0.5}) == 0ns);
  CHECK(ceil_saturate(duration<int, std::pico>{1}) == 1ns);
  CHECK(ceil_saturate(duration<int, std::pico>{1000}) == 1ns);
  CHECK(ceil_saturate(duration<int, std::pico>{1001}) == 2ns);
  CHECK(ceil_saturate(duration<int, std::pico>{-999}) == 0ns);
  CHECK(ceil_saturate(duration<int, std::pico>{-1001}) == -1ns);
  CHECK(floor_saturate(duration<int, std::pico>{-1}) == -1ns);
  CHECK(floor_saturate(duration<int, std::pico>{-1000}) == -1ns);
  CHECK(floor_saturate(duration<int, std::pico>{-1001}) == -2ns);
  CHECK(ceil_saturate(duration<int, std::ratio<1, 3>>{1}) == 333'333'334ns);
  CHECK(floor_saturate(duration<int, std::ratio<1, 3>>{1}) == 333'333'333ns);
  CHECK(ceil_saturate(duration<int, std::ratio<1, 3>>{3}) == 1s);
  CHECK(ceil_saturate(duration<int, std::ratio<1, 3>>{-1}) == -333'333'333ns);
}

TEST_CASE("a floating point number is taken for what it is, not for how it is written") {
  CHECK(ceil_saturate(duration<double>{0.1}) == 100'000'001ns);  // a little more than a tenth
  CHECK(floor_saturate(duration<double>{0.1}) == 100ms);
  CHECK(ceil_saturate(duration<double>{0.3}) == 300ms);  // a little less than three tenths
  CHECK(floor_saturate(duration<double>{0.3}) == 299'999'999ns);
  CHECK(ceil_saturate(duration<float>{0.25F}) == 250ms);
  CHECK(ceil_saturate(duration<double>{-0.0}) == 0ns);
}

TEST_CASE("the least floating point number above zero waits for a nanosecond, and its negative for none") {
  const auto least = std::numeric_limits<long double>::denorm_min();
  CHECK(ceil_saturate(duration<long double, std::exa>{least}) == 1ns);
  CHECK(floor_saturate(duration<long double, std::exa>{least}) == 0ns);
  CHECK(ceil_saturate(duration<long double, std::atto>{-least}) == 0ns);
  CHECK(floor_saturate(duration<long double, std::atto>{-least}) == -1ns);
}

TEST_CASE_TEMPLATE("infinity saturates, and what is not a number is refused", Rep, float, double, long double) {
  static constexpr auto infinity = std::numeric_limits<Rep>::infinity();
  static constexpr auto nan = std::numeric_limits<Rep>::quiet_NaN();
  for_each_period([]<class Period>(Period) {
    using duration = std::chrono::duration<Rep, Period>;
    CHECK(ceil_saturate(duration{infinity}) == never);
    CHECK(floor_saturate(duration{infinity}) == never);
    CHECK(ceil_saturate(duration{-infinity}) == passed);
    CHECK(floor_saturate(duration{-infinity}) == passed);
    for (const auto d : {duration{nan}, duration{-nan}}) {
      CHECK_THROWS_WITH_AS(ceil_saturate(d), "ctx: the duration is not a number", std::invalid_argument);
      CHECK_THROWS_WITH_AS(floor_saturate(d), "ctx: the duration is not a number", std::invalid_argument);
    }
  });
}

TEST_CASE("the last nanosecond on either side is exact, and the next one saturates") {
  CHECK(ceil_saturate(never) == never);
  CHECK(ceil_saturate(never - 1ns) == never - 1ns);
  CHECK(ceil_saturate(passed) == passed);
  CHECK(ceil_saturate(passed + 1ns) == passed + 1ns);
  CHECK(ceil_saturate(microseconds{9'223'372'036'854'775}) == never - 807ns);
  CHECK(ceil_saturate(microseconds{9'223'372'036'854'776}) == never);
  CHECK(ceil_saturate(microseconds{-9'223'372'036'854'775}) == passed + 808ns);
  CHECK(ceil_saturate(microseconds{-9'223'372'036'854'776}) == passed);
  CHECK(ceil_saturate(duration<double>{9'223'372'036.0}) == never - 854'775'807ns);
  CHECK(ceil_saturate(duration<double>{9'223'372'037.0}) == never);
  CHECK(ceil_saturate(duration<double>{-9'223'372'036.0}) == passed + 854'775'808ns);
  CHECK(ceil_saturate(duration<double, std::nano>{-0x1p63}) == passed);
  CHECK(floor_saturate(duration<double, std::nano>{0x1p63 - 1024}) == never - 1023ns);
}

TEST_CASE_TEMPLATE("every integer, by every period, is exact at its edges", Rep, signed char, unsigned char, wchar_t,
                   short, unsigned, std::int64_t, std::uint64_t, int128, uint128) {
  check_the_edges_of<Rep>();
}

TEST_CASE_TEMPLATE("every floating point number, by every period, is exact at its edges", Rep, float, double,
                   long double) {
  check_the_edges_of<Rep>();
}

TEST_CASE_TEMPLATE("random counts of every size agree with the model", Rep, unsigned, std::int64_t, std::uint64_t,
                   int128, uint128, float, double, long double) {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  for_each_period([&]<class Period>(Period) {
    for (int i = 0; i < 500; ++i) {
      auto bits = static_cast<uint128>(random()) * random() ^ random();
      bits >>= random() % (8 * sizeof bits);
      if constexpr (ctx::detail::integer<Rep>) {
        check(duration<Rep, Period>{static_cast<Rep>(bits)});
        if constexpr (std::is_signed_v<Rep> || std::is_same_v<Rep, int128>)
          check(duration<Rep, Period>{static_cast<Rep>(~bits)});
      } else {
        const auto count = std::ldexp(static_cast<Rep>(bits), -static_cast<int>(random() % 100));
        check(duration<Rep, Period>{count});
        check(duration<Rep, Period>{-count});
      }
    }
  });
}

TEST_CASE("a representation of the user's is taken for the long double that it converts to") {
  CHECK(ceil_saturate(duration<real>{real{1.5L}}) == 1500ms);
  CHECK(ceil_saturate(duration<real, std::exa>{real{-1}}) == passed);
  CHECK(floor_saturate(duration<real, std::pico>{real{-1}}) == -1ns);
  CHECK_THROWS_AS(ceil_saturate(duration<real>{real{std::numeric_limits<long double>::quiet_NaN()}}),
                  std::invalid_argument);
}

TEST_CASE("sums and differences stop at the limits") {
  const nanoseconds edges[] = {passed, passed + 1ns, passed / 2 - 1ns, passed / 2,  -1ns, 0ns,
                               1ns,    never / 2,    never / 2 + 1ns,  never - 1ns, never};
  const auto limit = [](bool negative, bool beyond, nanoseconds otherwise) {
    return !beyond ? otherwise : negative ? passed : never;
  };
  for (const auto a : edges)
    for (const auto b : edges) {
      CAPTURE(a.count());
      CAPTURE(b.count());
      std::int64_t result = 0;
      const bool sum_is_beyond = __builtin_add_overflow(a.count(), b.count(), &result);
      CHECK(add_saturate(a, b) == limit(b < 0ns, sum_is_beyond, nanoseconds{result}));
      const bool difference_is_beyond = __builtin_sub_overflow(a.count(), b.count(), &result);
      CHECK(subtract_saturate(a, b) == limit(b > 0ns, difference_is_beyond, nanoseconds{result}));
    }
}

TEST_CASE("the time left is that by the clock of the time point, and never less") {
  using clock = frozen_clock<std::int64_t, std::pico>;
  clock::show(clock::duration{1'000'001});
  CHECK(until(clock::at(clock::duration{2'000'000})) == 1000ns);  // 999.999
  CHECK(until(clock::at(clock::duration{2'000'001})) == 1001ns);  // the price of rounding both
  CHECK(until(clock::at(clock::duration{1'000'002})) == 1ns);
  CHECK(until(clock::at(2us)) == 1000ns);
  CHECK(until(clock::at(duration<double, std::micro>{0.5})) == -500ns);
  clock::show(clock::duration{-1});
  CHECK(until(clock::at(0s)) == 1ns);
  CHECK(until(clock::at(-1s)) == -1s + 1ns);
}

TEST_CASE("random times left are never early, and never late by two nanoseconds") {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  using clock = frozen_clock<std::int64_t, std::pico>;
  using time = duration<std::int64_t, std::femto>;
  for (int i = 0; i < 10'000; ++i) {
    const auto now = static_cast<std::int64_t>(random()) >> 11 >> random() % 40;
    const auto at = static_cast<std::int64_t>(random()) >> 1 >> random() % 40;
    clock::show(clock::duration{now});
    const auto left = until(clock::at(time{at}));
    const auto exact = model(time{at - now * 1000});
    const bool early = exact.more_than(left.count()), late = !exact.more_than(left.count() - 2);
    if (early || late) FAIL_CHECK("now " << now << " ps, at " << at << " fs: left " << left.count());
  }
}

TEST_CASE("time points of the system clock, from year one to the last") {
  const auto at = [](int y) { return sys_days{year{y} / January / 1}; };
  const auto in_seconds = [](std::int64_t y) { return sys_seconds{years{y - 1970}}; };
  CHECK(until(at(1)) == passed);
  CHECK(until(at(1600)) == passed);
  CHECK(until(at(1971)) < -1h);
  CHECK(until(at(2200)) > 1h);
  CHECK(until(at(2200)) < never);
  CHECK(until(at(9999)) == never);
  CHECK(until(in_seconds(292'278'994)) == never);
  CHECK(until(in_seconds(-292'278'994)) == passed);
  CHECK(until(time_point<system_clock, milliseconds>::max()) == never);
  CHECK(until(time_point<system_clock, years>::min()) == passed);
  CHECK(until(time_point<system_clock, duration<double>>::max()) == never);
  CHECK(until(time_point<system_clock, duration<float>>{duration<float>{-std::numeric_limits<float>::infinity()}}) ==
        passed);
  CHECK_THROWS_AS(until(time_point<system_clock, duration<double>>{duration<double>{std::nan("")}}),
                  std::invalid_argument);

  const auto before = system_clock::now();
  const auto left = until(before + 1h);
  CHECK(left <= 1h);
  CHECK(left >= 1h - (system_clock::now() - before) - 1us);
  CHECK(until(steady_clock::now() - 1h) <= -1h);
}

TEST_CASE("the first and the last time point are passed and never, whatever the clock shows") {
  using clock = frozen_clock<std::int64_t, std::nano>;
  for (const auto now : {passed, passed + 1ns, -1ns, 0ns, 1ns, never - 1ns, never}) {
    CAPTURE(now.count());
    clock::show(now);
    CHECK(until(clock::time_point::max()) == never);
    CHECK(until(clock::time_point::min()) == passed);
    CHECK(until(clock::at(seconds::max())) == never);
    CHECK(until(clock::at(seconds::min())) == passed);
    CHECK(until(clock::at(never - 1ns)) == subtract_saturate(never - 1ns, now));
    CHECK(until(clock::at(passed + 1ns)) == subtract_saturate(passed + 1ns, now));
    CHECK(until(clock::at(0ns)) == subtract_saturate(0ns, now));
  }
  using floating = frozen_clock<double, std::ratio<1>>;
  for (const auto now :
       {-std::numeric_limits<double>::infinity(), -1e300, 0.0, 1e300, std::numeric_limits<double>::infinity()}) {
    CAPTURE(now);
    floating::show(floating::duration{now});
    CHECK(until(floating::at(floating::duration{std::numeric_limits<double>::infinity()})) == never);
    CHECK(until(floating::at(floating::duration{-std::numeric_limits<double>::infinity()})) == passed);
  }
}

TEST_CASE("a clock with its epoch centuries away still tells an hour") {
  using since_1601 = frozen_clock<std::int64_t, std::ratio<1, 10'000'000>>;  // as Windows counts
  for (const auto now : {std::int64_t{133'500'000'000'000'000}, std::int64_t{-133'500'000'000'000'000}}) {
    since_1601::show(since_1601::duration{now});
    CHECK(until(since_1601::now() + 1h) == 1h);
    CHECK(until(since_1601::now()) == 0s);
    CHECK(until(since_1601::now() - 1h) == -1h);
    CHECK(until(since_1601::now() + years{400}) == never);
    CHECK(until(since_1601::now() - years{400}) == passed);
    CHECK(until(since_1601::time_point::max()) == never);
    CHECK(until(since_1601::time_point::min()) == passed);
    CHECK(until(since_1601::at(since_1601::duration{-now})) == (now < 0 ? never : passed));
  }
  // The longest time left that fits, between points of which neither does, and whose seconds alone are one too many.
  using ticks = since_1601::duration;
  const ticks longest{92'233'720'368'547'758}, early{-193'499'999'990'000'001}, late = early + longest;
  since_1601::show(early);
  CHECK(until(since_1601::at(late)) == never - 7ns);
  CHECK(until(since_1601::at(late + ticks{1})) == never);
  since_1601::show(late);
  CHECK(until(since_1601::at(early)) == passed + 8ns);
  CHECK(until(since_1601::at(early - ticks{1})) == passed);
  using since_the_big_bang = frozen_clock<double, years::period>;
  since_the_big_bang::show(since_the_big_bang::duration{13.8e9});
  CHECK(until(since_the_big_bang::now() + years{1}) == years{1});
}

TEST_CASE_TEMPLATE("a clock at its own end is further than can be told from today", Period, std::ratio<1>,
                   std::ratio<60>, std::ratio<20'000'000'000>, std::ratio<20'000'000'001>, std::ratio<largest>) {
  using clock = frozen_clock<std::int64_t, Period>;
  clock::show(clock::duration::min());
  CHECK(until(clock::at(5s)) == never);
  CHECK(until(clock::at(-5s)) == never);
  clock::show(clock::duration::max());
  CHECK(until(clock::at(5s)) == passed);
  CHECK(until(clock::at(-5s)) == passed);
}

TEST_CASE("clocks of odd representations and periods") {
  using unsigned_clock = frozen_clock<std::uint64_t, std::nano>;
  unsigned_clock::show(unsigned_clock::duration{std::numeric_limits<std::uint64_t>::max() - 10});
  CHECK(until(unsigned_clock::at(unsigned_clock::duration{std::numeric_limits<std::uint64_t>::max() - 1})) == 9ns);
  CHECK(until(unsigned_clock::at(unsigned_clock::duration{0})) == passed);
  using frames = frozen_clock<short, std::ratio<1001, 30000>>;
  frames::show(frames::duration{29970});
  CHECK(until(frames::at(frames::duration{29971})) == 33'366'667ns);
  using slow = frozen_clock<unsigned char, std::ratio<largest>>;
  slow::show(slow::duration{0});
  CHECK(until(slow::at(slow::duration{1})) == never);
  CHECK(until(slow::now()) == 0s);
  using fast = frozen_clock<int128, std::ratio<1, largest>>;
  fast::show(fast::duration{-1});
  CHECK(until(fast::at(fast::duration{1})) == 2ns);
  CHECK(until(fast::at(fast::duration{int128{largest}})) == 1s + 1ns);
  CHECK_THROWS_WITH_AS(until(throwing_clock::time_point{}), "no time", std::runtime_error);
}
