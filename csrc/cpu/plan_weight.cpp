#include <cmath>

#include "cpu/planner.h"

namespace conv1d_ext {
namespace {

// Time of a dot product over that of the register tile, transposes apart. Weight gradients of 128 weights a channel, as
// dot products and as outer products: 79 and 121 GFLOP/s on a Xeon of wide cores; 144 and 164 on a Zen 5, where 60 of
// them make 171 and 147; 73 and 88 on a Zen 4. There they are equal at 48 weights; of small tiles, which multiply what
// they load fewer times, and whose loads are unaligned, at 10 (128 weights: 53 and 83).
constexpr double kDotTime = 1.4, kDotTimeOfWideCores = 1.25, kDotTimeOfWideIntelCores = 2, kDotTimeOfSmallTiles = 1.9;

// Time to transpose an element of grad_output over that of a vector FMA: for each byte (on a Zen 4 float and double are
// equal at as many weights, pairs of bfloat16 at half of them), or to convert one and transpose it. Of wide cores any
// element, and those that are converted.
constexpr double kTransposeOfByte = 0.3, kTransposeConverted = 1.4;
constexpr double kTransposeOfWideCores = 1.2, kTransposeConvertedOfWideCores = 2.4;

// Time to transpose an element over that to copy one. Copies of other types are conversions.
constexpr double kTransposeTime = 4, kTransposeTimeOfOtherTypes = 1;

// Positions that weight gradients sum between two visits of a sum, at most: of sums this long the errors of blocks,
// which are added up, are half of torch's.
constexpr int64_t kLongestVisit = 256;

// Output channels of a block of dot products, at least: the rows of grad_output that are read along with the panel.
constexpr int64_t kDotBlock = 24;

struct WeightPlanner : Planner {
  const int64_t rows = in_per_group * p.kernel_size;
  const bool as_stored = same_type || sizes.pair > 1;

  bool suits_dot() const {
    // Cycles for an element of grad_output. Dot products: a vector FMA for `lanes` weights, and more for adding up
    // lanes and unaligned reads. Outer product: the vectors' unused lanes, and the transpose.
    const double fmas = double(rows) / tile.lanes, waste = double(round_up(out_per_group, tile.lanes)) / out_per_group;
    const bool wide = wide_cores(cache);
    const double dot_time = wide_intel_cores(cache)     ? kDotTimeOfWideIntelCores
                            : as_stored && small_tile() ? kDotTimeOfSmallTiles
                            : wide                      ? kDotTimeOfWideCores
                                                        : kDotTime;
    const double transpose = wide        ? (as_stored ? kTransposeOfWideCores : kTransposeConvertedOfWideCores)
                             : as_stored ? kTransposeOfByte * sizes.storage
                                         : kTransposeConverted;
    return out_per_group * 4 <= tile.lanes ||
           (p.out_length >= 8 * tile.lanes && fmas * dot_time <= fmas * waste + transpose);
  }

  Plan backward_weight() const {
    Plan plan{};
    const bool dot = suits_dot();
    plan.algorithm = dot ? Algorithm::kDot : Algorithm::kPanel;
    plan.direct = false;
    // Dot products run 1.05 to 1.26 times as fast so on a Xeon of wide cores, 1.0 to 1.25 times on a Zen 4, but 0.92 to
    // 1.0 times, one case apart, on a Zen 5.
    plan.fetch_rows = !dot || !wide_cores(cache) || wide_intel_cores(cache);
    const int64_t sum_budget = dot ? panel_budget / tile.lanes : panel_budget;
    // A block of sums is rows x columns. For each block of columns the input is copied to the panel, min(stride, K)
    // elements an output position; for each block of rows grad_output is transposed. In this shape both cost the same.
    const int64_t best = std::sqrt(
        double(sum_budget) * std::min(p.stride, p.kernel_size) / p.kernel_size /
        (as_stored ? kTransposeTime : kTransposeTimeOfOtherTypes));
    plan.out_block =
        dot ? balanced_block(out_per_group, std::max(kDotBlock, sum_budget / rows), 1)
            : std::min(
                  round_up(out_per_group, tile.lanes),
                  balanced_block(out_per_group, round_up(best - tile_columns / 2, tile_columns), tile_columns));
    const int64_t columns = plan.out_block;  // of sums
    plan.tap_block = balanced_block(p.kernel_size, std::max<int64_t>(1, sum_budget / columns), 1);
    plan.channel_block = balanced_block(in_per_group, sum_budget / columns / plan.tap_block, 1);
    // The transposed grad_output of a tile in the L1 cache: the longer the sums of a tile, the less do their ends
    // weigh. (On a Xeon half, three quarters and all of it made 115, 121 and 125 GFLOP/s of 128->512 channels, k 1.)
    plan.reduction_block =
        dot ? 1024
            : std::clamp<int64_t>(cache.l1 / sizes.accumulate / std::min(columns, tile_columns), 32, kLongestVisit) *
                  sizes.pair;
    // Panel and transposed grad_output in half of the L2 cache.
    const int64_t operand_budget = panel_budget * sizes.pair;
    int64_t positions;
    const auto fit = [&] {
      const int64_t taps = plan.tap_block;
      const auto lay_out = [&](int64_t phases, int64_t shift, int64_t stride) {
        plan.panel_phases = phases;
        plan.phase_shift = shift;
        plan.panel_stride = stride;
        const int64_t row = phases * (p.stride / stride), halos = phases * halo(taps, phases, shift);
        positions = std::min(
            (operand_budget - plan.channel_block * halos) / (plan.channel_block * row + (dot ? 0 : columns)),
            dot ? plan.reduction_block : kLongestRun);
        return positions < 1 || taps * positions < positions * row + halos;
      };
      // Dot products and pairs read neighbours, in a row per phase; else positions stay as they are, for any stride. Or
      // a row per tap, where that is less to copy.
      const bool split = dot || sizes.pair > 1;
      const bool long_rows =
          lay_out(split ? std::min(period, taps) : 1, split ? period_shift : p.dilation, split ? p.stride : 1);
      if (long_rows && !dot) lay_out(taps, p.dilation, p.stride);
      // Three quarters of a visit will do.
      return positions >= std::min(plan.reduction_block * 3 / 4, p.batch * p.out_length);
    };
    while (!fit() && plan.channel_block > 1) plan.channel_block = ceil_div(plan.channel_block, 2);
    while (!fit() && plan.tap_block > 1) plan.tap_block = ceil_div(plan.tap_block, 2);
    // Few blocks of weights and a long sum: the sum is cut into parts, the same ones for every number of threads, of at
    // least 4 visits of the sums.
    const int64_t blocks = p.groups * ceil_div(out_per_group, plan.out_block) *
                           ceil_div(p.kernel_size, plan.tap_block) * ceil_div(in_per_group, plan.channel_block);
    const int64_t chunks = std::max<int64_t>(
        1, std::min(
               {ceil_div(16, blocks), p.batch * p.out_length / (dot ? 1024 : 4 * plan.reduction_block),
                kMostPartBytes / (p.out_channels * rows * sizes.accumulate)}));
    positions = std::clamp<int64_t>(positions, 1, ceil_div(p.batch * p.out_length, chunks));
    // In one visit, rather than in two of little more than half its length.
    if (!dot && 2 * positions < 3 * plan.reduction_block) positions = std::min(positions, plan.reduction_block);
    plan.position_block = balanced_block(p.out_length, positions, sizes.pair);
    plan.position_blocks = ceil_div(p.out_length, plan.position_block);
    plan.item_pitch = (plan.position_block - 1) * (p.stride / plan.panel_stride) + 1 +
                      halo(plan.tap_block, plan.panel_phases, plan.phase_shift);
    // Short outputs: several batch items side by side.
    plan.batch_block = 1;
    if (!dot && plan.position_blocks == 1) {
      const int64_t most_items = (operand_budget - plan.channel_block * plan.panel_phases * 32) /
                                 (plan.channel_block * plan.panel_phases * plan.item_pitch + columns * p.out_length);
      plan.batch_block = std::clamp<int64_t>(
          std::min({most_items, ceil_div(kLongestRun, p.out_length), p.batch / chunks}), 1,
          std::max<int64_t>(1, p.batch));
    }
    plan.reduction_chunks = std::min(chunks, ceil_div(p.batch, plan.batch_block) * plan.position_blocks);
    // Behind the last item of several is room for what pack_phases writes too much.
    const int64_t slack = plan.batch_block > 1 ? kPackSlack : 0;
    plan.panel_width = row_width(ceil_div(plan.batch_block * plan.item_pitch + slack, sizes.pair)) * sizes.pair;
    const int64_t steps = plan.batch_block * ceil_div(plan.position_block, sizes.pair);
    plan.step_table = dot ? columns : steps;
    plan.panel_elements = plan.channel_block * plan.panel_phases * plan.panel_width / sizes.pair + 64;
    // Only a grad_output whose rows are not contiguous is copied for dot products.
    plan.weight_elements = dot && p.output.position == 1 ? 0 : steps * columns + 64;
    plan.result_elements = plan.channel_block * plan.tap_block * columns * (dot ? tile.lanes : 1);

    plan.out_tiles = plan.pass_tiles = 1;
    plan.units = plan.reduction_chunks * blocks;
    plan.partial_bytes = plan.reduction_chunks == 1
                             ? 0
                             : plan.reduction_chunks * p.out_channels * in_per_group * p.kernel_size * sizes.accumulate;
    // Of pairs, the last of an odd number of positions have a table, too, and memory of half an entry for each item.
    const int64_t offsets = plan.channel_block * plan.tap_block;
    finish(
        plan, offsets + 2 * plan.step_table + (sizes.pair > 1 ? offsets + ceil_div(offsets * plan.batch_block, 2) : 0));
    return plan;
  }
};

}  // namespace

Plan weight_plan(const Planner& planner) { return WeightPlanner{planner}.backward_weight(); }

}  // namespace conv1d_ext
