#include <ctx/src/signal_handler.hpp>

#if !defined(_WIN32)

#include <semaphore.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace ctx::detail {
namespace {

enum class owner : unsigned char { released, taken, changing, late };

struct record {
  std::atomic<owner> state{owner::released};
  std::atomic<std::uint32_t> came_as{0};  // which signal it was; zero: it did not come
  struct sigaction earlier {};            // guarded by `changing`
};

// What the handler uses: there from the start, and never destroyed.
constinit std::array<record, signal_limit> records{};
constinit std::atomic<std::uint32_t> next_number{1};
constinit sem_t came{};

static_assert(std::atomic<owner>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

record& record_of(int number) noexcept { return records[static_cast<std::size_t>(number)]; }

/// Waits while a disposition is being changed, and enters `changing`. Returns what it was. Not for the handler.
owner start_change(record& of) noexcept {
  for (;; std::this_thread::yield()) {
    owner was = of.state;
    if (was != owner::changing && of.state.compare_exchange_strong(was, owner::changing)) return was;
  }
}

void note_coming(record& of) noexcept {
  of.came_as = next_number.fetch_add(2);  // odd, and so never zero
}

extern "C" void ctx_handle_signal(int number);

bool is_ours(const struct sigaction& action) noexcept {
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == &ctx_handle_signal;
}

// requires `changing` held. Returns false, and does nothing, where the disposition is somebody else's.
bool put_back_locked(int number, const record& of) noexcept {
  struct sigaction now {};
  if (::sigaction(number, nullptr, &now) != 0 || !is_ours(now)) return false;
  ::sigaction(number, &of.earlier, nullptr);
  return true;
}

extern "C" void ctx_handle_signal(int number) {
  const int error = errno;
  record& of = record_of(number);
  owner was = of.state;
  if (was == owner::changing || !of.state.compare_exchange_strong(was, owner::changing)) {
    ::raise(number);  // it is blocked here, and comes when this has returned
  } else {
    const bool put_back = put_back_locked(number, of);
    if (was == owner::taken) {
      note_coming(of);
      of.state = put_back ? owner::late : owner::released;
      ::sem_post(&came);
    } else {
      of.state = owner::released;
      if (was == owner::late || put_back) ::raise(number);
    }
  }
  errno = error;
}

}  // namespace

int prepare_signals() noexcept { return ::sem_init(&came, 0, 0) == 0 ? 0 : errno; }

bool can_be_caught(int number) noexcept {
  return number > 0 && number < signal_limit && number != SIGKILL && number != SIGSTOP &&
         ::sigaction(number, nullptr, nullptr) == 0;
}

void take_signal(int number) noexcept {
  record& of = record_of(number);
  struct sigaction ours {};
  ours.sa_handler = &ctx_handle_signal;
  ours.sa_flags = SA_RESTART | SA_ONSTACK;
  ::sigfillset(&ours.sa_mask);

  start_change(of);
  // In one step, so that nothing is lost that somebody sets meanwhile; the handler waits for the state. Where
  // somebody has put ours back, that is no earlier one.
  struct sigaction before {};
  ::sigaction(number, &ours, &before);
  if (!is_ours(before)) of.earlier = before;
  of.state = owner::taken;
}

void release_signal(int number) noexcept {
  record& of = record_of(number);
  const owner was = start_change(of);
  if (was == owner::taken) {
    of.state = put_back_locked(number, of) ? owner::late : owner::released;
  } else {
    of.state = was;
  }
}

int next_signal() noexcept {
  int first = 0;
  std::uint32_t first_came_as = 0;
  for (int number = 1; number < signal_limit; ++number) {
    const std::uint32_t came_as = record_of(number).came_as;
    if (came_as == 0) continue;
    // The numbers may wrap around; those that are there at one time are close to each other.
    if (first != 0 && static_cast<std::int32_t>(came_as - first_came_as) > 0) continue;
    first = number;
    first_came_as = came_as;
  }
  if (first != 0) record_of(first).came_as = 0;
  return first;
}

void wait_for_signal() noexcept {
  while (::sem_wait(&came) != 0) {
  }
}

void complete_handler(int number, bool ours) noexcept {
  record& of = record_of(number);
  if (of.state != owner::changing) return;
  put_back_locked(number, of);
  if (ours && of.came_as == 0) note_coming(of);
  of.state = owner::released;
}

}  // namespace ctx::detail

#endif
