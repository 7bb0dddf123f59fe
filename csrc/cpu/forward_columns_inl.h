// conv1d for outputs of few positions: every output is the dot product of a column and a row of the weights.
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

}  // namespace
}  // namespace conv1d_ext
