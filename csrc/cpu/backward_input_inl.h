// conv1d_backward_input by panels. Each class of taps (tap_classes_inl.h) is a convolution of stride 1 over a panel
//   panel[out_channel][position]
// of grad_output. Rows of the register tile are pairs of an input channel and a class, for classes that read
// grad_output at the same positions; vectors lie along j. Residues that no tap meets are left as they are.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
struct BackwardInputPanel : PanelMemory<Acc<Storage>> {
  using T = Acc<Storage>;
  using PanelMemory<T>::panel, PanelMemory<T>::packed_weight, PanelMemory<T>::results;
  using PanelMemory<T>::panel_step, PanelMemory<T>::weight_step, PanelMemory<T>::odd_row, PanelMemory<T>::next_rows;
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardInputArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t panel_channels = ceil_div(out_per_group, kPair<Storage>);
  using Segment = TapClasses::Segment;
  const TapClasses classes{problem, plan.panel_phases};
  const int64_t taps_per_class = classes.taps(0);
  const GradInputEnds<Storage> ends{problem, args};

  // A block of inputs: batch items [n0, n1), a group, positions j * stride + residue with j in [j0, j1). `edges`: only
  // the padding positions among them, to be added to the positions that they repeat.
  struct Block {
    int64_t n0, n1, group, j0, j1;
    int64_t columns;
    bool edges;
  };

  BackwardInputPanel(const Conv1dProblem& p, const Plan& pl, const BackwardInputArgs& a, void* memory)
      : PanelMemory<T>(pl, memory), problem(p), plan(pl), args(a) {}

  // What the first column of the panel is for taps [.., m_end) of all classes: j0 + lowest_offset(m_end).
  int64_t lowest_offset(int64_t m_end) const {
    return classes.offset(classes.count - 1) - (m_end - 1) * plan.phase_shift;
  }

  Row<Storage> grad_row(int64_t group, int64_t n, int64_t oc) const {
    return {
        static_cast<const Storage*>(args.grad_output) + n * problem.output.batch +
            (group * out_per_group + oc) * problem.output.channel,
        problem.output.position, problem.out_length, PaddingMode::kZeros};
  }

  // Channels of the panel, of which each is kPair<Storage> output channels.
  void fill_panel(const Block& block, int64_t oc0, int64_t oc1, int64_t m0, int64_t m1) {
    const int64_t start = block.j0 + lowest_offset(m1);
    const int64_t count = block.j1 - block.j0 + classes.offset(0) - m0 * plan.phase_shift - lowest_offset(m1);
    for (int64_t oc = oc0; oc < oc1; ++oc) {
      fill_panel_row<Storage>(
          plan, block.n0, block.n1, [&](int64_t n, int64_t channel) { return grad_row(block.group, n, channel); }, oc,
          out_per_group, start, 1, count, panel + (oc - oc0) * plan.panel_width, odd_row);
    }
  }

  // Number `index` of [batch block][group][position block].
  Block block_at(int64_t index) const {
    const int64_t positions = ceil_div(problem.in_length, problem.stride);
    Block block;
    block.n0 = index / plan.position_blocks / problem.groups * plan.batch_block;
    block.n1 = min_of(block.n0 + plan.batch_block, problem.batch);
    block.group = index / plan.position_blocks % problem.groups;
    const int64_t i = index % plan.position_blocks;
    block.j0 = block_begin(positions, kTileColumns<T>, plan.position_blocks, i);
    block.j1 = block_begin(positions, kTileColumns<T>, plan.position_blocks, i + 1);
    block.columns = (block.n1 - block.n0 - 1) * plan.item_pitch + block.j1 - block.j0;
    block.edges = false;
    return block;
  }

  // What a block reads of channels [oc0, oc1) of the panel.
  NextRows rows_to_fetch(const Block& block, int64_t oc0, int64_t oc1, int64_t work) const {
    const int64_t channel = oc0 * kPair<Storage>, channels = min_of(oc1 * kPair<Storage>, out_per_group) - channel;
    return this->rows_between(
        grad_row(block.group, block.n0, channel), problem.output, block.n1 - block.n0, channels,
        block.j0 + lowest_offset(taps_per_class), block.j1 + classes.offset(0), work);
  }

  // The work of so many rows and channels of the panel, in vectors; classes have as many taps as there are on average.
  int64_t work(const Block& block, int64_t rows, int64_t channels) const {
    return rows * ceil_div(block.columns, Vec<T>::kLanes) * channels * problem.kernel_size / classes.count;
  }

  // Whether a block's rows are read where they lie, for all taps.
  bool in_place(const Block& block) const {
    return plan.in_place && block.j0 + lowest_offset(taps_per_class) >= 0 &&
           block.j1 + classes.offset(0) <= problem.out_length;
  }

  // Rows of a segment, in balanced tiles.
  int64_t rows_of(const Segment& segment) const { return in_per_group * segment.classes(); }
  int64_t tiles_of(const Segment& segment) const { return ceil_div(rows_of(segment), kTileRows); }
  int64_t first_row(const Segment& segment, int64_t tile) const {
    return part_begin(rows_of(segment), tiles_of(segment), tile);
  }
  int64_t channel_of(const Segment& segment, int64_t row) const { return row / segment.classes(); }
  int64_t class_of(const Segment& segment, int64_t row) const { return segment.begin + row % segment.classes(); }

  WeightTile weight_tile(const Segment& segment, int64_t index) const {
    WeightTile tile;
    const int64_t row = first_row(segment, index);
    tile.rows = first_row(segment, index + 1) - row;
    for (int64_t r = 0; r < tile.rows; ++r) {
      tile.row_offset[r] =
          channel_of(segment, row + r) * problem.weight.in_channel + class_of(segment, row + r) * problem.weight.tap;
    }
    return tile;
  }

  // The packed weights are [group][segment][tile][out_channel][tap][row], those of the pass, with room behind each tile
  // for what pack_weight writes too much.
  int64_t packed_offset(int64_t group, const Segment& segment, int64_t tile) const {
    int64_t first = 0;
    for_segments(args.first_tile, args.first_tile + 1, [&](const Segment& of_first, int64_t index, int64_t) {
      first = offset_in_group(of_first, index);
    });
    return group * (plan.packed_bytes / int64_t{sizeof(T)} / problem.groups) + offset_in_group(segment, tile) - first;
  }
  int64_t offset_in_group(const Segment& segment, int64_t tile) const {
    int64_t offset = 0;
    for (int64_t first = 0; first < segment.begin;) {
      const Segment before = classes.segment_from(first);
      offset += rows_of(before) * classes.taps(first) * out_per_group + tiles_of(before) * kPackSlack;
      first = before.end;
    }
    return offset + first_row(segment, tile) * classes.taps(segment.begin) * out_per_group + tile * kPackSlack;
  }

  const Storage* group_weight(int64_t group) const {
    return static_cast<const Storage*>(args.weight) + group * out_per_group * problem.weight.out_channel;
  }

  // Adds taps [m0, m1) and channels [oc0, oc1) of the panel to the rows of tiles [tile0, tile1) of a segment.
  void run(
      const Block& block, const Segment& segment, int64_t tile0, int64_t tile1, int64_t oc0, int64_t oc1, int64_t m0,
      int64_t m1) {
    const int64_t channel = oc0 * kPair<Storage>;
    const Storage* weight =
        group_weight(block.group) + channel * problem.weight.out_channel + m0 * plan.panel_phases * problem.weight.tap;
    const WeightSteps steps{
        min_of(oc1 * kPair<Storage>, out_per_group) - channel, problem.weight.out_channel, m1 - m0,
        plan.panel_phases * problem.weight.tap};
    const int64_t segment_taps = classes.taps(segment.begin);
    const int64_t packed_tile = kTileRows * steps.channels * steps.taps + kPackSlack;
    const T zeros[kTileRows] = {};
    Sums<T> sums;
    sums.channels = oc1 - oc0;
    sums.taps = steps.taps;
    sums.part_channels = plan.part_channels;
    sums.a_channel = steps.channel_stride;
    const bool in_place = this->in_place(block);
    sums.b_channel = in_place ? problem.output.channel : plan.panel_width;
    this->set_steps(
        plan, sums.channels, sums.taps, sums.b_channel, sums.a_channel,
        [&](int64_t m) { return -m * plan.phase_shift; }, [&](int64_t m) { return m * steps.tap_stride; });
    Tile<T>& tile = sums.tile;
    tile.a_step = weight_step;
    tile.b = panel + classes.offset(segment.begin) - m0 * plan.phase_shift -
             lowest_offset(min_of(m0 + plan.tap_block, taps_per_class));
    tile.exact = in_place;
    if constexpr (kStoredAsComputed<Storage>) {
      if (in_place) {
        tile.b = grad_row(block.group, block.n0, oc0).data + block.j0 + classes.offset(segment.begin) -
                 m0 * plan.phase_shift;
      }
    }
    tile.b_step = panel_step;
    tile.init = oc0 == 0 && m0 == 0 ? zeros : nullptr;
    tile.columns = block.columns;
    tile.next = &next_rows;
    const T* all_packed = nullptr;  // the weights of tile0 among those
    if (plan.pack_weight == PackWeight::kAll) {
      all_packed = static_cast<const T*>(args.packed_weight) + packed_offset(block.group, segment, tile0);
    }
    WeightTile weights[kMostPackTiles];
    for (int64_t some = tile0; some < tile1; some += plan.pack_tiles) {
      const int64_t count = min_of(plan.pack_tiles, tile1 - some);
      for (int64_t i = 0; i < count; ++i) weights[i] = weight_tile(segment, some + i);
      if (plan.pack_weight == PackWeight::kTiles) {
        pack_weight(weight, weights, count, steps, packed_weight, packed_tile);
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = first_row(segment, some + i), rows = weights[i].rows;
        tile.a_row = weights[i].row_offset;
        tile.c_row = round_up(block.columns, Vec<T>::kLanes);
        tile.c = results + (row - first_row(segment, tile0)) * tile.c_row;
        if constexpr (kStoredAsComputed<Storage>) {
          if (plan.direct && !block.edges) {
            tile.c = input_row(block, block.n0, channel_of(segment, row)) + block.j0;
            tile.c_row = problem.input.channel;
          }
        }
        if (plan.pack_weight == PackWeight::kNo) {
          if constexpr (kStoredAsComputed<Storage>) {
            tile.a = weight;
            run_sums<T, false, kPair<Storage>>(sums, rows);
          }
        } else {
          tile.a = plan.pack_weight == PackWeight::kTiles
                       ? packed_weight + i * packed_tile
                       : all_packed + (row - first_row(segment, tile0)) * segment_taps * out_per_group +
                             (some + i - tile0) * kPackSlack + (oc0 * segment_taps + m0) * rows;
          run_sums<T, true, kPair<Storage>>(sums, rows);
        }
      }
    }
  }

  void store_results(const Block& block, const Segment& segment, int64_t row0, int64_t row1) {
    const int64_t pitch = round_up(block.columns, Vec<T>::kLanes);
    const int64_t strides = problem.in_length / problem.stride, beyond = problem.in_length % problem.stride;
    const int64_t first_rest = classes.residue(segment.begin);  // those of its classes are a dilation apart
    const int64_t end_rest = first_rest + segment.classes() * problem.dilation;
    int64_t channel = channel_of(segment, row0);
    int64_t rest = first_rest + (class_of(segment, row0) - segment.begin) * problem.dilation;
    for (int64_t row = row0; row < row1; ++row) {
      const int64_t count = min_of(block.j1, strides + (rest < beyond)) - block.j0;  // not past the input
      for (int64_t n = block.n0; n < block.n1; ++n) {
        const T* src = results + (row - row0) * pitch + (n - block.n0) * plan.item_pitch;
        Storage* dst = input_row(block, n, channel);
        if (block.edges) {
          fold_edges(block, rest, src, dst, edge_sums() + 2 * channel);
        } else {
          store_row(
              problem, src, count, dst + (block.j0 * problem.stride + rest) * problem.input.position,
              problem.stride * problem.input.position);
        }
      }
      rest += problem.dilation;
      if (rest == end_rest) {
        rest = first_rest;
        ++channel;
      }
    }
  }

  // Adds the padding positions of one row to the positions that they repeat. Only position 0 and the last one can be
  // repeated many times (replicate), so their sums are kept in the accumulation type.
  void fold_edges(const Block& block, int64_t rest, const T* src, Storage* row, T* first_and_last_sum) {
    for (int64_t j = block.j0; j < block.j1; ++j) {
      const int64_t position = j * problem.stride + rest;
      if (position < -problem.padding_left || position >= problem.in_length + problem.padding_right ||
          (position >= 0 && position < problem.in_length)) {
        continue;
      }
      const int64_t source = source_position(problem.padding_mode, position, problem.in_length);
      if (source == 0) {
        first_and_last_sum[0] += src[j - block.j0];
      } else if (source == problem.in_length - 1) {
        first_and_last_sum[1] += src[j - block.j0];
      } else {
        add_to(src[j - block.j0], row + source * problem.input.position);
      }
    }
  }

  // Two sums for each channel, behind the results.
  T* edge_sums() const { return results + plan.result_elements - 2 * in_per_group; }

  void add_edge_sums(const Block& block) {
    for (int64_t ic = 0; ic < in_per_group; ++ic) {
      Storage* row = input_row(block, block.n0, ic);
      add_to(edge_sums()[2 * ic], row);
      add_to(edge_sums()[2 * ic + 1], row + (problem.in_length - 1) * problem.input.position);
    }
  }

  void add_to(T value, Storage* dst) const { narrow(problem.negate ? widen(*dst) - value : widen(*dst) + value, dst); }

  // Of rows that have been stored; where they are not stored directly, the results are still at hand, too.
  void mend_ends(const Block& block, const Segment& segment, int64_t row0, int64_t row1, bool direct) const {
    const int64_t stride = problem.stride, columns = block.j1 - block.j0;
    // Columns [0, head) and [tail, columns) lie near the ends.
    int64_t head = min_of(columns, ceil_div(ends.head, stride) - block.j0);
    const int64_t tail = max_of(max_of(0, head), floor_div(ends.tail, stride) - block.j0);
    if (!ends.stored || ends.repeats || (head <= 0 && tail >= columns)) return;
    if (columns <= 4 * Vec<T>::kLanes) head = columns;  // quicker than two ends
    const int64_t pitch = round_up(block.columns, Vec<T>::kLanes);
    const auto look = [&](const auto* values, Vec<T>* seen) {
      if (head > 0) ends.look(values, 1, head, seen);
      if (head < columns && tail < columns) ends.look(values + tail, 1, columns - tail, seen);
    };
    Vec<T> seen = broadcast(T{0});
    for (int64_t row = row0; row < row1; ++row) {
      for (int64_t n = block.n0; n < block.n1; ++n) {
        if (direct) {  // stride 1: rows are channels
          look(input_row(block, n, row) + block.j0, &seen);
        } else {
          look(results + (row - row0) * pitch + (n - block.n0) * plan.item_pitch, &seen);
        }
      }
    }
    if (!ends.alarming(seen)) return;
    for (int64_t row = row0; row < row1; ++row) {
      const int64_t channel = block.group * in_per_group + channel_of(segment, row);
      const int64_t first = block.j0 * stride + classes.residue(class_of(segment, row));
      const int64_t last = min_of(problem.in_length, block.j1 * stride);
      for (int64_t n = block.n0; n < block.n1; ++n) ends.mend(n, channel, first, last, stride);
    }
  }

  // Tiles [tile0, tile1) of a segment, in a block whose panel may have been filled before. As in forward, the rows that
  // come next are fetched meanwhile.
  void compute(const Block& block, const Block* next, const Segment& segment, int64_t tile0, int64_t tile1) {
    const int64_t taps = classes.taps(segment.begin);
    const bool direct = plan.direct && !block.edges;
    const int64_t step = direct ? tile1 - tile0 : ceil_div(plan.out_block, kTileRows);
    for (int64_t tile = tile0; tile < tile1; tile += step) {
      const int64_t tile_end = min_of(tile + step, tile1);
      for (int64_t oc = 0; oc < panel_channels; oc += plan.channel_block) {
        const int64_t oc_end = min_of(oc + plan.channel_block, panel_channels);
        for (int64_t m = 0; m < taps; m += plan.tap_block) {
          const int64_t m_end = min_of(m + plan.tap_block, taps_per_class);
          if (!read_once(block)) {
            fill_panel(block, oc, oc_end, m, m_end);
            if (m_end == taps_per_class) {
              const bool again = tile_end < tile1 || segment.end < classes.count;
              const int64_t rows = first_row(segment, tile_end) - first_row(segment, tile);
              next_rows =
                  following_rows(*this, block, next, plan.channel_block, oc_end, again, work(block, rows, oc_end - oc));
            }
          }
          run(block, segment, tile, tile_end, oc, oc_end, m, min_of(m_end, taps));
        }
      }
      if (!direct) store_results(block, segment, first_row(segment, tile), first_row(segment, tile_end));
      mend_ends(block, segment, first_row(segment, tile), first_row(segment, tile_end), direct);
    }
  }

  // Tiles are numbered segment by segment.
  template <class Body>
  void for_segments(int64_t tile0, int64_t tile1, const Body& body) const {
    for (int64_t first = 0, before = 0; first < classes.count;) {
      const Segment segment = classes.segment_from(first);
      const int64_t from = max_of(tile0 - before, 0), to = min_of(tile1 - before, tiles_of(segment));
      if (from < to) body(segment, from, to);
      before += tiles_of(segment);
      first = segment.end;
    }
  }

  bool whole_panel() const { return plan.channel_block >= panel_channels && plan.tap_block >= taps_per_class; }
  // For all tiles, of which so many will follow.
  bool read_once(const Block& block) const { return whole_panel() || in_place(block); }
  void begin_block(const Block& block, const Block* next, int64_t tiles) {
    if (whole_panel() && !in_place(block)) fill_panel(block, 0, panel_channels, 0, taps_per_class);
    if (read_once(block)) {
      const int64_t rows = min_of(tiles * kTileRows, in_per_group * classes.count);
      next_rows =
          following_rows(*this, block, next, panel_channels, panel_channels, false, work(block, rows, panel_channels));
    }
  }

  Storage* input_row(const Block& block, int64_t n, int64_t ic) const {
    return static_cast<Storage*>(args.grad_input) + n * problem.input.batch +
           (block.group * in_per_group + ic) * problem.input.channel;
  }
};

// Work units: [group][tile of rows], the tiles of the pass.
template <class Storage>
void pack_backward_input(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  using Kernel = BackwardInputPanel<Storage>;
  const Kernel kernel(problem, plan, args, nullptr);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t group = unit / args.tile_count, index = args.first_tile + unit % args.tile_count;
    kernel.for_segments(index, index + 1, [&](const typename Kernel::Segment& segment, int64_t tile, int64_t) {
      const WeightTile weights = kernel.weight_tile(segment, tile);
      pack_weight(
          kernel.group_weight(group), &weights, 1,
          {kernel.out_per_group, problem.weight.out_channel, kernel.classes.taps(segment.begin),
           plan.panel_phases * problem.weight.tap},
          static_cast<T*>(args.packed_weight) + kernel.packed_offset(group, segment, tile), 0);
    });
  }
}

// Work units: [batch block][group][position block][tile of rows], the tiles of the pass.
template <class Storage>
void backward_input_panel(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  using Kernel = BackwardInputPanel<Storage>;
  Kernel kernel(problem, plan, args, scratch);
  const auto compute = [&](int64_t index, int64_t tile0, int64_t tile1) {
    const bool last = (index + 1) * args.tile_count >= end;
    const auto block = kernel.block_at(index), next_block = kernel.block_at(last ? index : index + 1);
    const auto* next = last ? nullptr : &next_block;
    kernel.begin_block(block, next, tile1 - tile0);
    kernel.for_segments(tile0, tile1, [&](const typename Kernel::Segment& segment, int64_t from, int64_t to) {
      kernel.compute(block, next, segment, from, to);
    });
  };
  for_blocks_of_tiles(begin, end, args.first_tile, args.tile_count, compute);
}

// Work units: [batch][group]. A unit adds all the padding of its channels, from left to right.
template <class Storage>
void backward_input_edges(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  using Kernel = BackwardInputPanel<Storage>;
  Kernel kernel(problem, plan, args, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    typename Kernel::Block block;
    block.group = unit % problem.groups;
    block.n0 = unit / problem.groups;
    block.n1 = block.n0 + 1;
    block.edges = true;
    for (int64_t i = 0; i < 2 * kernel.in_per_group; ++i) kernel.edge_sums()[i] = 0;
    const auto add_range = [&](int64_t first_position, int64_t end_position) {
      const int64_t j_end = ceil_div(end_position, problem.stride);
      for (int64_t j = floor_div(first_position, problem.stride); j < j_end; j += plan.position_block) {
        block.j0 = j;
        block.j1 = min_of(j + plan.position_block, j_end);
        block.columns = block.j1 - block.j0;
        kernel.begin_block(block, nullptr, plan.out_tiles);
        kernel.for_segments(0, plan.out_tiles, [&](const typename Kernel::Segment& segment, int64_t from, int64_t to) {
          kernel.compute(block, nullptr, segment, from, to);
        });
      }
    };
    add_range(-problem.padding_left, 0);
    add_range(problem.in_length, problem.in_length + problem.padding_right);
    kernel.add_edge_sums(block);
  }
}

}  // namespace
}  // namespace conv1d_ext
