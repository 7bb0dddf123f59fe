#include "cpu/amx_plan.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

// Of weights, which threads share: with the scratch memory of one they stay below 4 MiB.
constexpr int64_t kMostPackedBytes = 11 << 18;

// The distance between weights that can be gathered into a vector, at most.
constexpr int64_t kMostWeightStride = 1 << 26;

struct AmxPlanner {
  const Op op;
  const Conv1dProblem& p;
  const ElementSizes sizes;
  const TileShape& tile;
  const CacheSizes cache;
  const Use use;
  const int64_t in_per_group = p.in_channels / p.groups, out_per_group = p.out_channels / p.groups;
  const int64_t channels = op == Op::kBackwardInput ? out_per_group : in_per_group;
  const int64_t rows = op == Op::kBackwardInput ? in_per_group : out_per_group;
  const int64_t result_length = op == Op::kBackwardInput ? p.in_length : p.out_length;

  void choose_steps(AmxPlan& plan) const {
    plan.step_taps = std::clamp<int64_t>(kAmxDepth / channels, 1, p.kernel_size);
    plan.channel_steps = ceil_div(channels, kAmxDepth);
    plan.tap_steps = ceil_div(p.kernel_size, plan.step_taps);
    plan.steps = plan.tap_steps * plan.channel_steps;
    const int64_t shift = plan.step_taps * p.dilation, step = std::gcd(p.stride, shift);
    plan.panel_phases = std::min(plan.tap_steps, p.stride / step);
    plan.phase_shift = shift / step;
  }

  int64_t halo(const AmxPlan& plan) const { return (plan.tap_steps - 1) / plan.panel_phases * plan.phase_shift; }
  // Of a panel with so many positions, and of the rows that it is filled with.
  int64_t panel_bytes(const AmxPlan& plan, int64_t positions) const {
    const int64_t position_bytes = plan.pieces * plan.panel_phases * plan.channel_steps * int64_t{sizeof(uint16_t)};
    return kAmxDepth * (position_bytes + int64_t{sizeof(float)}) * (positions + halo(plan));
  }

  // Half of the L2 cache for the panel, the rest for a tile's weights, sums and what streams by.
  bool choose_blocks(AmxPlan& plan) const {
    const int64_t position_bytes = panel_bytes(plan, 1) - panel_bytes(plan, 0), budget = cache.l2 / 2;
    const int64_t most = std::max(kAmxRows, (budget - panel_bytes(plan, 0)) / position_bytes);
    if (panel_bytes(plan, kAmxRows) > (1 << 20)) return false;
    plan.position_block = balanced_block(result_length, most, kAmxRows);
    plan.position_blocks = ceil_div(result_length, plan.position_block);
    plan.item_pitch = std::min(result_length, plan.position_block) + halo(plan);
    plan.batch_block = 1;
    if (plan.position_blocks == 1) {
      // Up to a few hundred columns, of items side by side.
      constexpr int64_t kMostColumns = 512;
      const int64_t columns = std::min(kMostColumns, budget / position_bytes);
      plan.batch_block = std::clamp<int64_t>(columns / plan.item_pitch, 1, std::max<int64_t>(1, p.batch));
    }
    // Whole tiles are read, wherever they begin.
    const int64_t columns = (plan.batch_block - 1) * plan.item_pitch + std::min(result_length, plan.position_block);
    plan.panel_width = round_up(columns, kAmxSide) + halo(plan);
    plan.panel_piece = (plan.panel_width + kAmxSide) * kAmxDepth;
    plan.panel_elements = plan.panel_phases * plan.channel_steps * plan.pieces * plan.panel_piece;
    plan.row_tiles = ceil_div(rows, kAmxRows);
    const int64_t tile_bytes = kAmxRows * plan.steps * plan.pieces * kAmxDepth * int64_t{sizeof(uint16_t)};
    const int64_t tiles = p.groups * plan.row_tiles;
    if (tile_bytes > kMostPackedBytes) return false;
    plan.pass_tiles = balanced_block(tiles, kMostPackedBytes / tile_bytes, 1);
    plan.packed_bytes = plan.pass_tiles * tile_bytes;
    plan.units = ceil_div(p.batch, plan.batch_block) * plan.position_blocks;
    plan.scratch_bytes = int64_t{5} * 64 + plan.panel_elements * int64_t{sizeof(uint16_t)} +
                         (kAmxDepth * (plan.panel_width + kAmxSide) + 2 * kAmxRows * kAmxRows + plan.batch_block) *
                             int64_t{sizeof(float)} +
                         plan.steps * int64_t{sizeof(int64_t)};
    return true;
  }

  // What follows counts vector FMAs of float, like fft_plan.cpp. The figures are guesses from a few float32 layers, not
  // yet fitted; those of bfloat16 rest on no measurement at all.

  double direct(int64_t items) const {
    const double products = double(items) * p.out_channels * in_per_group * p.kernel_size * p.out_length;
    return products / tile.lanes * (sizes.pair == 2 ? 0.7 : 1.3);
  }

  // For so many batch items.
  double cost(const AmxPlan& plan, int64_t items) const {
    const double tile_products = double(kAmxSide) * kAmxSide * kAmxDepth / tile.lanes;
    const double columns = double(items) * plan.position_blocks *
                           round_up(std::min(result_length, plan.position_block), kAmxSide) / kAmxSide;
    const double row_tiles = ceil_div(rows, kAmxSide), passes = ceil_div(p.groups * plan.row_tiles, plan.pass_tiles);
    const double products = row_tiles * columns * plan.steps * tile_products * (plan.pieces == 3 ? 0.56 : 0.16);
    const double set = double(plan.panel_phases) * plan.channel_steps * kAmxDepth;
    const double gathered = p.stride > 1 || p.dilation > 1 ? 1 : 0;
    const double positions = columns * kAmxSide + double(items) * plan.position_blocks * halo(plan);
    const double fills = positions * set * (1.6 + gathered) * std::max(1.0, passes / p.groups);
    const double stores = row_tiles * kAmxSide * columns * kAmxSide * 1.5;
    const double weights = row_tiles * kAmxSide * plan.steps * kAmxDepth * 2;
    return p.groups * (products + fills + stores + weights);
  }

  // What decides must not depend on the batch. In batches of short sequences the weights weigh less.
  bool worth_it(const AmxPlan& plan) const {
    // Guesses, too, after those of fft_plan.cpp.
    constexpr double kGain = 1.1, kLeastAlone = 0.85, kBatchGain = 1.4;
    constexpr int64_t kBatch = 4;
    const double gain = direct(1) / cost(plan, 1);
    return gain >= kGain || (gain >= kLeastAlone && direct(kBatch) / cost(plan, kBatch) >= kBatchGain);
  }

  AmxPlan plan() const {
    AmxPlan plan{};
    if (use == Use::kNever || sizes.pieces == 0 || p.accumulate || p.negate || op == Op::kBackwardWeight) return plan;
    if (op == Op::kBackwardInput && (p.stride > 1 || p.padding_mode != PaddingMode::kZeros)) return plan;
    if (std::max(std::abs(p.weight.in_channel), std::abs(p.weight.out_channel)) > kMostWeightStride) return plan;
    plan.pieces = sizes.pieces;
    choose_steps(plan);
    if (!choose_blocks(plan)) return {};
    plan.cycles = cost(plan, 1);
    if (use == Use::kWhereFaster && !worth_it(plan)) return {};
    return plan;
  }
};

std::atomic<Use>& chosen_use() {
  static std::atomic<Use> use{Use::kNever};
  return use;
}

}  // namespace

Use amx_use() { return chosen_use().load(std::memory_order_relaxed); }
void set_amx_use(Use use) { chosen_use().store(use, std::memory_order_relaxed); }

AmxPlan make_amx_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use) {
  return AmxPlanner{op, problem, sizes, tile, cache, use}.plan();
}

}  // namespace conv1d_ext
