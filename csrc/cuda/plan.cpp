// See plan.h.
#include "cuda/plan.h"

#include <algorithm>
#include <cstdint>

namespace conv1d_ext::cuda {
namespace {

// Of the windows that taps share. With the ring of weights some 96 KiB of shared memory, which a block has everywhere
// from sm_80 on (99 KiB on sm_86, sm_89 and sm_120).
constexpr int64_t kWindowBytes = 64 << 10;
// More columns than there are, to within which windows of single batch items are preferred to columns of them all.
constexpr double kWaste = 1.25;
// Of Place, OuterPlace and Column.
constexpr int kPlaceBytes = 16, kOuterPlaceBytes = 24, kColumnBytes = 8;
// Blocks below which most GPUs are not full, and parts that are worth their sum.
constexpr int64_t kFullBlocks = 264, kFewestSteps = 4;
constexpr int64_t kPartialBytes = 64 << 20;
constexpr int kWarps = kThreads / 32;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t residues(const Correlation& c) { return c.is_backward ? c.stride : 1; }
int64_t most_columns(const Correlation& c) { return ceil_div(c.result_length, residues(c)); }
// Of taps as of positions, a residue meets every stride / gcd-th.
int64_t most_taps(const Correlation& c) {
  return c.is_backward ? ceil_div(c.kernel_size, c.stride / c.gcd) : c.kernel_size;
}
int64_t distance(const Correlation& c) { return c.is_backward ? c.dilation / c.gcd : c.dilation; }

// By numbers up to 2^31. The multiplier is rounded up, by less than 1: dividends below 2^31 make of it less than
// 2^31 / 2^shift <= 1 / value, which takes no quotient to the next.
Divisor divisor(int64_t value) {
  int shift = 31;
  while (int64_t{1} << (shift - 31) < value) ++shift;
  return {value, static_cast<uint32_t>(ceil_div(int64_t{1} << shift, value)), shift};
}

// Whether 16 bytes of channels lie side by side, aligned, in each group.
bool has_vectors(const TensorStrides& strides, int64_t channels, int element_bytes, const void* data) {
  const int64_t elements = 16 / element_bytes;
  const auto aligned = [&](int64_t stride) { return stride % elements == 0; };
  return strides.channel == 1 && aligned(strides.batch) && aligned(strides.position) && channels % elements == 0 &&
         reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// What is wished for where it can be had.
Staging choose(Choice::Staging wish, Staging best, bool can_window, bool can_unfold) {
  if (wish == Choice::Staging::kAny) return best;
  if (wish == Choice::Staging::kWindow && can_window) return Staging::kWindow;
  if (wish == Choice::Staging::kUnfold && can_unfold) return Staging::kUnfold;
  return Staging::kGather;
}

// Rows that `taps` taps share.
int64_t window_rows(int64_t columns, int64_t step, int64_t taps, int64_t distance) {
  return (columns - 1) * step + (taps - 1) * distance + 1;
}

}  // namespace

CorrelatePlan plan_correlation(
    const Correlation& c, const UnitsShape& shape, Choice::Staging wish, const void* signal, int64_t shared_bytes) {
  CorrelatePlan plan{};
  const int64_t row_channels = kRowBytes / shape.element_bytes;
  const int64_t step = c.is_backward ? 1 : c.stride, taps = most_taps(c), columns = most_columns(c);

  // Windows in flight: while a step is computed, those up to kStages - 1 further are being copied, and with each a part
  // of the window after its own. Of windows of at least two taps three are enough.
  constexpr int64_t kMostWindows = kStages + 1;
  int64_t windows = kMostWindows - 1, tap_block = 0;
  for (; windows <= kMostWindows; ++windows) {
    const int64_t room = kWindowBytes / (windows * shape.pitch) - window_rows(shape.cols, step, 1, 0);
    tap_block = room < 0 ? 0 : std::min(taps, room / distance(c) + 1);
    if (tap_block == 0) continue;
    const int64_t blocks = ceil_div(taps, tap_block);
    tap_block = ceil_div(taps, blocks);  // of equal size, to within one
    const int64_t fewest = residues(c) > 1 ? 1 : taps / blocks;
    if (fewest >= 2 || windows == kMostWindows) break;
  }
  const bool can_window = tap_block > 0;
  const bool window_reads_less =
      can_window && window_rows(shape.cols, step, tap_block, distance(c)) <= shape.cols * tap_block;
  const int64_t item_tiles = ceil_div(columns, shape.cols);
  const bool few_wasted =
      item_tiles * shape.cols * c.batch <= kWaste * ceil_div(columns * c.batch, shape.cols) * shape.cols;
  const int64_t unfolded = c.channels * c.kernel_size;
  const bool can_unfold = !c.is_backward && c.kernel_size > 1 && unfolded < INT32_MAX / 2;
  const bool unfold_saves =
      can_unfold && 4 * ceil_div(unfolded, row_channels) <= 3 * ceil_div(c.channels, row_channels) * c.kernel_size;
  const Staging best = unfold_saves                      ? Staging::kUnfold
                       : window_reads_less && few_wasted ? Staging::kWindow
                                                         : Staging::kGather;
  plan.staging = choose(wish, best, can_window, can_unfold);
  const bool in_windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;
  plan.vectors = !unfold && has_vectors(c.signal.strides, c.channels, shape.element_bytes, signal);
  plan.tap_block = in_windows ? static_cast<int>(tap_block) : 1;
  plan.row_step = in_windows ? static_cast<int>(step) : 1;
  plan.row_distance = in_windows && tap_block > 1 ? static_cast<int>(distance(c)) : 0;
  plan.windows = static_cast<int>(in_windows ? windows : kMostWindows);
  plan.window_rows =
      static_cast<int>(in_windows ? window_rows(shape.cols, step, tap_block, plan.row_distance) : shape.cols);

  plan.row_tiles = ceil_div(c.rows, shape.rows);
  plan.column_tiles = in_windows ? c.batch * item_tiles : ceil_div(c.batch * columns, shape.cols);
  plan.channel_blocks = ceil_div(unfold ? unfolded : c.channels, row_channels);
  plan.packed_taps = unfold ? 1 : c.kernel_size;
  plan.packed_elements = c.groups * plan.packed_taps * plan.channel_blocks * plan.row_tiles * shape.rows * row_channels;
  plan.blocks = plan.row_tiles * plan.column_tiles * residues(c) * c.groups;
  const int ring = kStages * shape.rows * shape.pitch + plan.windows * plan.window_rows * shape.pitch;
  plan.shared_bytes = shape.cols * kPlaceBytes + std::max(ring, shape.scratch_bytes);
  if (in_windows && plan.shared_bytes > shared_bytes) {
    return plan_correlation(c, shape, Choice::Staging::kGather, signal, shared_bytes);
  }
  return plan;
}

OuterPlan plan_outer(
    const OuterProduct& o, const UnitsShape& shape, Choice::Staging wish, const void* grad, const void* signal) {
  OuterPlan plan{};
  const int64_t row_channels = kRowBytes / shape.element_bytes, positions = shape.outer_positions;
  const int64_t column_blocks = shape.cols / row_channels, channel_blocks = ceil_div(o.channels, row_channels);
  const int64_t rows = window_rows(positions, o.stride, column_blocks, o.dilation);
  const int64_t window_tiles = channel_blocks * ceil_div(o.kernel_size, column_blocks);
  const int64_t gather_tiles = ceil_div(channel_blocks * o.kernel_size, column_blocks);
  const int64_t unfold_blocks = ceil_div(o.channels * o.kernel_size, row_channels);
  const int64_t window_steps = o.batch * ceil_div(o.out_length, positions);
  const int64_t flat_steps = ceil_div(o.batch * o.out_length, positions);
  const bool can_window = rows <= column_blocks * positions;
  const bool window_is_better =
      can_window && double(window_tiles) * window_steps <= kWaste * double(gather_tiles) * flat_steps;
  const bool can_unfold = o.kernel_size > 1 && o.channels * o.kernel_size < INT32_MAX / 2;
  const bool unfold_saves = can_unfold && 4 * unfold_blocks <= 3 * channel_blocks * o.kernel_size;
  const Staging best = unfold_saves ? Staging::kUnfold : window_is_better ? Staging::kWindow : Staging::kGather;
  plan.staging = choose(wish, best, can_window, can_unfold);
  const bool windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;
  plan.grad_vectors = has_vectors(o.grad, o.rows, shape.element_bytes, grad);
  plan.signal_vectors = !unfold && has_vectors(o.signal.strides, o.channels, shape.element_bytes, signal);
  plan.block_step = static_cast<int>(windows ? o.dilation : positions);
  plan.row_step = static_cast<int>(windows ? o.stride : 1);
  plan.window_rows = static_cast<int>(windows ? rows : column_blocks * positions);
  plan.row_tiles = ceil_div(o.rows, shape.rows);
  plan.column_tiles = windows ? window_tiles : unfold ? ceil_div(unfold_blocks, column_blocks) : gather_tiles;
  plan.steps = windows ? window_steps : flat_steps;
  const int64_t tiles = plan.row_tiles * plan.column_tiles * o.groups;
  const int64_t sum_bytes = std::max(shape.element_bytes, 4);
  const int64_t weights_bytes = o.groups * o.rows * o.channels * o.kernel_size * sum_bytes;
  plan.splits = std::clamp<int64_t>(
      std::min(plan.steps / kFewestSteps, kPartialBytes / weights_bytes), 1, ceil_div(2 * kFullBlocks, tiles));
  // A block counts its steps in 31 bits.
  plan.splits = std::max(plan.splits, ceil_div(plan.steps, INT32_MAX / 2));
  plan.blocks = tiles * plan.splits;
  const int64_t grad_rows = ceil_div(shape.rows, row_channels) * positions;
  plan.shared_bytes = static_cast<int>(
      2 * positions * kOuterPlaceBytes + int64_t{shape.cols} * kColumnBytes +
      kStages * (grad_rows + plan.window_rows) * shape.outer_pitch);
  return plan;
}

NarrowPlan plan_narrow(const Correlation& c, int sum_bytes) {
  // Taps from which a window in shared memory is faster than the L1 cache; channels that are worth being shared (the
  // batch has no say in that, since it is another order of sums); tiles of one warp, where there are more than those
  // that keep most GPUs busy.
  constexpr int64_t kLongKernel = 9, kManyChannels = 8, kMostRunTiles = 8, kBusyTiles = 2 * kFullBlocks * kWarps;
  NarrowPlan plan{};
  const int64_t step = c.is_backward ? 1 : c.stride, all_rows = c.groups * c.rows;
  const int64_t tiles = ceil_div(most_columns(c), 32 * kNarrowOutputs);
  plan.unit = step == 1 && c.signal.strides.position == 1;
  plan.plain = !c.accumulate && !c.negate && !c.result_is_sum;
  plan.slides = step == 1 && distance(c) == 1 && most_taps(c) >= kLongKernel;
  plan.shares = c.channels >= kManyChannels;
  plan.warp_channels = static_cast<int>(plan.shares ? ceil_div(c.channels, kWarps) : c.channels);
  plan.step = static_cast<int>(step);
  plan.distance = static_cast<int>(distance(c));
  plan.tap_step = c.is_backward ? -c.stride / c.gcd : 1;
  plan.signal_group = c.channels * c.signal.strides.channel;
  plan.result_step = residues(c) * c.result.position;
  const int64_t all_tiles = residues(c) * tiles * c.batch * all_rows;
  const int64_t run_tiles = plan.shares ? 1 : std::clamp<int64_t>(all_tiles / kBusyTiles, 1, kMostRunTiles);
  const int64_t runs = ceil_div(tiles, run_tiles);
  plan.run_tiles = static_cast<int>(ceil_div(tiles, runs));
  plan.residues = divisor(residues(c));
  plan.runs = divisor(runs);
  plan.rows = divisor(all_rows);
  plan.group_rows = divisor(c.rows);
  plan.items = residues(c) * runs * c.batch * all_rows;
  plan.blocks = plan.shares ? plan.items : ceil_div(plan.items, kWarps);
  plan.shared_bytes = plan.slides || plan.shares ? kWarps * (kSlideWindow + kSlideTaps) * sum_bytes : 0;
  return plan;
}

NarrowOuterPlan plan_narrow_outer(const OuterProduct& o, int sum_bytes) {
  NarrowOuterPlan plan{};
  plan.unit = o.stride == 1 && o.signal.strides.position == 1 && o.grad.position == 1;
  const int64_t tiles = ceil_div(o.out_length, 32 * kNarrowOutputs), tap_blocks = ceil_div(o.kernel_size, kNarrowTaps);
  const int64_t rows = o.groups * o.rows * o.channels * tap_blocks;
  plan.all_tiles = o.batch * tiles;
  // Adding up the parts of a block's warps costs little, those of several blocks another kernel.
  plan.row_warps = 1;
  const int64_t most_row_warps = std::min<int64_t>({kWarps, plan.all_tiles, ceil_div(4 * kFullBlocks * kWarps, rows)});
  while (2 * plan.row_warps <= most_row_warps) plan.row_warps *= 2;
  const int64_t weights_bytes = o.groups * o.rows * o.channels * o.kernel_size * sum_bytes;
  const int64_t most_splits = std::min(ceil_div(plan.all_tiles, plan.row_warps), kPartialBytes / weights_bytes);
  plan.splits = std::clamp<int64_t>(most_splits, 1, ceil_div(2 * kFullBlocks, rows));
  plan.part_tiles = ceil_div(plan.all_tiles, plan.splits * plan.row_warps);
  plan.tap_blocks = divisor(tap_blocks);
  plan.channels = divisor(o.channels);
  plan.out_channels = divisor(o.groups * o.rows);
  plan.group_rows = divisor(o.rows);
  plan.tiles = divisor(tiles);
  plan.blocks = ceil_div(rows * plan.splits, kWarps / plan.row_warps);
  plan.shared_bytes = kWarps * kNarrowTaps * sum_bytes;
  return plan;
}

int64_t bias_splits(int64_t batch, int64_t out_channels, int64_t out_length) {
  constexpr int64_t kFewestTerms = 4096;
  return std::clamp<int64_t>(batch * out_length / kFewestTerms, 1, ceil_div(4 * kFullBlocks, out_channels));
}

}  // namespace conv1d_ext::cuda
