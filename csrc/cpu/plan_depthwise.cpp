#include "cpu/planner.h"
#include "cpu/tap_classes_inl.h"

namespace conv1d_ext {
namespace {

// Positions of a row that are one work unit of a depthwise layer: 16 KB of floats, or 4 KB where all are copied, as for
// strides (3 taps, stride 2, L 4000: 14, 20 and 26 GB/s with 4096, 2048 and 1024).
constexpr int64_t kDepthwiseBlock = 4096, kStridedBlock = 1024;

struct DepthwisePlanner : Planner {
  const int64_t input_phases = std::min(period, p.kernel_size);

  // Whether a depthwise layer's row, split by `phases`, fits the cache with a block of it: else the panel takes the
  // taps in blocks, or by rows of their own, or transposes many phases. `spread` as in panel_blocks.
  bool rows_fit(int64_t phases, int64_t spread) const {
    const int64_t halo_length = halo(p.kernel_size, phases, period_shift);
    return phases <= kMostPhases && phases * (halo_length + spread + 8 * tile.lanes) <= panel_budget / 2;
  }

  // `results` rows of `length` positions, from rows split by `phases`.
  Plan depthwise(int64_t length, int64_t rows, int64_t phases, int64_t results, int64_t spread) const {
    Plan plan{};
    plan.algorithm = Algorithm::kDepthwise;
    plan.reduction_chunks = 1;
    const int64_t halo_length = halo(p.kernel_size, input_phases, period_shift);
    const int64_t limit =
        p.stride == 1 ? kDepthwiseBlock : std::max(kStridedBlock / std::max(phases, results), halo_length);
    plan.position_block = balanced_block(length, limit, tile.lanes);
    plan.position_blocks = ceil_div(length, plan.position_block);
    plan.tap_block = p.kernel_size;
    plan.channel_block = plan.part_channels = plan.out_block = plan.out_tiles = plan.pass_tiles = 1;
    plan.panel_phases = period;
    plan.phase_shift = period_shift;
    plan.step_table = input_phases;
    plan.panel_width = row_width(plan.position_block + halo_length + spread + 2 * tile.lanes);
    plan.panel_elements = phases * plan.panel_width;
    plan.result_elements = results * plan.position_block;
    plan.weight_elements = p.kernel_size;
    plan.units = p.batch * rows * plan.position_blocks;
    finish(plan, 3 * plan.step_table);
    return plan;
  }

  // Whether weight gradients may be dot products of depthwise rows: with a vector of sums for each tap.
  bool sums_fit() const { return rows_fit(input_phases, 0) && p.kernel_size * tile.lanes <= panel_budget / 2; }

  Plan depthwise_weight() const {
    Plan plan = depthwise(p.out_length, p.out_channels, input_phases, 1, 0);
    // A lane's part of the sum over a block is not too long, and few channels have enough parts for the threads.
    const int64_t positions = p.batch * p.out_length;
    const int64_t chunks = std::clamp<int64_t>(ceil_div(16, p.out_channels), 1, std::max<int64_t>(1, positions / 1024));
    const int64_t longest = std::min({plan.position_block, kLongestPart * tile.lanes, ceil_div(positions, chunks)});
    plan.position_block = balanced_block(p.out_length, longest, tile.lanes);
    plan.position_blocks = ceil_div(p.out_length, plan.position_block);
    plan.reduction_chunks = std::clamp<int64_t>(chunks, 1, std::max<int64_t>(1, p.batch * plan.position_blocks));
    plan.weight_elements = p.output.position == 1 ? 0 : plan.position_block;
    plan.result_elements = p.kernel_size * tile.lanes;
    plan.units = plan.reduction_chunks * p.out_channels;
    plan.partial_bytes = plan.reduction_chunks == 1 ? 0 : plan.units * p.kernel_size * sizes.accumulate;
    finish(plan, 3 * plan.step_table);
    return plan;
  }
};

}  // namespace

std::optional<Plan> depthwise_plan(Op op, const Planner& base) {
  if (base.in_per_group != 1) return std::nullopt;
  const DepthwisePlanner planner{base};
  const Conv1dProblem& p = planner.p;
  const int64_t classes = TapClasses{p, planner.period}.count, spread = planner.class_spread(classes);
  switch (op) {
    case Op::kForward:
      // Two output channels for each of the input are taken one by one: a panel would be filled for just them, as a row
      // is split by phase.
      if (planner.out_per_group > (p.stride == 1 ? 2 : 1) || !planner.rows_fit(planner.input_phases, 0)) break;
      return planner.depthwise(p.out_length, p.out_channels, planner.input_phases, 1, 0);
    case Op::kBackwardInput:
      if (planner.out_per_group > 1 || planner.pads_with_input() || !planner.rows_fit(classes, spread)) break;
      return planner.depthwise(ceil_div(p.in_length, p.stride), p.in_channels, 1, classes, spread);
    case Op::kBackwardWeight:
      // Up to four, unless the row has to be split for each.
      if (planner.out_per_group > (p.stride == 1 ? 4 : 2) || !planner.sums_fit()) break;
      return planner.depthwise_weight();
  }
  return std::nullopt;
}

}  // namespace conv1d_ext
