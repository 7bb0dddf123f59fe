#include "cpu/plans.h"

namespace conv1d_ext {

Plans make_plans(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Uses uses) {
  Plans plans{
      make_plan(op, problem, sizes, tile, cache), make_fft_plan(op, problem, sizes, tile, cache, uses.fft),
      make_toom_cook_plan(op, problem, sizes, tile, cache, uses.toom_cook)};
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
