// conv1d_backward_weight where outputs are few positions long, in the whole batch: rows of the register tile are output
// channels, vectors lie along the columns, and so along the weights' gradients as they are stored.
#pragma once

namespace conv1d_ext {
namespace {

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
