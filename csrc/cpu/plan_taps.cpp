#include "cpu/planner.h"

namespace conv1d_ext {
namespace {

// Rows (in_channel, tap), at most: with 60 of them (4->768 channels, k 15) this ran 0.87 times as fast as the panel on
// a Xeon of wide cores, with 30 (2->256, k 15) 1.4 times.
constexpr int64_t kMostRows = 32;

// Output channels, at least: adding a row up takes as long as multiplying a few of them. With 8, 12 and 16 it ran 1.05
// to 1.4 times as fast as the panel.
constexpr int64_t kFewestChannels = 8;

// Output channels in a part of the sum, at most. So many rows of grad_output are read side by side, and lie in few sets
// of the caches where they are about a power of two apart. With 64, 32 and 16 of them 1->192 channels, k 5, took 0.59,
// 0.57 and 0.54 ms, 2->256, k 15, 2.29, 2.24 and 2.33, 8 x 4->64, k 3, 0.53, 0.47 and 0.47.
constexpr int64_t kPartChannels = 32;

struct TapsPlanner : Planner {
  const int64_t rows = in_per_group * p.kernel_size;

  // By the panel, rows are (in_channel, class of taps), and a tile of few rows spends its time on loads. On a Xeon of
  // wide cores with one row the taps ran 1.3 to 2.6 times as fast, with 2 rows 1.2 to 2.5, with 4 rows 1.0 to 1.5
  // (float64 the same), with 6 rows 0.87 times.
  bool suits_grad_input() const {
    const bool few_rows = 2 * in_per_group * std::min(period, p.kernel_size) <= tile.rows;
    return same_type && p.output.position == 1 && !pads_with_input() && p.kernel_size > 1 && few_rows &&
           rows <= kMostRows && out_per_group >= kFewestChannels && rows * out_per_group <= panel_budget / 2 &&
           4 * halo() <= outputs() && p.stride <= tile.rows;  // blocks of results take little memory
  }

  int64_t part_channels() const { return balanced_block(out_per_group, kPartChannels, 1); }

  // Output positions of a block. Products in a quarter of the L2 cache, and so are the rows of a part and of the next
  // one. Blocks of 256 to 2048 took the same time.
  int64_t outputs() const { return panel_budget / 2 / std::max(rows, 2 * part_channels()); }

  // ... of which the next block computes so many, too.
  int64_t halo() const { return ceil_div((p.kernel_size - 1) * p.dilation, p.stride); }

  Plan backward_input() const {
    Plan plan{};
    plan.algorithm = Algorithm::kTaps;
    plan.fetch_rows = true;
    plan.reduction_chunks = 1;
    plan.part_channels = part_channels();
    plan.tap_block = p.kernel_size;
    plan.channel_block = in_per_group;
    plan.position_block = balanced_block(p.in_length, (outputs() - halo()) * p.stride, tile.lanes);
    plan.position_blocks = ceil_div(p.in_length, plan.position_block);
    plan.item_pitch = ceil_div(plan.position_block, p.stride) + halo();
    plan.panel_width = row_width(plan.item_pitch);
    plan.panel_elements = rows * plan.panel_width;
    plan.weight_elements = rows * out_per_group;
    plan.result_elements = plan.position_block;
    plan.step_table = plan.part_channels;
    plan.out_tiles = plan.pass_tiles = 1;
    plan.units = p.groups * p.batch * plan.position_blocks;
    finish(plan, plan.step_table);
    return plan;
  }
};

}  // namespace

std::optional<Plan> taps_plan(Op op, const Planner& base) {
  const TapsPlanner planner{base};
  if (op != Op::kBackwardInput || !planner.suits_grad_input()) return std::nullopt;
  return planner.backward_input();
}

}  // namespace conv1d_ext
