#include "cpu/plans.h"

namespace conv1d_ext {
namespace {

// What tests ask for comes first, then what is estimated to be faster.
Family choose_transform(const Plans& plans, Uses uses) {
  // Beside the matrix unit pairs, and pairs of pairs, have not been measured.
  const bool not_measured =
      plans.amx.pieces > 0 && plans.toom_cook.form != ToomCookForm::kFours && uses.toom_cook != Use::kWherePossible;
  if (plans.toom_cook.taps == 0 || not_measured) return plans.fft.length == 0 ? Family::kDirect : Family::kFft;
  if (plans.fft.length == 0 || uses.toom_cook == Use::kWherePossible) return Family::kToomCook;
  if (uses.fft == Use::kWherePossible) return Family::kFft;
  // In the geometric mean of one item and a batch, which shares the transformed weights.
  const double fft = plans.fft.cycles * plans.fft.batch_cycles;
  return plans.toom_cook.cycles * plans.toom_cook.batch_cycles < fft ? Family::kToomCook : Family::kFft;
}

Family choose(const Plans& plans, Uses uses) {
  const Family transform = choose_transform(plans, uses);
  if (plans.amx.pieces == 0) return transform;
  if (uses.amx == Use::kWherePossible || transform == Family::kDirect) return Family::kAmx;
  const bool fft = transform == Family::kFft;
  if ((fft ? uses.fft : uses.toom_cook) == Use::kWherePossible) return transform;
  const double cycles = fft ? plans.fft.batch_cycles : plans.toom_cook.batch_cycles;
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
  plans.family = choose(plans, uses);
  return plans;
}

}  // namespace conv1d_ext
