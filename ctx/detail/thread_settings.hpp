#pragma once

#include <ctx/detail/export.hpp>

namespace ctx::detail {

/// What a thread hands on to those that it starts: the signals that it blocks, and on Linux the slack of
/// its timed waits. Where a system has none of it, nothing.
class CTX_API thread_settings {
 public:
  /// Those of the calling thread.
  thread_settings() noexcept;

  /// Gives the calling thread these.
  void apply() const noexcept;

 private:
  alignas(8) unsigned char blocked_signals_[128];
  unsigned long timer_slack_ = 0;  // nanoseconds
};

}  // namespace ctx::detail
