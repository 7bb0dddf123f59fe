// conv1d by panels. A thread copies the positions that a block of outputs meets to its panel
//   panel[in_channel][tap % phases][position]
// and the register tile runs over it: rows are output channels, vectors lie along the output positions, the sum is over
// (in_channel, tap). Where outputs are short, several batch items lie side by side in a row of the panel; the columns
// between them are computed and not stored.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
struct ForwardPanel : PanelMemory<Acc<Storage>> {
  using T = Acc<Storage>;
  using PanelMemory<T>::panel, PanelMemory<T>::packed_weight, PanelMemory<T>::results;
  using PanelMemory<T>::panel_step, PanelMemory<T>::weight_step, PanelMemory<T>::odd_row, PanelMemory<T>::next_rows;
  const Conv1dProblem& problem;
  const Plan& plan;
  const ForwardArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t panel_channels = ceil_div(in_per_group, kPair<Storage>);
  const int64_t out_per_group = problem.out_channels / problem.groups;
  static constexpr int64_t kLine = 64 / sizeof(Storage);

  // A block of outputs: batch items [n0, n1), a group, positions [t0, t1).
  struct Block {
    int64_t n0, n1, group, t0, t1;
    int64_t columns;  // of all items, with the gaps
  };

  ForwardPanel(const Conv1dProblem& p, const Plan& pl, const ForwardArgs& a, void* memory)
      : PanelMemory<T>(pl, memory), problem(p), plan(pl), args(a) {}

  Row<Storage> input_row(int64_t group, int64_t n, int64_t ic) const {
    return {
        static_cast<const Storage*>(args.input) + n * problem.input.batch +
            (group * in_per_group + ic) * problem.input.channel,
        problem.input.position, problem.in_length, problem.padding_mode};
  }

  // Channels of the panel, of which each is kPair<Storage> input channels.
  void fill_panel(const Block& block, int64_t ic0, int64_t ic1, int64_t k0, int64_t k1) {
    const int64_t phases = min_of(plan.panel_phases, k1 - k0);
    const bool side_by_side = problem.dilation == 1 && problem.input.position == 1 && phases >= kManyPhases;
    if (side_by_side && kPair<Storage> == 1 && block.n1 - block.n0 == 1) {
      const int64_t start = block.t0 * problem.stride + k0 - problem.padding_left;
      const int64_t count = block.t1 - block.t0 + (k1 - k0 - 1) / plan.panel_phases * plan.phase_shift;
      for (int64_t ic = ic0; ic < ic1; ++ic) {
        T* first = panel + (ic - ic0) * plan.panel_phases * plan.panel_width;
        pack_phases(
            input_row(block.group, block.n0, ic), start, problem.stride, count, phases, first, plan.panel_width);
        for (int64_t phase = 0; phase < phases; ++phase) {
          for (int64_t j = count; j < plan.panel_width; ++j) first[phase * plan.panel_width + j] = 0;
        }
      }
      return;
    }
    for (int64_t ic = ic0; ic < ic1; ++ic) {
      for (int64_t phase = 0; phase < phases; ++phase) {
        T* dst = panel + ((ic - ic0) * plan.panel_phases + phase) * plan.panel_width;
        const int64_t start = block.t0 * problem.stride + (k0 + phase) * problem.dilation - problem.padding_left;
        const int64_t count = block.t1 - block.t0 + (k1 - k0 - 1 - phase) / plan.panel_phases * plan.phase_shift;
        fill_panel_row<Storage>(
            plan, block.n0, block.n1, [&](int64_t n, int64_t channel) { return input_row(block.group, n, channel); },
            ic, in_per_group, start, problem.stride, count, dst, odd_row);
      }
    }
  }

  // Number `index` of [batch block][group][position block].
  Block block_at(int64_t index) const {
    Block block;
    block.n0 = index / plan.position_blocks / problem.groups * plan.batch_block;
    block.n1 = min_of(block.n0 + plan.batch_block, problem.batch);
    block.group = index / plan.position_blocks % problem.groups;
    const int64_t i = index % plan.position_blocks;
    block.t0 = block_begin(problem.out_length, kTileColumns<T>, plan.position_blocks, i);
    block.t1 = block_begin(problem.out_length, kTileColumns<T>, plan.position_blocks, i + 1);
    block.columns = (block.n1 - block.n0 - 1) * plan.item_pitch + block.t1 - block.t0;
    return block;
  }

  // What a block reads of channels [ic0, ic1) of the panel.
  NextRows rows_to_fetch(const Block& block, int64_t ic0, int64_t ic1, int64_t work) const {
    const int64_t reach = (problem.kernel_size - 1) * problem.dilation;
    if (problem.stride > reach + kLine) return {};  // whole lines between positions are not read
    const int64_t channel = ic0 * kPair<Storage>, channels = min_of(ic1 * kPair<Storage>, in_per_group) - channel;
    return this->rows_between(
        input_row(block.group, block.n0, channel), problem.input, block.n1 - block.n0, channels,
        block.t0 * problem.stride - problem.padding_left,
        (block.t1 - 1) * problem.stride - problem.padding_left + reach + 1, work);
  }

  // Whether a block's rows are read where they lie, for all taps.
  bool in_place(const Block& block) const {
    const int64_t start = block.t0 - problem.padding_left, halo = (problem.kernel_size - 1) * problem.dilation;
    return plan.in_place && start >= 0 && start + block.t1 - block.t0 + halo <= problem.in_length;
  }

  // The first output channel of a tile, in its group.
  int64_t first_row(int64_t tile) const { return part_begin(out_per_group, plan.out_tiles, tile); }

  WeightTile weight_tile(int64_t index) const {
    WeightTile tile;
    tile.rows = first_row(index + 1) - first_row(index);
    for (int64_t r = 0; r < tile.rows; ++r) tile.row_offset[r] = (first_row(index) + r) * problem.weight.out_channel;
    return tile;
  }

  // The packed weights are [group][tile of the pass][in_channel][tap][row], with room behind each tile for what
  // pack_weight writes too much.
  int64_t packed_offset(int64_t group, int64_t tile) const {
    return group * (plan.packed_bytes / int64_t{sizeof(T)} / problem.groups) +
           (first_row(tile) - first_row(args.first_tile)) * in_per_group * problem.kernel_size +
           (tile - args.first_tile) * kPackSlack;
  }

  // Weights that are packed for a tile, `count` of each row.
  NextRows next_weights(const Storage* weight, int64_t tile, int64_t count, int64_t work) const {
    const bool rows_as_they_are = problem.weight.tap == 1 && problem.weight.in_channel == problem.kernel_size;
    if (plan.pack_weight != PackWeight::kTiles || !rows_as_they_are) return {};
    const int64_t row = first_row(tile), pitch = problem.weight.out_channel;
    return {weight + row * pitch, pitch, first_row(tile + 1) - row, count, work};
  }

  // The work of tiles [tile0, tile1) for so many channels of the panel, in vectors, that rows are fetched meanwhile:
  // that of the last tile, where the others fetch the next one's weights.
  int64_t work(const Block& block, int64_t tile0, int64_t tile1, int64_t channels) const {
    if (plan.pack_weight != PackWeight::kAll) tile0 = tile1 - 1;
    return (first_row(tile1) - first_row(tile0)) * ceil_div(block.columns, Vec<T>::kLanes) * channels *
           problem.kernel_size;
  }

  // Adds taps [k0, k1) of channels [ic0, ic1) of the panel to the output channels of tiles [tile0, tile1).
  void run(const Block& block, int64_t tile0, int64_t tile1, int64_t ic0, int64_t ic1, int64_t k0, int64_t k1) {
    const int64_t channel = ic0 * kPair<Storage>, channels = min_of(ic1 * kPair<Storage>, in_per_group) - channel;
    const Storage* weight = group_weight(block.group) + channel * problem.weight.in_channel + k0 * problem.weight.tap;
    const bool first = ic0 == 0 && k0 == 0;
    T init[kTileRows];
    Sums<T> sums;
    sums.channels = ic1 - ic0;
    sums.taps = k1 - k0;
    sums.part_channels = plan.part_channels;
    sums.a_channel = problem.weight.in_channel;
    const bool in_place = this->in_place(block);
    const int64_t phases = in_place ? 1 : plan.panel_phases, shift = in_place ? problem.dilation : plan.phase_shift;
    sums.b_channel = in_place ? problem.input.channel : plan.panel_phases * plan.panel_width;
    this->set_steps(
        plan, sums.channels, sums.taps, sums.b_channel, sums.a_channel,
        [&](int64_t k) { return k % phases * plan.panel_width + k / phases * shift; },
        [&](int64_t k) { return k * problem.weight.tap; });
    Tile<T>& tile = sums.tile;
    tile.a_step = weight_step;
    tile.b = panel;
    tile.exact = in_place;
    if constexpr (kStoredAsComputed<Storage>) {
      if (in_place) {
        tile.b = input_row(block.group, block.n0, ic0).data + block.t0 - problem.padding_left + k0 * problem.dilation;
      }
    }
    tile.b_step = panel_step;
    tile.init = first ? init : nullptr;
    tile.columns = block.columns;
    const int64_t vectors = ceil_div(block.columns, Vec<T>::kLanes);
    for (int64_t i = tile0; i < tile1; ++i) {
      const WeightTile weights = weight_tile(i);
      const int64_t row = first_row(i);
      for (int64_t r = 0; r < weights.rows && first; ++r) init[r] = bias(block.group * out_per_group + row + r);
      NextRows next;
      if (i + 1 < tile1) {
        next = next_weights(weight, i + 1, channels * sums.taps, weights.rows * vectors * sums.channels * sums.taps);
      }
      tile.next = next.any_left() ? &next : &next_rows;
      tile.a_row = weights.row_offset;
      // The next tile's weights: they are the traffic where they aren't packed.
      tile.a_ahead = i + 1 < tile1 ? kTileRows * problem.weight.out_channel : 0;
      tile.c_row = round_up(block.columns, Vec<T>::kLanes);
      tile.c = results + (row - first_row(tile0)) * tile.c_row;
      if constexpr (kStoredAsComputed<Storage>) {
        if (plan.direct) {
          tile.c = output_row(block, block.n0, row);
          tile.c_row = problem.output.channel;
        }
      }
      if (plan.pack_weight == PackWeight::kNo) {
        if constexpr (kStoredAsComputed<Storage>) {
          tile.a = weight;
          run_sums<T, false, kPair<Storage>>(sums, weights.rows);
        }
        continue;
      }
      if (plan.pack_weight == PackWeight::kAll) {
        tile.a = static_cast<const T*>(args.packed_weight) + packed_offset(block.group, i) +
                 (ic0 * problem.kernel_size + k0) * weights.rows;
      } else {
        pack_weight(
            weight, &weights, 1, {channels, problem.weight.in_channel, sums.taps, problem.weight.tap}, packed_weight,
            0);
        tile.a = packed_weight;
      }
      run_sums<T, true, kPair<Storage>>(sums, weights.rows);
    }
  }

  void store_results(const Block& block, int64_t oc0, int64_t oc1) {
    const int64_t pitch = round_up(block.columns, Vec<T>::kLanes);
    for (int64_t oc = oc0; oc < oc1; ++oc) {
      for (int64_t n = block.n0; n < block.n1; ++n) {
        store_row(
            problem, results + (oc - oc0) * pitch + (n - block.n0) * plan.item_pitch, block.t1 - block.t0,
            output_row(block, n, oc), problem.output.position);
      }
    }
  }

  // The output channels of tiles [tile0, tile1) of a block. While its rows, or those of some channels, are computed,
  // the ones that come next are fetched, in the end those of the block `next`, if there is one.
  void compute(const Block& block, const Block* next, int64_t tile0, int64_t tile1) {
    const bool whole_panel = plan.channel_block >= panel_channels && plan.tap_block >= problem.kernel_size;
    const bool in_place = this->in_place(block), read_once = whole_panel || in_place;
    if (whole_panel && !in_place) fill_panel(block, 0, panel_channels, 0, problem.kernel_size);
    if (read_once) {
      next_rows = following_rows(
          *this, block, next, panel_channels, panel_channels, false, work(block, tile0, tile1, panel_channels));
    }
    const int64_t step = plan.direct ? tile1 - tile0 : ceil_div(plan.out_block, kTileRows);
    for (int64_t tile = tile0; tile < tile1; tile += step) {
      const int64_t tile_end = min_of(tile + step, tile1);
      for (int64_t ic = 0; ic < panel_channels; ic += plan.channel_block) {
        const int64_t ic_end = min_of(ic + plan.channel_block, panel_channels);
        for (int64_t k = 0; k < problem.kernel_size; k += plan.tap_block) {
          const int64_t k_end = min_of(k + plan.tap_block, problem.kernel_size);
          if (!read_once) {
            fill_panel(block, ic, ic_end, k, k_end);
            if (k_end == problem.kernel_size) {
              next_rows = following_rows(
                  *this, block, next, plan.channel_block, ic_end, tile_end < tile1,
                  work(block, tile, tile_end, ic_end - ic));
            }
          }
          run(block, tile, tile_end, ic, ic_end, k, k_end);
        }
      }
      if (!plan.direct) store_results(block, first_row(tile), first_row(tile_end));
    }
  }

  const Storage* group_weight(int64_t group) const {
    return static_cast<const Storage*>(args.weight) + group * out_per_group * problem.weight.out_channel;
  }

  T bias(int64_t oc) const { return args.bias == nullptr ? T{0} : widen(static_cast<const Storage*>(args.bias)[oc]); }

  Storage* output_row(const Block& block, int64_t n, int64_t oc) const {
    return static_cast<Storage*>(args.output) + n * problem.output.batch +
           (block.group * out_per_group + oc) * problem.output.channel + block.t0 * problem.output.position;
  }
};

// Work units: [group][tile of output channels], the tiles of the pass.
template <class Storage>
void pack_forward(const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  const ForwardPanel<Storage> kernel(problem, plan, args, nullptr);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / args.tile_count, tile = args.first_tile + unit % args.tile_count;
    const WeightTile weights = kernel.weight_tile(tile);
    pack_weight(
        kernel.group_weight(group), &weights, 1,
        {kernel.in_per_group, problem.weight.in_channel, problem.kernel_size, problem.weight.tap},
        static_cast<T*>(args.packed_weight) + kernel.packed_offset(group, tile), 0);
  }
}

// Work units: [batch block][group][position block][tile of output channels], the tiles of the pass.
template <class Storage>
void forward_panel(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  ForwardPanel<Storage> kernel(problem, plan, args, scratch);
  const auto compute = [&](int64_t index, int64_t tile0, int64_t tile1) {
    const bool last = (index + 1) * args.tile_count >= end;
    const auto block = kernel.block_at(index), next = kernel.block_at(last ? index : index + 1);
    kernel.compute(block, last ? nullptr : &next, tile0, tile1);
  };
  for_blocks_of_tiles(begin, end, args.first_tile, args.tile_count, compute);
}

}  // namespace
}  // namespace conv1d_ext
