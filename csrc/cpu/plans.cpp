#include "cpu/plans.h"

namespace conv1d_ext {

Plans make_plans(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Uses uses) {
  Plans plans{
      make_plan(op, problem, sizes, tile, cache), make_fft_plan(op, problem, sizes, tile, cache, uses.fft),
      make_toom_cook_plan(op, problem, sizes, tile, cache, uses.toom_cook),
      make_amx_plan(op, problem, sizes, tile, cache, uses.amx)};
  if (plans.amx.pieces > 0) {
    const bool other = (plans.fft.length > 0 && plans.fft.cycles < plans.amx.cycles) ||
                       (plans.toom_cook.taps > 0 && plans.toom_cook.cycles < plans.amx.cycles);
    const bool asked = uses.fft == Use::kWherePossible || uses.toom_cook == Use::kWherePossible;
    if (uses.amx == Use::kWherePossible || (!other && !(asked && (plans.fft.length > 0 || plans.toom_cook.taps > 0)))) {
      plans.fft = {};
      plans.toom_cook = {};
    } else {
      plans.amx = {};
    }
  }
  if (plans.fft.length > 0 && plans.toom_cook.taps > 0) {
    // Where they are as fast, the one of the lesser error.
    const bool faster = uses.fft != Use::kWherePossible && plans.toom_cook.cycles < 0.95 * plans.fft.cycles;
    const bool toom_cook = uses.toom_cook == Use::kWherePossible || faster;
    if (toom_cook) {
      plans.fft = {};
    } else {
      plans.toom_cook = {};
    }
  }
  return plans;
}

}  // namespace conv1d_ext
