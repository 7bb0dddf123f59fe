#include "cpu/amx_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/scalar_inl.h"
#include "cpu/tap_classes_inl.h"

namespace conv1d_ext {
namespace {

// Of weights, which threads share, and of those and the panel of one thread: with the rest of its scratch memory they
// stay below 4 MiB.
constexpr int64_t kMostPackedBytes = 11 << 18, kMostBytes = 15 << 18;

// Weights that are more are packed by each thread, for each panel, which then has many positions, and of the channels a
// chunk at a time: steps for this many pieces, 50 KB of a tile's weights; more taps are more. The sums of the chunks
// before are kept, in so many bytes with those weights. GFLOP/s with 16, 24 and 32 pieces (spread of a run: 10 %):
// 1024->2048 channels, k 1, on 249 positions 190, 208, 210; 3072->1536, k 1, 207, 244, 220; 896->1024, k 5, its input
// gradient 296, 297, 271.
constexpr int64_t kChunkPieces = 24, kMostChunkBytes = 9 << 18;

// Positions of a panel, all items together, of several items, or where weights are packed for it. With 256, 512 and
// 1024, in 0.75, 1 and 1.25 MB, the latter ran at 190, 214, 218 (8 items of 512->512, k 2, stride 2) and 216, 256, 273
// (512->512, k 3, stride 2).
constexpr int64_t kMostColumns = 1024;

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
  const int64_t result_stride = op == Op::kBackwardInput ? p.input.position : p.output.position;

  void choose_steps(AmxPlan& plan) const {
    plan.step_taps = std::clamp<int64_t>(kAmxDepth / channels, 1, p.kernel_size);
    plan.channel_steps = ceil_div(channels, kAmxDepth);
    plan.tap_steps = ceil_div(p.kernel_size, plan.step_taps);
    plan.steps = plan.tap_steps * plan.channel_steps;
    plan.row_tiles = ceil_div(rows, kAmxRows);
    plan.chunk_steps =
        plan.all_packed
            ? plan.channel_steps
            : balanced_block(plan.channel_steps, std::max<int64_t>(1, kChunkPieces / plan.pieces / plan.tap_steps), 1);
    const int64_t shift = plan.step_taps * p.dilation, step = std::gcd(p.stride, shift);
    plan.panel_phases = std::min(plan.tap_steps, p.stride / step);
    plan.phase_shift = shift / step;
  }

  // The weights of a tile of rows, for so many steps of the channels.
  int64_t tile_bytes(const AmxPlan& plan, int64_t channel_steps) const {
    return kAmxRows * channel_steps * plan.tap_steps * plan.pieces * kAmxDepth * int64_t{sizeof(uint16_t)};
  }

  int64_t halo(const AmxPlan& plan) const { return (plan.tap_steps - 1) / plan.panel_phases * plan.phase_shift; }
  // Of a panel, with so many positions, and of the rows that it is filled with.
  int64_t position_bytes(const AmxPlan& plan) const {
    const int64_t products = plan.pieces * plan.panel_phases * plan.chunk_steps * int64_t{sizeof(uint16_t)};
    return kAmxDepth * (products + int64_t{sizeof(float)});
  }
  int64_t panel_bytes(const AmxPlan& plan, int64_t positions) const {
    return position_bytes(plan) * (positions + halo(plan));
  }

  // Half of the L2 cache that plans know, the rest for a tile's weights, sums and what streams by. More, since CPUs
  // with this unit have twice the cache, where weights are packed for a panel, and where taps lie far apart: a quarter
  // of the half goes to positions between them. (64->128 channels, k 3, dilation 512: 56 GFLOP/s with half, 230 with
  // more.)
  int64_t panel_budget(const AmxPlan& plan) const {
    if (plan.all_packed && 4 * panel_bytes(plan, 0) <= cache.l2 / 2) return cache.l2 / 2;
    return std::min(cache.l2 * 5 / 4, kMostBytes - plan.packed_bytes) - 2 * kAmxSide * position_bytes(plan);
  }

  // Batch items in a panel: short ones up to a few hundred columns.
  int64_t side_by_side(const AmxPlan& plan, int64_t items) const {
    const int64_t columns = std::min(kMostColumns, panel_budget(plan) / position_bytes(plan));
    return plan.position_blocks > 1 ? 1
                                    : std::clamp<int64_t>(columns / plan.item_pitch, 1, std::max<int64_t>(1, items));
  }

  // Whose weights, or sums in so many columns, are held at a time.
  int64_t pass_tiles(const AmxPlan& plan, int64_t columns) const {
    const int64_t tiles = p.groups * plan.row_tiles, weight_bytes = tile_bytes(plan, plan.chunk_steps);
    if (plan.all_packed) return balanced_block(tiles, kMostPackedBytes / weight_bytes, 1);
    if (plan.chunk_steps == plan.channel_steps) return tiles;
    const int64_t sum_bytes = round_up(columns, kAmxRows) * kAmxRows * int64_t{sizeof(float)};
    return balanced_block(tiles, std::max<int64_t>(1, (kMostChunkBytes - weight_bytes) / sum_bytes), 1);
  }

  bool choose_blocks(AmxPlan& plan) const {
    const int64_t weight_bytes = tile_bytes(plan, plan.chunk_steps);
    if (weight_bytes > (plan.all_packed ? kMostPackedBytes : 1 << 20)) return false;
    plan.packed_bytes = plan.all_packed ? pass_tiles(plan, 0) * weight_bytes : 0;
    const int64_t fitting = (panel_budget(plan) - panel_bytes(plan, 0)) / position_bytes(plan);
    const int64_t most = std::max(kAmxRows, plan.all_packed ? fitting : std::min(fitting, kMostColumns));
    if (panel_bytes(plan, plan.all_packed ? kAmxRows : 2 * kAmxRows) > (1 << 20)) return false;
    plan.position_block = balanced_block(result_length, most, kAmxRows);
    plan.position_blocks = ceil_div(result_length, plan.position_block);
    plan.item_pitch = std::min(result_length, plan.position_block) + halo(plan);
    plan.batch_block = side_by_side(plan, p.batch);
    // Whole tiles are read, wherever they begin.
    const int64_t columns = (plan.batch_block - 1) * plan.item_pitch + std::min(result_length, plan.position_block);
    plan.panel_width = round_up(columns, kAmxSide) + halo(plan);
    plan.panel_piece = (plan.panel_width + kAmxSide) * kAmxDepth;
    plan.panel_elements = plan.panel_phases * plan.chunk_steps * plan.pieces * plan.panel_piece;
    plan.pass_tiles = pass_tiles(plan, columns);
    if (plan.chunk_steps < plan.channel_steps) {
      plan.sum_elements = std::min(plan.pass_tiles, plan.row_tiles) * round_up(columns, kAmxRows) * kAmxRows;
    }
    plan.units = ceil_div(p.batch, plan.batch_block) * plan.position_blocks;
    const int64_t floats = kAmxDepth * (plan.panel_width + kAmxSide) + 2 * kAmxRows * kAmxRows + plan.sum_elements;
    plan.scratch_bytes = int64_t{8} * 64 + plan.panel_elements * int64_t{sizeof(uint16_t)} +
                         (plan.all_packed ? 0 : weight_bytes) + (floats + plan.batch_block) * int64_t{sizeof(float)} +
                         plan.chunk_steps * plan.tap_steps * int64_t{sizeof(int64_t)};
    return true;
  }

  // Sums of a unit's weights, and panel and gradients of a visit, in three quarters of a megabyte each: CPUs with this
  // unit have two megabytes of L2 cache, of which plans know one.
  bool choose_visits(AmxPlan& plan) const {
    plan.step_taps = 1;
    plan.tap_steps = p.kernel_size;
    const int64_t step = std::gcd(p.stride, p.dilation);
    plan.panel_phases = std::min(p.kernel_size, p.stride / step);
    plan.phase_shift = p.dilation / step;
    plan.parities = plan.phase_shift % 2 == 1 && p.kernel_size > plan.panel_phases ? 2 : 1;
    const int64_t in_tiles = ceil_div(in_per_group, kAmxRows), out_tiles = ceil_div(out_per_group, kAmxRows);
    const int64_t tile_bytes = kAmxRows * kAmxRows * p.kernel_size * int64_t{sizeof(float)};
    const int64_t budget = cache.l2 * 3 / 4, most_tiles = budget / tile_bytes;
    if (most_tiles == 0) return false;
    // About square: either operand is laid out once for each block of the other's channels.
    const int64_t side = std::max<int64_t>(1, std::min<int64_t>(out_tiles, std::sqrt(most_tiles)));
    const int64_t in_block = balanced_block(in_tiles, most_tiles / side, 1);
    const int64_t out_block = balanced_block(out_tiles, most_tiles / in_block, 1);
    plan.in_block = std::min(in_per_group, balanced_block(in_per_group, in_block * kAmxRows, kAmxRows));
    plan.out_block = std::min(out_per_group, balanced_block(out_per_group, out_block * kAmxRows, kAmxRows));
    const int64_t in_rows = round_up(plan.in_block, kAmxSide), out_rows = round_up(plan.out_block, kAmxRows);
    const int64_t blocks = p.groups * ceil_div(in_per_group, plan.in_block) * ceil_div(out_per_group, plan.out_block);

    const int64_t position_bytes =
        (plan.panel_phases * plan.parities * in_rows + out_rows) * plan.pieces * int64_t{sizeof(uint16_t)} +
        kAmxSide * int64_t{sizeof(float)};
    const int64_t most = std::max<int64_t>(2 * kAmxDepth, budget / position_bytes - halo(plan));
    if (position_bytes * (halo(plan) + 4 * kAmxDepth) > (1 << 20)) return false;
    const int64_t result_bytes = p.out_channels * in_per_group * p.kernel_size * int64_t{sizeof(float)};
    // As of the direct kernel: few blocks are cut into chunks, of some length.
    constexpr int64_t kLeastChunk = 1024, kMostPartialBytes = 2 << 20;
    const int64_t chunks = std::max<int64_t>(
        1, std::min({ceil_div(16, blocks), p.batch * p.out_length / kLeastChunk, kMostPartialBytes / result_bytes}));
    const int64_t positions = std::min(most, ceil_div(p.batch * p.out_length, chunks));
    plan.position_block = balanced_block(p.out_length, positions, kAmxDepth);
    plan.position_blocks = ceil_div(p.out_length, plan.position_block);
    plan.item_pitch = std::min(p.out_length, plan.position_block) + halo(plan);
    plan.batch_block = 1;
    if (plan.position_blocks == 1) {
      plan.batch_block = std::clamp<int64_t>(positions / plan.item_pitch, 1, std::max<int64_t>(1, p.batch));
    }
    const int64_t columns = (plan.batch_block - 1) * plan.item_pitch + std::min(p.out_length, plan.position_block);
    plan.steps = ceil_div(columns, kAmxDepth);
    plan.panel_width = round_up(plan.steps * kAmxDepth + halo(plan), kAmxDepth);
    plan.panel_piece = in_rows * plan.panel_width;
    plan.panel_elements = plan.panel_phases * plan.parities * plan.pieces * plan.panel_piece;
    plan.grad_elements = out_rows * plan.steps * plan.pieces * kAmxDepth;
    plan.sum_elements = round_up(plan.in_block, kAmxRows) * out_rows * p.kernel_size;
    plan.reduction_chunks = std::min(chunks, ceil_div(p.batch, plan.batch_block) * plan.position_blocks);
    plan.partial_bytes = plan.reduction_chunks == 1 ? 0 : plan.reduction_chunks * result_bytes;
    plan.units = plan.reduction_chunks * blocks;
    const int64_t floats = kAmxSide * (plan.panel_width + kAmxDepth) + plan.sum_elements + 2 * kAmxRows * kAmxRows;
    plan.scratch_bytes = int64_t{7} * 64 + (plan.panel_elements + plan.grad_elements) * int64_t{sizeof(uint16_t)} +
                         floats * int64_t{sizeof(float)} + plan.steps * int64_t{sizeof(int64_t)};
    return true;
  }

  // What follows counts vector FMAs of float, in the measure of fft_plan.cpp. The figures are fitted to some 200 layers
  // and operators on a Xeon with one thread, float32 and bfloat16; nine of ten came out within a quarter of their
  // times. (Packing has become faster since; with a third less for it six operators in bfloat16 would take a slower
  // way.) Those of weights that are packed for each panel are chosen: with them 14 layers mostly take the faster way;
  // that of single channels is, too, with 16 layers; that of direct weight gradients of floats, of 1.5 instead of the
  // fitted 1.15, and kLeastOfBoth, too: of 29 operators, short ones mostly, that take another way by these, 22 became
  // faster, 1.2 times in the mean (deepsea's 4->320 channels, k 8, 0.8 times). Guesses are the cost of sums in chunks,
  // of a tile of rows alone, of results that lie apart, kLeastAlone and kMostClasses.

  double direct(int64_t items) const {
    const bool gradient = op == Op::kBackwardWeight;
    const double weights = double(p.out_channels) * in_per_group * p.kernel_size;
    const double positions = double(items) * p.out_length / tile.lanes;
    if (sizes.pair == 1) return weights * (positions * (gradient ? 1.5 : 1.15) + (gradient ? 0 : 0.3));
    // Pairs of channels, of which an odd one is paired with zeros; not by the depthwise kernels.
    const double pairing = gradient || rows == 1 ? 1 : double(round_up(channels, 2)) / channels;
    return weights * (positions * pairing * 1.45 + (gradient ? 0 : 2));
  }

  // Of the products of two tiles, for all pieces.
  double tile_cost(const AmxPlan& plan, double cost) const {
    return double(kAmxSide) * kAmxSide * kAmxDepth / tile.lanes * (plan.pieces == 3 ? cost : cost / 4.7);
  }

  // For so many batch items.
  double rows_cost(const AmxPlan& plan, int64_t items) const {
    const int64_t block = side_by_side(plan, items), panels = ceil_div(items, block);
    const int64_t longest = std::min(result_length, plan.position_block);
    const int64_t row_tiles = ceil_div(rows, kAmxSide), columns = (block - 1) * plan.item_pitch + longest;
    const int64_t passes = ceil_div(p.groups * plan.row_tiles, pass_tiles(plan, columns));
    const double all_panels = double(panels) * plan.position_blocks;
    const double column_tiles = all_panels * double(ceil_div(columns, kAmxSide));
    // A tile of rows without a second one: fewer products of float for each tile that is loaded.
    const double alone = plan.pieces == 3 && row_tiles % 2 == 1 ? 0.5 : 0;
    const double products = (row_tiles + alone) * column_tiles * plan.steps;
    const double set = double(plan.panel_phases) * plan.channel_steps * kAmxDepth;
    const double positions = column_tiles * kAmxSide + all_panels * halo(plan);
    const double fills = positions * set * std::max(1.0, double(passes) / p.groups);
    const double weights = double(row_tiles) * kAmxSide * plan.steps * kAmxDepth;
    const double sums = double(row_tiles) * kAmxSide * column_tiles * kAmxSide;
    // The taps of a single channel lie side by side.
    const double fill = channels == 1 && p.dilation == 1 ? 0.6 : p.stride > 1 ? 2.2 : 1.3;
    // Weights are read from the L2 cache at best, once for each panel.
    return p.groups *
           (products * tile_cost(plan, 0.44) + fills * fill +
            sums * ((result_stride == 1 ? 1.2 : 5) + 0.3 * (ceil_div(plan.channel_steps, plan.chunk_steps) - 1)) +
            weights * (plan.all_packed ? 2.3 + 1.2 * all_panels : (plan.pieces == 3 ? 3.5 : 6.5) * all_panels));
  }

  double weights_cost(const AmxPlan& plan) const {
    const int64_t panels = ceil_div(p.batch, plan.batch_block);
    const int64_t columns =
        (plan.batch_block - 1) * plan.item_pitch * panels + round_up(p.out_length, kAmxDepth) * panels;
    const double in_rows = round_up(in_per_group, kAmxSide), out_rows = round_up(out_per_group, kAmxSide);
    const double products = in_rows / kAmxSide * (out_rows / kAmxSide) * p.kernel_size * (double(columns) / kAmxDepth);
    const double positions = columns + double(panels) * plan.position_blocks * halo(plan);
    const double panel = plan.panel_phases * plan.parities * in_rows * positions;
    const double results = double(out_per_group) * in_per_group * p.kernel_size * plan.reduction_chunks * 2;
    return p.groups * (products * tile_cost(plan, 0.53) +
                       panel * ceil_div(out_per_group, plan.out_block) * (p.stride > 1 ? 3 : 2.1) +
                       double(out_per_group) * columns * ceil_div(in_per_group, plan.in_block) * 1.8 + results * 2);
  }

  // What decides must not depend on the batch, but for weight gradients, which are sums over it. In batches of short
  // sequences the weights weigh less.
  bool worth_it(const AmxPlan& plan) const {
    // What is faster in a batch may be slower alone, if by less; short batches gain more than is estimated.
    constexpr double kLeastAlone = 0.6, kLeastOfBoth = 0.87;
    const double gain = direct(op == Op::kBackwardWeight ? p.batch : 1) / plan.cycles;
    if (op == Op::kBackwardWeight || gain >= 1) return gain >= 1;
    return gain >= kLeastAlone && gain * direct(kTypicalBatch) / plan.batch_cycles >= kLeastOfBoth;
  }

  AmxPlan plan_by_class() const {
    // Of more classes, results lie too far apart.
    constexpr int64_t kMostClasses = 8;
    if (amx_classes(p) > kMostClasses) return {};
    AmxPlan all{};
    for (int64_t i = 0; i < amx_classes(p); ++i) {
      const Conv1dProblem part = amx_class(p, i).problem;
      if (part.in_length == 0) continue;
      const AmxPlan plan = AmxPlanner{op, part, sizes, tile, cache, Use::kWherePossible}.plan();
      if (plan.pieces == 0) return {};
      const double cycles = all.cycles + plan.cycles, batch_cycles = all.batch_cycles + plan.batch_cycles;
      if (all.pieces == 0) all = plan;
      all.cycles = cycles;
      all.batch_cycles = batch_cycles;
    }
    return use == Use::kWhereFaster && !worth_it(all) ? AmxPlan{} : all;
  }

  AmxPlan rows_plan(bool all_packed) const {
    AmxPlan plan{};
    plan.pieces = sizes.pieces;
    plan.all_packed = all_packed;
    choose_steps(plan);
    if (!choose_blocks(plan)) return {};
    plan.cycles = rows_cost(plan, 1);
    plan.batch_cycles = rows_cost(plan, kTypicalBatch);
    return plan;
  }

  AmxPlan plan() const {
    AmxPlan plan{};
    if (use == Use::kNever || sizes.pieces == 0 || p.accumulate || p.negate) return plan;
    if (op == Op::kBackwardInput && p.stride > 1) return plan_by_class();
    if (std::max(std::abs(p.weight.in_channel), std::abs(p.weight.out_channel)) > kMostWeightStride) return plan;
    if (op == Op::kBackwardWeight) {
      plan.pieces = sizes.pieces;
      if (!choose_visits(plan)) return {};
      plan.cycles = plan.batch_cycles = weights_cost(plan);
    } else {
      plan = rows_plan(true);
      // Several passes fill each panel several times.
      if (plan.pieces == 0 || plan.pass_tiles < p.groups * plan.row_tiles) {
        const AmxPlan other = rows_plan(false);
        if (plan.pieces == 0 || (other.pieces > 0 && other.batch_cycles < plan.batch_cycles)) plan = other;
      }
      if (plan.pieces == 0) return {};
    }
    if (use == Use::kWhereFaster && !worth_it(plan)) return {};
    return plan;
  }
};

}  // namespace

int64_t amx_classes(const Conv1dProblem& problem) {
  return TapClasses{problem, problem.stride / std::gcd(problem.stride, problem.dilation)}.count;
}

AmxClass amx_class(const Conv1dProblem& problem, int64_t tap_class) {
  const TapClasses classes{problem, problem.stride / std::gcd(problem.stride, problem.dilation)};
  const int64_t residue = classes.residue(tap_class);
  Conv1dProblem part = problem;
  part.in_length = std::max<int64_t>(0, ceil_div(problem.in_length - residue, problem.stride));
  part.input.position *= problem.stride;
  part.kernel_size = classes.taps(tap_class);
  part.weight.tap *= classes.period;
  part.dilation = classes.period * problem.dilation / problem.stride;
  part.padding_left = classes.offset(tap_class);
  part.stride = 1;
  return {part, tap_class * problem.weight.tap, residue * problem.input.position};
}

AmxPlan make_amx_plan(
    Op op, const Conv1dProblem& problem, ElementSizes sizes, const TileShape& tile, CacheSizes cache, Use use) {
  return AmxPlanner{op, problem, sizes, tile, cache, use}.plan();
}

}  // namespace conv1d_ext
