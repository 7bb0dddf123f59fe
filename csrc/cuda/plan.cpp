// See plan.h.
#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/problems.h"

namespace conv1d_ext::cuda {
namespace {

// Of the windows that taps share, where a block has so much. With the ring of weights 112 KiB of shared memory, which
// two blocks have on an H100.
constexpr int64_t kWindowBytes = 55 << 10;
// Of a packed signal: with what is written meanwhile it stays in the L2 cache (40 MB on an A100, 50 on an H100).
constexpr int64_t kChunkBytes = 32 << 20;
// More columns than there are, to within which windows of single batch items are preferred to columns of them all.
constexpr double kWaste = 1.25;
// Of Place and ColumnBlock.
constexpr int kPlaceBytes = 16, kColumnBlockBytes = 16;
// Blocks below which most GPUs are not full.
constexpr int64_t kFullBlocks = 2 * kMultiprocessors;
// Parts of a sum that are worth adding up.
constexpr int64_t kFewestSteps = 8;
constexpr int64_t kPartialBytes = 64 << 20;
constexpr int kWarps = kThreads / 32;

int64_t residues(const Correlation& c) { return c.is_backward ? std::min(c.stride, c.result_length) : 1; }
int64_t most_columns(const Correlation& c) { return ceil_div(c.result_length, c.is_backward ? c.stride : 1); }
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

// Rows that `taps` taps share.
int64_t window_rows(int64_t columns, int64_t step, int64_t taps, int64_t distance) {
  return (columns - 1) * step + (taps - 1) * distance + 1;
}

// As many splits as fill a GPU evenly: tiles * splits blocks come in rounds, of which the last one should be full. Each
// has sums to store and to add up, 8 bytes of memory for the products of all positions: at 200 TFLOP/s and 2.5 TB/s as
// long as 320 of them take.
int64_t outer_splits(int64_t tiles, int64_t most, int64_t blocks_per_sm, int64_t positions) {
  const int64_t slots = kMultiprocessors * blocks_per_sm;
  int64_t best = 1;
  double least = HUGE_VAL;
  for (int64_t splits = 1; splits <= std::clamp<int64_t>(most, 1, ceil_div(4 * slots, tiles)); ++splits) {
    const int64_t blocks = tiles * splits;
    const double cost =
        double(ceil_div(blocks, slots) * slots) / double(blocks) + 320.0 * double(splits) / double(positions);
    if (cost < least) {
      least = cost;
      best = splits;
    }
  }
  return best;
}

}  // namespace

bool unfolds(int64_t channels, int64_t kernel_size, int element_bytes, Choice::Staging wish) {
  const int64_t row_channels = kRowBytes / element_bytes, unfolded = channels * kernel_size;
  if (kernel_size == 1 || unfolded > INT32_MAX / 2) return false;
  if (wish != Choice::Staging::kAny) return wish == Choice::Staging::kUnfold;
  return 4 * ceil_div(unfolded, row_channels) <= 3 * ceil_div(channels, row_channels) * kernel_size;
}

int channel_splits(const Correlation& c, int64_t taps, int element_bytes) {
  constexpr int64_t kFewestBlocks = 4, kMostSplits = 32;
  // A result's sum costs a split 8 bytes of memory, which should take no longer than half of its products or of the
  // signal that it reads. At 300 TFLOP/s and 2.5 TB/s, about what these kernels have of an H100, 8 bytes take as long
  // as 480 products.
  constexpr int64_t kProducts = 960;
  const int64_t tiles = c.groups * residues(c) * ceil_div(c.rows, 64) * ceil_div(most_columns(c), 128);
  const int64_t blocks = ceil_div(c.channels * taps, kStepBytes / element_bytes);
  const int64_t worth = std::max(c.channels * most_taps(c) / kProducts, c.channels * element_bytes / (16 * c.rows));
  const int64_t most = std::min({worth, blocks / kFewestBlocks, kMostSplits});
  return static_cast<int>(std::clamp<int64_t>(kMultiprocessors / tiles, 1, std::max<int64_t>(most, 1)));
}

std::vector<Chunk> chunks_of(int64_t batch, int64_t columns, int64_t column_bytes, int64_t halo_bytes) {
  const int64_t item_bytes = columns * column_bytes + halo_bytes;
  std::vector<Chunk> chunks;
  if (item_bytes <= kChunkBytes) {
    const int64_t items = std::min(batch, item_bytes > 0 ? kChunkBytes / item_bytes : batch);
    for (int64_t n = 0; n < batch; n += items) chunks.push_back({n, std::min(items, batch - n), 0, columns});
    return chunks;
  }
  // Where the halo is most of it, what is computed on is as much.
  const int64_t parts =
      ceil_div(columns * column_bytes, std::max(kChunkBytes - halo_bytes, std::min(halo_bytes, kChunkBytes)));
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = columns * part / parts, end = columns * (part + 1) / parts;
      chunks.push_back({n, 1, begin, end - begin});
    }
  }
  return chunks;
}

CorrelatePlan plan_correlation(
    const Correlation& c, const UnitsShape& shape, Choice::Staging wish, int64_t shared_bytes) {
  CorrelatePlan plan{};
  const int64_t step = c.is_backward ? 1 : c.stride, taps = most_taps(c), columns = most_columns(c);

  const int64_t weight_bytes = kStages * shape.rows * shape.pitch + shape.cols * kPlaceBytes;
  const int64_t most_window_bytes = std::min(kWindowBytes, shared_bytes - weight_bytes);
  // Windows in flight: those of kStages steps one after the other.
  int64_t windows = 2, tap_block = 0;
  for (; windows <= kStages; ++windows) {
    const int64_t room = most_window_bytes / (windows * shape.pitch) - window_rows(shape.cols, step, 1, 0);
    tap_block = room < 0 ? 0 : std::min(taps, room / distance(c) + 1);
    if (tap_block == 0) continue;
    const int64_t blocks = ceil_div(taps, tap_block);
    tap_block = ceil_div(taps, blocks);  // of equal size, to within one
    const int64_t fewest = residues(c) > 1 ? 1 : taps / blocks;
    if (windows > ceil_div(kStages - 1, fewest)) break;
  }
  windows = std::min<int64_t>(windows, kStages);
  const bool can_window = tap_block > 0;
  const bool window_reads_less =
      can_window && window_rows(shape.cols, step, tap_block, distance(c)) <= shape.cols * tap_block;
  const int64_t item_tiles = ceil_div(columns, shape.cols);
  const bool few_wasted =
      item_tiles * shape.cols * c.batch <= kWaste * ceil_div(columns * c.batch, shape.cols) * shape.cols;
  const bool in_windows = can_window && wish != Choice::Staging::kGather &&
                          (wish == Choice::Staging::kWindow || (window_reads_less && few_wasted));
  plan.staging = in_windows ? Staging::kWindow : Staging::kGather;
  plan.tap_block = in_windows ? static_cast<int>(tap_block) : 1;
  plan.row_step = in_windows ? static_cast<int>(step) : 1;
  plan.row_distance = in_windows && tap_block > 1 ? static_cast<int>(distance(c)) : 0;
  plan.windows = static_cast<int>(in_windows ? windows : kStages);
  plan.window_rows =
      static_cast<int>(in_windows ? window_rows(shape.cols, step, tap_block, plan.row_distance) : shape.cols);

  plan.row_tiles = static_cast<int>(ceil_div(c.rows, shape.rows));
  plan.column_tiles = in_windows ? c.batch * item_tiles : ceil_div(c.batch * columns, shape.cols);
  plan.channel_blocks = static_cast<int>(ceil_div(c.channels, kStepBytes / shape.element_bytes));
  plan.packed_elements = c.groups * c.kernel_size * plan.channel_blocks * plan.row_tiles * int64_t{shape.rows} *
                         (kStepBytes / shape.element_bytes);
  plan.blocks = plan.row_tiles * plan.column_tiles * residues(c) * c.groups * c.splits;
  const int ring = kStages * shape.rows * shape.pitch + plan.windows * plan.window_rows * shape.pitch;
  plan.shared_bytes = shape.cols * kPlaceBytes + std::max(ring, shape.scratch_bytes);
  if (in_windows && plan.shared_bytes > shared_bytes) {
    return plan_correlation(c, shape, Choice::Staging::kGather, shared_bytes);
  }
  return plan;
}

OuterPlan plan_outer(const OuterProduct& o, const UnitsShape& shape, Choice::Staging wish, int64_t splits) {
  OuterPlan plan{};
  const int64_t row_channels = kRowBytes / shape.element_bytes, positions = shape.outer_positions;
  const int64_t column_blocks = shape.cols / row_channels, channel_blocks = ceil_div(o.channels, row_channels);
  const int64_t rows = window_rows(positions, o.stride, column_blocks, o.dilation);
  const int64_t window_tiles = channel_blocks * ceil_div(o.kernel_size, column_blocks);
  const int64_t gather_tiles = ceil_div(channel_blocks * o.kernel_size, column_blocks);
  const int64_t window_steps = o.batch * ceil_div(o.out_length, positions);
  const int64_t flat_steps = ceil_div(o.batch * o.out_length, positions);
  const bool can_window = rows <= column_blocks * positions;
  const bool window_is_better =
      can_window && double(window_tiles) * window_steps <= kWaste * double(gather_tiles) * flat_steps;
  const bool in_windows =
      can_window && wish != Choice::Staging::kGather && (wish == Choice::Staging::kWindow || window_is_better);
  plan.staging = in_windows ? Staging::kWindow : Staging::kGather;
  plan.block_step = static_cast<int>(in_windows ? o.dilation : positions);
  plan.row_step = static_cast<int>(in_windows ? o.stride : 1);
  plan.window_rows = static_cast<int>(in_windows ? rows : column_blocks * positions);
  plan.row_tiles = ceil_div(o.rows, shape.rows);
  plan.column_tiles = in_windows ? window_tiles : gather_tiles;
  plan.steps = in_windows ? window_steps : flat_steps;
  const int64_t tiles = plan.row_tiles * plan.column_tiles * o.groups;
  const int64_t sum_bytes = std::max(shape.element_bytes, 4);
  const int64_t weights_bytes = o.groups * o.rows * o.channels * o.kernel_size * sum_bytes;
  const int64_t most_splits = std::min(plan.steps / kFewestSteps, kPartialBytes / weights_bytes);
  plan.splits = splits > 0 ? splits : outer_splits(tiles, most_splits, shape.blocks_per_sm, o.batch * o.out_length);
  plan.blocks = tiles * plan.splits;
  const int64_t grad_rows = ceil_div(shape.rows, row_channels) * positions;
  plan.shared_bytes = static_cast<int>(
      column_blocks * kColumnBlockBytes + kOuterStages * (grad_rows + plan.window_rows) * shape.outer_pitch);
  return plan;
}

NarrowPlan plan_narrow(const Correlation& c, int sum_bytes) {
  // Taps from which a window in shared memory is faster than the L1 cache; channels that are worth being shared (the
  // batch has no say in that, since it is another order of sums); tiles of one warp, where there are more than those
  // that keep most GPUs busy.
  constexpr int64_t kLongKernel = 9, kManyChannels = 8, kMostRunTiles = 8, kBusyTiles = 2 * kFullBlocks * kWarps;
  NarrowPlan plan{};
  const int64_t step = c.is_backward ? 1 : c.stride, all_rows = c.groups * c.rows;
  const int64_t tiles = ceil_div(most_columns(c), int64_t{32} * kNarrowOutputs);
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
  const int64_t tiles = ceil_div(o.out_length, int64_t{32} * kNarrowOutputs),
                tap_blocks = ceil_div(o.kernel_size, kNarrowTaps);
  const int64_t rows = o.groups * o.rows * o.channels * tap_blocks;
  plan.all_tiles = o.batch * tiles;
  // Adding up the parts of a block's warps costs little, those of several blocks another kernel.
  plan.row_warps = 1;
  const int64_t most_row_warps = std::min<int64_t>({kWarps, plan.all_tiles, ceil_div(4 * kFullBlocks * kWarps, rows)});
  while (int64_t{2} * plan.row_warps <= most_row_warps) plan.row_warps *= 2;
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
