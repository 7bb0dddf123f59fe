// How a problem is cut into blocks of threads and tiles of shared memory: pure functions of its sizes, and, on devices
// that have less shared memory for a block than all from sm_80 on, of that. So results do not depend on how much else a
// device has. Plain data, which host and kernels share; no CUDA.
#pragma once

#include "cuda/kernels.h"
#include "problem.h"

namespace conv1d_ext::cuda {

constexpr int kThreads = 256;  // of every block
constexpr int kRowBytes = 64;  // of the channels that a row of shared memory holds
// Tiles of weights (or of both operands, in backward_weight) in flight: one in use, two on their way. Two steps of
// 128 x 128 sums take a tensor core 500 clocks and more, FMA units thousands: about as long as memory takes to answer.
constexpr int kStages = 3;

// The tensor that is read at shifted positions, and what surrounds it. Positions fit into 32 bits (see fits), which
// saves the kernels a tenth of their registers; offsets in memory have 64.
struct Signal {
  TensorStrides strides;
  int length, padding_left, padding_right;
  PaddingMode padding_mode;
};

// What both operators are to the kernels. backward_input of stride s is s problems, one for each residue of the input
// position modulo s, in which different taps meet.
struct Correlation {
  bool is_backward;
  int64_t batch, groups, rows, channels;  // rows and channels: of each group
  Signal signal;
  TensorStrides result;
  int result_length;
  int kernel_size, stride, dilation, padding_left;
  // backward: the greatest common divisor of stride and dilation, and the inverse of dilation / gcd modulo stride /
  // gcd.
  int gcd, inverse;
  bool accumulate, negate;
  bool result_is_sum;  // stored in the type of the sums
};

// Sums of a tile, by the names of units.cuh.
struct UnitsShape {
  int rows, cols, pitch, outer_pitch, outer_positions, scratch_bytes, element_bytes;
};

enum class Staging {
  kWindow,  // rows of shared memory are neighbouring positions, read by several taps
  kGather,  // a row for each column (each position that is summed over, in backward_weight) and tap
  kUnfold,  // as kGather; channels and taps together are the channels, where there are few
};

struct CorrelatePlan {
  Staging staging;
  bool vectors;                           // channels are neighbours in memory: 16 bytes at a time
  int tap_block, row_step, row_distance;  // rows from column to column, from tap to tap
  int windows, window_rows;
  int64_t row_tiles, column_tiles, channel_blocks, packed_taps, packed_elements, blocks;
  int shared_bytes;
};
// shared_bytes: what the device has for a block.
CorrelatePlan plan_correlation(
    const Correlation& c, const UnitsShape& shape, Choice::Staging wish, const void* signal, int64_t shared_bytes);

// backward_weight: sum over n, t of grad_output[n, row, t] * padded input[n, c, t * stride + tap * dilation].
struct OuterProduct {
  int64_t batch, groups, rows, channels;  // rows: output channels of each group; channels: input channels
  TensorStrides grad;
  Signal signal;
  int out_length, kernel_size, stride, dilation;
};

struct OuterPlan {
  Staging staging;
  bool grad_vectors, signal_vectors;
  int block_step, row_step, window_rows;  // rows from block of columns to block, from position to position, in all
  int64_t row_tiles, column_tiles, steps, splits, blocks;
  int shared_bytes;
};
OuterPlan plan_outer(
    const OuterProduct& o, const UnitsShape& shape, Choice::Staging wish, const void* grad, const void* signal);

// Division by a number that all threads have in common, by a multiplication where the dividend is below 2^31:
// dividend * multiplier >> shift.
struct Divisor {
  int64_t value;
  uint32_t multiplier;
  int shift;
};

// Few channels on both sides of each group (depthwise): FMAs on rows of positions, a warp for each tile of
// 32 * kNarrowOutputs of them.
constexpr int kNarrowOutputs = 4;  // of a lane
constexpr int kNarrowTaps = 4;     // that are read at a time; in backward_weight, that a warp has sums for
// Long kernels without stride and dilation slide over a window in shared memory: so many taps at a time, and numbers.
constexpr int kSlideTaps = 64, kSlideWindow = 32 * kNarrowOutputs + kSlideTaps + 32;

struct NarrowPlan {
  bool unit;    // a tile's positions are neighbours in memory
  bool plain;   // results are stored as they are, with the bias
  bool slides;  // see kSlideTaps
  bool shares;  // the warps of a block share the channels of a tile
  int warp_channels;  // of a group, that a warp adds up
  int run_tiles;      // neighbours that a warp takes one after the other
  // Positions of the signal from result to result and from tap to tap; taps of the weight. Offsets from group to group
  // of the signal, and from result to result.
  int step, distance, tap_step;
  int64_t signal_group, result_step;
  Divisor residues, runs, rows, group_rows;  // rows: of all groups
  int64_t items, blocks;
  int shared_bytes;
};
NarrowPlan plan_narrow(const Correlation& c, int sum_bytes);

struct NarrowOuterPlan {
  bool unit;
  int row_warps;                  // of a block, that share the positions of a row
  int64_t all_tiles, part_tiles;  // of all batch items, of a warp
  Divisor tap_blocks, channels, out_channels, group_rows, tiles;  // tiles: of a batch item
  int64_t splits, blocks;                                         // splits: blocks that share the positions of a row
  int shared_bytes;
};
NarrowOuterPlan plan_narrow_outer(const OuterProduct& o, int sum_bytes);

// Sums of long rows (bias) in parts, added up in order.
int64_t bias_splits(int64_t batch, int64_t out_channels, int64_t out_length);

}  // namespace conv1d_ext::cuda
