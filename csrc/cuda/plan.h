// How a problem is cut into blocks of threads and tiles of shared memory: pure functions of its sizes, and, on devices
// that have less shared memory for a block than all from sm_80 on, of that. So results do not depend on how much else a
// device has. Plain data, which host and kernels share; no CUDA.
#pragma once

#include <vector>

#include "cuda/kernels.h"
#include "problem.h"

namespace conv1d_ext::cuda {

constexpr int kThreads = 256;  // of every block
// Of an H100. Plans do not ask for the device's own, since results must not depend on it.
constexpr int64_t kMultiprocessors = 132;
constexpr int kRowBytes = 64;  // of the channels in a block, side by side at each position
constexpr int kStepRows = 2;   // blocks of channels that `correlate` reads in a step
constexpr int kStepBytes = kStepRows * kRowBytes;
// Tiles of operands in flight: one in use, the others on their way. Two steps of 128 x 128 sums of `correlate` take a
// tensor core 1000 clocks and more, and three of `multiply_outer` 750: longer than the L2 cache takes to answer.
constexpr int kStages = 3, kOuterStages = 4;

// The tensor that is read at shifted positions, and what surrounds it. Positions fit into 32 bits (see fits), which
// saves the kernels a tenth of their registers; offsets in memory have 64.
struct Signal {
  TensorStrides strides;
  int length, padding_left, padding_right;
  PaddingMode padding_mode;
};

// A signal as the kernels of tiles read it: at each position and for each group, kRowBytes of channels side by side, so
// that 16 bytes are copied at a time. Mostly a copy in the workspace (pack_signal), with the padding in it;
// channels-last tensors are such signals themselves.
struct PackedSignal {
  int64_t batch, group, block;  // strides in elements; a block is kRowBytes of channels
  int position;                 // likewise
  int channels;                 // of each group, that may be read
  int first, length;            // the positions that there are; zeros everywhere else
};

// How pack_signal makes one. Row r of an item shows, of channel c at tap k, the signal at first + r * step +
// k * distance, where k is below `taps`, and its channels are the pairs (c, k), the taps of a channel side by side.
struct SignalPacking {
  int64_t items, groups;
  int channels, blocks, taps;  // channels: of the signal, in each group; blocks: of the rows, of kRowBytes each
  int rows, first, step, distance;
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
  int first_column;  // of the columns of each row: those before are not computed, and `result` begins with it
  // backward: the greatest common divisor of stride and dilation, and the inverse of dilation / gcd modulo stride /
  // gcd.
  int gcd, inverse;
  bool accumulate, negate;
  bool result_is_sum;  // stored in the type of the sums
  // Parts of the channels that are summed by themselves, and the numbers from a part's result to the next one's.
  int splits;
  int64_t split_step;
};

// Sums of a tile, by the names of units.cuh.
struct UnitsShape {
  int rows, cols, pitch, outer_pitch, outer_positions, scratch_bytes, element_bytes, blocks_per_sm;
};

enum class Staging {
  kWindow,  // rows of shared memory are neighbouring positions, read by several taps
  kGather,  // a row for each column (each position that is summed over, in backward_weight) and tap
};

struct CorrelatePlan {
  Staging staging;
  int tap_block, row_step, row_distance;  // rows from column to column, from tap to tap
  int windows, window_rows;
  int row_tiles, channel_blocks;
  int64_t column_tiles, packed_elements, blocks;
  int shared_bytes;
};
// shared_bytes: what the device has for a block.
CorrelatePlan plan_correlation(
    const Correlation& c, const UnitsShape& shape, Choice::Staging wish, int64_t shared_bytes);

// backward_weight: sum over n, t of grad_output[n, row, t] * padded input[n, c, t * stride + tap * dilation].
struct OuterProduct {
  int64_t batch, groups, rows, channels;  // rows: output channels of each group; channels: input channels
  TensorStrides grad;
  Signal signal;
  int out_length, kernel_size, stride, dilation, padding_left;
  int first_column;  // output positions begin with it
};

struct OuterPlan {
  Staging staging;
  int block_step, row_step, window_rows;  // rows from block of columns to block, from position to position, in all
  int64_t row_tiles, column_tiles, steps, splits, blocks;
  int shared_bytes;
};
// `splits`: 0 where the plan is to choose.
OuterPlan plan_outer(const OuterProduct& o, const UnitsShape& shape, Choice::Staging wish, int64_t splits);

// Whether channels and taps are made one dimension when the signal is packed: where there are so few channels that
// most of the blocks would be zeros otherwise.
bool unfolds(int64_t channels, int64_t kernel_size, int element_bytes, Choice::Staging wish);

// Into how many parts the channels' sum is split, so that few results with long sums keep a GPU busy. The batch has no
// say, since an item's bits must not depend on it.
int channel_splits(const Correlation& c, int64_t taps, int element_bytes);

// What is packed at a time: columns [first_column, first_column + columns) of some batch items.
struct Chunk {
  int64_t first_item, items, first_column, columns;
};
// All of a problem, in chunks of about as many bytes as a GPU's cache keeps, for this is what is read again at once. A
// column has `column_bytes`, and all columns of a chunk and item `halo_bytes` besides.
std::vector<Chunk> chunks_of(int64_t batch, int64_t columns, int64_t column_bytes, int64_t halo_bytes);

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
  bool unit;          // a tile's positions are neighbours in memory
  bool plain;         // results are stored as they are, with the bias
  bool slides;        // see kSlideTaps
  bool shares;        // the warps of a block share the channels of a tile
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
  int row_warps;                                                  // of a block, that share the positions of a row
  int64_t all_tiles, part_tiles;                                  // of all batch items, of a warp
  Divisor tap_blocks, channels, out_channels, group_rows, tiles;  // tiles: of a batch item
  int64_t splits, blocks;                                         // splits: blocks that share the positions of a row
  int shared_bytes;
};
NarrowOuterPlan plan_narrow_outer(const OuterProduct& o, int sum_bytes);

// Sums of long rows (bias) in parts, added up in order.
int64_t bias_splits(int64_t batch, int64_t out_channels, int64_t out_length);

}  // namespace conv1d_ext::cuda
