// What the planners of all direct algorithms need: sizes that follow from the problem.
#pragma once

#include <algorithm>
#include <numeric>
#include <optional>

#include "cpu/plan.h"
#include "cpu/scalar_inl.h"

namespace conv1d_ext {

// Positions that are copied to a panel, or read where they lie, in one run, at most. Between runs the row changes, and
// in memory of small pages each row costs a page walk: copies of 32 rows ran at 7, 9, 12 and 24 GB/s in runs of 192,
// 384, 768 and 1536 floats.
constexpr int64_t kLongestRun = 2048;

// Of packed weights of one pass, or of partial sums, which threads share: with the scratch memory of one this stays
// below 4 MiB.
constexpr int64_t kMostPartBytes = 5 << 19;

struct Planner {
  const Conv1dProblem& p;
  const ElementSizes sizes;
  const TileShape& tile;
  const CacheSizes cache;
  const int64_t in_per_group = p.in_channels / p.groups;
  const int64_t out_per_group = p.out_channels / p.groups;
  const bool same_type = sizes.storage == sizes.accumulate;
  const bool plain_store = same_type && !p.accumulate && !p.negate;
  const int64_t tile_columns = tile.accumulators / tile.rows * tile.lanes;
  // Half of the L2 cache for the panel: the rest is for weights, results and what streams by.
  const int64_t panel_budget = cache.l2 / 2 / sizes.accumulate;
  // Taps k and k + period read the same phase of the input, period * dilation / stride positions apart.
  const int64_t period = p.stride / std::gcd(p.stride, p.dilation);
  const int64_t period_shift = p.dilation / std::gcd(p.stride, p.dilation);

  // Whether the tile multiplies what it loads a few times only: that of AVX2's 16 registers, not of AVX-512's 32.
  bool small_tile() const { return tile.accumulators < 16; }

  // Positions in a row of the panel besides those of the outputs, for so many taps.
  static int64_t halo(int64_t taps, int64_t phases, int64_t shift) { return (taps - 1) / phases * shift; }

  // Rows are padded to an odd number of cache lines: at a multiple of 4096 bytes they would all share a few cache sets.
  int64_t row_width(int64_t elements) const {
    const int64_t line = 64 / sizes.accumulate;
    return (ceil_div(elements, line) | 1) * line;
  }

  void finish(Plan& plan, int64_t tables) const {
    plan.scratch_bytes =
        int64_t{64} * 8 +
        sizes.accumulate * (plan.panel_elements + plan.weight_elements + plan.result_elements + plan.panel_width) +
        tables * int64_t{sizeof(int64_t)};
  }

  // grad_output positions that `count` classes of taps lie apart: offset(0) - offset(count - 1), at most.
  int64_t class_spread(int64_t count) const { return count == 1 ? 0 : (count - 1) * p.dilation / p.stride + 1; }

  // Weights that are read in their order.
  bool weights_in_order() const { return p.weight.tap == 1 && p.weight.in_channel == p.kernel_size; }

  // Whether the input's gradient has a second pass, for padding that repeats the input.
  bool pads_with_input() const { return p.padding_mode != PaddingMode::kZeros && p.padding_left + p.padding_right > 0; }
};

// Nothing where other algorithms suit the problem better.
std::optional<Plan> depthwise_plan(Op op, const Planner& planner);
std::optional<Plan> columns_plan(Op op, const Planner& planner);
std::optional<Plan> taps_plan(Op op, const Planner& planner);
// Any problem: forward and backward_input.
Plan panel_plan(Op op, const Planner& planner);
// Any problem: backward_weight, by a panel or by dot products.
Plan weight_plan(const Planner& planner);

}  // namespace conv1d_ext
