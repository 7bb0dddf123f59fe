// conv1d_backward_input by panels. Input position p = j * stride + residue gets
//   sum over oc and the taps k with (residue + padding_left - k * dilation) divisible by stride of
//   weight[oc, ic, k] * grad_output[oc, j + (residue + padding_left - k * dilation) / stride].
// Taps k, k + panel_phases, k + 2 * panel_phases, ... share a residue: a class. It is a convolution of stride 1 over a
// panel [out_channel][position] of grad_output. Rows of the tile are pairs of an input channel and a class, for classes
// that read grad_output at the same positions; vectors lie along j. Residues that no tap meets are left as they are.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
struct BackwardInputPanel : PanelMemory<Acc<Storage>> {
  using T = Acc<Storage>;
  using PanelMemory<T>::panel, PanelMemory<T>::packed_weight, PanelMemory<T>::results;
  using PanelMemory<T>::panel_step, PanelMemory<T>::weight_step;
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardInputArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t classes = min_of(plan.panel_phases, problem.kernel_size);
  const int64_t taps_per_class = ceil_div(problem.kernel_size, plan.panel_phases);

  // A block of inputs: batch items [n0, n1), a group, positions j * stride + residue with j in [j0, j1). `edges`: only
  // the padding positions among them, to be added to the positions that they repeat.
  struct Block {
    int64_t n0, n1, group, j0, j1;
    int64_t columns;
    bool edges;
  };

  BackwardInputPanel(const Conv1dProblem& p, const Plan& pl, const BackwardInputArgs& a, void* memory)
      : PanelMemory<T>(pl, memory), problem(p), plan(pl), args(a) {}

  // The first tap of a class reads grad_output at j + offset(class), and its residue is the rest of that division.
  int64_t offset(int64_t tap_class) const {
    return ceil_div(problem.padding_left - tap_class * problem.dilation, problem.stride);
  }
  int64_t residue(int64_t tap_class) const {
    return offset(tap_class) * problem.stride - problem.padding_left + tap_class * problem.dilation;
  }
  int64_t taps_of(int64_t tap_class) const { return ceil_div(problem.kernel_size - tap_class, plan.panel_phases); }
  // Classes from `first` on which read the same positions: they share the tile. Rows are numbered segment by segment.
  struct Segment {
    int64_t class0, class1;
  };
  Segment segment_from(int64_t first) const {
    int64_t end = first + 1;
    while (end < classes && offset(end) == offset(first) && taps_of(end) == taps_of(first)) ++end;
    return {first, end};
  }
  // What the first column of the panel is for taps [.., m_end) of all classes: j0 + lowest_offset(m_end).
  int64_t lowest_offset(int64_t m_end) const { return offset(classes - 1) - (m_end - 1) * plan.phase_shift; }

  void fill_panel(const Block& block, int64_t oc0, int64_t oc1, int64_t m0, int64_t m1) {
    const int64_t start = block.j0 + lowest_offset(m1);
    const int64_t count = block.j1 - block.j0 + offset(0) - m0 * plan.phase_shift - lowest_offset(m1);
    for (int64_t oc = oc0; oc < oc1; ++oc) {
      T* dst = panel + (oc - oc0) * plan.panel_width;
      for (int64_t n = block.n0; n < block.n1; ++n, dst += plan.item_pitch) {
        const Storage* data = static_cast<const Storage*>(args.grad_output) + n * problem.output.batch +
                              (block.group * out_per_group + oc) * problem.output.channel;
        const int64_t width = n + 1 < block.n1 ? plan.item_pitch : plan.panel_width - (n - block.n0) * plan.item_pitch;
        pack_row<Storage>(
            {data, problem.output.position, problem.out_length, PaddingMode::kZeros}, start, 1, count, width, dst);
      }
    }
  }

  int64_t channel_of(const Segment& segment, int64_t row) const {
    return (row - segment.class0 * in_per_group) / (segment.class1 - segment.class0);
  }
  int64_t class_of(const Segment& segment, int64_t row) const {
    return segment.class0 + (row - segment.class0 * in_per_group) % (segment.class1 - segment.class0);
  }
  // The rows of one more input channel.
  int64_t first_row(const Segment& segment, int64_t ic) const {
    return segment.class0 * in_per_group + ic * (segment.class1 - segment.class0);
  }

  // Adds taps [m0, m1) and output channels [oc0, oc1) to rows [row0, row1) of a segment.
  void run(
      const Block& block, const Segment& segment, int64_t row0, int64_t row1, int64_t oc0, int64_t oc1, int64_t m0,
      int64_t m1) {
    const Storage* weight = static_cast<const Storage*>(args.weight) +
                            (block.group * out_per_group + oc0) * problem.weight.out_channel +
                            m0 * plan.panel_phases * problem.weight.tap;
    const bool first = oc0 == 0 && m0 == 0;
    const T zeros[kTileRows] = {};
    int64_t weight_row[kTileRows];
    Sums<T> sums;
    sums.channels = oc1 - oc0;
    sums.taps = m1 - m0;
    sums.a_channel = problem.weight.out_channel;
    sums.b_channel = plan.panel_width;
    this->set_steps(
        plan, sums.channels, sums.taps, sums.b_channel, sums.a_channel,
        [&](int64_t m) { return -m * plan.phase_shift; },
        [&](int64_t m) { return m * plan.panel_phases * problem.weight.tap; });
    Tile<T>& tile = sums.tile;
    tile.a_row = weight_row;
    tile.a_step = weight_step;
    tile.b = panel + offset(segment.class0) - m0 * plan.phase_shift -
             lowest_offset(min_of(m0 + plan.tap_block, taps_per_class));
    tile.b_step = panel_step;
    tile.init = first ? zeros : nullptr;
    tile.columns = block.columns;
    const int64_t tiles = ceil_div(row1 - row0, kTileRows);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = row0 + part_begin(row1 - row0, tiles, i),
                    end = row0 + part_begin(row1 - row0, tiles, i + 1);
      for (int64_t row = begin; row < end; ++row) {
        weight_row[row - begin] =
            channel_of(segment, row) * problem.weight.in_channel + class_of(segment, row) * problem.weight.tap;
      }
      tile.c_row = round_up(block.columns, Vec<T>::kLanes);
      tile.c = results + (begin - row0) * tile.c_row;
      if constexpr (kStoredAsComputed<Storage>) {
        if (plan.direct && !block.edges) {
          tile.c = input_row(block, block.n0, channel_of(segment, begin)) + block.j0;
          tile.c_row = problem.input.channel;
        }
      }
      if (plan.pack_weight) {
        pack_weight(
            weight, weight_row, end - begin, sums.channels, problem.weight.out_channel, sums.taps,
            plan.panel_phases * problem.weight.tap, packed_weight);
        tile.a = packed_weight;
        run_sums<T, true>(sums, end - begin);
      } else if constexpr (kStoredAsComputed<Storage>) {
        tile.a = weight;
        run_sums<T, false>(sums, end - begin);
      }
    }
  }

  void store_results(const Block& block, const Segment& segment, int64_t row0, int64_t row1) {
    const int64_t pitch = round_up(block.columns, Vec<T>::kLanes);
    for (int64_t row = row0; row < row1; ++row) {
      const int64_t rest = residue(class_of(segment, row));
      const int64_t count =
          min_of(block.j1, ceil_div(problem.in_length - rest, problem.stride)) - block.j0;  // not past the input
      for (int64_t n = block.n0; n < block.n1; ++n) {
        const T* src = results + (row - row0) * pitch + (n - block.n0) * plan.item_pitch;
        Storage* dst = input_row(block, n, channel_of(segment, row));
        if (block.edges) {
          fold_edges(block, rest, src, dst);
        } else {
          store_row(
              problem, src, count, dst + (block.j0 * problem.stride + rest) * problem.input.position,
              problem.stride * problem.input.position);
        }
      }
    }
  }

  // Adds the padding positions of one row to the positions that they repeat. Only position 0 and the last one can be
  // repeated many times (replicate), so their sums are kept in the accumulation type.
  void fold_edges(const Block& block, int64_t rest, const T* src, Storage* row) {
    T first_sum = 0, last_sum = 0;
    for (int64_t j = block.j0; j < block.j1; ++j) {
      const int64_t position = j * problem.stride + rest;
      if (position < -problem.padding_left || position >= problem.in_length + problem.padding_right ||
          (position >= 0 && position < problem.in_length)) {
        continue;
      }
      const int64_t source = source_position(problem.padding_mode, position, problem.in_length);
      if (source == 0) {
        first_sum += src[j - block.j0];
      } else if (source == problem.in_length - 1) {
        last_sum += src[j - block.j0];
      } else {
        add_to(src[j - block.j0], row + source * problem.input.position);
      }
    }
    add_to(first_sum, row);
    add_to(last_sum, row + (problem.in_length - 1) * problem.input.position);
  }

  void add_to(T value, Storage* dst) const { narrow(problem.negate ? widen(*dst) - value : widen(*dst) + value, dst); }

  // Rows [row0, row1) of a segment, in a block whose panel may have been filled before.
  void compute(const Block& block, const Segment& segment, int64_t row0, int64_t row1) {
    const int64_t taps = taps_of(segment.class0);
    const bool direct = plan.direct && !block.edges;
    const int64_t step = direct ? row1 - row0 : plan.out_block;
    for (int64_t row = row0; row < row1; row += step) {
      const int64_t row_end = min_of(row + step, row1);
      for (int64_t oc = 0; oc < out_per_group; oc += plan.channel_block) {
        const int64_t oc_end = min_of(oc + plan.channel_block, out_per_group);
        for (int64_t m = 0; m < taps; m += plan.tap_block) {
          const int64_t m_end = min_of(m + plan.tap_block, taps_per_class);
          if (!whole_panel()) fill_panel(block, oc, oc_end, m, m_end);
          run(block, segment, row, row_end, oc, oc_end, m, min_of(m_end, taps));
        }
      }
      if (!direct) store_results(block, segment, row, row_end);
    }
  }

  bool whole_panel() const { return plan.channel_block >= out_per_group && plan.tap_block >= taps_per_class; }
  void fill_whole_panel(const Block& block) {
    if (whole_panel()) fill_panel(block, 0, out_per_group, 0, taps_per_class);
  }

  Storage* input_row(const Block& block, int64_t n, int64_t ic) const {
    return static_cast<Storage*>(args.grad_input) + n * problem.input.batch +
           (block.group * in_per_group + ic) * problem.input.channel;
  }
};

// Work units: [batch block][group][position block][tile of rows].
template <class Storage>
void backward_input_panel(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  BackwardInputPanel<Storage> kernel(problem, plan, args, scratch);
  const int64_t positions = ceil_div(problem.in_length, problem.stride), rows = kernel.in_per_group * kernel.classes;
  for (int64_t unit = begin; unit < end;) {
    const int64_t index = unit / plan.out_tiles, tile0 = unit % plan.out_tiles;
    const int64_t tile1 = min_of(plan.out_tiles, tile0 + end - unit);
    const int64_t batch_index = index / plan.position_blocks / problem.groups;
    typename BackwardInputPanel<Storage>::Block block;
    block.n0 = batch_index * plan.batch_block;
    block.n1 = min_of(block.n0 + plan.batch_block, problem.batch);
    block.group = index / plan.position_blocks % problem.groups;
    const int64_t i = index % plan.position_blocks, lanes = Vec<Acc<Storage>>::kLanes;
    block.j0 = block_begin(positions, lanes, plan.position_blocks, i);
    block.j1 = block_begin(positions, lanes, plan.position_blocks, i + 1);
    block.columns = (block.n1 - block.n0 - 1) * plan.item_pitch + block.j1 - block.j0;
    block.edges = false;
    kernel.fill_whole_panel(block);
    const int64_t row0 = part_begin(rows, plan.out_tiles, tile0), row1 = part_begin(rows, plan.out_tiles, tile1);
    for (int64_t first = 0; first < kernel.classes;) {
      const auto segment = kernel.segment_from(first);
      const int64_t from = max_of(row0, kernel.first_row(segment, 0));
      const int64_t to = min_of(row1, kernel.first_row(segment, kernel.in_per_group));
      if (from < to) kernel.compute(block, segment, from, to);
      first = segment.class1;
    }
    unit += tile1 - tile0;
  }
}

// Work units: [batch][group][tile of input channels]. A unit adds all the padding of its channels, from left to right.
template <class Storage>
void backward_input_edges(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  BackwardInputPanel<Storage> kernel(problem, plan, args, scratch);
  const int64_t tiles = plan.edge_units / (problem.batch * problem.groups);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t ic0 = part_begin(kernel.in_per_group, tiles, unit % tiles);
    const int64_t ic1 = part_begin(kernel.in_per_group, tiles, unit % tiles + 1);
    typename BackwardInputPanel<Storage>::Block block;
    block.group = unit / tiles % problem.groups;
    block.n0 = unit / tiles / problem.groups;
    block.n1 = block.n0 + 1;
    block.edges = true;
    const auto add_range = [&](int64_t first_position, int64_t end_position) {
      const int64_t j_end = ceil_div(end_position, problem.stride);
      for (int64_t j = floor_div(first_position, problem.stride); j < j_end; j += plan.position_block) {
        block.j0 = j;
        block.j1 = min_of(j + plan.position_block, j_end);
        block.columns = block.j1 - block.j0;
        kernel.fill_whole_panel(block);
        for (int64_t first = 0; first < kernel.classes;) {
          const auto segment = kernel.segment_from(first);
          kernel.compute(block, segment, kernel.first_row(segment, ic0), kernel.first_row(segment, ic1));
          first = segment.class1;
        }
      }
    };
    add_range(-problem.padding_left, 0);
    add_range(problem.in_length, problem.in_length + problem.padding_right);
  }
}

}  // namespace
}  // namespace conv1d_ext
