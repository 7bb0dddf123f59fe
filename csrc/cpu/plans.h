// Which family of algorithms computes a call: a pure function of the problem and of what the caller allows.
#pragma once

#include "cpu/amx_plan.h"
#include "cpu/fft_plan.h"
#include "cpu/plan.h"
#include "cpu/toom_cook_plan.h"

namespace conv1d_ext {

enum class Family { kDirect, kFft, kToomCook, kAmx };

struct Plans {
  Family family;
  Plan direct;  // always; the others where they are possible and allowed
  FftPlan fft;
  ToomCookPlan toom_cook;
  AmxPlan amx;
};

struct Uses {
  Use fft, toom_cook, amx;
  bool reduced_precision;  // of float32, by Toom-Cook's algorithm

  bool operator==(const Uses&) const = default;
};

Plans make_plans(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Uses uses);

}  // namespace conv1d_ext
