// conv1d where outputs are few positions long. An output position is a column: the inputs that it meets are laid out as
// [in_channel][tap], just as a row of the weights is, and every output is a dot product of the two. Vectors are full
// whatever the length, and the weights, which are the traffic here, are read once and in their order.
#pragma once

namespace conv1d_ext {
namespace {

// Work units: [group][block of columns][tile of output channels]; columns are numbered n * out_length + t.
template <class Storage>
void forward_columns(
    const Conv1dProblem& problem, const Plan& plan, const ForwardArgs& args, void* memory, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t pitch = plan.panel_width;
  Scratch scratch{static_cast<char*>(memory)};
  T* columns = scratch.take<T>(plan.panel_elements);
  T* results = scratch.take<T>(plan.result_elements);
  int64_t column[kMostColumns];
  for (int64_t q = 0; q < plan.position_block; ++q) column[q] = q * pitch;

  const auto fill_columns = [&](int64_t group, int64_t q0, int64_t q1, int64_t ic0, int64_t ic1) {
    for (int64_t q = q0; q < q1; ++q) {
      const int64_t n = q / problem.out_length, t = q % problem.out_length;
      for (int64_t ic = ic0; ic < ic1; ++ic) {
        const Storage* data = static_cast<const Storage*>(args.input) + n * problem.input.batch +
                              (group * in_per_group + ic) * problem.input.channel;
        pack_row<Storage>(
            {data, problem.input.position, problem.in_length, problem.padding_mode},
            t * problem.stride - problem.padding_left, problem.dilation, problem.kernel_size, problem.kernel_size,
            columns + (q - q0) * pitch + (ic - ic0) * problem.kernel_size);
      }
    }
  };

  for (int64_t unit = begin; unit < end;) {
    const int64_t index = unit / plan.out_tiles, tile0 = unit % plan.out_tiles;
    const int64_t tile1 = min_of(plan.out_tiles, tile0 + end - unit);
    const int64_t group = index / plan.position_blocks;
    const int64_t q0 = index % plan.position_blocks * plan.position_block;
    const int64_t q1 = min_of(q0 + plan.position_block, problem.batch * problem.out_length);
    const bool whole = plan.channel_block >= in_per_group;
    if (whole) fill_columns(group, q0, q1, 0, in_per_group);
    for (int64_t tile = tile0; tile < tile1; ++tile) {
      const int64_t oc0 = group * out_per_group + part_begin(out_per_group, plan.out_tiles, tile);
      const int64_t oc1 = group * out_per_group + part_begin(out_per_group, plan.out_tiles, tile + 1);
      int64_t weight_row[kColumnsOutBlock];
      for (int64_t oc = oc0; oc < oc1; ++oc) {
        weight_row[oc - oc0] = oc * problem.weight.out_channel;
        const T bias = args.bias == nullptr ? T{0} : widen(static_cast<const Storage*>(args.bias)[oc]);
        for (int64_t q = q0; q < q1; ++q) results[(oc - oc0) * plan.position_block + q - q0] = bias;
      }
      for (int64_t ic = 0; ic < in_per_group; ic += plan.channel_block) {
        const int64_t ic_end = min_of(ic + plan.channel_block, in_per_group);
        if (!whole) fill_columns(group, q0, q1, ic, ic_end);
        run_dots<false>(
            Dots<Storage, T>{
                static_cast<const Storage*>(args.weight) + ic * problem.weight.in_channel, weight_row, columns, column,
                (ic_end - ic) * problem.kernel_size, results, plan.position_block},
            oc1 - oc0, q1 - q0);
      }
      for (int64_t oc = oc0; oc < oc1; ++oc) {
        for (int64_t q = q0; q < q1; ++q) {
          Storage* dst = static_cast<Storage*>(args.output) + q / problem.out_length * problem.output.batch +
                         oc * problem.output.channel + q % problem.out_length * problem.output.position;
          store_row(problem, results + (oc - oc0) * plan.position_block + q - q0, 1, dst, 1);
        }
      }
    }
    unit += tile1 - tile0;
  }
}

}  // namespace
}  // namespace conv1d_ext
