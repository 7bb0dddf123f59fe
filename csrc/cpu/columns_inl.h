// conv1d and its gradients where outputs are few positions long. An output position is a column: the inputs that
// it meets are laid out as [in_channel][tap], just as a row of the weights is. Vectors lie along those and are full
// whatever the length, and the weights, which are the traffic here, are read once and in their order.
//
// Forward: every output is the dot product of a column and a row of the weights.
#pragma once

namespace conv1d_ext {
namespace {

// Elements of columns: as they are stored where the CPU multiplies pairs of those.
template <class Storage, bool kPairs = kPair<Storage> == 2>
struct ColumnOf {
  using type = Storage;
};
template <class Storage>
struct ColumnOf<Storage, false> {
  using type = Acc<Storage>;
};

template <class Column, class Storage>
Column as_column(Storage x) {
  if constexpr (sizeof(Column) == sizeof(Storage)) {
    return x;
  } else {
    return widen(x);
  }
}

// dst[(q - q0) * pitch + (ic - ic0) * taps + k]: input channels [ic0, ic1) of a group for columns [q0, q1), which are
// numbered n * out_length + t.
template <class Storage, class Column>
void fill_columns(
    const Conv1dProblem& problem, const void* input, int64_t group, int64_t q0, int64_t q1, int64_t ic0, int64_t ic1,
    Column* columns, int64_t pitch) {
  constexpr int64_t kLanes = Vec<Acc<Storage>>::kLanes;
  const int64_t taps = problem.kernel_size, first = group * (problem.in_channels / problem.groups);
  const int64_t step = problem.dilation * problem.input.position;
  for (int64_t q = q0; q < q1; ++q) {
    const int64_t n = q / problem.out_length, start = q % problem.out_length * problem.stride - problem.padding_left;
    const auto position = [&](int64_t k) { return start + k * problem.dilation; };
    int64_t begin = 0, end = taps;  // the taps that don't meet the padding
    while (begin < taps && position(begin) < 0) ++begin;
    while (end > begin && position(end - 1) >= problem.in_length) --end;
    const Storage* row =
        static_cast<const Storage*>(input) + n * problem.input.batch + (first + ic0) * problem.input.channel;
    Column* dst = columns + (q - q0) * pitch;
    if constexpr (sizeof(Column) == sizeof(Acc<Storage>)) {
      // A vector for each channel, whose zeros behind the taps are the padding and overwritten by the next channel.
      if (step == 1 && taps <= kLanes && (problem.padding_mode == PaddingMode::kZeros || end - begin == taps)) {
        const int64_t count = end - begin;
        row += position(begin) * problem.input.position;
        for (int64_t ic = ic0; ic < ic1; ++ic, row += problem.input.channel, dst += taps) {
          if (begin > 0) store(dst, broadcast(Column{0}));
          store(dst + begin, load_partial(row, count));
        }
        continue;
      }
    }
    for (int64_t ic = ic0; ic < ic1; ++ic, row += problem.input.channel, dst += taps) {
      const auto fill_edge = [&](int64_t k0, int64_t k1) {
        for (int64_t k = k0; k < k1; ++k) {
          const int64_t source = source_position(problem.padding_mode, position(k), problem.in_length);
          dst[k] = source < 0 ? Column{} : as_column<Column>(row[source * problem.input.position]);
        }
      };
      fill_edge(0, begin);
      fill_edge(end, taps);
      const Storage* src = row + position(begin) * problem.input.position;
      const int64_t count = end - begin;
      if constexpr (sizeof(Column) == sizeof(Acc<Storage>)) {
        copy_row(src, step, count, dst + begin);
      } else {
        for (int64_t k = 0; k < count; ++k) dst[begin + k] = as_column<Column>(src[k * step]);
      }
    }
  }
}

template <class Storage>
struct ForwardColumns {
  using T = Acc<Storage>;
  using Column = typename ColumnOf<Storage>::type;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  const Conv1dProblem& problem;
  const Plan& plan;
  const ForwardArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  Column* columns;
  T *results, *vector_sums;
  int64_t column[kMostColumns], weight_row[kDotRows];

  // Columns [q0, q1), which are numbered n * out_length + t, of a group, and output channels [oc0, oc1) of all.
  struct Block {
    int64_t group, q0, q1, oc0, oc1;
  };

  ForwardColumns(const Conv1dProblem& p, const Plan& pl, const ForwardArgs& a, void* memory)
      : problem(p), plan(pl), args(a) {
    Scratch scratch{static_cast<char*>(memory)};
    columns = reinterpret_cast<Column*>(scratch.take<T>(plan.panel_elements));
    results = scratch.take<T>(plan.result_elements);
    vector_sums = scratch.take<T>(plan.weight_elements);
    for (int64_t q = 0; q < plan.position_block; ++q) column[q] = q * plan.panel_width;
    for (int64_t r = 0; r < kDotRows; ++r) weight_row[r] = r * problem.weight.out_channel;
  }

  void fill(int64_t group, int64_t q0, int64_t q1, int64_t ic0, int64_t ic1) {
    fill_columns<Storage>(problem, args.input, group, q0, q1, ic0, ic1, columns, plan.panel_width);
  }

  // Adds channels [ic0, ic1) to the results of a few output channels: piece by piece, so that the weights stay in the
  // L1 cache for all columns.
  void add_dots(int64_t oc0, int64_t oc1, int64_t column_count, int64_t ic0, int64_t ic1, T* sums) {
    const int64_t length = (ic1 - ic0) * problem.kernel_size, rows = oc1 - oc0;
    const Storage* weight =
        static_cast<const Storage*>(args.weight) + oc0 * problem.weight.out_channel + ic0 * problem.weight.in_channel;
    const int64_t pitch = plan.position_block, count = rows * pitch;
    for (int64_t i = 0; i < round_up(count, kLanes); ++i) store(vector_sums + i * kLanes, broadcast(T{0}));
    for (int64_t i = 0; i < length; i += kDotPiece) {
      const int64_t end = min_of(i + kDotPiece, length);
      const int64_t next = end < length ? kDotPiece : rows * problem.weight.out_channel - i;
      run_dots<true>(
          Dots<Storage, Column>{weight + i, weight_row, columns + i, column, end - i, vector_sums, pitch, next}, rows,
          column_count);
    }
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(sums + i, add(load(sums + i), sum_each<kLanes>(vector_sums + i * kLanes)));
    }
    if (i < count) {  // behind the sums of these rows may be anything
      const Vec<T> after = add(load_partial(sums + i, count - i), sum_each<kLanes>(vector_sums + i * kLanes));
      store_partial(sums + i, after, count - i);
    }
  }

  static constexpr int64_t kDotPiece = 4096 / sizeof(Storage);

  void compute(const Block& block) {
    const int64_t count = block.q1 - block.q0, pitch = plan.position_block;
    for (int64_t oc = block.oc0; oc < block.oc1; ++oc) {
      const T bias = args.bias == nullptr ? T{0} : widen(static_cast<const Storage*>(args.bias)[oc]);
      for (int64_t q = 0; q < pitch; ++q) results[(oc - block.oc0) * pitch + q] = bias;
    }
    const bool whole = plan.channel_block >= in_per_group;
    for (int64_t ic = 0; ic < in_per_group; ic += plan.channel_block) {
      const int64_t ic_end = min_of(ic + plan.channel_block, in_per_group);
      if (!whole) fill(block.group, block.q0, block.q1, ic, ic_end);
      for (int64_t oc = block.oc0; oc < block.oc1; oc += kDotRows) {
        add_dots(oc, min_of(oc + kDotRows, block.oc1), count, ic, ic_end, results + (oc - block.oc0) * pitch);
      }
    }
    for (int64_t oc = block.oc0; oc < block.oc1; ++oc) {
      for (int64_t q = block.q0; q < block.q1;) {
        const int64_t n = q / problem.out_length, t = q % problem.out_length;
        const int64_t run = min_of(problem.out_length - t, block.q1 - q);
        Storage* dst = static_cast<Storage*>(args.output) + n * problem.output.batch + oc * problem.output.channel +
                       t * problem.output.position;
        store_row(problem, results + (oc - block.oc0) * pitch + q - block.q0, run, dst, problem.output.position);
        q += run;
      }
    }
  }
};

// Work units: [group][block of columns][tile of output channels].
template <class Storage>
void forward_columns(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  ForwardColumns<Storage> kernel(problem, plan, args, scratch);
  const auto compute = [&](int64_t index, int64_t tile0, int64_t tile1) {
    const int64_t group = index / plan.position_blocks;
    const int64_t q0 = index % plan.position_blocks * plan.position_block;
    const int64_t q1 = min_of(q0 + plan.position_block, problem.batch * problem.out_length);
    if (plan.channel_block >= kernel.in_per_group) kernel.fill(group, q0, q1, 0, kernel.in_per_group);
    const int64_t first = group * kernel.out_per_group, oc_end = min_of(tile1 * kColumnRows, kernel.out_per_group);
    for (int64_t oc = tile0 * kColumnRows; oc < oc_end; oc += plan.out_block) {
      kernel.compute({group, q0, q1, first + oc, first + min_of(oc + plan.out_block, oc_end)});
    }
  };
  for_blocks_of_tiles(begin, end, args.first_tile, args.tile_count, compute);
}

// c[row][lane] += sum over channels of a[channel][row] * b[channel][lane], where b is a tensor; pairs of channels are
// multiplied together where the CPU does so, and are pairs in a.
template <class Storage>
struct OuterProducts {
  using T = Acc<Storage>;
  const T* a;
  int64_t a_step;
  const Storage* b;
  int64_t b_channel;
  int64_t ahead;  // elements from b to what is read next, or 0
  int64_t channels;
  T* c;  // whole vectors are written
  int64_t c_row;
  bool first;  // c = instead of c +=
  int64_t lanes;
};

template <int kRows, int kVectors, class Storage>
void run_outer_tile(const OuterProducts<Storage>& outer) {
  using T = Acc<Storage>;
  constexpr int64_t kLanes = Vec<T>::kLanes, kLine = 64 / sizeof(Storage);
  const int64_t tail = outer.lanes - (kVectors - 1) * kLanes;  // lanes of the last vector, 1..kLanes
  const auto load_at = [&](const Storage* p, int v) __attribute__((always_inline)) {
    return v + 1 < kVectors || tail == kLanes ? load(p + v * kLanes) : load_partial(p + v * kLanes, tail);
  };
  Vec<T> acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) acc[r][v] = broadcast(T{0});
  }
  const T* a = outer.a;
  const Storage* b = outer.b;
  for (int64_t channel = 0; channel < outer.channels; channel += kPair<Storage>) {
    Vec<T> b_vector[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      b_vector[v] = load_at(b, v);
      if constexpr (kPair<Storage> == 2) {
        const bool has_odd = channel + 1 < outer.channels;
        b_vector[v] = make_pairs(b_vector[v], has_odd ? load_at(b + outer.b_channel, v) : broadcast(T{0}));
      }
    }
    if (outer.ahead != 0) {  // to the L2 cache: in the L1 cache rows that lie 4096 bytes apart evict each other
#pragma GCC unroll 2
      for (int odd = 0; odd < kPair<Storage>; ++odd) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kVectors * kLanes; i += kLine) {
          __builtin_prefetch(b + odd * outer.b_channel + outer.ahead + i, 0, 2);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> a_vector = broadcast(a[r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[r][v] = multiply_add<kPair<Storage>>(a_vector, b_vector[v], acc[r][v]);
    }
    a += outer.a_step;
    b += kPair<Storage> * outer.b_channel;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      T* c = outer.c + r * outer.c_row + v * kLanes;
      store(c, outer.first ? acc[r][v] : add(load(c), acc[r][v]));
    }
  }
}

constexpr int kOuterVectors = kTileAccumulators / kTileRows;

template <int kRows = kTileRows, int kVectors = kOuterVectors, class Storage>
void run_outer(const OuterProducts<Storage>& outer, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return run_outer<kRows - 1, kVectors>(outer, rows);
  }
  if constexpr (kVectors > 1) {
    if (outer.lanes <= (kVectors - 1) * Vec<Acc<Storage>>::kLanes) return run_outer<kRows, kVectors - 1>(outer, rows);
  }
  run_outer_tile<kRows, kVectors>(outer);
}

// conv1d_backward_input for outputs of few positions: the gradients of their columns first,
//   columns[position][in_channel][tap] = sum over output channels of grad_output * weight,
// where the weights are read as they are stored, by blocks of output channels; then these are added up where columns
// overlap. Nothing is multiplied that lies beyond the ends of grad_output. Columns that several blocks of input
// positions meet are computed for each.
template <class Storage>
struct BackwardInputColumns {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardInputArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t grad_pitch = plan.batch_block * plan.item_pitch;
  T *columns, *grad, *padded_row;

  // Items [n0, n1), input positions [i0, i1), which meet output positions [t0, t1), and input channels [ic0, ic1) of a
  // group.
  struct Block {
    int64_t n0, n1, group, i0, i1, t0, t1, ic0, ic1;
    int64_t outputs() const { return t1 - t0; }
    int64_t positions() const { return (n1 - n0) * outputs(); }
  };

  BackwardInputColumns(const Conv1dProblem& p, const Plan& pl, const BackwardInputArgs& a, void* memory)
      : problem(p), plan(pl), args(a) {
    Scratch scratch{static_cast<char*>(memory)};
    columns = scratch.take<T>(plan.panel_elements);
    grad = scratch.take<T>(plan.weight_elements);
    padded_row = scratch.take<T>(plan.result_elements);
  }

  // grad[out_channel][position], or pairs of output channels.
  void fill_grad(const Block& block, int64_t oc0, int64_t oc1) {
    const auto fill = [&](int64_t oc, T* dst) {
      const Storage* src =
          static_cast<const Storage*>(args.grad_output) + (block.group * out_per_group + oc) * problem.output.channel;
      src += block.t0 * problem.output.position;
      for (int64_t n = block.n0; n < block.n1; ++n, dst += block.outputs()) {
        copy_row(src + n * problem.output.batch, problem.output.position, block.outputs(), dst);
      }
    };
    T* dst = grad;
    for (int64_t oc = oc0; oc < oc1; oc += kPair<Storage>, dst += grad_pitch) {
      fill(oc, dst);
      if constexpr (kPair<Storage> == 2) {
        const bool has_odd = oc + 1 < oc1;
        if (has_odd) fill(oc + 1, dst + grad_pitch);
        pair_rows(dst, has_odd ? dst + grad_pitch : nullptr, grad_pitch, dst);
      }
    }
  }

  // Adds the products of output channels [oc0, oc1), of which each strip of weights serves all positions.
  void add_channels(const Block& block, int64_t oc0, int64_t oc1) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t lanes = (block.ic1 - block.ic0) * problem.kernel_size, vectors = ceil_div(lanes, kLanes);
    const int64_t positions = block.positions();
    const int64_t strips = ceil_div(vectors, kOuterVectors), row_tiles = ceil_div(positions, kTileRows);
    const Storage* weight = static_cast<const Storage*>(args.weight) +
                            (block.group * out_per_group + oc0) * problem.weight.out_channel +
                            block.ic0 * problem.weight.in_channel;
    OuterProducts<Storage> outer;
    outer.a_step = grad_pitch;
    outer.b_channel = problem.weight.out_channel;
    outer.channels = oc1 - oc0;
    outer.c_row = plan.panel_width;
    outer.first = oc0 == 0;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t begin = part_begin(vectors, strips, strip) * kLanes;
      const int64_t end = min_of(part_begin(vectors, strips, strip + 1) * kLanes, lanes);
      const int64_t next = strip + 1 < strips ? end : outer.channels * outer.b_channel;
      outer.b = weight + begin;
      outer.lanes = end - begin;
      for (int64_t tile = 0; tile < row_tiles; ++tile) {
        const int64_t position = part_begin(positions, row_tiles, tile);
        outer.a = grad + position;
        outer.ahead = tile == 0 ? next - begin : 0;
        outer.c = columns + position * plan.panel_width + begin;
        run_outer(outer, part_begin(positions, row_tiles, tile + 1) - position);
      }
    }
  }

  void store_results(const Block& block) {
    const int64_t begin = block.i0 + problem.padding_left, count = block.i1 - block.i0;  // in the padded row
    const int64_t first = min_of(begin, block.t0 * problem.stride);                      // what padded_row begins with
    for (int64_t n = block.n0; n < block.n1; ++n) {
      for (int64_t ic = block.ic0; ic < block.ic1; ++ic) {
        for (int64_t i = 0; i < plan.result_elements; ++i) padded_row[i] = 0;
        add_columns(
            columns + (n - block.n0) * block.outputs() * plan.panel_width + (ic - block.ic0) * problem.kernel_size,
            block.outputs(), padded_row + block.t0 * problem.stride - first);
        Storage* dst = static_cast<Storage*>(args.grad_input) + n * problem.input.batch +
                       (block.group * in_per_group + ic) * problem.input.channel + block.i0 * problem.input.position;
        store_row(problem, padded_row + begin - first, count, dst, problem.input.position);
      }
    }
  }

  // Along memory where there are many taps side by side.
  void add_columns(const T* __restrict column, int64_t outputs, T* __restrict positions) const {
    const int64_t taps = problem.kernel_size, pitch = plan.panel_width, stride = problem.stride;
    if (problem.dilation == 1 && taps >= 2 * Vec<T>::kLanes) {
      for (int64_t t = 0; t < outputs; ++t) {
        for (int64_t k = 0; k < taps; ++k) positions[t * stride + k] += column[t * pitch + k];
      }
    } else {
      for (int64_t k = 0; k < taps; ++k) {
        for (int64_t t = 0; t < outputs; ++t) positions[t * stride + k * problem.dilation] += column[t * pitch + k];
      }
    }
  }

  void compute(const Block& block) {
    for (int64_t oc = 0; oc < out_per_group; oc += plan.part_channels) {
      const int64_t oc_end = min_of(oc + plan.part_channels, out_per_group);
      fill_grad(block, oc, oc_end);
      add_channels(block, oc, oc_end);
    }
    store_results(block);
  }
};

// Work units: [batch block][group][position block][kColumnChannels input channels]. A thread takes as many together as
// its cache holds.
template <class Storage>
void backward_input_columns(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  BackwardInputColumns<Storage> kernel(problem, plan, args, scratch);
  const auto compute = [&](int64_t index, int64_t tile0, int64_t tile1) {
    typename BackwardInputColumns<Storage>::Block block;
    block.i0 = index % plan.position_blocks * plan.position_block;
    block.i1 = min_of(block.i0 + plan.position_block, problem.in_length);
    index /= plan.position_blocks;
    block.group = index % problem.groups;
    block.n0 = index / problem.groups * plan.batch_block;
    block.n1 = min_of(block.n0 + plan.batch_block, problem.batch);
    const int64_t reach = (problem.kernel_size - 1) * problem.dilation;
    block.t0 = max_of(0, ceil_div(block.i0 + problem.padding_left - reach, problem.stride));
    block.t1 = min_of(problem.out_length, floor_div(block.i1 - 1 + problem.padding_left, problem.stride) + 1);
    block.t1 = max_of(block.t0, block.t1);
    const int64_t ic_end = min_of(tile1 * kColumnChannels, kernel.in_per_group);
    for (int64_t ic = tile0 * kColumnChannels; ic < ic_end; ic += plan.channel_block) {
      block.ic0 = ic;
      block.ic1 = min_of(ic + plan.channel_block, ic_end);
      kernel.compute(block);
    }
  };
  for_blocks_of_tiles(begin, end, args.first_tile, args.tile_count, compute);
}

// conv1d_backward_weight where outputs are few positions long, in the whole batch: rows of the register tile are output
// channels, vectors lie along the columns, and so along the weights' gradients as they are stored.
template <class Storage>
struct BackwardWeightColumns {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardWeightArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t positions = problem.batch * problem.out_length;
  T *columns, *grad, *results;
  int64_t *column_step, *grad_step;

  BackwardWeightColumns(const Conv1dProblem& p, const Plan& pl, const BackwardWeightArgs& a, void* memory)
      : problem(p), plan(pl), args(a) {
    Scratch scratch{static_cast<char*>(memory)};
    columns = scratch.take<T>(plan.panel_elements);
    grad = scratch.take<T>(plan.weight_elements);
    results = scratch.take<T>(plan.result_elements);
    column_step = scratch.take<int64_t>(plan.step_table);
    grad_step = scratch.take<int64_t>(plan.step_table);
    for (int64_t q = 0; q < plan.step_table; ++q) column_step[q] = q * plan.panel_width;
  }

  // Vectors that end beyond the column have zeros there: see BackwardWeightPanel::fill_empty_columns.
  void fill(int64_t group, int64_t ic0, int64_t ic1) {
    fill_columns<Storage>(problem, args.input, group, 0, positions, ic0, ic1, columns, plan.panel_width);
    const int64_t length = (ic1 - ic0) * problem.kernel_size, beyond = plan.panel_width - length;
    for (int64_t q = 0; q < positions && beyond > 0; ++q) {
      store_partial(columns + q * plan.panel_width + length, broadcast(T{0}), min_of(beyond, Vec<T>::kLanes));
    }
  }

  // grad[position][row]
  void fill_grad(int64_t oc0, int64_t rows) {
    for (int64_t n = 0; n < problem.batch; ++n) {
      T* dst = grad + n * problem.out_length * rows;
      const Storage* src =
          static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + oc0 * problem.output.channel;
      for (int64_t row = 0; row < rows; ++row, src += problem.output.channel) {
        for (int64_t t = 0; t < problem.out_length; ++t) dst[t * rows + row] = widen(src[t * problem.output.position]);
      }
    }
  }

  // A tile of output channels, from oc0 of all on, and input channels [ic0, ic1) of its group.
  void compute(int64_t oc0, int64_t rows, int64_t ic0, int64_t ic1) {
    fill_grad(oc0, rows);
    const T zeros[kTileRows] = {};
    Storage* first =
        static_cast<Storage*>(args.grad_weight) + oc0 * problem.weight.out_channel + ic0 * problem.weight.in_channel;
    Sums<T> sums;
    sums.channels = positions;
    sums.taps = 1;
    sums.part_channels = kLongestPart;
    sums.b_channel = plan.panel_width;
    sums.tile.a = grad;
    sums.tile.a_step = grad_step;
    sums.tile.b = columns;
    sums.tile.b_step = column_step;
    sums.tile.init = zeros;
    sums.tile.columns = (ic1 - ic0) * problem.kernel_size;
    sums.tile.c = results;
    sums.tile.c_row = plan.panel_width;
    if constexpr (kStoredAsComputed<Storage>) {
      if (plan.direct) {
        sums.tile.c = first;
        sums.tile.c_row = problem.weight.out_channel;
      }
    }
    run_sums<T, true, 1>(sums, rows);
    for (int64_t row = 0; row < rows && !plan.direct; ++row) {
      store_row(
          problem, results + row * plan.panel_width, sums.tile.columns, first + row * problem.weight.out_channel, 1);
    }
  }
};

// Work units: [group][block of input channels][tile of output channels].
template <class Storage>
void backward_weight_columns(
    const Conv1dProblem& problem, const Plan& plan, const BackwardWeightArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  BackwardWeightColumns<Storage> kernel(problem, plan, args, scratch);
  const int64_t blocks = ceil_div(kernel.in_per_group, plan.channel_block);
  const auto compute = [&](int64_t index, int64_t tile0, int64_t tile1) {
    const int64_t group = index / blocks, ic = index % blocks * plan.channel_block;
    const int64_t ic_end = min_of(ic + plan.channel_block, kernel.in_per_group);
    kernel.fill(group, ic, ic_end);
    for (int64_t tile = tile0; tile < tile1; ++tile) {
      const int64_t oc = part_begin(kernel.out_per_group, plan.out_tiles, tile);
      const int64_t rows = part_begin(kernel.out_per_group, plan.out_tiles, tile + 1) - oc;
      kernel.compute(group * kernel.out_per_group + oc, rows, ic, ic_end);
    }
  };
  for_blocks_of_tiles(begin, end, 0, plan.out_tiles, compute);
}

}  // namespace
}  // namespace conv1d_ext
