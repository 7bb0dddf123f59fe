#include "cpu/plans.h"

namespace conv1d_ext {
namespace {

// What tests ask for comes first, then what is estimated to be faster.
Family choose(const Plans& plans, Uses uses) {
  struct Candidate {
    Family family;
    bool possible;
    Use use;
    double cycles;
  };
  // Of the transforms, where they are as fast, the one of the lesser error comes first.
  const Candidate candidates[] = {
      {Family::kAmx, plans.amx.pieces > 0, uses.amx, plans.amx.cycles},
      {Family::kToomCook, plans.toom_cook.taps > 0, uses.toom_cook, plans.toom_cook.cycles / 0.95},
      {Family::kFft, plans.fft.length > 0, uses.fft, plans.fft.cycles},
  };
  const Candidate* chosen = nullptr;
  for (const Candidate& candidate : candidates) {
    if (!candidate.possible) continue;
    if (candidate.use == Use::kWherePossible) return candidate.family;
    if (chosen == nullptr || candidate.cycles < chosen->cycles) chosen = &candidate;
  }
  return chosen == nullptr ? Family::kDirect : chosen->family;
}

}  // namespace

Plans make_plans(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Uses uses) {
  Plans plans{
      Family::kDirect, make_plan(op, problem, sizes, tile, cache),
      make_fft_plan(op, problem, sizes, tile, cache, uses.fft),
      make_toom_cook_plan(op, problem, sizes, tile, cache, uses.toom_cook),
      make_amx_plan(op, problem, sizes, tile, cache, uses.amx)};
  plans.family = choose(plans, uses);
  return plans;
}

}  // namespace conv1d_ext
