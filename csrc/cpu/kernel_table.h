// What one instruction set offers: a table of functions per (operator, dtype), and the shape of its register tile,
// which the plan needs. Kernels neither allocate, nor thread, nor check: they get a problem, a plan, pointers, scratch
// memory of plan.scratch_bytes (64-byte aligned, one per thread) and a range of the plan's work units.
#pragma once

#include "cpu/amx_plan.h"
#include "cpu/fft_plan.h"
#include "cpu/plan.h"
#include "cpu/toom_cook_plan.h"
#include "problem.h"

namespace conv1d_ext {

struct ForwardArgs {
  const void* input;
  const void* weight;
  const void* bias;  // may be null
  void* output;
  void* packed_weight;  // plan.packed_bytes, shared by all threads; null where there are none

  int64_t first_tile = 0,
          tile_count = 0;  // what this pass is for: tiles of rows of each group, plan.pass_tiles at most
};

struct BackwardInputArgs {
  const void* grad_output;
  const void* weight;
  void* grad_input;
  void* packed_weight;                     // as in ForwardArgs
  int64_t first_tile = 0, tile_count = 0;  // as in ForwardArgs
};

struct BackwardWeightArgs {
  const void* grad_output;
  const void* input;
  void* grad_weight;
  void* partial_sums;  // plan.partial_bytes, shared by all threads; null where plan.reduction_chunks == 1
};

struct BackwardBiasArgs {
  const void* grad_output;
  void* grad_bias;
};

// Of the algorithms that are one code for several operators.
struct Operands {
  const void* source;  // forward: input, backward_input: grad_output, backward_weight: input
  const void* weight;  // backward_weight: grad_output
  const void* bias;    // forward; may be null
  void* result;
};

struct FftArgs {
  Operands operands;
  const void* roots;  // fft_roots
  void* spectra;      // plan.weight_bytes for each group of a pass, shared by all threads
  void* signals;      // plan.signal_bytes for each group of a pass, shared by all threads
  uint8_t* alarms;    // set to 1 where a result is not finite; one for each batch item, backward_weight: one

  // What this pass is for: groups, plan.most_groups at most; result rows of each, plan.row_block at most.
  int64_t first_group, group_count;
  int64_t first_row, row_count;
  int64_t first_block, block_count;  // backward_weight: of all [batch][phase][block], plan.block_tile at most
};

// Convolution through the Fourier transform (fft_conv_inl.h, which says what the work units are).
using FftPass =
    void (*)(Op, const Conv1dProblem&, const FftPlan&, const FftArgs&, void* scratch, int64_t begin, int64_t end);
struct FftKernels {
  FftPass transform_weights, multiply_blocks;               // forward and backward_input
  FftPass transform_signals, multiply_signals, store_taps;  // backward_weight
};

// Of the algorithms whose results are tiles of rows, in passes of as many as have their weights in memory together:
// Toom-Cook's (toom_cook_conv_inl.h, toom_cook_weight_inl.h) and the matrix unit (amx_conv_inl.h, amx_weight_inl.h).
// These files say how the work units are numbered.
struct TiledArgs {
  Operands operands;
  void* packed_weight;  // plan.packed_bytes, shared by all threads
  void* partial_sums;   // plan.partial_bytes, shared by all threads
  uint8_t* alarms;      // as in FftArgs; the matrix unit's also where it would lose bits of operands that are tiny

  int64_t first_tile = 0, tile_count = 0;  // what this pass is for: row tiles of all groups, plan.pass_tiles at most
};

template <class PlanType>
struct TiledKernels {
  using Pass =
      void (*)(Op, const Conv1dProblem&, const PlanType&, const TiledArgs&, void* scratch, int64_t begin, int64_t end);
  Pass pack_weights;     // before each pass of the next, where plan.packed_bytes > 0; work units: args.tile_count
  Pass multiply_blocks;  // forward and backward_input; work units: plan.units * args.tile_count
  Pass sum_products;     // backward_weight; work units: plan.units
};
using ToomCookKernels = TiledKernels<ToomCookPlan>;
using AmxKernels = TiledKernels<AmxPlan>;

// The kernels of one storage type.
struct KernelSet {
  ElementSizes sizes;

  // Where plan.packed_bytes > 0, before each pass: fill packed_weight. Work units: groups * tile_count.
  void (*pack_forward)(const Conv1dProblem&, const Plan&, const ForwardArgs&, int64_t begin, int64_t end);
  void (*pack_backward_input)(const Conv1dProblem&, const Plan&, const BackwardInputArgs&, int64_t begin, int64_t end);

  // Work units of a pass: those of the plan for each of its tiles, plan.units / plan.out_tiles * tile_count.
  void (*forward)(const Conv1dProblem&, const Plan&, const ForwardArgs&, void* scratch, int64_t begin, int64_t end);
  void (*backward_input)(
      const Conv1dProblem&, const Plan&, const BackwardInputArgs&, void* scratch, int64_t begin, int64_t end);
  // Second pass of backward_input, where plan.edge_units > 0: adds the gradients of the padding to the positions that
  // it was copied from.
  void (*backward_input_edges)(
      const Conv1dProblem&, const Plan&, const BackwardInputArgs&, void* scratch, int64_t begin, int64_t end);
  // Last pass of backward_input, where the padding mode is not zeros: mends NaN near the ends (ends_inl.h), which the
  // other pass does itself where it is the only one. Work units: batch * in_channels.
  void (*backward_input_ends)(const Conv1dProblem&, const BackwardInputArgs&, int64_t begin, int64_t end);
  void (*backward_weight)(
      const Conv1dProblem&, const Plan&, const BackwardWeightArgs&, void* scratch, int64_t begin, int64_t end);
  // Second pass of backward_weight, where plan.reduction_chunks > 1: adds the partial sums, in their order.
  void (*backward_weight_sum)(const Conv1dProblem&, const Plan&, const BackwardWeightArgs&, int64_t begin, int64_t end);
  void (*backward_bias)(const Conv1dProblem&, const BackwardBiasArgs&, int64_t begin, int64_t end);

  FftKernels fft;                      // of types that are computed as they are stored
  ToomCookKernels toom_cook_pairs[2];  // of these, too: plan.taps = 2, 3
  ToomCookKernels toom_cook_pairs_of_pairs;
  ToomCookKernels toom_cook_fours[4];  // of float: plan.taps = 2..5
  AmxKernels amx;                      // where sizes.pieces > 0
};

inline const ToomCookKernels& toom_cook_kernels(const KernelSet& set, const ToomCookPlan& plan) {
  if (plan.form == ToomCookForm::kPairsOfPairs) return set.toom_cook_pairs_of_pairs;
  return (plan.form == ToomCookForm::kPairs ? set.toom_cook_pairs : set.toom_cook_fours)[plan.taps - 2];
}

struct KernelTable {
  KernelSet float32, float64, bfloat16, float16;
  TileShape tile_float, tile_double;
  float (*run_fmas)(int64_t iterations);  // iterations x tile_float.accumulators, for the peak of benchmarks
};

namespace portable {
extern const KernelTable kernel_table;
}
namespace avx2 {
extern const KernelTable kernel_table;
}
namespace avx512 {
extern const KernelTable kernel_table;
}
namespace avx512_bf16 {
extern const KernelSet bfloat16_kernels;  // the others are those of avx512
}
namespace amx {
extern const AmxKernels float32_kernels, bfloat16_kernels;  // the others are those of avx512_bf16
}

}  // namespace conv1d_ext
