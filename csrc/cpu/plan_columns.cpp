#include "cpu/planner.h"

namespace conv1d_ext {
namespace {

// Output channels between two visits of a column's gradients, about: strips of so many weights of three vectors each
// are read again for every few positions, and lie in the L1 cache, or, where the strides of the weights don't let them,
// in the L2 cache. With 32, 64 and 128 of them 2048 -> 4096 channels, k 3, L 21 take 11.6, 11.1 and 11.0 ms.
constexpr int64_t kColumnsPart = 64;

// Positions whose gradients are computed as columns, at most: input gradients of batches of 8 to 64 are 1.3 times as
// fast as by panels at 50 positions (512->512 and 1024->1024 channels, k 3), 1.1 times at 128 (768->768, k 3), 0.97 at
// 160 (512->512, k 5), but a single item 1.3 times at 128, too.
constexpr int64_t kMostGradColumns = 192;

// Of long taps over large strides, positions in a block, at least.
constexpr int64_t kFewestGradColumns = 24;

// For suits_output: positions beyond which outputs fill vectors well enough; bytes of a sum that is worth adding up its
// lanes; bytes of weights that come from memory in most calls (13 MB were found too few, 48 MB enough).
constexpr int64_t kMostShortOutput = 24, kLongSumBytes = 12 << 10, kManyWeightBytes = 24 << 20;

// Positions of the whole batch that weight gradients are computed of as columns, at most; of bfloat16, which the panel
// multiplies in pairs, on a Zen 5 with 32 and 64 of them 1.1 (64->128 channels, k 5) and 0.9 times as fast as there
// (256->256, k 3), with 249 of them 0.5 to 0.7 times.
constexpr int64_t kMostWeightColumns = 256, kMostWeightColumnsOfPairs = 48;

struct ColumnsPlanner : Planner {
  const int64_t sum_length = in_per_group * p.kernel_size;
  const int64_t weight_bytes = out_per_group * sum_length * sizes.storage;  // of a group

  // Outputs that leave lanes idle; of other types than are computed with, whose weights the panel would convert for a
  // single use at batch 1, up to kMostShortOutput. The price is paid by large batches, which the choice must not depend
  // on. Of float32 on a Xeon of wide cores, batches of 1 and 16 of 256->256 channels, k 3, run 1.4 and 0.88 times as
  // fast as by panels with L 2, 1.3 and 0.84 times with L 4; with AVX2 alone, batches of 1 and 32, 1.2 and 1.3 times
  // with L 2, 1.1 and 0.9 times with L 4. In bfloat16, batches of 1, 4 and 64 of 512 channels, L 8, ran 4.3, 1.9 and,
  // in two runs on a busy machine, 0.56 and 1.03 times as fast.
  bool suits_output() const {
    if (sum_length < 4 * tile.lanes || !weights_in_order()) return false;
    if (same_type) {  // a panel has a row for each phase of a stride
      return p.out_length <= 2 || p.out_length * 4 < tile.lanes || (period > 4 && p.out_length * 2 <= tile.lanes) ||
             has_long_sums();
    }
    return p.out_length * 2 <= tile.lanes || (p.out_length <= kMostShortOutput && weight_bytes * 2 > cache.l2);
  }

  // Sums that are worth adding up the lanes of, where the panel leaves a quarter of its lanes idle; of more than a
  // vector where it has 16 lanes and the weights come from memory. Of float32 on a Xeon of wide cores, batches of 1
  // and 16 of 1024->1024 channels, k 3, run 1.3 and 1.1 times as fast as by panels with L 8, 1.2 and 0.94 times with L
  // 12, but 0.95 times both with L 16, and 1.1 and 0.81 times with L 21; of 2048->4096 channels, k 3, L 21, 1.1 and
  // 0.93 times (float64, 1024->1024, L 12: 0.76 and 0.97); of 512->512 channels, k 3, L 8, 1.2 and 0.82 times.
  bool has_long_sums() const {
    if (sum_length * sizes.storage < kLongSumBytes) return false;
    if (p.out_length <= tile.lanes) return p.out_length * 4 <= tile.lanes * 3;
    return tile.lanes >= 16 && p.out_length <= kMostShortOutput && weight_bytes >= kManyWeightBytes;
  }

  Plan forward() const {
    Plan plan{};
    plan.algorithm = Algorithm::kColumns;
    plan.reduction_chunks = 1;
    plan.position_block = std::clamp<int64_t>(p.batch * p.out_length, 1, kMostColumns);
    plan.position_blocks = ceil_div(p.batch * p.out_length, plan.position_block);
    // The columns of a block in 5/8 of the L2 cache; as many channels for few columns, since blocks of channels are
    // added up one after the other, and that must not depend on the batch. They are laid out again for each block of
    // output channels.
    const int64_t column = panel_budget * 5 / 4 * sizes.pair / kMostColumns;
    plan.channel_block = std::min(in_per_group, balanced_block(in_per_group, column / p.kernel_size, 1));
    plan.tap_block = p.kernel_size;
    plan.panel_width = row_width(ceil_div(plan.channel_block * p.kernel_size, sizes.pair)) * sizes.pair;
    plan.panel_elements = plan.position_block * plan.panel_width / sizes.pair + tile.lanes;
    plan.out_tiles = plan.pass_tiles = ceil_div(out_per_group, kColumnRows);
    // Results in an eighth of the L2 cache.
    const int64_t rows = panel_budget / 4 / plan.position_block / kColumnRows * kColumnRows;
    plan.out_block = std::min(out_per_group, std::max(rows, kColumnRows));
    plan.result_elements = plan.out_block * plan.position_block;
    plan.weight_elements = round_up(kColumnRows * plan.position_block, tile.lanes) * tile.lanes;
    plan.units = p.groups * plan.position_blocks * plan.out_tiles;
    finish(plan, 0);
    return plan;
  }

  // Large strides over few channels, as of spectrograms and of resampling: by panels results lie far apart, and the
  // weights of each tap of a stride are packed one by one. Of float32 on a Xeon of wide cores, 1.16 to 2.6 times as
  // fast (1->1025 channels, k 2048, stride 512, L 64000; 2 x 1->1025, stride 1024, L 15999), with few output channels 6
  // to 25 times (2->1, k 480, stride 160; 32 x 1->1, k 455, stride 441); float64 0.92 to 2.8 times; bfloat16 0.87
  // to 1.7 times, but 0.84 times with 2->64 channels, k 64, stride 16.
  bool has_long_taps() const {
    return p.dilation == 1 && weights_in_order() && !pads_with_input() && in_per_group <= (same_type ? 4 : 1) &&
           p.stride >= 8 && p.kernel_size >= std::max(p.stride, 2 * tile.lanes) &&
           kFewestGradColumns * p.kernel_size <= panel_budget;
  }

  bool suits_grad_input() const {
    if (has_long_taps()) return true;
    const bool fits = p.out_length <= kMostGradColumns && kMostGradColumns * p.kernel_size <= panel_budget &&
                      p.padding_left + p.in_length + p.padding_right <= panel_budget;
    // Adding up the columns takes as long as 16 output channels or so: with 8, 16, 32 and 64 of them, 512 input
    // channels, k 3, L 20, batch 16, this ran 0.15, 0.68, 0.79 and 1.0 times as fast as the panel.
    if (!fits || !weights_in_order() || pads_with_input() || out_per_group < 64) return false;
    // The panel is as fast where it wastes few lanes, and packs few weights or uses them often. Of float32 on a Xeon of
    // wide cores, batches of 1 and 16, this ran 1.6 and 1.2 times as fast with 256->256 channels, k 3, L 16, 1.2 and
    // 1.06 times with L 64, 1.2 and 0.93 times with L 128; with 512->512, k 1, 1.3 and 1.0 times with L 96; with
    // 64->64, k 3, in a batch of 16, 0.98 times with L 32, 0.91 times with L 64.
    const bool rarely_used = p.out_length <= 64 && weight_bytes >= 128 << 10;
    // Of few channels the panel of a batch has items side by side, whose lanes are busy: 64->64, k 3, L 50, in batches
    // of 1 and 16, ran 1.04 and 0.84 times as fast by columns, 128->128 channels 1.2 and 0.94 times.
    const bool idle_lanes = out_per_group >= 96 && p.out_length * 10 < round_up(p.out_length, tile.lanes) * 9;
    return !same_type || idle_lanes || rarely_used || weight_bytes * 2 >= cache.l2;
  }

  Plan backward_input() const {
    Plan plan{};
    plan.algorithm = Algorithm::kColumns;
    plan.reduction_chunks = 1;
    plan.position_block = p.in_length;
    plan.item_pitch = p.out_length;
    plan.result_elements = p.padding_left + p.in_length + p.padding_right;
    int64_t most = kMostGradColumns;
    if (has_long_taps()) {
      most = std::clamp<int64_t>(panel_budget * 3 / 4 / p.kernel_size, kFewestGradColumns, most);
      const int64_t halo = ceil_div(p.kernel_size, p.stride);  // columns that meet positions of the block before, too
      plan.position_block = balanced_block(p.in_length, std::max<int64_t>(8, most - halo) * p.stride, p.stride);
      plan.item_pitch = std::min(p.out_length, plan.position_block / p.stride + halo);
      plan.result_elements = plan.position_block + 2 * (p.kernel_size + p.stride);
    }
    plan.position_blocks = ceil_div(p.in_length, plan.position_block);
    plan.batch_block = plan.position_blocks > 1 ? 1 : std::clamp<int64_t>(most / p.out_length, 1, p.batch);
    const int64_t positions = plan.batch_block * plan.item_pitch;
    plan.part_channels = balanced_block(out_per_group, kColumnsPart, 2);
    // Columns and the weights that pass by, from one visit of a column to the next, in half of the L2 cache.
    const int64_t channels = panel_budget / (positions + plan.part_channels) / p.kernel_size;
    plan.channel_block = std::clamp<int64_t>(
        channels < kColumnChannels ? channels : channels / kColumnChannels * kColumnChannels, 1, in_per_group);
    plan.tap_block = p.kernel_size;
    plan.panel_width = row_width(plan.channel_block * p.kernel_size);
    plan.panel_elements = positions * plan.panel_width;
    plan.weight_elements = (plan.part_channels + 1) * positions;
    plan.out_tiles = plan.pass_tiles = ceil_div(in_per_group, kColumnChannels);
    plan.units = ceil_div(p.batch, plan.batch_block) * p.groups * plan.position_blocks * plan.out_tiles;
    finish(plan, 0);
    return plan;
  }

  bool suits_grad_weight() const {
    // Laying out a column costs what it saves where it serves so many output channels: those are transposed in its
    // place. 8 where it is done element by element (512->512, k 3: 1.2, 0.98 and 0.95 times as fast as the panel with
    // 50, 100 and 200 positions); 1 where the taps of a channel lie side by side: then float32 on a Xeon of wide cores
    // ran 1.2, 1.1 and 1.08 times as fast with 256->256 channels, k 3, and 64, 128 and 192 positions (0.9 times with
    // 500), 1.5 and 1.0 times with 64->64 channels and 16 and 64 positions (0.93 times with 192).
    const int64_t positions = p.batch * p.out_length;
    const int64_t served = p.kernel_size > 1 && p.dilation * p.input.position == 1 ? 1 : 8;
    return positions <= (sizes.pair > 1 ? kMostWeightColumnsOfPairs : kMostWeightColumns) &&
           positions * served <= out_per_group && weights_in_order() && sum_length >= 4 * tile.lanes &&
           positions * p.kernel_size <= panel_budget;
  }

  Plan backward_weight() const {
    Plan plan{};
    plan.algorithm = Algorithm::kColumns;
    plan.reduction_chunks = 1;
    const int64_t positions = p.batch * p.out_length;
    const int64_t width = panel_budget / std::max(positions, 4 * tile.rows);  // results of a tile in little memory, too
    plan.channel_block = balanced_block(in_per_group, width / p.kernel_size, 1);
    plan.tap_block = p.kernel_size;
    plan.panel_width = row_width(plan.channel_block * p.kernel_size + tile.lanes);
    plan.panel_elements = positions * plan.panel_width + tile.lanes;
    plan.direct = plain_store;
    plan.weight_elements = positions * tile.rows;
    plan.result_elements = plan.direct ? 0 : tile.rows * plan.panel_width;
    plan.step_table = std::min(positions, kLongestPart);
    plan.out_tiles = plan.pass_tiles = ceil_div(out_per_group, tile.rows);
    plan.units = p.groups * ceil_div(in_per_group, plan.channel_block) * plan.out_tiles;
    finish(plan, 2 * plan.step_table);
    return plan;
  }
};

}  // namespace

std::optional<Plan> columns_plan(Op op, const Planner& base) {
  const ColumnsPlanner planner{base};
  switch (op) {
    case Op::kForward:
      return planner.suits_output() ? std::optional(planner.forward()) : std::nullopt;
    case Op::kBackwardInput:
      return planner.suits_grad_input() ? std::optional(planner.backward_input()) : std::nullopt;
    case Op::kBackwardWeight:
      return planner.suits_grad_weight() ? std::optional(planner.backward_weight()) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace conv1d_ext
