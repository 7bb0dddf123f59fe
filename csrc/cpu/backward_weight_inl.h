// conv1d_backward_weight: for a block of weights, a sum over batch and positions of grad_output * padded input.
// Panel: an outer product. Vectors lie along the output channels (grad_output transposed to [position][out_channel]),
// rows are (in_channel, tap) pairs, broadcast from the input, where a tap or a position is just another address; a copy
// of it, the panel, serves where padding comes in.
// Of bfloat16, where the CPU multiplies pairs, each step of the sum is two positions: both operands stay as they are,
// and a pair of neighbours is an element of either.
// Dot: where output channels are too few to fill a vector, or the weights of each are so few that transposing would
// cost more than multiplying, vectors lie along the positions instead, and grad_output is read as it is.
#pragma once

namespace conv1d_ext {
namespace {

template <class Storage>
struct BackwardWeightPanel {
  using T = Acc<Storage>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  // Positions that are multiplied together, and what the input is multiplied as.
  static constexpr int kPositions = kPair<Storage>;
  using Element = typename UnpackedElement<T, kPositions>::type;
  static constexpr bool kAsStored = sizeof(Element) == sizeof(Storage);
  const Conv1dProblem& problem;
  const Plan& plan;
  const BackwardWeightArgs& args;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t out_per_group = problem.out_channels / problem.groups;
  const int64_t batch_blocks = ceil_div(problem.batch, plan.batch_block);
  const int64_t panel_position_pitch = problem.stride / plan.panel_stride;
  Element* panel;
  T *grad, *results;
  int64_t *row_offset, *position_step, *grad_step;  // dot: grad_step is by output channel
  // Of an odd number of positions the last ones are paired with zeros: last[item][(in_channel, tap)].
  Element* last = nullptr;
  int64_t* last_offset = nullptr;
  // The input is read at first_row[row_offset[(in_channel, tap)] + position * position_pitch].
  const Element* first_row = nullptr;
  int64_t position_pitch = 0;

  // A block of weights, all of one group, and a chunk of the sum.
  struct Block {
    int64_t chunk, group, oc0, oc1, ic0, ic1, k0, k1;
    int64_t columns;  // output channels (outer product: padded to whole vectors)
    int64_t rows() const { return (ic1 - ic0) * (k1 - k0); }
  };

  // A step of the sum of a chunk: batch items [n0, n1) and positions [t0, t1), in the order of batch blocks and
  // positions.
  struct Step {
    int64_t n0, n1, t0, t1;
  };
  int64_t first_step(int64_t chunk) const {
    return part_begin(batch_blocks * plan.position_blocks, plan.reduction_chunks, chunk);
  }
  Step step_at(int64_t index) const {
    Step step;
    step.n0 = index / plan.position_blocks * plan.batch_block;
    step.n1 = min_of(step.n0 + plan.batch_block, problem.batch);
    step.t0 = index % plan.position_blocks * plan.position_block;
    step.t1 = min_of(step.t0 + plan.position_block, problem.out_length);
    return step;
  }

  // Number `unit` of [chunk of the sum][group][block of output channels][block of input channels][block of taps].
  Block block_at(int64_t unit) const {
    const auto next_index = [&](int64_t count) {
      const int64_t index = unit % count;
      unit /= count;
      return index;
    };
    Block block;
    block.k0 = next_index(ceil_div(problem.kernel_size, plan.tap_block)) * plan.tap_block;
    block.k1 = min_of(block.k0 + plan.tap_block, problem.kernel_size);
    block.ic0 = next_index(ceil_div(in_per_group, plan.channel_block)) * plan.channel_block;
    block.ic1 = min_of(block.ic0 + plan.channel_block, in_per_group);
    block.oc0 = next_index(ceil_div(out_per_group, plan.out_block)) * plan.out_block;
    block.oc1 = min_of(block.oc0 + plan.out_block, out_per_group);
    block.group = next_index(problem.groups);
    block.chunk = unit;
    const int64_t channels = block.oc1 - block.oc0;
    block.columns = plan.algorithm == Algorithm::kDot ? channels : round_up(channels, kLanes);
    return block;
  }

  BackwardWeightPanel(const Conv1dProblem& p, const Plan& pl, const BackwardWeightArgs& a, void* memory)
      : problem(p), plan(pl), args(a) {
    Scratch scratch{static_cast<char*>(memory)};
    panel = reinterpret_cast<Element*>(scratch.take<T>(plan.panel_elements));
    grad = scratch.take<T>(plan.weight_elements);
    results = scratch.take<T>(plan.result_elements);
    row_offset = scratch.take<int64_t>(plan.channel_block * plan.tap_block);
    position_step = scratch.take<int64_t>(plan.step_table);
    grad_step = scratch.take<int64_t>(plan.step_table);
    if constexpr (kPositions == 2) {
      const int64_t rows = plan.channel_block * plan.tap_block;
      last = scratch.take<Element>(kPositions * plan.batch_block * rows);
      last_offset = scratch.take<int64_t>(rows);
      for (int64_t row = 0; row < rows; ++row) last_offset[row] = kPositions * row;
    }
  }

  void set_row_offsets(const Block& block, int64_t channel_pitch, int64_t phases, int64_t phase_pitch, int64_t shift) {
    int64_t* offset = row_offset;
    for (int64_t ic = 0; ic < block.ic1 - block.ic0; ++ic) {
      for (int64_t k = 0; k < block.k1 - block.k0; ++k) {
        *offset++ = ic * channel_pitch + k % phases * phase_pitch + k / phases * shift;
      }
    }
  }

  Row<Storage> input_row(const Block& block, int64_t n, int64_t ic) const {
    return {
        static_cast<const Storage*>(args.input) + n * problem.input.batch +
            (block.group * in_per_group + ic) * problem.input.channel,
        problem.input.position, problem.in_length, problem.padding_mode};
  }

  void fill_panel(const Block& block, int64_t n0, int64_t n1, int64_t t0, int64_t t1) {
    const int64_t taps = block.k1 - block.k0, phases = min_of(plan.panel_phases, taps);
    const int64_t first = t0 * problem.stride + block.k0 * problem.dilation - problem.padding_left;
    const auto count = [&](int64_t phase) {
      return (t1 - t0 - 1) * panel_position_pitch + 1 + (taps - 1 - phase) / plan.panel_phases * plan.phase_shift;
    };
    const bool side_by_side = problem.dilation == 1 && problem.input.position == 1 && phases >= kManyPhases;
    for (int64_t ic = block.ic0; ic < block.ic1; ++ic) {
      Element* rows = panel + (ic - block.ic0) * plan.panel_phases * plan.panel_width;
      for (int64_t n = n0; n < n1; ++n, rows += plan.item_pitch) {
        const Row<Storage> row = input_row(block, n, ic);
        if (side_by_side) {
          pack_phases(row, first, problem.stride, count(0), phases, rows, plan.panel_width);
          continue;
        }
        for (int64_t phase = 0; phase < phases; ++phase) {
          pack_row<Storage>(
              row, first + phase * problem.dilation, plan.panel_stride, count(phase), count(phase),
              rows + phase * plan.panel_width);
        }
      }
    }
  }

  // Sets first_row, position_pitch and row_offset for [n0, n1) x [t0, t1): to the input itself where the block meets no
  // padding (and, for dot products, its positions lie side by side), else to the panel, which is filled.
  void find_rows(const Block& block, int64_t n0, int64_t n1, int64_t t0, int64_t t1) {
    const int64_t start = t0 * problem.stride - problem.padding_left + block.k0 * problem.dilation;
    const int64_t end = start + (t1 - 1 - t0) * problem.stride + (block.k1 - 1 - block.k0) * problem.dilation + 1;
    const int64_t pitch = problem.stride * problem.input.position;
    if constexpr (kAsStored) {
      const bool any_pitch = plan.algorithm != Algorithm::kDot && kPositions == 1;
      if (n1 - n0 == 1 && start >= 0 && end <= problem.in_length && (pitch == 1 || any_pitch)) {
        first_row = static_cast<const Storage*>(args.input) + n0 * problem.input.batch +
                    (block.group * in_per_group + block.ic0) * problem.input.channel + start * problem.input.position;
        position_pitch = pitch;
        set_row_offsets(block, problem.input.channel, 1, 0, problem.dilation * problem.input.position);
        return;
      }
    }
    fill_panel(block, n0, n1, t0, t1);
    first_row = panel;
    position_pitch = panel_position_pitch;
    set_row_offsets(block, plan.panel_phases * plan.panel_width, plan.panel_phases, plan.panel_width, plan.phase_shift);
  }

  const Storage* grad_row(const Block& block, int64_t n, int64_t oc, int64_t t) const {
    return static_cast<const Storage*>(args.grad_output) + n * problem.output.batch +
           (block.group * out_per_group + oc) * problem.output.channel + t * problem.output.position;
  }

  // One step of the sum: `positions` of grad_output, kPositions or, at last, fewer.
  void copy_step(const Storage* src, int64_t channels, int64_t positions, T* dst) const {
    if constexpr (kPositions == 2) {
      for (int64_t oc = 0; oc < channels; ++oc, src += problem.output.channel) {
        const uint32_t second = positions == 2 ? src[problem.output.position].bits : 0;
        dst[oc] = bits_float(src->bits | second << 16);
      }
    } else {
      copy_row(src, problem.output.channel, channels, dst);
    }
  }

  // In the columns beyond the channels of so many steps. What scratch memory holds may be denormal, and products of
  // such numbers take 30 times as long.
  static void fill_empty_columns(const Block& block, int64_t steps, T* first) {
    const int64_t channels = block.oc1 - block.oc0, count = block.columns - channels;
    for (int64_t step = 0; step < steps && count > 0; ++step) {
      store_partial(first + step * block.columns + channels, broadcast(T{0}), count);
    }
  }

  // grad[item][step][out_channel], then [item][out_channel] for the last of an odd number of positions.
  void fill_grad(const Block& block, int64_t n0, int64_t n1, int64_t t0, int64_t t1) {
    const int64_t channels = block.oc1 - block.oc0, steps = (t1 - t0) / kPositions, rest = (t1 - t0) % kPositions;
    T* const last_steps = grad + (n1 - n0) * steps * block.columns;
    T* dst = grad;
    for (int64_t n = n0; n < n1; ++n, dst += steps * block.columns) {
      const Storage* src = grad_row(block, n, block.oc0, t0);
      if (problem.output.position != 1) {
        for (int64_t step = 0; step < steps; ++step) {
          copy_step(
              src + kPositions * step * problem.output.position, channels, kPositions, dst + step * block.columns);
        }
      } else if constexpr (kPositions == 2) {
        transpose_pairs(src, problem.output.channel, channels, steps, dst, block.columns);
      } else {
        transpose(src, problem.output.channel, channels, steps, dst, block.columns);
      }
    }
    // After all others, since a transpose writes behind its end.
    for (int64_t n = n0; n < n1 && rest > 0; ++n) {
      copy_step(
          grad_row(block, n, block.oc0, t0) + kPositions * steps * problem.output.position, channels, rest,
          last_steps + (n - n0) * block.columns);
    }
    fill_empty_columns(block, (n1 - n0) * (steps + (rest > 0 ? 1 : 0)), grad);
  }

  // Of an odd number of positions.
  void fill_last(int64_t rows, int64_t items, int64_t positions) {
    Element* to = last;
    for (int64_t item = 0; item < items; ++item) {
      const Element* from = first_row + item * plan.item_pitch + (positions - 1) * position_pitch;
      for (int64_t row = 0; row < rows; ++row, to += kPositions) {
        to[0] = from[row_offset[row]];
        to[kPositions - 1] = Element{};
      }
    }
  }

  // What a step reads of the input and of grad_output, to be fetched one after the other in the course of so much work,
  // in vectors.
  struct NextOperands {
    NextRows input, grad;
    NextRows* current() { return input.any_left() ? &input : &grad; }
  };
  NextOperands operands_to_fetch(const Block& block, const Step& step, int64_t work) const {
    const Row<Storage> row = input_row(block, step.n0, block.ic0);
    const int64_t reach = (block.k1 - block.k0 - 1) * problem.dilation;
    const int64_t first = step.t0 * problem.stride + block.k0 * problem.dilation - problem.padding_left;
    const int64_t begin = max_of(first, 0);
    const int64_t end = min_of(first + (step.t1 - 1 - step.t0) * problem.stride + reach + 1, row.length);
    const bool contiguous = row.position_stride == 1 && problem.output.position == 1;
    const bool reads_all_lines = problem.stride <= reach + int64_t{64 / sizeof(Storage)};
    if (!plan.fetch_rows || step.n1 - step.n0 > 1 || !contiguous || !reads_all_lines) return {};
    const int64_t in_channels = block.ic1 - block.ic0, channels = block.oc1 - block.oc0;
    const int64_t input = in_channels * max_of(0, end - begin), grad = channels * (step.t1 - step.t0);
    const int64_t work_of_input = int64_t(double(work) * double(input) / double(input + grad));
    return {
        {row.data + begin, problem.input.channel, in_channels, end - begin, work_of_input},
        {grad_row(block, step.n0, block.oc0, step.t0), problem.output.channel, channels, step.t1 - step.t0,
         work - work_of_input}};
  }

  // results[row][out_channel] += sum over the items and positions; `first`: = instead of +=.
  void add_outer_products(const Block& block, int64_t items, int64_t positions, bool first, NextOperands* next) {
    const int64_t steps = items * (positions / kPositions), last_steps = positions % kPositions == 0 ? 0 : items;
    for (int64_t item = 0, step = 0; item < items; ++item) {
      for (int64_t t = 0; t + kPositions <= positions; t += kPositions, ++step) {
        position_step[step] = item * plan.item_pitch + t * position_pitch;
      }
      if (last_steps > 0) position_step[steps + item] = item * kPositions * block.rows();
    }
    for (int64_t step = 0; step < steps + last_steps; ++step) grad_step[step] = step * block.columns;
    if (last_steps > 0) fill_last(block.rows(), items, positions);
    const T zeros[kTileRows] = {};
    Tile<T> tile{};
    tile.c_row = block.columns;
    // Those columns and steps of grad that a tile reads stay in the L1 cache for all rows.
    const int64_t parts = ceil_div(steps, plan.reduction_block / kPositions);
    const int64_t row_tiles = ceil_div(block.rows(), kTileRows);
    const int64_t vectors = block.columns / kLanes, column_tiles = ceil_div(vectors, max_vectors(kTileRows));
    for (int64_t j = 0; j < column_tiles; ++j) {
      const int64_t column = part_begin(vectors, column_tiles, j) * kLanes;
      tile.b = grad + column;
      tile.columns = part_begin(vectors, column_tiles, j + 1) * kLanes - column;
      const auto visit = [&](const Element* rows, const int64_t* offset, int64_t step, int64_t end) {
        tile.a = rows;
        tile.a_step = position_step + step;
        tile.b_step = grad_step + step;
        tile.steps = end - step;
        tile.init = first && step == 0 ? zeros : nullptr;
        for (int64_t i = 0; i < row_tiles; ++i) {
          const int64_t begin = part_begin(block.rows(), row_tiles, i);
          tile.a_row = offset + begin;
          tile.next = next->current();
          tile.c = results + begin * block.columns + column;
          run_rows<T, false, kPositions>(tile, part_begin(block.rows(), row_tiles, i + 1) - begin);
        }
      };
      for (int64_t part = 0; part < parts; ++part) {
        visit(first_row, row_offset, part_begin(steps, parts, part), part_begin(steps, parts, part + 1));
      }
      if (last_steps > 0) visit(last, last_offset, steps, steps + last_steps);
    }
  }

  // results[out_channel][row][lane] += the part of the sum over positions that falls to the lane
  void add_dot_products(const Block& block, const Step& step) {
    const int64_t n = step.n0, t0 = step.t0, positions = step.t1 - step.t0;
    if (problem.output.position == 1) {
      for (int64_t oc = 0; oc < block.columns; ++oc) grad_step[oc] = oc * problem.output.channel;
      add_dot_products_of(grad_row(block, n, block.oc0, t0), block, positions, plan.fetch_rows);
    } else {
      Element* copied = reinterpret_cast<Element*>(grad);
      for (int64_t oc = 0; oc < block.columns; ++oc) {
        grad_step[oc] = oc * plan.position_block;
        copy_row(grad_row(block, n, block.oc0 + oc, t0), problem.output.position, positions, copied + grad_step[oc]);
      }
      add_dot_products_of(copied, block, positions, false);
    }
  }

  template <class Grad>
  void add_dot_products_of(const Grad* first_grad, const Block& block, int64_t positions, bool fetches_rows) {
    Dots<Grad, Element> dots{first_grad, grad_step, first_row, row_offset, positions, results, block.rows()};
    dots.fetches_rows = fetches_rows;
    run_dots<true>(dots, block.columns, block.rows());
  }

  // Then results[out_channel][row].
  void add_lanes(const Block& block) {
    for (int64_t i = 0; i < block.rows() * block.columns; ++i) results[i] = sum(load(results + i * kLanes));
  }

  // The part of the sum that belongs to a block's chunk. While a step is summed, what the next one reads is fetched,
  // in the end the first one of the block `next`, if there is one.
  void compute(const Block& block, const Block* next) {
    const bool dot = plan.algorithm == Algorithm::kDot;
    if (dot) {
      for (int64_t i = 0; i < block.rows() * block.columns * kLanes; ++i) results[i] = 0;
    }
    const int64_t begin = first_step(block.chunk), end = first_step(block.chunk + 1);
    for (int64_t index = begin; index < end; ++index) {
      const Step step = step_at(index);
      find_rows(block, step.n0, step.n1, step.t0, step.t1);
      if (dot) {
        add_dot_products(block, step);
        continue;
      }
      fill_grad(block, step.n0, step.n1, step.t0, step.t1);
      const int64_t positions = (step.n1 - step.n0) * (step.t1 - step.t0);
      const int64_t work = block.rows() * block.columns / kLanes * (positions / kPositions);
      NextOperands operands;
      if (index + 1 < end) {
        operands = operands_to_fetch(block, step_at(index + 1), work);
      } else if (next != nullptr) {
        operands = operands_to_fetch(*next, step_at(first_step(next->chunk)), work);
      }
      add_outer_products(block, step.n1 - step.n0, step.t1 - step.t0, index == begin, &operands);
    }
    if (dot) add_lanes(block);
    store_results(block);
  }

  // results[in_channel, tap][out_channel] (dot: [out_channel][in_channel, tap]) to the weights' own order, or to the
  // chunk's partial sums in the standard one.
  void store_results(const Block& block) {
    const int64_t channel = block.group * out_per_group + block.oc0;
    if (plan.reduction_chunks > 1) {
      T* dst = static_cast<T*>(args.partial_sums) + block.k0 +
               ((block.chunk * problem.out_channels + channel) * in_per_group + block.ic0) * problem.kernel_size;
      store_channels<T>(block, dst, {in_per_group * problem.kernel_size, problem.kernel_size, 1}, false);
    } else {
      Storage* dst = static_cast<Storage*>(args.grad_weight) + channel * problem.weight.out_channel +
                     block.ic0 * problem.weight.in_channel + block.k0 * problem.weight.tap;
      store_channels<Storage>(block, dst, problem.weight, problem.accumulate || problem.negate);
    }
  }

  // As a row of each output channel.
  void store_narrowed(const Block& block, Storage* dst, int64_t dst_channel) {
    constexpr int64_t kSide = kSquare<T>, kRun = 256;
    T run[kSide * kRun];
    for (int64_t oc = 0; oc < block.oc1 - block.oc0; oc += kSide) {
      const int64_t channels = min_of(kSide, block.oc1 - block.oc0 - oc);
      for (int64_t row = 0; row < block.rows(); row += kRun) {
        const int64_t count = min_of(kRun, block.rows() - row);
        transpose_exactly(results + row * block.columns + oc, block.columns, count, channels, run, kRun);
        for (int64_t c = 0; c < channels; ++c) {
          store_row(problem, run + c * kRun, count, dst + (oc + c) * dst_channel + row, 1);
        }
      }
    }
  }

  template <class To>
  void store_channels(const Block& block, To* dst, const WeightStrides& strides, bool combine) {
    const int64_t taps = block.k1 - block.k0, out_channels = block.oc1 - block.oc0, rows = block.rows();
    const bool dot = plan.algorithm == Algorithm::kDot;
    const bool in_order = strides.tap == 1 && (strides.in_channel == taps || block.ic1 - block.ic0 == 1);
    if constexpr (kStoredAsComputed<To>) {
      if (!dot && !combine && in_order) {
        transpose_exactly(results, block.columns, rows, out_channels, dst, strides.out_channel);
        return;
      }
    } else {
      if (!dot && in_order) return store_narrowed(block, dst, strides.out_channel);
    }
    for (int64_t oc = 0; oc < out_channels; ++oc) {
      for (int64_t row = 0; row < rows; ++row) {
        To* to = dst + oc * strides.out_channel + row / taps * strides.in_channel + row % taps * strides.tap;
        const T value = dot ? results[oc * rows + row] : results[row * block.columns + oc];
        if (combine) {
          store_row(problem, &value, 1, reinterpret_cast<Storage*>(to), 1);
        } else {
          narrow(value, to);
        }
      }
    }
  }
};

// Work units: [chunk of the sum][group][block of output channels][block of input channels][block of taps].
template <class Storage>
void backward_weight_panel(
    const Conv1dProblem& problem, const Plan& plan, const BackwardWeightArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  BackwardWeightPanel<Storage> kernel(problem, plan, args, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const bool last = unit + 1 == end;
    const auto block = kernel.block_at(unit), next = kernel.block_at(last ? unit : unit + 1);
    kernel.compute(block, last ? nullptr : &next);
  }
}

// Work units: output channels.
template <class Storage>
void backward_weight_sum(
    const Conv1dProblem& problem, const Plan& plan, const BackwardWeightArgs& args, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const int64_t per_channel = in_per_group * problem.kernel_size;
  constexpr int64_t kBlock = 1024;
  T total[kBlock];
  const T* partial = static_cast<const T*>(args.partial_sums);
  for (int64_t first = begin * per_channel; first < end * per_channel; first += kBlock) {
    const int64_t count = min_of(kBlock, end * per_channel - first);
    for (int64_t i = 0; i < count; ++i) total[i] = partial[first + i];
    for (int64_t chunk = 1; chunk < plan.reduction_chunks; ++chunk) {
      const T* next = partial + chunk * problem.out_channels * per_channel + first;
      for (int64_t i = 0; i < count; ++i) total[i] += next[i];
    }
    store_row(
        problem, total, count, static_cast<Storage*>(args.grad_weight) + first * problem.weight.tap,
        problem.weight.tap);
  }
}

}  // namespace
}  // namespace conv1d_ext
