// Exists for deadlines that come out early, late, twice, never or out of order: wrong digits at the
// edges of levels, slots that the bitmaps forget, lists torn by a disarm or by a cascade, and a
// next() that sleeps through a deadline or never lets sleep.
//
// The random tests print their seed. CTX_TEST_SEED replays one; CTX_TEST_OPS sets how many
// operations the long one does.

#include <ctx/src/wheel.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace ctx::detail {

/// Whether all of the wheel's invariants hold: visits every slot and every entry.
bool invariants_hold(const wheel& all) noexcept {
  if (all.elapsed_ < 0 || all.occupied_levels_ >> wheel::levels != 0) return false;
  for (unsigned level = 0; level < wheel::levels; ++level) {
    const bool occupied = (all.occupied_levels_ >> level & 1) != 0;
    if (occupied != (all.occupied_slots_[level] != 0)) return false;
  }
  for (unsigned number = 0; number < wheel::levels * wheel::slots_a_level; ++number) {
    const wheel::slot& home = all.slots_[number];
    const std::uint64_t occupied_slots = all.occupied_slots_[number / wheel::slots_a_level];
    const bool occupied = (occupied_slots >> number % wheel::slots_a_level & 1) != 0;
    if (occupied != (home.first != nullptr)) return false;
    if (!occupied) continue;
    // invariant: `earliest` and every deadline belong in this very slot. That above level 0 nothing
    // is in or before the slot of `elapsed_` follows, since slot_of() names no such slot.
    if (all.slot_of(home.earliest) != number) return false;
    // A list that bites its tail ends here as well: some entry has two before it, and points back
    // to one.
    wheel_entry* const* prev = &home.first;
    for (const wheel_entry* entry = home.first; entry != nullptr; entry = entry->next_) {
      if (entry->prev_ != prev || all.slot_of(entry->due_) != number) return false;
      if (entry->due_ < home.earliest) return false;
      prev = &entry->next_;
    }
  }
  return true;
}

}  // namespace ctx::detail

namespace {

using ctx::detail::never;
using ctx::detail::tick;
using ctx::detail::wheel;
using ctx::detail::wheel_entry;

static_assert(sizeof(wheel_entry) <= 24);
static_assert(!std::is_copy_constructible_v<wheel> && !std::is_copy_assignable_v<wheel>);
static_assert(!std::is_copy_constructible_v<wheel_entry>);
static_assert(!std::is_copy_assignable_v<wheel_entry>);
static_assert(std::is_nothrow_default_constructible_v<wheel>);
static_assert(std::is_trivially_destructible_v<wheel>);
static_assert(std::is_trivially_destructible_v<wheel_entry>);
static_assert(noexcept(std::declval<wheel&>().arm(std::declval<wheel_entry&>(), tick{})));
static_assert(noexcept(std::declval<wheel&>().disarm(std::declval<wheel_entry&>())));
static_assert(noexcept(std::declval<wheel&>().expire(tick{})));
static_assert(noexcept(std::declval<wheel&>().rewind(tick{})));
static_assert(noexcept(std::declval<const wheel&>().next()));
static_assert(noexcept(std::declval<const wheel&>().empty()));

constinit wheel static_wheel;  // compiles only if a wheel needs no code to start

constexpr int levels = 11;
constexpr tick second = 1'000'000'000;
constexpr tick hour = 3600 * second;
constexpr tick year = 8766 * hour;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::stoull(text) : otherwise;
}

std::uint64_t make_seed() {
  std::random_device device;
  const std::uint64_t fresh = std::uint64_t{device()} << 32 | device();
  const std::uint64_t seed = from_environment("CTX_TEST_SEED", fresh);
  MESSAGE("CTX_TEST_SEED=", seed);
  return seed;
}

/// doctest's assertions are too slow to be made a hundred million times.
void must(bool holds, const char* what) {
  if (!holds) FAIL(what);
}

tick add(tick to, tick distance) { return distance > never - to ? never : to + distance; }

/// Instants and distances of every magnitude, so that each level is met as often as any other.
class random_ticks {
 public:
  explicit random_ticks(std::uint64_t seed) : engine_{seed} {}

  std::uint64_t below(std::uint64_t bound) { return engine_() % bound; }
  bool one_in(std::uint64_t chances) { return below(chances) == 0; }
  tick any() { return static_cast<tick>(engine_() >> 1 >> below(63)); }

  /// Some instant from `now` on; often at the edge of a slot of some level, give or take one.
  tick from(tick now) {
    if (!one_in(4)) return add(now, any());
    const tick width = tick{1} << 6 * below(levels);
    const tick start = now / width * width;
    const tick slots = static_cast<tick>(below(66));
    const tick edge = slots > (never - start) / width ? never : start + slots * width;
    return std::max(now, add(edge, 1) - static_cast<tick>(below(3)));
  }

 private:
  std::mt19937_64 engine_;
};

struct entry : wheel_entry {
  std::multimap<tick, entry*>* kept_in = nullptr;
  std::multimap<tick, entry*>::iterator at;
  tick armed_at = 0;
};

/// A wheel, and next to it what it stands for: all is done to both, and compared.
class compared {
 public:
  tick now() const { return now_; }
  tick next() const { return wheel_.next(); }
  bool check() const { return invariants_hold(wheel_); }
  entry* earliest() const { return timely_.empty() ? nullptr : timely_.begin()->second; }
  tick earliest_due() const {
    return std::min(timely_.empty() ? never : timely_.begin()->first, late_.empty() ? never : late_.begin()->first);
  }

  void arm(entry& e, tick due) {
    wheel_.arm(e, due);
    must(e.armed() && e.due_ == due, "not armed after arm()");
    keep(e);
    compare();
  }

  void disarm(entry& e) {
    const tick before = wheel_.next();
    const bool unaffected = before == earliest_due() && before != e.due_;
    wheel_.disarm(e);
    must(!e.armed(), "armed after disarm()");
    must(wheel_.next() >= before, "a disarm made next() earlier");
    must(!unaffected || wheel_.next() == before, "the disarm of a later entry changed next()");
    if (e.kept_in != nullptr) forget(e);
    compare();
  }

  entry* expire(tick now) {
    auto* const e = static_cast<entry*>(wheel_.expire(now));
    now_ = std::max(now_, now);
    if (e == nullptr) {
      must(earliest_due() > now || earliest_due() == never, "kept what was due");
      must(wheel_.next() > now || now == never, "nothing is due now, yet next() has passed");
    } else {
      must(e->kept_in != nullptr, "came out twice, or though it was not armed");
      must(!e->armed(), "armed after it came out");
      must(e->due_ <= now_, "came out early");
      must(timely_.empty() || timely_.begin()->first >= e->due_, "overtook an earlier deadline");
      // Where exactly the late ones come out is the wheel's business, but not after their arming.
      if (e->kept_in == &timely_) {
        for (const auto& [due, late] : late_) {
          must(late->armed_at >= e->due_, "overtook one that was late already");
        }
      }
      forget(*e);
    }
    compare();
    return e;
  }

  void rewind(tick now) {
    wheel_.rewind(now);
    now_ = now;
    auto all = std::exchange(timely_, {});
    all.merge(std::exchange(late_, {}));
    for (const auto& [due, e] : all) keep(*e);
    compare();
  }

 private:
  void keep(entry& e) {
    e.armed_at = now_;
    e.kept_in = e.due_ < now_ ? &late_ : &timely_;
    e.at = e.kept_in->emplace(e.due_, &e);
  }

  void forget(entry& e) { std::exchange(e.kept_in, nullptr)->erase(e.at); }

  void compare() const {
    must(wheel_.empty() == (timely_.empty() && late_.empty()), "empty() is wrong");
    must(wheel_.next() <= earliest_due(), "next() is later than a deadline");
    must(!wheel_.empty() || wheel_.next() == never, "next() of an empty wheel is not never");
  }

  wheel wheel_;
  tick now_ = 0;
  std::multimap<tick, entry*> timely_;
  std::multimap<tick, entry*> late_;  // armed after their deadline
};

/// A random life of a wheel; `observe` sees it after every step. The operations are weighed so that
/// about a third of the entries are armed, and time starts anew before it is long at its end.
template <class Observe>
void live(std::uint64_t seed, std::uint64_t operations, std::size_t population, Observe observe) {
  random_ticks random{seed};
  const auto entries = std::make_unique<entry[]>(population);
  compared both;
  unsigned levels_met = 0;
  std::uint64_t done = 0;
  const auto expire = [&](tick now) {
    const bool found = both.expire(now) != nullptr;
    ++done;
    observe(both);
    return found;
  };
  while (done++ < operations) {
    entry& e = entries[random.below(population)];
    const std::uint64_t choice = random.below(1000);
    if (choice < 550) {
      if (e.armed()) both.disarm(e);
      const bool late = random.one_in(50);
      const tick due = late ? random.any() % add(both.now(), 1) : random.from(both.now());
      const auto differing = static_cast<std::uint64_t>(due ^ both.now()) | 63;
      levels_met |= 1U << (std::bit_width(differing) - 1) / 6;
      both.arm(e, due);
    } else if (choice < 700) {
      both.disarm(e);
    } else if (choice < 750) {
      if (both.earliest() != nullptr) both.disarm(*both.earliest());
    } else if (choice < 930) {
      const tick until = std::min(both.next(), add(both.now(), random.any()));
      while (expire(until) && !random.one_in(8)) {
      }
    } else if (choice < 994) {
      // Just before something is due; or by a clock that is read out of order.
      const tick before = std::min(both.earliest_due() - 1, add(both.now(), random.any()));
      expire(random.one_in(10) ? random.any() % add(both.now(), 1) : std::max(before, tick{0}));
    } else if (choice < 997) {
      const tick until = random.from(both.now());
      while (expire(until)) {
      }
    } else if (choice < 999) {
      both.rewind(random.any());
    } else if (random.one_in(4)) {
      while (expire(never)) {
      }
      both.rewind(random.any());
    }
    observe(both);
  }
  while (expire(never)) {
  }
  const bool lost = std::any_of(entries.get(), entries.get() + population,
                                [](const entry& e) { return e.armed() || e.kept_in != nullptr; });
  CHECK_FALSE(lost);
  if (operations >= 10'000) CHECK(levels_met == (1U << levels) - 1);
}

}  // namespace

TEST_CASE("an empty wheel has nothing to wait for and nothing to give") {
  CHECK(static_wheel.empty());
  CHECK(static_wheel.next() == never);
  CHECK(static_wheel.expire(never) == nullptr);
  static_wheel.rewind(0);
  CHECK(invariants_hold(static_wheel));
}

TEST_CASE("a random life of a wheel agrees with a multimap") {
  live(make_seed(), from_environment("CTX_TEST_OPS", 3'000'000), 300, [](const compared&) {});
}

TEST_CASE("all invariants hold after every step of a random life") {
  const std::uint64_t seed = make_seed();
  const auto check = [](const compared& both) { must(both.check(), "an invariant is broken"); };
  live(seed, 20'000, 100, check);
  live(seed, 20'000, 4, check);
}

TEST_CASE("a deadline at the edge of a level is met to the tick") {
  for (int level = 0; level < levels; ++level) {
    const tick width = tick{1} << 6 * level;
    for (const tick slots : {1, 2, 31, 63, 64}) {
      const tick distance = slots > never / width ? never : width * slots;
      for (const tick start : {tick{0}, tick{1}, width - 1, width, distance - 1, 55 * year}) {
        for (const tick off : {-1, 0, 1}) {
          const tick due = add(start, distance) == never ? never + std::min(off, tick{0}) : start + distance + off;
          CAPTURE(start);
          CAPTURE(due);
          wheel w;
          wheel_entry e;
          w.rewind(start);
          w.arm(e, due);
          REQUIRE(invariants_hold(w));
          REQUIRE(w.next() == due);
          if (due > start) REQUIRE(w.expire(due - 1) == nullptr);
          REQUIRE(w.next() == due);
          REQUIRE(w.expire(due) == &e);
          REQUIRE(invariants_hold(w));
          REQUIRE(w.empty());
        }
      }
    }
  }
}

TEST_CASE("neighbours on both sides of an edge come out one by one") {
  for (int level = 0; level < levels; ++level) {
    const tick edge = tick{5} << 6 * level;
    wheel w;
    std::array<wheel_entry, 3> entries;
    w.arm(entries[1], edge);
    w.arm(entries[2], edge + 1);
    w.arm(entries[0], edge - 1);
    for (tick due = edge - 1; wheel_entry & e : entries) {
      REQUIRE(invariants_hold(w));
      REQUIRE(w.next() == due);
      REQUIRE(w.expire(due - 1) == nullptr);
      REQUIRE(w.expire(due) == &e);
      ++due;
    }
    REQUIRE(invariants_hold(w));
  }
}

TEST_CASE("one advance over years brings out all that is due, in order, and nothing else") {
  const std::array dues{tick{0},   tick{1},  tick{64},  tick{1000}, second,     hour,
                        24 * hour, 1 * year, 40 * year, 100 * year, 291 * year, never};
  std::array<wheel_entry, dues.size()> entries;
  wheel w;
  for (std::size_t i = dues.size(); i-- > 0;) w.arm(entries[i], dues[i]);
  CHECK(invariants_hold(w));
  for (std::size_t i = 0; i + 1 < dues.size(); ++i) CHECK(w.expire(292 * year) == &entries[i]);
  CHECK(w.expire(292 * year) == nullptr);
  CHECK(w.expire(never - 1) == nullptr);
  CHECK(invariants_hold(w));
  CHECK(w.expire(never) == &entries.back());
  CHECK(w.empty());
}

TEST_CASE("time in which nothing is due is not visited") {
  // A wheel that visits every slot of these fifty million years, of any but the highest levels,
  // does not see the end of this test.
  wheel w;
  wheel_entry e;
  for (int round = 0; round < 200'000; ++round) {
    w.rewind(0);
    w.arm(e, 250 * year);
    must(w.expire(250 * year - 1) == nullptr, "early");
    must(w.expire(250 * year) == &e, "late");
  }
}

TEST_CASE("while nothing is disarmed, next() is exact and nothing is early or late") {
  random_ticks random{make_seed()};
  const tick start = 55 * year;
  std::vector<wheel_entry> entries(20'000);
  std::vector<tick> dues;
  wheel w;
  w.rewind(start);
  for (wheel_entry& e : entries) {
    // A tenth of them equal: those all come out, too.
    const tick after = random.one_in(10) ? second : static_cast<tick>(random.below(2 * second));
    w.arm(e, dues.emplace_back(start + after));
  }
  CHECK(invariants_hold(w));
  std::sort(dues.begin(), dues.end());
  for (tick before = start; const tick due : dues) {
    must(w.next() == due, "next() is not the earliest deadline");
    if (due > before) must(w.expire(due - 1) == nullptr, "early");
    const wheel_entry* const e = w.expire(due);
    must(e != nullptr && e->due_ == due, "late, or out of order");
    before = due;
  }
  CHECK(w.empty());
  CHECK(invariants_hold(w));
}

TEST_CASE("each disarm costs at most one early wake-up") {
  random_ticks random{make_seed()};
  const auto entries = std::make_unique<entry[]>(200);
  compared both;
  both.rewind(55 * year);
  int disarms = 0;
  int early = 0;
  for (int round = 0; round < 20'000; ++round) {
    entry& e = entries[random.below(200)];
    if (!e.armed()) both.arm(e, both.now() + 1 + static_cast<tick>(random.below(10 * second)));
    if (random.one_in(2) && both.earliest() != nullptr) {
      both.disarm(*both.earliest());
      ++disarms;
    }
    if (random.one_in(3)) {
      const tick wake_up = both.next();
      if (wake_up == never) continue;
      if (both.expire(wake_up) == nullptr) ++early;
      while (both.expire(wake_up) != nullptr) {
      }
    }
  }
  CHECK(early > 0);  // or this tests nothing
  CHECK(early <= disarms);
}

TEST_CASE("the disarm of the earliest makes next() early at most, never late") {
  wheel w;
  wheel_entry sooner, later;
  w.arm(later, 1'000'100);
  w.arm(sooner, 1'000'050);
  w.disarm(sooner);
  CHECK(w.next() <= 1'000'100);
  CHECK(w.expire(w.next()) == nullptr);
  CHECK(w.next() == 1'000'100);  // and once only
  CHECK(w.expire(1'000'099) == nullptr);
  CHECK(w.expire(1'000'100) == &later);
}

TEST_CASE("an entry cascades at most once a level, however often it is woken early") {
  // Each decoy is armed at the start of the very slot that the entry is in, and disarmed again, so
  // that the slot is opened for nothing and the entry drops by a single level: the worst case.
  wheel w;
  wheel_entry e;
  wheel_entry decoy;
  w.arm(e, never - 1);
  int moves = 0;
  for (int level = levels - 1; level > 0; --level) {
    const tick start = (never - 1) >> 6 * level << 6 * level;
    for (const tick at : {start, start + 1}) {
      if (at >= e.due_) continue;
      w.arm(decoy, at);
      w.disarm(decoy);
      // Alone in its slot, so what leads to it is the slot.
      const void* const before = e.prev_;
      REQUIRE(w.expire(at) == nullptr);
      REQUIRE(invariants_hold(w));
      if (e.prev_ != before) ++moves;
    }
  }
  CHECK(moves == levels - 1);
  CHECK(w.expire(never - 2) == nullptr);
  CHECK(w.expire(never - 1) == &e);
}

TEST_CASE("what is armed late comes out at once, before all that is due later") {
  wheel w;
  wheel_entry past, present, future, reached;
  w.arm(reached, 1'000'000);
  REQUIRE(w.expire(1'000'000) == &reached);
  w.arm(future, 1'000'001);
  w.arm(present, 1'000'000);
  w.arm(past, 5);
  CHECK(invariants_hold(w));
  CHECK(w.next() == 5);
  const wheel_entry* const one = w.expire(1'000'000);
  const wheel_entry* const other = w.expire(1'000'000);
  CHECK((one == &past || one == &present));
  CHECK((other == &past || other == &present));
  CHECK(one != other);
  CHECK(w.expire(1'000'000) == nullptr);
  CHECK(w.next() == 1'000'001);
  CHECK(w.expire(1'000'001) == &future);
}

TEST_CASE("entries of one slot can be disarmed in any order") {
  std::array<std::size_t, 4> order{0, 1, 2, 3};
  do {
    for (const tick due : {tick{3}, hour}) {
      wheel w;
      std::array<wheel_entry, 4> entries;
      for (wheel_entry& e : entries) w.arm(e, due);
      for (const std::size_t i : order) {
        REQUIRE_FALSE(w.empty());
        w.disarm(entries[i]);
        REQUIRE_FALSE(entries[i].armed());
        REQUIRE(invariants_hold(w));
        w.disarm(entries[i]);  // does nothing
        REQUIRE(invariants_hold(w));
      }
      REQUIRE(w.empty());
      REQUIRE(w.next() == never);
      w.arm(entries[0], due + 1);  // and nothing is remembered of them
      REQUIRE(w.next() == due + 1);
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("a wheel that is rewound meets the old deadlines at the new time") {
  const auto drain = [](wheel& w, tick now) {
    int count = 0;
    while (w.expire(now) != nullptr) ++count;
    return count;
  };
  wheel w;
  std::array<wheel_entry, 3> entries;
  wheel_entry gone;
  w.arm(gone, 10 * year);
  REQUIRE(w.expire(10 * year) == &gone);
  w.arm(entries[0], hour);  // late by the clock that ran ahead, early by the one that follows
  w.arm(entries[1], 10 * year + 1);
  w.arm(entries[2], 10 * year + hour);

  w.rewind(second);
  CHECK(invariants_hold(w));
  CHECK(w.next() == hour);
  CHECK(drain(w, hour - 1) == 0);
  CHECK(w.expire(hour) == &entries[0]);

  w.rewind(10 * year + 1);
  CHECK(invariants_hold(w));
  CHECK(w.next() == 10 * year + 1);
  CHECK(w.expire(10 * year + 1) == &entries[1]);
  CHECK(drain(w, 10 * year + 1) == 0);

  w.rewind(20 * year);
  CHECK(invariants_hold(w));
  CHECK(drain(w, 20 * year) == 1);
  CHECK(w.empty());
}

TEST_CASE("the check of the invariants notices a damaged wheel") {
  wheel w;
  std::array<wheel_entry, 3> entries;
  for (wheel_entry& e : entries) w.arm(e, hour);
  REQUIRE(invariants_hold(w));
  wheel_entry& first = entries[2];
  wheel_entry& middle = entries[1];

  for (const tick wrong : {tick{0}, hour - 1, 2 * hour, never}) {
    middle.due_ = wrong;
    CHECK_FALSE(invariants_hold(w));
  }
  middle.due_ = hour;

  wheel_entry** const prev = std::exchange(middle.prev_, &middle.next_);
  CHECK_FALSE(invariants_hold(w));
  middle.prev_ = prev;

  wheel_entry* const next = std::exchange(middle.next_, &first);  // round and round
  CHECK_FALSE(invariants_hold(w));
  middle.next_ = next;

  wheel_entry** const slot = first.prev_;
  *slot = nullptr;  // marked as occupied
  CHECK_FALSE(invariants_hold(w));
  *slot = &first;
  CHECK(invariants_hold(w));
}
