#include "cpu/planner.h"
#include "cpu/tap_classes_inl.h"

namespace conv1d_ext {
namespace {

// Tiles of columns per panel: each tile of weights is packed once for all of them. More of them where the sums are kept
// in the result itself; else the panel is filled again for each block of results. With 8, 12, 16, 24 and 32 tiles, the
// input gradient of 1024->256 channels, k 9, ran at 147, 158, 162, 171 and 168 GFLOP/s on a Xeon, that of 1024->896,
// k 5, at 134, 144, 148, 158 and 165; with 8, 12, 16 and 24 one of stride 2, whose sums are not, at 45, 70, 50 and 56
// on a busy Zen 4.
constexpr int64_t kColumnTiles = 12, kDirectColumnTiles = 24;

// Tiles of columns below which a panel has fewer channels rather than fewer positions, though their weights are packed
// once: all of them are read again for each panel. With 2, 3, 4, 5 and 6 tiles, 512->512 channels, k 3, stride 2, ran
// at 144, 152, 150, 158 and 158 GFLOP/s on a Xeon.
constexpr int64_t kFewColumnTiles = 5;

// Of weights that lie strided in memory, as input gradients read them, tiles that together make pieces of so many bytes
// are packed at once: 256, 512 and 1024 made it 122, 141 and 144 GFLOP/s for 2048->2048 channels, k 1.
constexpr int64_t kLeastPieceBytes = 1024;

// Multiplications of a panel's element, in tiles of rows, beyond which rows are not read where they lie. On a Zen 4, at
// 192 (512->512 channels, k 3) that saves 4 % of the time, at 640 (896->1024, k 5) nothing. With AVX2 it mostly saves
// time below 90, up to a quarter (32->32, k 11: 2 %), and mostly costs some from 128 on, up to 17 % (192->192, k 3: 5
// to 12 %). On a Xeon of wide cores it saves 13 % (1024->2048, 256 uses) to have a panel, and costs 8 % and more below
// 8 uses; beyond, see kUsesOfFewRows. On a Zen 5 it costs up to 24 % (32->32, k 3: 176 GFLOP/s and 217; 512->128, k 1:
// 178 and 208; input gradients of 80->512, k 3: 180 and 205), but saves 5 to 10 % with more than kPanelTaps (16->8,
// k 11; 25->25, k 7).
constexpr int64_t kPanelUses = 256, kPanelUsesOfSmallTiles = 96, kFewPanelUses = 7, kPanelTaps = 6;

// On Intel's wide cores few rows of long sequences are read where they lie up to more uses, by several taps: at 14 to
// 24 uses 1.05 to 1.14 times as fast (64->64, k 3; 32->32, k 5; 16->16, k 7), at 40 to 60 1.00 to 1.08 times; by one,
// at 8 uses 1.11 times (64->64), at 11, with AVX2 alone, 0.81 times, at 16 0.89 times (64->128). With 112 rows and more
// it was mostly slower (128->64, k 3: 0.92; 192->192, k 1: 0.88; 128->512, k 1: 0.81).
constexpr int64_t kUsesOfFewRows = 24, kUsesOfFewPointwiseRows = 8, kFewRows = 64;

// Rows that input gradients of strides, which have few uses for them, read where they lie, at most: on a Zen 5 48 and
// 64 rows made 1.7 and 1.1 times as many GFLOP/s so (2->48, k 8, stride 4; 1->64, k 16, stride 8), 128 and 512 rows 0.9
// and 0.6 times (128->128, k 1, stride 2; 1->512, k 10, stride 5).
constexpr int64_t kMostStridedRows = 64;

// Of packed weights that threads share: with the scratch memory of one this stays below 4 MiB.
constexpr int64_t kMostSharedBytes = 3 << 20;

// What batch items side by side have to gain by estimate where one alone fills a tile.
constexpr double kLeastGainOfItems = 1.06;

// Channels that are read side by side where each element is used once, by a single tile of rows: few enough for the
// prefetchers of the CPU to follow their rows. On a Xeon with 16, 32 and 64 of them, in runs of 1024, 512->8 channels
// ran at 75, 73 and 58 GFLOP/s, 8 x 96->3 at 27, 27 and 21; by a panel at 58 and 16.
constexpr int64_t kStreamedChannels = 32;

struct PanelPlanner : Planner {
  // Positions of a block, `limit` at most: whole tiles, so that none is narrower than it need be, or all.
  int64_t whole_tiles(int64_t length, int64_t limit) const {
    return std::min(round_up(length, tile.lanes), balanced_block(length, limit, tile_columns));
  }

  // Multiplications of a panel's element, in tiles of rows, up to which rows may be read where they lie.
  int64_t most_uses_in_place(int64_t taps) const {
    if (wide_cores(cache) && (!cache.amd || taps > kPanelTaps)) return kFewPanelUses;
    return small_tile() ? kPanelUsesOfSmallTiles : kPanelUses;
  }

  // Batch items side by side, plan.batch_block at most, for a panel of `channels` rows of phases, read by `rows` rows
  // of the tile: as few vectors and tiles as can be for each item, where one alone fills a tile. With AVX-512, 50
  // positions of float32 are four vectors, of which a fifth is idle, in two tiles; three times 50 are ten in four. (On
  // a Xeon batches of 50 positions ran 1.33 times as fast, 384->256, k 5; of 100 positions 1.07 times, 512->512, k 3.)
  int64_t best_items(
      const Plan& plan, int64_t channels, int64_t rows, int64_t length, int64_t taps, int64_t phases) const {
    if (round_up(length, tile.lanes) < tile_columns) return plan.batch_block;
    // The unit is a vector in one step of the sum. A tile costs a quarter more in each step, since it reads the
    // weights, and a vector of results 5 where it is not stored at once.
    const auto time = [&](int64_t items) {
      const int64_t vectors = ceil_div((items - 1) * plan.item_pitch + length, tile.lanes);
      const int64_t tiles = ceil_div(vectors * tile.lanes, tile_columns);
      const double stored = items > 1 || !plan.direct ? 5.0 * double(vectors) : 0;
      return (double(channels * taps) * (double(vectors) + 0.25 * double(tiles)) + stored) / double(items);
    };
    // Those that fill a tile but for a part of a vector (64->64, k 7, 46 positions: 1.06 times as fast alone).
    if (length < tile_columns) return time(plan.batch_block) > kLeastGainOfItems * time(1) ? 1 : plan.batch_block;
    // Alone, items are read where they lie (64->16, k 1, 65 positions: 0.84 times as fast side by side), or their
    // panels are filled by transposes.
    const bool in_place = same_type && p.stride == 1 && p.padding_left + p.padding_right == 0 &&
                          ceil_div(rows, tile.rows) * taps <= most_uses_in_place(taps);
    if (in_place || (phases > kMostPhases && p.dilation == 1)) return 1;
    int64_t best = 1;
    for (int64_t most = 2; most <= plan.batch_block; ++most) {
      const int64_t items = balanced_block(p.batch, most, 1);  // blocks that threads finish together
      if (time(items) < time(best)) best = items;
    }
    return time(1) > kLeastGainOfItems * time(best) ? best : 1;
  }

  // Block sizes for an operator whose panel has `channels` rows of phases and whose tile has `rows` rows, over `length`
  // positions and `taps` taps per position. `spread`: positions added to each row of the panel, besides the halo.
  // `shared`: zeros that one item's row ends with and the next one's begins with. `all_packed`: the weights are.
  void panel_blocks(
      Plan& plan, int64_t channels, int64_t rows, int64_t length, int64_t taps, int64_t phases, int64_t shift,
      int64_t spread, int64_t shared, bool all_packed) const {
    // Long rows where nothing is packed for them, or few sums are kept per column, so that a row costs little to begin.
    const int64_t limit =
        all_packed || rows < tile.rows ? kLongestRun : (plan.direct ? kDirectColumnTiles : kColumnTiles) * tile_columns;
    plan.phase_shift = shift;
    plan.position_block = whole_tiles(length, limit);
    plan.channel_block = channels;
    // Fewer positions than in two tiles, or in the halo, which is copied once more for each block, are no help. Taps
    // that are too many even so are taken in blocks. Like part_channels, their number decides the order of the sums,
    // and must not depend on the batch.
    plan.tap_block = taps;
    const auto enough_positions = [&] { return std::max(2 * tile_columns, halo(plan.tap_block, phases, shift)); };
    const auto least_row = [&] {  // of the panel, elements
      return std::min(phases, plan.tap_block) * (std::min(round_up(length, tile.lanes), enough_positions()) +
                                                 halo(plan.tap_block, phases, shift) + spread);
    };
    while (plan.tap_block > 1 && least_row() > panel_budget) plan.tap_block = ceil_div(plan.tap_block, 2);
    const auto volume = [&](int64_t block_channels) {
      return block_channels * std::min(phases, plan.tap_block) *
             (plan.position_block + halo(plan.tap_block, phases, shift) + spread);
    };
    // Too large for the cache: fewer channels, at the price of sums that come and go, as long as that is cheap; then
    // fewer positions. The other way round where all weights are packed, so that few positions only have a price if a
    // panel's elements have little use for the time that copying their bytes takes.
    const bool short_runs = all_packed && rows * taps > 2 * tile.lanes * sizes.accumulate;
    const int64_t most_channels = std::max<int64_t>(1, panel_budget / least_row());
    plan.part_channels = balanced_block(channels, std::min(most_channels, kLongestPart / plan.tap_block), 1);
    // Results of 16 bits are rounded to 2^-8 or 2^-11 in the end: parts are longer where panel and weights have room.
    if (!same_type) {
      const int64_t longer = balanced_block(channels, 2 * kLongestPart / plan.tap_block, 1);
      const int64_t weights = kMostPackTiles * tile.rows * plan.tap_block * sizes.pair;
      if (longer * std::max(least_row(), weights) <= panel_budget) plan.part_channels = longer;
    }
    const auto shorten = [&](int64_t block_channels, int64_t least) {
      while (volume(std::min(channels, block_channels)) > panel_budget && plan.position_block > least) {
        plan.position_block = whole_tiles(length, plan.position_block - tile_columns);
      }
    };
    if (short_runs) shorten(channels, std::max(enough_positions(), kFewColumnTiles * tile_columns));
    shorten(plan.part_channels, enough_positions());
    // The weights that are packed together, where not all are, take no more than a panel: long kernels of few
    // positions.
    const int64_t channel_weights = all_packed ? 1 : plan.pack_tiles * tile.rows * plan.tap_block * sizes.pair;
    const int64_t parts = panel_budget / std::max(volume(1), channel_weights) / plan.part_channels;
    plan.channel_block = std::min(channels, balanced_block(channels, parts * plan.part_channels, plan.part_channels));
    // Packed weights are in the order of channels, taps: a block of both is contiguous only if one of them is whole.
    if (plan.tap_block < taps) plan.channel_block = plan.part_channels = 1;
    plan.panel_phases = std::min(phases, plan.tap_block);
    plan.position_blocks = ceil_div(length, plan.position_block);
    plan.batch_block = 1;
    int64_t row = plan.position_block + halo(plan.tap_block, phases, shift) + spread;
    plan.item_pitch = row;
    // Short outputs: several batch items side by side, for about 4 tiles of columns.
    if (plan.position_blocks == 1 && length < 4 * tile_columns && p.batch > 1) {
      plan.item_pitch = length + halo(plan.tap_block, phases, shift) + spread - (plan.tap_block == taps ? shared : 0);
      plan.batch_block = std::min(p.batch, ceil_div(4 * tile_columns, plan.item_pitch));
      while (plan.batch_block > 1 &&
             plan.batch_block * plan.item_pitch * plan.channel_block * std::min(phases, plan.tap_block) >
                 panel_budget) {
        --plan.batch_block;
      }
      plan.batch_block = best_items(plan, channels, rows, length, taps, phases);
      if (plan.batch_block == 1) plan.item_pitch = row;
      row = (plan.batch_block - 1) * plan.item_pitch + length + halo(plan.tap_block, phases, shift) + spread;
    }
    // Whole vectors are read at every shift.
    plan.panel_width = row_width(row + tile.lanes);
    plan.panel_elements = plan.channel_block * plan.panel_phases * plan.panel_width + 64;
  }

  // Pointwise layers of few rows wait for memory alone: long runs of a few channels after the other, while the sums,
  // which come and go, stay in the L1 cache.
  bool stream(Plan& plan, int64_t channels, int64_t rows, int64_t taps, int64_t length, int64_t position_stride) const {
    const bool used_once = rows <= tile.rows && taps == 1 && p.stride == 1 && p.padding_left + p.padding_right == 0;
    if (!used_once || !same_type || position_stride != 1 || length < tile_columns) return false;
    plan.in_place = true;
    plan.part_channels = balanced_block(channels, kStreamedChannels, 1);
    // One tile's weights in half of the L2 cache; sums in half of the L1 cache.
    plan.pack_tiles = 1;
    const int64_t parts = std::max<int64_t>(1, panel_budget / tile.rows / plan.part_channels);
    plan.channel_block = std::min(channels, parts * plan.part_channels);
    const int64_t run = cache.l1 / 2 / sizes.accumulate / rows;
    plan.position_block = whole_tiles(length, std::clamp(run, 2 * tile_columns, kLongestRun));
    plan.position_blocks = ceil_div(length, plan.position_block);
    return true;
  }

  // Whether rows of the input (or grad_output) are better read where they lie than from a panel, and then, in blocks of
  // how many positions.
  void read_in_place(
      Plan& plan, int64_t channels, int64_t rows, int64_t taps, int64_t length, int64_t pitch, int64_t position_stride,
      bool all_packed) const {
    plan.fetch_rows = !stream(plan, channels, rows, taps, length, position_stride);
    if (!plan.fetch_rows) return;
    // A panel is a copy, one load and one store for the multiplications of all tiles of rows and taps; but it lies
    // together in the cache, where rows at a multiple of 4096 bytes share a few sets: without it 256 rows 16 KB apart
    // take 5 % less time, 64 KB apart 2 % more, 512 such rows 10 % more.
    const int64_t uses = ceil_div(rows, tile.rows) * taps;
    const int64_t clash = channels * std::gcd(pitch * sizes.storage, cache.l2 / 16);
    int64_t most_clash = 4 * cache.l2;
    if (wide_cores(cache)) {
      // Zen 5, doubles 8 KB apart: 64 of them 11 % faster, 96 of them 16 % slower. A Xeon, floats: 256 of them 16 KB
      // apart 18 % slower (256->40), 512 of them 8 KB apart 30 % (512->32).
      most_clash = cache.l2 / 2;
    }
    // Long rows of many channels are read in runs so short that it matters that they lie apart (1024->20, L 6000: 9 to
    // 12 ms, by a panel 7).
    const bool short_runs = panel_budget / 4 / channels < tile_columns && length > 2 * tile_columns;
    const bool few_rows = !short_runs && (p.stride == 1 || channels <= kMostStridedRows);
    // The block, and the next one, in a quarter of the L2 cache.
    const int64_t limit = std::clamp(panel_budget / 4 / channels, 2 * tile_columns, kLongestRun);
    const bool few_long_rows = wide_intel_cores(cache) && channels <= kFewRows && length >= 4 * limit;
    const int64_t most_uses = !few_long_rows ? most_uses_in_place(taps)
                              : taps > 1     ? kUsesOfFewRows
                                             : kUsesOfFewPointwiseRows;
    plan.in_place = same_type && position_stride == 1 && few_rows && plan.batch_block == 1 && uses <= most_uses &&
                    clash <= most_clash;
    if (!plan.in_place || !all_packed) return;
    plan.position_block = std::min(plan.position_block, whole_tiles(length, limit));
    plan.position_blocks = ceil_div(length, plan.position_block);
  }

  // What the forward and the input gradient have in common: weights, results and work units over tiles of rows, of sums
  // of `products` at most.
  void rows_and_units(Plan& plan, int64_t rows, int64_t tiles, int64_t products, bool all_packed) const {
    plan.algorithm = Algorithm::kPanel;
    plan.reduction_chunks = 1;
    plan.partial_bytes = 0;
    plan.edge_units = 0;
    plan.direct = plan.direct && plan.batch_block == 1;
    plan.out_tiles = tiles;
    const int64_t columns = (plan.batch_block - 1) * plan.item_pitch + plan.position_block;
    // Rows of results in a quarter of the L2 cache: the panel, where it is not whole, is filled again for each block.
    plan.out_block =
        std::clamp<int64_t>(panel_budget / 2 / columns / tile.rows * tile.rows, std::min(rows, tile.rows), rows);
    // Weights are read where they are if that is only a few times.
    plan.pack_weight = all_packed                                                ? PackWeight::kAll
                       : !same_type || (rows > 1 && columns >= 2 * tile_columns) ? PackWeight::kTiles
                                                                                 : PackWeight::kNo;
    const int64_t group_weights = out_per_group * in_per_group * p.kernel_size + plan.out_tiles * kPackSlack;
    plan.packed_bytes = all_packed ? p.groups * group_weights * sizes.accumulate : 0;
    plan.pass_tiles = tiles;
    if (all_packed && !fit_together(rows)) {
      plan.pass_tiles = balanced_block(tiles, kMostPartBytes / tile_bytes(products), 1);
      plan.packed_bytes = plan.pass_tiles * tile_bytes(products);
    }
    plan.weight_elements =
        plan.pack_weight == PackWeight::kTiles
            ? plan.pack_tiles * (tile.rows * plan.channel_block * sizes.pair * plan.tap_block + kPackSlack)
            : 0;
    plan.result_elements = plan.out_block * round_up(columns, tile.lanes);
    plan.units = ceil_div(p.batch, plan.batch_block) * p.groups * plan.position_blocks * plan.out_tiles;
    plan.step_table = std::min(plan.channel_block, plan.part_channels) * plan.tap_block;
    finish(plan, 2 * plan.step_table);
  }

  // Zeros that rows side by side share, of which each has so many before and after. Strides take rows apart, and are
  // left out.
  int64_t shared_zeros(int64_t before, int64_t after) const {
    if (p.stride > 1 || p.padding_mode != PaddingMode::kZeros) return 0;
    return std::max<int64_t>(0, std::min(before, after));
  }

  Plan forward() const {
    Plan plan{};
    // A row per phase of the stride, or one per tap where that is less to copy: dilation beyond the block.
    const int64_t phases = std::min(period, p.kernel_size);
    const int64_t block = std::min(p.out_length, kColumnTiles * tile_columns);
    const bool row_per_tap = p.kernel_size * block < phases * (block + halo(p.kernel_size, phases, period_shift));
    plan.pack_tiles = 1;
    plan.direct = plain_store && p.output.position == 1;
    const auto blocks = [&](bool all_packed) {
      panel_blocks(
          plan, ceil_div(in_per_group, sizes.pair), out_per_group, p.out_length, p.kernel_size,
          row_per_tap ? p.kernel_size : phases, row_per_tap ? 0 : period_shift, 0,
          row_per_tap ? 0 : shared_zeros(p.padding_left, p.padding_right), all_packed);
    };
    blocks(false);
    const int64_t products = in_per_group * p.kernel_size;
    const bool all_packed = may_pack_all(plan, out_per_group, products);
    if (all_packed) blocks(true);
    read_in_place(
        plan, in_per_group, out_per_group, p.kernel_size, p.out_length, p.input.channel, p.input.position * p.stride,
        all_packed);
    rows_and_units(plan, out_per_group, ceil_div(out_per_group, tile.rows), products, all_packed);
    return plan;
  }

  // The packed weights of all groups, of so many rows each, and those of one tile of sums of so many products.
  bool fit_together(int64_t rows) const {
    const int64_t slack = p.groups * ceil_div(rows, tile.rows) * kPackSlack * sizes.accumulate;
    return p.out_channels * in_per_group * p.kernel_size * sizes.accumulate <= kMostSharedBytes &&
           slack <= kMostSharedBytes / 8;
  }
  int64_t tile_bytes(int64_t products) const { return (tile.rows * products + kPackSlack) * sizes.accumulate; }

  // Packing all weights at once pays if `plan` would pack them for several panels, and must not take much memory.
  bool may_pack_all(const Plan& plan, int64_t rows, int64_t products) const {
    if (rows == 1 || ceil_div(p.batch, plan.batch_block) * plan.position_blocks < 3) return false;
    if (fit_together(rows)) return true;
    // More weights are packed in passes, which each fill all panels again. Batches of short sequences gain by it: 6 %
    // of the time of 8 times 768->768, k 3, L 128, and of its input gradient for L 240. Longer sequences have long
    // panels, of some of the channels.
    return p.groups == 1 && p.padding_mode == PaddingMode::kZeros && plan.position_blocks == 1 &&
           plan.position_block < kColumnTiles / 2 * tile_columns && 4 * tile_bytes(products) <= kMostSharedBytes;
  }

  Plan backward_input() const {
    Plan plan{};
    const int64_t positions = ceil_div(p.in_length, p.stride);
    const TapClasses classes{p, period};
    const int64_t spread = class_spread(classes.count);
    const int64_t rows = in_per_group * classes.count;
    int64_t tiles = 0;
    for (int64_t first = 0; first < classes.count; first = classes.segment_from(first).end) {
      tiles += ceil_div(in_per_group * classes.segment_from(first).classes(), tile.rows);
    }
    // The weights of a tile and one output channel are a piece of memory, or one for each tap, where the rows are
    // classes.
    const int64_t taps = ceil_div(p.kernel_size, period), reach = (p.kernel_size - 1) * p.dilation;
    const int64_t piece = tile.rows * (classes.count == 1 || in_per_group >= tile.rows ? taps : 1);
    plan.pack_tiles = std::clamp<int64_t>(kLeastPieceBytes / sizes.storage / piece, 1, kMostPackTiles);
    plan.direct = plain_store && p.input.position == 1 && p.stride == 1;
    const auto blocks = [&](bool all_packed) {
      panel_blocks(
          plan, ceil_div(out_per_group, sizes.pair), rows, positions, taps, 1, period_shift, spread,
          shared_zeros(reach - p.padding_left, reach - p.padding_right), all_packed);
    };
    blocks(false);
    const bool all_packed = may_pack_all(plan, rows, out_per_group * taps);
    if (all_packed) blocks(true);
    plan.panel_phases = period;
    read_in_place(plan, out_per_group, rows, taps, positions, p.output.channel, p.output.position, all_packed);
    rows_and_units(plan, rows, tiles, out_per_group * taps, all_packed);
    if (pads_with_input()) {
      plan.edge_units = p.batch * p.groups;
      plan.result_elements += 2 * in_per_group;  // the sums of what is added to the first position and to the last
      finish(plan, 2 * plan.step_table);
    }
    return plan;
  }
};

}  // namespace

Plan panel_plan(Op op, const Planner& planner) {
  const PanelPlanner panel{planner};
  return op == Op::kForward ? panel.forward() : panel.backward_input();
}

}  // namespace conv1d_ext
