// conv1d_backward_input of few input channels, whose tiles would have few rows: all taps of a position of grad_output
// at once,
//   products[in_channel][tap][position] = sum over output channels of weight * grad_output
// so that rows of the register tile are (in_channel, tap) and grad_output is read once, where it lies. Then the rows
// are shifted and added up. Nothing is multiplied that lies beyond the ends of grad_output.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
struct BackwardInputTaps {
  using T = Acc<Storage>;
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardInputArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t rows = in_per_group * problem.kernel_size, row_tiles = ceil_div(rows, kTileRows);
  T *products, *weights, *sums;
  int64_t* grad_step;

  BackwardInputTaps(const Conv1dProblem& p, const Plan& pl, const BackwardInputArgs& a, void* memory)
      : problem(p), plan(pl), args(a) {
    Scratch scratch{static_cast<char*>(memory)};
    products = scratch.take<T>(plan.panel_elements);
    weights = scratch.take<T>(plan.weight_elements);
    sums = scratch.take<T>(plan.result_elements);
    grad_step = scratch.take<int64_t>(plan.step_table);
    for (int64_t oc = 0; oc < plan.step_table; ++oc) grad_step[oc] = oc * problem.output.channel;
  }

  int64_t first_row(int64_t tile) const { return part_begin(rows, row_tiles, tile); }

  // weights[tile][out_channel][row]
  void pack_weights(int64_t group) {
    T* to = weights;
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
      const Storage* first =
          static_cast<const Storage*>(args.weight) + group * out_per_group * problem.weight.out_channel;
      for (int64_t oc = 0; oc < out_per_group; ++oc, first += problem.weight.out_channel) {
        for (int64_t row = first_row(tile); row < first_row(tile + 1); ++row) {
          const int64_t ic = row / problem.kernel_size, tap = row % problem.kernel_size;
          *to++ = widen(first[ic * problem.weight.in_channel + tap * problem.weight.tap]);
        }
      }
    }
  }

  // Input positions [begin, end) of an item and group, and what they meet of the rows of grad_output.
  struct Block {
    int64_t n, group, begin, end;
    const Storage* grad;
    Part met;
  };
  // Number `unit` of [group][batch][block of positions].
  Block block_at(int64_t unit) const {
    Block block;
    block.n = unit / plan.position_blocks % problem.batch;
    block.group = unit / plan.position_blocks / problem.batch;
    block.begin = unit % plan.position_blocks * plan.position_block;
    block.end = min_of(block.begin + plan.position_block, problem.in_length);
    block.met = outputs_that_meet(problem, block.begin, block.end);
    block.grad = static_cast<const Storage*>(args.grad_output) + block.n * problem.output.batch +
                 block.group * out_per_group * problem.output.channel + block.met.begin;
    return block;
  }

  // A part of the sum after the other, so that the rows of a part stay in the cache for all tiles. Meanwhile those of
  // the next part are fetched, in the end those of the block `next`, if there is one.
  void multiply(const Block& block, const Block* next) {
    const T zeros[kTileRows] = {};
    Tile<T> tile{};
    tile.b_step = grad_step;
    tile.exact = true;
    tile.c_row = plan.panel_width;
    tile.columns = block.met.end - block.met.begin;
    NextRows next_rows;
    tile.next = &next_rows;
    for (int64_t oc = 0; oc < out_per_group; oc += plan.part_channels) {
      tile.steps = min_of(plan.part_channels, out_per_group - oc);
      tile.b = block.grad + oc * problem.output.channel;
      tile.init = oc == 0 ? zeros : nullptr;
      const int64_t next_oc = oc + tile.steps < out_per_group ? oc + tile.steps : 0;
      const Block* following = next_oc > 0 ? &block : next;
      next_rows = {};
      if (following != nullptr) {
        next_rows = {
            following->grad + next_oc * problem.output.channel, problem.output.channel,
            min_of(plan.part_channels, out_per_group - next_oc), following->met.end - following->met.begin,
            rows * ceil_div(tile.columns, Vec<T>::kLanes) * tile.steps};
      }
      for (int64_t i = 0; i < row_tiles; ++i) {
        const int64_t row = first_row(i), count = first_row(i + 1) - row;
        tile.a = weights + row * out_per_group + oc * count;
        tile.c = products + row * plan.panel_width;
        run_rows<T, true, 1>(tile, count);
      }
    }
  }

  void compute(const Block& block, const Block* next) {
    const int64_t begin = block.begin, end = block.end;
    const Part met = block.met;
    if (met.begin < met.end) multiply(block, next);
    const int64_t first = met.begin * problem.stride - problem.padding_left - begin;  // of the first output, in `sums`
    for (int64_t ic = 0; ic < in_per_group; ++ic) {
      for (int64_t i = 0; i < end - begin; ++i) sums[i] = 0;
      for (int64_t tap = 0; tap < problem.kernel_size; ++tap) {
        const int64_t start = first + tap * problem.dilation;
        const Part inside = part_inside(end - begin, start, problem.stride, met.end - met.begin);
        const T* row = products + (ic * problem.kernel_size + tap) * plan.panel_width;
        add_row(row + inside.begin, inside.end - inside.begin, sums + start + inside.begin * problem.stride);
      }
      Storage* result = static_cast<Storage*>(args.grad_input) + block.n * problem.input.batch +
                        (block.group * in_per_group + ic) * problem.input.channel + begin * problem.input.position;
      store_row(problem, sums, end - begin, result, problem.input.position);
    }
  }

  void add_row(const T* __restrict from, int64_t count, T* __restrict to) const {
    if (problem.stride == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[i * problem.stride] += from[i];
    }
  }
};

// Work units: [group][batch][block of positions].
template <class Storage>
void backward_input_taps(
    const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  BackwardInputTaps<Storage> kernel(problem, plan, args, scratch);
  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const bool last = unit + 1 == end;
    const auto block = kernel.block_at(unit), next = kernel.block_at(last ? unit : unit + 1);
    if (block.group != packed) kernel.pack_weights(packed = block.group);
    kernel.compute(block, last ? nullptr : &next);
  }
}

}  // namespace
}  // namespace conv1d_ext
