// When and how a convolution goes through Toom-Cook's algorithm (toom_cook_inl.h): a pure function like plan.h.
//
// A patch is `outputs` results, 2 or 4, that lie one dilation apart: patch u begins at position
// outputs * dilation * (u / dilation) + u % dilation, so that whole vectors of patches are runs of the row. Kernels
// longer than `taps` are taken in chunks of `outputs` taps, which read the same transformed source, `dilation` patches
// further on each: the sum over channels and chunks is, for each plane, a small convolution with the register tile of
// the direct kernels.
//
// Strides: every stride-th position of a padded row of the input is a row of its own, a phase, with every stride-th
// tap; the output is the sum of convolutions of stride 1. Forward and backward_input, kernels of no more than one chunk
// for each phase, without dilation.
#pragma once

#include "cpu/plan.h"

namespace conv1d_ext {

// Classes of toom_cook_inl.h: ToomCook<., 2, r>, for r = 2 and 3; PairsOfPairs, for more; ToomCook<., 4, r>, r = 2..5.
enum class ToomCookForm { kPairs, kPairsOfPairs, kFours };

struct ToomCookPlan {
  ToomCookForm form;
  int64_t taps;      // of a transform; 0 where another algorithm is taken
  int64_t outputs;   // of a transform
  int64_t planes;    // numbers in a transform
  int64_t chunks;    // of `outputs` taps; the last has `taps` at most
  int64_t lead;      // zeros that stand for taps in front, in the first chunk: planes that have a part of no others
                     // leave it out. Of a stride: phases that lack a tap, the first `lead` of the source, the last ones
                     // of the result
  int64_t products;  // of a patch, row and channel: planes * chunks * phases, less what is left out
  int64_t source_phases;  // rows of the panel for each channel: forward's stride, or 1
  int64_t result_phases;  // the same of results: backward_input's

  int64_t patches;       // of a row of results (backward_weight: of grad_output)
  int64_t patch_block;   // of a row in one panel, at most
  int64_t patch_blocks;  // in a row: of nearly equal size, in multiples of patch_step
  int64_t patch_step;
  int64_t batch_block;  // batch items side by side in one panel
  int64_t item_pitch;   // patches from item to item of a panel
  int64_t panel_width;  // elements from plane to plane of a panel

  // forward and backward_input
  int64_t channel_block;        // source channels per panel, those of each phase counted
  int64_t part_channels;        // per part of a sum, as in Plan
  int64_t other_part_channels;  // of planes that leave the first chunk out; parts begin anew with each panel
  int64_t row_tiles;            // register tiles of result rows in a group
  int64_t pass_tiles;           // of all groups, whose weights are held at a time
  int64_t tile_block;           // row tiles whose sums are held at a time
  int64_t sum_width;            // elements from plane to plane of sums

  // backward_weight: a block of weights is channel_block x out_block
  int64_t out_block;         // output channels, in whole vectors
  int64_t reduction_block;   // patches between two visits of a sum, at most
  int64_t reduction_chunks;  // parts of the sum over batch and positions, summed up at the end

  // Scratch memory of a thread: the panel, sums, backward_weight's transformed grad_output; a row as it is, rows taken
  // apart into patches, and a vector of them transposed; entries of the tables of offsets.
  int64_t panel_elements, sum_elements, span_elements, grad_elements;
  int64_t line_elements, patch_width, gathered_rows, slab_elements;
  int64_t step_table, row_table;

  int64_t units;           // of work; forward and backward_input: for each row tile of a pass
  int64_t scratch_bytes;   // per thread, all of the above
  int64_t packed_bytes;    // shared: transformed weights of a pass
  int64_t partial_bytes;   // shared: partial sums of backward_weight
  double multiplications;  // of real numbers, in all; the direct method has one for each tap
  double cycles;           // of one batch item, as estimated, in the measure of FftPlan
  double batch_cycles;     // the same of kTypicalBatch; backward_weight: both of its batch
};

// Taps of one row of weights, of a few channels, that are packed or unpacked together.
constexpr int64_t kTapStep = 64;

// Phases of a row that lie side by side in memory and are copied together.
constexpr int64_t kPhasesTogether = 16;

// Parts of a sum over channels that are added up one after the other. Of more, such spans are: parts are short, and the
// errors of adding them up grow with their number.
constexpr int64_t kSpanParts = 8;

// Pairs have the errors of direct sums, pairs of pairs up to 1.3 times those. `reduced_precision`: whether the caller
// allows fours, in float32, whose errors are some times as large.
ToomCookPlan make_toom_cook_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use,
    bool reduced_precision);

}  // namespace conv1d_ext
