#pragma once

#include <ctx/detail/export.hpp>

namespace ctx::detail {

/// The signals that a thread has blocked; where a system has none, nothing.
class CTX_API signal_mask {
 public:
  /// Those of the calling thread.
  signal_mask() noexcept;

  /// Blocks these for the calling thread, and no others.
  void apply() const noexcept;

 private:
  alignas(8) unsigned char blocked_[128];
};

}  // namespace ctx::detail
