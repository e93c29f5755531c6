/// Durations and time points of every kind, as nanoseconds in 64 bits: rounded, saturated, never wrapped around.
///
/// The idea: a time is written in mixed radix, as in hours, minutes and seconds: seconds, nanoseconds, parts of a
/// nanosecond. Such numbers add by carrying, so a count of ticks times the length of a tick takes but doublings, halvings
/// and additions of that length. Nothing is ever multiplied: nothing overflows, and nothing is rounded before the end,
/// whatever the representation and the period. The bound: a step or two for each bit of the count.
///
/// Rejected: `duration_cast`, which overflows silently; `long double`, which rounds, on some machines to 53 bits, so that
/// a deadline could fire early; 128-bit integers, which not every machine has and the product of count and ratio outgrows.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>

namespace ctx::detail {

/// Built-in integers; those of 128 bits too, also in the strict modes, where `std::integral` does not know them.
template <class Rep>
concept integer = std::numeric_limits<Rep>::is_integer && !std::is_class_v<Rep>;

/// The sum, or the limit that it is beyond.
constexpr std::chrono::nanoseconds add_saturate(std::chrono::nanoseconds a, std::chrono::nanoseconds b) noexcept {
  return std::clamp(a, a.min() - std::min(b, b.zero()), a.max() - std::max(b, b.zero())) + b;
}

/// The difference, or the limit that it is beyond.
constexpr std::chrono::nanoseconds subtract_saturate(std::chrono::nanoseconds a, std::chrono::nanoseconds b) noexcept {
  return std::clamp(a, a.min() + std::max(b, b.zero()), a.max() + std::min(b, b.zero())) - b;
}

inline constexpr std::int64_t billion = 1'000'000'000;

// A time in whole nanoseconds, of which `nanoseconds` are less than two seconds; `seconds` may be any number.
struct whole_time {
  std::int64_t seconds, nanoseconds;

  constexpr std::chrono::nanoseconds saturate() const noexcept {
    // In halves, as the seconds may overflow where, with nanoseconds of the other sign, the sum does not.
    const std::chrono::seconds all{std::clamp(seconds, -10 * billion, 10 * billion)};
    return add_saturate(all / 2 + std::chrono::nanoseconds{nanoseconds}, all - all / 2);
  }
};

// A time that is not negative. Nanoseconds are fewer than a billion, parts are fewer than Den, each that fraction of a
// nanosecond, and `more` says that there is more to it, though less than a part. Sums need capping at 2^63 seconds.
template <std::uint64_t Den>
struct exact_time {
  std::uint64_t seconds, nanoseconds, parts;
  bool more;

  constexpr exact_time operator+(const exact_time& b) const noexcept {
    const std::uint64_t p = parts + b.parts, n = nanoseconds + b.nanoseconds + p / Den;
    return {seconds + b.seconds + n / billion, n % billion, p % Den, more || b.more};
  }
  constexpr exact_time capped() const noexcept {
    return {std::min<std::uint64_t>(seconds, ~0ULL >> 1), nanoseconds, parts, more};
  }
  constexpr exact_time halved() const noexcept {
    const std::uint64_t n = nanoseconds + seconds % 2 * billion, p = parts + n % 2 * Den;
    return {seconds / 2, n / 2, p / 2, more || p % 2 != 0};
  }

  // So many of this, whatever the sign of the count, as division truncates. The last bit of the count comes first.
  template <integer Rep>
  constexpr exact_time times(Rep count) const noexcept {
    exact_time sum{}, unit = *this;
    for (; count != Rep{}; count = static_cast<Rep>(count / 2), unit = (unit + unit).capped())
      if (count % 2 != 0) sum = (sum + unit).capped();
    return sum;
  }
  // The first bit comes first, until what is left of the count is the fraction.
  constexpr exact_time times(long double count) const noexcept {
    // No tick is as short as 2^-63 seconds, so that this limit, which makes infinity finite, is beyond the cap.
    count = std::min(std::max(count, -count), 0x1p126L);
    long double bit = 1;
    while (bit <= count / 2) bit *= 2;
    exact_time sum{};
    for (; bit >= 1; bit /= 2) {
      sum = (sum + sum).capped();
      if (count >= bit) sum = (sum + *this).capped(), count -= bit;
    }
    return (sum + fraction(count)).capped();
  }
  // The last bit first again, on the way back from the recursion: halving loses only what `more` can stand for.
  constexpr exact_time fraction(long double count) const noexcept {
    // No tick has 2^160 parts, so this is less than one part. It bounds the recursion, too.
    if (count < 0x1p-160L) return {0, 0, 0, count > 0};
    count *= 2;
    return (count < 1 ? fraction(count) : *this + fraction(count - 1)).halved();
  }
};

template <std::uint64_t Num, std::uint64_t Den>
inline constexpr auto tick_length = exact_time<Den>{1 / Den, billion / Den % billion, billion % Den, false}.times(Num);

enum class toward { negative, positive };

template <toward To, class Rep, class Period>
constexpr whole_time rounded(const std::chrono::duration<Rep, Period>& d) noexcept(integer<Rep>) {
  using count_type = std::conditional_t<integer<Rep>, Rep, long double>;
  const auto count = static_cast<count_type>(d.count());
  if constexpr (!integer<Rep>)
    if (count != count) throw std::invalid_argument{"ctx: the duration is not a number"};

  // Milliseconds and the like, and whole seconds and hours, take the short way.
  if constexpr (integer<Rep> && std::numeric_limits<Rep>::digits <= 63) {
    if constexpr (constexpr std::int64_t den = Period::den; Period::num == 1 && billion % den == 0 && den > 1) {
      return {count / den, count % den * (billion / den)};
    } else if constexpr (constexpr std::int64_t num = Period::num; den == 1 && num <= 20 * billion) {
      constexpr std::int64_t limit = (1LL << 62) / num;
      return {std::clamp<std::int64_t>(count, -limit, limit) * num, 0};
    }
  }

  auto time = tick_length<Period::num, Period::den>.times(count);
  const bool negative = count < count_type{};
  if ((time.parts != 0 || time.more) && negative == (To == toward::negative))
    time = time + decltype(time){0, 1, 0, false};
  // Half of what fits, so that two of these can be subtracted.
  const auto seconds = static_cast<std::int64_t>(std::min<std::uint64_t>(time.seconds, 1ULL << 62));
  const auto nanoseconds = static_cast<std::int64_t>(time.nanoseconds);
  return negative ? whole_time{-seconds, -nanoseconds} : whole_time{seconds, nanoseconds};
}

/// The fewest nanoseconds that are not less than `d`, or the limit that it is beyond, also for infinities. Integers and
/// floating point numbers are taken for precisely what they are, other representations for the `long double` that they
/// convert to. Throws `std::invalid_argument` where that is not a number.
template <class Rep, class Period>
constexpr std::chrono::nanoseconds ceil_saturate(const std::chrono::duration<Rep, Period>& d) noexcept(integer<Rep>) {
  return rounded<toward::positive>(d).saturate();
}

/// The most nanoseconds that are not more than `d`; otherwise as `ceil_saturate`.
template <class Rep, class Period>
constexpr std::chrono::nanoseconds floor_saturate(const std::chrono::duration<Rep, Period>& d) noexcept(integer<Rep>) {
  return rounded<toward::negative>(d).saturate();
}

/// The time left until `tp` by its own clock, rounded up by less than two nanoseconds; not positive where it is past by as
/// many. `max()`, never, where `tp` itself saturates so, and likewise `min()`, passed; but where the clock's own time
/// saturates the same way, as its epoch is centuries from now, their difference counts. Add it to a time that was read after
/// this call, not before, or the sum is early. Throws as `ceil_saturate` does, and as `Clock::now()` does.
template <class Clock, class Duration>
std::chrono::nanoseconds until(const std::chrono::time_point<Clock, Duration>& tp) noexcept(
    integer<typename Duration::rep>&& integer<typename Clock::rep>&& noexcept(Clock::now())) {
  const whole_time at = rounded<toward::positive>(tp.time_since_epoch());
  const whole_time now = rounded<toward::negative>(Clock::now().time_since_epoch());
  const std::chrono::nanoseconds limit = at.saturate();
  if (limit == limit.max() || limit == limit.min())
    if (limit != now.saturate() || tp >= tp.max() || tp <= tp.min()) return limit;
  return whole_time{at.seconds - now.seconds, at.nanoseconds - now.nanoseconds}.saturate();
}

}  // namespace ctx::detail
