// All kernels of one instruction set, over the vector type that was included before.
#pragma once

#include "cpu/kernel_table.h"
// In order of use.
#include "cpu/tap_classes_inl.h"
#include "cpu/tile_inl.h"
#include "cpu/panel_inl.h"
#include "cpu/pack_weight_inl.h"
#include "cpu/view_inl.h"
#include "cpu/tiled_inl.h"
#include "cpu/dot_inl.h"
#include "cpu/columns_inl.h"
#include "cpu/forward_columns_inl.h"
#include "cpu/backward_input_columns_inl.h"
#include "cpu/backward_weight_columns_inl.h"
#include "cpu/ends_inl.h"
#include "cpu/depthwise_inl.h"
#include "cpu/depthwise_weight_inl.h"
#include "cpu/forward_inl.h"
#include "cpu/backward_input_inl.h"
#include "cpu/backward_input_taps_inl.h"
#include "cpu/backward_weight_inl.h"
#include "cpu/backward_bias_inl.h"
#include "cpu/fft_inl.h"
#include "cpu/fft_conv_inl.h"
#include "cpu/toom_cook_inl.h"
#include "cpu/toom_cook_panel_inl.h"
#include "cpu/toom_cook_conv_inl.h"
#include "cpu/toom_cook_weight_inl.h"
#include "cpu/peak_inl.h"

namespace conv1d_ext {
namespace {

template <class Storage>
void forward(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  if (plan.algorithm == Algorithm::kColumns) {
    forward_columns<Storage>(problem, plan, args, scratch, begin, end);
  } else if (plan.algorithm == Algorithm::kDepthwise) {
    forward_depthwise<Storage>(problem, plan, args, scratch, begin, end);
  } else {
    forward_panel<Storage>(problem, plan, args, scratch, begin, end);
  }
}

template <class Storage>
void backward_input(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  if (plan.algorithm == Algorithm::kDepthwise) {
    backward_input_depthwise<Storage>(problem, plan, args, scratch, begin, end);
  } else if (plan.algorithm == Algorithm::kColumns) {
    backward_input_columns<Storage>(problem, plan, args, scratch, begin, end);
  } else if (plan.algorithm == Algorithm::kTaps) {
    if constexpr (kStoredAsComputed<Storage>) {
      backward_input_taps<Storage>(problem, plan, args, scratch, begin, end);
    }
  } else {
    backward_input_panel<Storage>(problem, plan, args, scratch, begin, end);
  }
}

template <class Storage>
void backward_weight(
    const Conv1dProblem& problem, const Plan& plan, const BackwardWeightArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  if (plan.algorithm == Algorithm::kDepthwise) {
    backward_weight_depthwise<Storage>(problem, plan, args, scratch, begin, end);
  } else if (plan.algorithm == Algorithm::kColumns) {
    backward_weight_columns<Storage>(problem, plan, args, scratch, begin, end);
  } else {
    backward_weight_panel<Storage>(problem, plan, args, scratch, begin, end);
  }
}

template <class Transform>
constexpr ToomCookKernels kernels_of_toom_cook() {
  return tiled_kernels<ToomCookPlan, ToomCookConv<Transform>, ToomCookWeightGradient<Transform>>();
}

template <class Storage>
constexpr KernelSet kernel_set() {
  KernelSet set{
      {sizeof(Storage), sizeof(Acc<Storage>), kPair<Storage>},
      pack_forward<Storage>,
      pack_backward_input<Storage>,
      forward<Storage>,
      backward_input<Storage>,
      backward_input_edges<Storage>,
      backward_input_ends<Storage>,
      backward_weight<Storage>,
      backward_weight_sum<Storage>,
      backward_bias<Storage>,
      {},
      {},
      {},
      {},
      {}};
  if constexpr (kStoredAsComputed<Storage>) {
    set.fft = fft_kernels<Storage>();
    set.toom_cook_pairs[0] = kernels_of_toom_cook<ToomCook<Storage, 2, 2>>();
    set.toom_cook_pairs[1] = kernels_of_toom_cook<ToomCook<Storage, 2, 3>>();
    set.toom_cook_pairs_of_pairs = kernels_of_toom_cook<PairsOfPairs<Storage>>();
    if constexpr (sizeof(Storage) == sizeof(float)) {
      set.toom_cook_fours[0] = kernels_of_toom_cook<ToomCook<Storage, 4, 2>>();
      set.toom_cook_fours[1] = kernels_of_toom_cook<ToomCook<Storage, 4, 3>>();
      set.toom_cook_fours[2] = kernels_of_toom_cook<ToomCook<Storage, 4, 4>>();
      set.toom_cook_fours[3] = kernels_of_toom_cook<ToomCook<Storage, 4, 5>>();
    }
  }
  return set;
}

constexpr KernelTable make_kernel_table() {
  return {
      kernel_set<float>(),
      kernel_set<double>(),
      kernel_set<BFloat16>(),
      kernel_set<Float16>(),
      {F32::kLanes, kTileRows, kTileAccumulators},
      {F64::kLanes, kTileRows, kTileAccumulators},
      run_fmas};
}

}  // namespace
}  // namespace conv1d_ext
