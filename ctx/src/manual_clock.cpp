#include <ctx/manual_clock.hpp>

#include <ctx/src/timer.hpp>

namespace ctx {

manual_clock::manual_clock() { detail::timer::instance().hold(); }

manual_clock::~manual_clock() { detail::timer::instance().let_run(); }

void manual_clock::advance_by(clock::duration time) {
  const auto now = clock::now().time_since_epoch();
  detail::timer::instance().advance_to(clock::time_point{detail::add_saturate(now, time)});
}

}  // namespace ctx
