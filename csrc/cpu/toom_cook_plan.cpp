#include "cpu/toom_cook_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

// Of transformed weights, or of partial sums, which threads share: with the scratch memory of one they stay below 4
// MiB, as with the direct kernels.
constexpr int64_t kMostPackedBytes = 11 << 18, kMostPartialBytes = 2 << 20;

// Kernels that pairs of outputs take; of longer ones pairs of pairs have fewer products.
constexpr int64_t kPairTaps = 3;

// What is faster in a batch may take 1 / kLeastAlone times as long alone.
constexpr double kLeastAlone = 0.9;

// Longer kernels are the Fourier transform's.
constexpr int64_t kMostTaps = 128;

// Of a phase of a stride: one chunk.
constexpr int64_t kMostPhaseTaps = 4;

// Patches that a block of a row has more for the chunks of a kernel, at most.
constexpr int64_t kLongestHalo = 512;

struct ToomCookPlanner {
  const Op op;
  const Conv1dProblem& p;
  const ElementSizes sizes;
  const TileShape& tile;
  const CacheSizes cache;
  const Use use;
  const ToomCookForm form;
  const int64_t outputs = form == ToomCookForm::kPairs ? 2 : 4;  // of a patch
  const bool weights = op == Op::kBackwardWeight;
  const int64_t in_per_group = p.in_channels / p.groups, out_per_group = p.out_channels / p.groups;
  const int64_t channels = op == Op::kBackwardInput ? out_per_group : in_per_group;
  const int64_t rows = op == Op::kBackwardInput ? in_per_group : out_per_group;
  const int64_t source_phases = op == Op::kBackwardInput ? 1 : p.stride;
  const int64_t result_phases = op == Op::kBackwardInput ? p.stride : 1;
  const int64_t source_rows = channels * source_phases;
  const int64_t phase_taps = ceil_div(p.kernel_size, p.stride);
  const int64_t tile_columns = tile.accumulators / tile.rows * tile.lanes;
  const int64_t element = sizes.storage;
  const int64_t l2 = cache.l2 / element;  // in elements
  // The products of pairs are a little larger than direct ones, those of pairs of pairs once more, so that for the same
  // error of their sum parts are half as long, and a quarter.
  const int64_t longest_part = form == ToomCookForm::kPairs          ? kLongestPart / 2
                               : form == ToomCookForm::kPairsOfPairs ? kLongestPart / 4
                                                                     : kLongestPart;
  const bool near = p.dilation <= tile.lanes;  // rows are taken apart in groups of `dilation` patches

  int64_t halo(const ToomCookPlan& plan) const { return (plan.chunks - 1) * p.dilation; }

  void choose_transform(ToomCookPlan& plan) const {
    const int64_t taps = phase_taps;
    plan.form = form;
    plan.outputs = outputs;
    plan.source_phases = source_phases, plan.result_phases = result_phases;
    plan.taps = outputs, plan.chunks = ceil_div(taps, outputs);
    switch (form) {
      case ToomCookForm::kPairs:
        plan.taps = taps, plan.chunks = 1;
        break;
      case ToomCookForm::kPairsOfPairs: {
        // Planes of a chunk with all its taps, and without the first, the first two, the first three.
        constexpr int64_t kPlanes[] = {9, 8, 6, 4};
        plan.planes = kPlanes[0];
        plan.lead = plan.chunks * outputs - taps;
        plan.products = plan.planes * (plan.chunks - 1) + kPlanes[plan.lead];
        break;
      }
      case ToomCookForm::kFours:
        // Of those in chunks of four taps the one with the fewest products, or of fewer planes, since its error is
        // less.
        plan.taps = std::min(taps, outputs);
        if (taps % outputs == 1 && 2 * outputs * (plan.chunks - 1) < (2 * outputs - 1) * plan.chunks) {
          plan.taps = outputs + 1;
          --plan.chunks;
        }
    }
    if (form != ToomCookForm::kPairsOfPairs) {
      plan.planes = outputs + plan.taps - 1;
      plan.products = plan.planes * plan.chunks;
    }
    if (p.stride > 1) {
      plan.lead = taps * p.stride - p.kernel_size;
      // The first plane of pairs has a part of the first tap alone.
      plan.products = plan.planes * p.stride - (form == ToomCookForm::kFours ? 0 : plan.lead);
    }
  }

  // Elements from plane to plane of a panel with so many items: what is stored and what is read, in whole vectors.
  int64_t panel_width(const ToomCookPlan& plan, int64_t items) const {
    const int64_t line = 64 / element, before = (items - 1) * plan.item_pitch;
    const int64_t stored = before + round_up(plan.item_pitch, tile.lanes);
    const int64_t read = halo(plan) + round_up(before + plan.item_pitch - halo(plan), tile.lanes);
    return (ceil_div(std::max(stored, read), line) | 1) * line;
  }

  // Blocks of patches of about `limit`, and batch items side by side where rows are shorter. `fits(width)`: whether the
  // memory for rows of a panel that are so wide does.
  template <class Fits>
  void choose_patches(ToomCookPlan& plan, int64_t limit, const Fits& fits) const {
    plan.patch_step = near && p.dilation > 1 ? p.dilation : tile.lanes;
    plan.patch_block =
        balanced_block(plan.patches, std::max(limit / plan.patch_step, int64_t{1}) * plan.patch_step, plan.patch_step);
    plan.patch_blocks = ceil_div(plan.patches, plan.patch_block);
    plan.item_pitch = plan.patch_block + halo(plan);
    plan.batch_block = 1;
    if (plan.patch_blocks == 1) {
      plan.patch_block = plan.patches;
      plan.item_pitch = plan.patches + halo(plan);
      plan.batch_block = std::clamp<int64_t>(limit / plan.item_pitch, 1, std::max<int64_t>(1, p.batch));
      while (plan.batch_block > 1 && !fits(panel_width(plan, plan.batch_block))) --plan.batch_block;
    }
    plan.panel_width = panel_width(plan, plan.batch_block);
    plan.patch_width = round_up(plan.patch_block + halo(plan) + 2 * tile.lanes, tile.lanes) + tile.lanes;
    plan.line_elements = outputs * (plan.patch_width + tile.lanes) * std::min(source_phases, kPhasesTogether) + 64;
    // Of the results of a stride: a vector of patches of each phase, twice.
    plan.line_elements = std::max(plan.line_elements, 2 * result_phases * outputs * tile.lanes + 64);
  }

  void finish(ToomCookPlan& plan) const {
    const int64_t elements = plan.panel_elements + plan.sum_elements + plan.span_elements + plan.grad_elements +
                             plan.line_elements + plan.gathered_rows * plan.patch_width + plan.slab_elements;
    plan.scratch_bytes =
        int64_t{10} * 64 + elements * element + (2 * plan.step_table + plan.row_table) * int64_t{sizeof(int64_t)};
  }

  // What follows counts vector FMAs, or the time of one, like fft_plan.cpp; the figures are measured on a Zen 4
  // (benchmarks/NOTES.md), whose FMAs of AVX2 take half as long as those of AVX-512. So do all of wide cores, which are
  // taken to be alike.
  const bool small_tile = tile.accumulators < 16, short_fmas = small_tile || wide_cores(cache);

  // Vectors of a row of patches, with what each block has more.
  double vectors(const ToomCookPlan& plan, int64_t more) const {
    return double(plan.patch_blocks) * ceil_div(plan.patch_block + more, tile.lanes);
  }
  // For a vector of patches: the transform, and the way between a tensor's row and its patches, by runs of `dilation`.
  double patches_cost() const {
    const double transform = form != ToomCookForm::kPairs ? 70 : short_fmas ? 90 : 60;
    if (p.dilation == 1) return transform;
    if (near) return 60 + 24.0 * tile.lanes / p.dilation;
    return form == ToomCookForm::kPairsOfPairs ? 300 + 2000.0 / p.dilation : 200;
  }
  // Short parts of sums are added up more often. `whole`: the panel has all channels, and sums don't wait for others.
  // `in_one`: and it is filled once, for all weights.
  double product_cost(const ToomCookPlan& plan, bool whole, bool in_one) const {
    switch (form) {
      case ToomCookForm::kPairs:
        if (short_fmas) return whole ? 1.12 : 1.25;
        return whole ? 1.08 : plan.taps == 3 ? 1.15 : 1.35;
      case ToomCookForm::kPairsOfPairs:
        if (short_fmas) return in_one ? 1.35 : whole ? 1.5 : 1.6;
        return whole ? 1.2 : 1.27;
      case ToomCookForm::kFours:
        break;
    }
    return 1.08;
  }

  void plan_rows(ToomCookPlan& plan) const {
    // Five eighths of the L2 cache for the panel, of two register tiles of columns if they fit, else of one (of fours
    // one and a third: with AVX-512 four vectors, in two tiles), or as much as the halo, which is transformed again for
    // each block.
    const int64_t budget = l2 * 5 / 8;
    const auto fits = [&](int64_t patches) { return source_rows * plan.planes * patches <= budget; };
    int64_t limit = 2 * tile_columns;
    if (!fits(limit + halo(plan))) limit = form != ToomCookForm::kFours ? tile_columns : tile_columns * 4 / 3;
    // The panel's rows are a little longer than the patches in it, so that a whole one may take a little more. Items
    // side by side must have a whole one: where it begins anew, sums of parts do, and they must not depend on the
    // batch.
    const auto whole = [&](int64_t width) { return source_rows * plan.planes * width <= budget * 5 / 4; };
    // Nor may it that the sums of all phases of a result fit, a quarter of the L2 cache.
    const auto sums_of = [&](int64_t width) { return tile.rows * result_phases * plan.planes * width; };
    const auto sums_fit = [&](int64_t width) { return result_phases == 1 || sums_of(width) <= l2 / 4; };
    choose_patches(
        plan, std::max(limit, halo(plan)), [&](int64_t width) { return whole(width) && sums_fit(width + tile.lanes); });
    const int64_t most_channels = budget / (plan.planes * (plan.patch_block + halo(plan)));
    const auto part = [&](int64_t chunks) {
      return balanced_block(source_rows, std::min(most_channels, longest_part / std::max<int64_t>(1, chunks)), 1);
    };
    plan.part_channels = part(plan.chunks);
    plan.other_part_channels = part(plan.chunks - 1);
    const int64_t channel_elements = plan.planes * plan.panel_width;
    const int64_t parts = budget / channel_elements / plan.part_channels;
    plan.channel_block = whole(plan.panel_width)
                             ? source_rows
                             : balanced_block(source_rows, parts * plan.part_channels, plan.part_channels);
    const int64_t columns = (plan.batch_block - 1) * plan.item_pitch + plan.patch_block;
    plan.sum_width = round_up(columns, tile.lanes) + tile.lanes;
    plan.row_tiles = ceil_div(rows, tile.rows);
    const int64_t tile_sums = sums_of(plan.sum_width);
    const bool all_channels = plan.channel_block >= source_rows;
    plan.tile_block = std::clamp<int64_t>(all_channels ? 1 : l2 / 4 / tile_sums, 1, plan.row_tiles);
    // The panel is also where weights of some tiles are put in order.
    const int64_t weight_tile = (kTapStep + p.kernel_size) * tile.rows + kPackSlack;
    plan.panel_elements = std::max(
        plan.channel_block * channel_elements + 64,
        weight_tile * std::clamp<int64_t>(l2 / 4 / weight_tile, 1, kMostPackTiles));
    plan.sum_elements = plan.tile_block * tile_sums;
    plan.span_elements = tile.rows * tile_columns;
    plan.gathered_rows = near ? outputs : outputs + plan.taps - 1;
    const auto steps = [&](int64_t part_channels, int64_t chunks) {
      return std::min(plan.channel_block, kSpanParts * part_channels) * chunks;
    };
    plan.step_table = steps(plan.part_channels, plan.chunks) + steps(plan.other_part_channels, plan.chunks - 1);
    const int64_t tile_bytes = tile.rows * channels * plan.products * element;
    const int64_t tiles = p.groups * plan.row_tiles, most = kMostPackedBytes / tile_bytes;
    if (most == 0 || !sums_fit(plan.sum_width) || weight_tile > l2 / 4) {
      plan.cycles = plan.batch_cycles = std::numeric_limits<double>::infinity();
      return;
    }
    plan.pass_tiles = balanced_block(tiles, most, 1);
    plan.packed_bytes = plan.pass_tiles * tile_bytes;
    plan.units = ceil_div(p.batch, plan.batch_block) * plan.patch_blocks;

    const double products = double(rows) * channels * plan.products;
    const int64_t held = all_channels ? plan.pass_tiles : std::min(plan.tile_block, plan.pass_tiles);
    const double fills = std::max(1.0, double(plan.row_tiles) / held);
    const double edges = op == Op::kBackwardInput && p.padding_mode != PaddingMode::kZeros
                             ? direct() * (p.padding_left + p.padding_right) / p.in_length
                             : 0;
    // Weights are transposed on the way; backward_input has short pieces of them. (Of long strides forward's take 10,
    // but where they come in many passes for few positions, threads wait for each other's: 1->1025, k 2048, stride 512,
    // was 1.03 to 1.19 times as fast as the direct kernels, with two threads, at times, 0.7 times.)
    const double weights_cost = op != Op::kBackwardInput ? 17 : result_phases > 1 ? 50 : 28;
    // A panel of more than half of the L2 cache is read from farther away: strides of 512 channels, k 3, were 0.95 to
    // 1.0 times as fast as the direct kernels, with two threads 0.90 to 0.94 times.
    const bool large = source_phases > 1 && 2 * plan.channel_block * channel_elements > l2;
    const double product = product_cost(plan, all_channels, all_channels && fills == 1) * (large ? 1.1 : 1);
    const double item =
        edges + p.groups * (products * vectors(plan, 0) * product + (fills * source_rows * vectors(plan, halo(plan)) +
                                                                     rows * result_phases * vectors(plan, 0)) *
                                                                        patches_cost());
    const double transformed_weights = p.groups * products / tile.lanes * weights_cost;
    plan.cycles = item + transformed_weights;
    plan.batch_cycles = kTypicalBatch * item + transformed_weights;
    plan.multiplications = p.groups * (products * p.batch * plan.patches);
  }

  void plan_weights(ToomCookPlan& plan) const {
    // Sums of a block of weights in three eighths of the L2 cache, square, but for whole tiles of columns; panel and
    // transformed grad_output in half of it.
    const int64_t sums = l2 * 3 / 8, side = std::sqrt(double(sums) / plan.planes / plan.chunks);
    plan.out_block = balanced_block(rows, std::max(tile_columns, side), tile.lanes);
    plan.channel_block = balanced_block(channels, sums / (plan.planes * plan.chunks * plan.out_block), 1);
    const int64_t l1_patches = cache.l1 * 3 / 4 / element / std::min(plan.out_block, tile_columns);
    const int64_t block = std::max<int64_t>(32, l1_patches);
    plan.reduction_block = form == ToomCookForm::kFours ? block : std::min(block, longest_part);
    const auto fits = [&](int64_t patches) {
      return plan.planes * (plan.channel_block * patches + plan.out_block * patches) <= l2 / 2;
    };
    int64_t limit = form == ToomCookForm::kPairs ? plan.reduction_block : block;
    while (limit > 2 * tile.lanes && !fits(limit + halo(plan))) limit -= tile.lanes;
    const int64_t most_channels = l2 / 2 / (plan.planes * (limit + halo(plan)));
    plan.channel_block = balanced_block(channels, std::min(plan.channel_block, most_channels), 1);
    choose_patches(plan, limit, fits);
    plan.panel_elements = std::max(
        plan.channel_block * plan.planes * plan.panel_width + 64, (kTapStep + p.kernel_size) * plan.out_block + 64);
    plan.row_table = 2 * plan.channel_block * plan.chunks;
    plan.sum_elements = plan.planes * plan.channel_block * plan.chunks * plan.out_block;
    plan.step_table = plan.batch_block * plan.patch_block;
    plan.grad_elements = plan.planes * plan.step_table * plan.out_block;
    plan.gathered_rows = std::max(outputs * tile.lanes, outputs + plan.taps - 1);
    plan.slab_elements = outputs * plan.patch_width * tile.lanes + 64;
    const int64_t blocks = p.groups * ceil_div(rows, plan.out_block) * ceil_div(channels, plan.channel_block);
    const int64_t steps = ceil_div(p.batch, plan.batch_block) * plan.patch_blocks;
    const int64_t result_bytes = p.out_channels * in_per_group * p.kernel_size * element;
    // As of the direct kernel: at least 4 visits of the sums in each chunk.
    plan.reduction_chunks =
        std::max<int64_t>(1, std::min({ceil_div(16, blocks), steps / 4, kMostPartialBytes / result_bytes}));
    plan.partial_bytes = plan.reduction_chunks == 1 ? 0 : plan.reduction_chunks * result_bytes;
    plan.units = plan.reduction_chunks * blocks;

    const double products = double(rows) * channels * plan.products, items = p.batch;
    const double product = form != ToomCookForm::kPairsOfPairs ? 1.35 : short_fmas ? 1.6 : 1.48;
    const double patches = items * plan.patches / tile.lanes;
    plan.cycles =
        p.groups * (products * patches * product + products / tile.lanes * 20 * plan.reduction_chunks +
                    channels * items * vectors(plan, halo(plan)) * patches_cost() * ceil_div(rows, plan.out_block) +
                    rows * items * vectors(plan, 0) * (patches_cost() + 30) * ceil_div(channels, plan.channel_block));
    plan.batch_cycles = plan.cycles;
    plan.multiplications = p.groups * (products * p.batch * plan.patches);
  }

  // The direct kernels reach 90 % of the peak (AVX2: 85 %), those of backward_weight 60 to 85 %, an input gradient of a
  // stride 80 %.
  double direct() const {
    const double products = double(p.out_channels) * in_per_group * p.kernel_size * p.out_length / tile.lanes;
    if (weights) return p.batch * products * 1.3;
    return products * (form != ToomCookForm::kFours && small_tile ? 1.18 : 1.1) * (result_phases > 1 ? 1.14 : 1);
  }

  ToomCookPlan plan() const {
    ToomCookPlan plan{};
    const bool plain = !p.accumulate && !p.negate && sizes.accumulate == sizes.storage;
    if (use == Use::kNever || !plain || phase_taps < 2 || phase_taps > kMostTaps) return plan;
    // Weight gradients of strides were no faster: 0.81 to 1.04 times the direct kernels.
    if (p.stride > 1 && (weights || p.dilation > 1 || phase_taps > kMostPhaseTaps)) return plan;
    // Fewer have nothing to share a transform with.
    if (use == Use::kWhereFaster && std::min(rows, source_rows) < 8) return plan;
    choose_transform(plan);
    if (halo(plan) > kLongestHalo) return {};
    // Of phases: backward_input's are those of the padded row.
    const int64_t length = op != Op::kBackwardInput
                               ? p.out_length
                               : (p.padding_left + p.in_length - 1) / p.stride - p.padding_left / p.stride + 1;
    // Whole groups of `dilation` patches; where a vector is not as long as that, the last one no further than the row
    // goes.
    const int64_t group = outputs * p.dilation, whole = length / group * p.dilation;
    plan.patches = near ? ceil_div(length, group) * p.dilation : whole + std::min(p.dilation, length % group);
    weights ? plan_weights(plan) : plan_rows(plan);
    finish(plan);
    if (!weights && p.batch > 1 && std::isfinite(plan.cycles)) {
      // Results must not depend on the batch, and so neither must the choice.
      Conv1dProblem alone = p;
      alone.batch = 1;
      const ToomCookPlan other = ToomCookPlanner{op, alone, sizes, tile, cache, Use::kWherePossible, form}.plan();
      plan.cycles = other.cycles, plan.batch_cycles = other.batch_cycles;
    }
    // Alone, and in a batch, whose items share the transformed weights: the geometric mean counts.
    const double least_gain = form == ToomCookForm::kFours ? 1.1 : 1.05, gain = direct() / plan.cycles;
    const double batch_gain = direct() * (weights ? 1 : kTypicalBatch) / plan.batch_cycles;
    const bool faster = gain >= kLeastAlone && gain * batch_gain > least_gain * least_gain;
    return (use == Use::kWherePossible ? std::isfinite(plan.cycles) : faster) ? plan : ToomCookPlan{};
  }
};

}  // namespace

ToomCookPlan make_toom_cook_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use,
    bool reduced_precision) {
  const auto plan = [&](ToomCookForm form) {
    return ToomCookPlanner{op, problem, sizes, tile, cache, use, form}.plan();
  };
  const ToomCookForm precise =
      ceil_div(problem.kernel_size, problem.stride) <= kPairTaps ? ToomCookForm::kPairs : ToomCookForm::kPairsOfPairs;
  if (!reduced_precision || sizes.storage != sizeof(float)) return plan(precise);
  const ToomCookPlan fours = plan(ToomCookForm::kFours);
  if (use == Use::kWherePossible) return fours;
  const ToomCookPlan pairs = plan(precise);
  const auto time = [](const ToomCookPlan& of) { return of.cycles * of.batch_cycles; };
  return pairs.taps > 0 && (fours.taps == 0 || time(pairs) < time(fours)) ? pairs : fours;
}

}  // namespace conv1d_ext
