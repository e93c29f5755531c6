#include <ctx/manual_clock.hpp>

#include <ctx/src/timer.hpp>

namespace ctx {

manual_clock::manual_clock() { detail::timer::instance().hold(); }

manual_clock::~manual_clock() { detail::timer::instance().let_run(); }

void manual_clock::advance_by(clock::duration time) { detail::timer::instance().advance_by(time); }

}  // namespace ctx
