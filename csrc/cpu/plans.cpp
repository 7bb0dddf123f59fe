#include "cpu/plans.h"

namespace conv1d_ext {

Plans make_plans(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Uses uses) {
  Plans plans{
      make_plan(op, problem, sizes, tile, cache), make_fft_plan(op, problem, sizes, tile, cache, uses.fft),
      make_toom_cook_plan(op, problem, sizes, tile, cache, uses.toom_cook),
      make_amx_plan(op, problem, sizes, tile, cache, uses.amx)};
  // What tests ask for comes first, then what is estimated to be faster.
  const auto beats_amx = [&](bool possible, Use use, double cycles) {
    return possible && (use == Use::kWherePossible || cycles < plans.amx.cycles);
  };
  const bool beaten = beats_amx(plans.fft.length > 0, uses.fft, plans.fft.cycles) ||
                      beats_amx(plans.toom_cook.taps > 0, uses.toom_cook, plans.toom_cook.cycles);
  if (plans.amx.pieces > 0 && (uses.amx == Use::kWherePossible || !beaten)) {
    plans.fft = {};
    plans.toom_cook = {};
  } else {
    plans.amx = {};
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
