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
  using PanelMemory<T>::panel_step, PanelMemory<T>::weight_step;
  const Conv1dProblem& problem;
  const Plan& plan;
  const ForwardArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;

  // A block of outputs: batch items [n0, n1), a group, positions [t0, t1).
  struct Block {
    int64_t n0, n1, group, t0, t1;
    int64_t columns;  // of all items, with the gaps
  };

  ForwardPanel(const Conv1dProblem& p, const Plan& pl, const ForwardArgs& a, void* memory)
      : PanelMemory<T>(pl, memory), problem(p), plan(pl), args(a) {}

  void fill_panel(const Block& block, int64_t ic0, int64_t ic1, int64_t k0, int64_t k1) {
    const int64_t phases = min_of(plan.panel_phases, k1 - k0);
    for (int64_t ic = ic0; ic < ic1; ++ic) {
      for (int64_t phase = 0; phase < phases; ++phase) {
        T* dst = panel + ((ic - ic0) * plan.panel_phases + phase) * plan.panel_width;
        const int64_t start = block.t0 * problem.stride + (k0 + phase) * problem.dilation - problem.padding_left;
        const int64_t count = block.t1 - block.t0 + (k1 - k0 - 1 - phase) / plan.panel_phases * plan.phase_shift;
        for (int64_t n = block.n0; n < block.n1; ++n, dst += plan.item_pitch) {
          const int64_t channel = block.group * in_per_group + ic;
          const Storage* data =
              static_cast<const Storage*>(args.input) + n * problem.input.batch + channel * problem.input.channel;
          // Rows are read in whole vectors: the last item fills what is left of its row.
          const int64_t width =
              n + 1 < block.n1 ? plan.item_pitch : plan.panel_width - (n - block.n0) * plan.item_pitch;
          pack_row<Storage>(
              {data, problem.input.position, problem.in_length, problem.padding_mode}, start, problem.stride, count,
              width, dst);
        }
      }
    }
  }

  // Adds taps [k0, k1) of input channels [ic0, ic1) to output channels [oc0, oc1) of the group.
  void run(const Block& block, int64_t oc0, int64_t oc1, int64_t ic0, int64_t ic1, int64_t k0, int64_t k1) {
    const Storage* weight = static_cast<const Storage*>(args.weight) +
                            block.group * out_per_group * problem.weight.out_channel + ic0 * problem.weight.in_channel +
                            k0 * problem.weight.tap;
    const bool first = ic0 == 0 && k0 == 0;
    T init[kTileRows];
    int64_t weight_row[kTileRows];
    Sums<T> sums;
    sums.channels = ic1 - ic0;
    sums.taps = k1 - k0;
    sums.a_channel = problem.weight.in_channel;
    sums.b_channel = plan.panel_phases * plan.panel_width;
    this->set_steps(
        plan, sums.channels, sums.taps, sums.b_channel, sums.a_channel,
        [&](int64_t k) { return k % plan.panel_phases * plan.panel_width + k / plan.panel_phases * plan.phase_shift; },
        [&](int64_t k) { return k * problem.weight.tap; });
    Tile<T>& tile = sums.tile;
    tile.a_row = weight_row;
    tile.a_step = weight_step;
    tile.b = panel;
    tile.b_step = panel_step;
    tile.init = first ? init : nullptr;
    tile.columns = block.columns;
    const int64_t tiles = ceil_div(oc1 - oc0, kTileRows);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = oc0 + part_begin(oc1 - oc0, tiles, i), end = oc0 + part_begin(oc1 - oc0, tiles, i + 1);
      for (int64_t r = 0; r < end - begin; ++r) {
        init[r] = first ? bias(block.group * out_per_group + begin + r) : T{0};
        weight_row[r] = (begin + r) * problem.weight.out_channel;
      }
      tile.c_row = round_up(block.columns, Vec<T>::kLanes);
      tile.c = results + (begin - oc0) * tile.c_row;
      if constexpr (kStoredAsComputed<Storage>) {
        if (plan.direct) {
          tile.c = output_row(block, block.n0, begin);
          tile.c_row = problem.output.channel;
        }
      }
      if (plan.pack_weight) {
        pack_weight(
            weight, weight_row, end - begin, sums.channels, problem.weight.in_channel, sums.taps, problem.weight.tap,
            packed_weight);
        tile.a = packed_weight;
        run_sums<T, true>(sums, end - begin);
      } else if constexpr (kStoredAsComputed<Storage>) {
        tile.a = weight;
        run_sums<T, false>(sums, end - begin);
      }
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

  // Output channels [oc0, oc1) of a block.
  void compute(const Block& block, int64_t oc0, int64_t oc1) {
    const bool whole_panel = plan.channel_block >= in_per_group && plan.tap_block >= problem.kernel_size;
    if (whole_panel) fill_panel(block, 0, in_per_group, 0, problem.kernel_size);
    const int64_t step = plan.direct ? oc1 - oc0 : plan.out_block;
    for (int64_t oc = oc0; oc < oc1; oc += step) {
      const int64_t oc_end = min_of(oc + step, oc1);
      for (int64_t ic = 0; ic < in_per_group; ic += plan.channel_block) {
        const int64_t ic_end = min_of(ic + plan.channel_block, in_per_group);
        for (int64_t k = 0; k < problem.kernel_size; k += plan.tap_block) {
          const int64_t k_end = min_of(k + plan.tap_block, problem.kernel_size);
          if (!whole_panel) fill_panel(block, ic, ic_end, k, k_end);
          run(block, oc, oc_end, ic, ic_end, k, k_end);
        }
      }
      if (!plan.direct) store_results(block, oc, oc_end);
    }
  }

  T bias(int64_t oc) const { return args.bias == nullptr ? T{0} : widen(static_cast<const Storage*>(args.bias)[oc]); }

  Storage* output_row(const Block& block, int64_t n, int64_t oc) const {
    return static_cast<Storage*>(args.output) + n * problem.output.batch +
           (block.group * out_per_group + oc) * problem.output.channel + block.t0 * problem.output.position;
  }
};

// Work units: [batch block][group][position block][tile of output channels]. Units of one block of outputs follow each
// other, so that a thread fills a panel once for all of its tiles.
template <class Storage>
void forward_panel(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  ForwardPanel<Storage> kernel(problem, plan, args, scratch);
  for (int64_t unit = begin; unit < end;) {
    const int64_t index = unit / plan.out_tiles, tile0 = unit % plan.out_tiles;
    const int64_t tile1 = min_of(plan.out_tiles, tile0 + end - unit);
    const int64_t batch_index = index / plan.position_blocks / problem.groups;
    typename ForwardPanel<Storage>::Block block;
    block.n0 = batch_index * plan.batch_block;
    block.n1 = min_of(block.n0 + plan.batch_block, problem.batch);
    block.group = index / plan.position_blocks % problem.groups;
    const int64_t i = index % plan.position_blocks, lanes = Vec<Acc<Storage>>::kLanes;
    block.t0 = block_begin(problem.out_length, lanes, plan.position_blocks, i);
    block.t1 = block_begin(problem.out_length, lanes, plan.position_blocks, i + 1);
    block.columns = (block.n1 - block.n0 - 1) * plan.item_pitch + block.t1 - block.t0;
    kernel.compute(
        block, part_begin(kernel.out_per_group, plan.out_tiles, tile0),
        part_begin(kernel.out_per_group, plan.out_tiles, tile1));
    unit += tile1 - tile0;
  }
}

}  // namespace
}  // namespace conv1d_ext
