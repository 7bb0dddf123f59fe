#include "cpu/plans.h"

namespace conv1d_ext {
namespace {

// What tests ask for comes first, then what is estimated to be faster.
Family choose_transform(const Plans& plans, Uses uses) {
  if (plans.toom_cook.taps == 0) return plans.fft.length == 0 ? Family::kDirect : Family::kFft;
  if (plans.fft.length == 0 || uses.toom_cook == Use::kWherePossible) return Family::kToomCook;
  if (uses.fft == Use::kWherePossible) return Family::kFft;
  // Where they are as fast, the one of the lesser error.
  return plans.toom_cook.cycles < 0.95 * plans.fft.cycles ? Family::kToomCook : Family::kFft;
}

Family choose(Op op, const Plans& plans, Uses uses) {
  const Family transform = choose_transform(plans, uses);
  if (plans.amx.pieces == 0) return transform;
  if (uses.amx == Use::kWherePossible || transform == Family::kDirect) return Family::kAmx;
  const bool fft = transform == Family::kFft;
  if ((fft ? uses.fft : uses.toom_cook) == Use::kWherePossible) return transform;
  // Beside the unit pairs have not been measured.
  if (!fft && plans.toom_cook.outputs == 2) return Family::kAmx;
  const int64_t batch = op == Op::kBackwardWeight ? 1 : kTypicalBatch;
  const double cycles = fft ? plans.fft.batch_cycles : double(batch) * plans.toom_cook.cycles;
  return cycles < plans.amx.batch_cycles ? transform : Family::kAmx;
}

}  // namespace

Plans make_plans(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Uses uses) {
  Plans plans{
      Family::kDirect, make_plan(op, problem, sizes, tile, cache),
      make_fft_plan(op, problem, sizes, tile, cache, uses.fft),
      make_toom_cook_plan(op, problem, sizes, tile, cache, uses.toom_cook, uses.reduced_precision),
      make_amx_plan(op, problem, sizes, tile, cache, uses.amx)};
  plans.family = choose(op, plans, uses);
  return plans;
}

}  // namespace conv1d_ext
