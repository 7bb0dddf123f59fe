// conv1d_backward_input for outputs of few positions: the gradients of their columns (columns_inl.h) first,
//   columns[position][in_channel][tap] = sum over output channels of grad_output * weight,
// where the weights are read as they are stored, by blocks of output channels; then these are added up where columns
// overlap. Nothing is multiplied that lies beyond the ends of grad_output. Columns that several blocks of input
// positions meet are computed for each.
#pragma once

namespace conv1d_ext {
namespace {

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

  // Items [n0, n1), input positions [i0, i1), the output positions that meet them, and input channels [ic0, ic1) of a
  // group.
  struct Block {
    int64_t n0, n1, group, i0, i1;
    Part met;
    int64_t ic0, ic1;
    int64_t outputs() const { return met.end - met.begin; }
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
      src += block.met.begin * problem.output.position;
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
    const int64_t first = min_of(begin, block.met.begin * problem.stride);               // what padded_row begins with
    for (int64_t n = block.n0; n < block.n1; ++n) {
      for (int64_t ic = block.ic0; ic < block.ic1; ++ic) {
        for (int64_t i = 0; i < plan.result_elements; ++i) padded_row[i] = 0;
        add_columns(
            columns + (n - block.n0) * block.outputs() * plan.panel_width + (ic - block.ic0) * problem.kernel_size,
            block.outputs(), padded_row + block.met.begin * problem.stride - first);
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
    block.met = outputs_that_meet(problem, block.i0, block.i1);
    const int64_t ic_end = min_of(tile1 * kColumnChannels, kernel.in_per_group);
    for (int64_t ic = tile0 * kColumnChannels; ic < ic_end; ic += plan.channel_block) {
      block.ic0 = ic;
      block.ic1 = min_of(ic + plan.channel_block, ic_end);
      kernel.compute(block);
    }
  };
  for_blocks_of_tiles(begin, end, args.first_tile, args.tile_count, compute);
}

}  // namespace
}  // namespace conv1d_ext
