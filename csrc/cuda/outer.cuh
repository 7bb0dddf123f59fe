// backward_weight: products of grad_output and the input, summed over all positions of all batch items. Both operands
// lie in shared memory one position a row, 64 bytes of channels in each; a tap of the input is again another row. The
// positions are split among blocks, whose sums `sum_partials` adds up in order: no atomics, so the same bits each time.
#pragma once

#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kOuterBlocksPerSm) multiply_outer(
    const OuterProduct o, const OuterPlan plan, const Global<const typename Units::Storage> grad,
    const Global<const typename Units::Storage> signal, const Global<typename Units::Sum> partials) {
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kOuterPitch;
  constexpr int kPositions = Units::kOuterPositions, kChannels = kRowChannels<T>;
  constexpr int kRowBlocks = (kRows + kChannels - 1) / kChannels, kColBlocks = kCols / kChannels;
  constexpr int kGradRows = kRowBlocks * kPositions, kAhead = kStages - 1;

  const Shared grad_ring = shared_memory();
  const Shared window_ring = grad_ring.from(kStages * kGradRows * kPitch);
  const int window_bytes = plan.window_rows * kPitch;
  const bool windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;
  const int kernel_size = static_cast<int>(o.kernel_size);
  const int tap_blocks = (kernel_size + kColBlocks - 1) / kColBlocks;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = block;
    const int64_t row0 = rest % plan.row_tiles * kRows;
    rest = divide(rest, plan.row_tiles);
    const int64_t column_tile = rest % plan.column_tiles;
    rest = divide(rest, plan.column_tiles);
    const int64_t group = rest % o.groups;
    const int64_t split = divide(rest, o.groups);
    const int64_t first_step = divide(plan.steps * split, plan.splits);
    const int steps = static_cast<int>(divide(plan.steps * (split + 1), plan.splits) - first_step);

    const int64_t grad_offset = (group * o.rows + row0) * o.grad.channel;
    const int64_t signal_offset = group * o.channels * o.signal.strides.channel;
    const int row_channels = static_cast<int>(o.rows - row0), channels = static_cast<int>(o.channels);

    // The batch item and the output position of position p of a step; none: an item of -1.
    const int64_t item_steps = (o.out_length + kPositions - 1) / kPositions, flat_length = o.batch * o.out_length;
    const auto place = [&](int64_t step, int p) -> Place {
      int64_t n, t;
      if (windows) {
        n = divide(step, item_steps);
        t = (step - n * item_steps) * kPositions + p;
        if (t >= o.out_length) n = -1;
      } else {
        const int64_t flat = step * kPositions + p;
        n = divide(flat, o.out_length);
        t = flat - n * o.out_length;
        if (flat >= flat_length) n = -1;
      }
      return {n, t};
    };

    // What the columns of a block of kChannels columns are: channels from `channel` on, of tap `tap`.
    struct ColumnBlock {
      int channel, tap;
    };
    const auto column_block = [&](int index) -> ColumnBlock {
      if (windows) {
        const int channel_block = static_cast<int>(column_tile / tap_blocks);
        return {channel_block * kChannels, static_cast<int>(column_tile % tap_blocks) * kColBlocks + index};
      }
      const int pair = static_cast<int>(column_tile) * kColBlocks + index;
      if (unfold) return {pair * kChannels, 0};
      return {pair / kernel_size * kChannels, pair % kernel_size};
    };

    Copier<T, kPitch> grad_copier, signal_copier;
    const auto copy_step = [&](int step, int64_t at) {
      const auto grad_shows = [&](int row, int word) -> int64_t {
        const int channel = row / kPositions * kChannels + word;
        if (channel >= row_channels || channel >= kRows) return -1;
        const auto [n, t] = place(at, row % kPositions);
        return n < 0 ? -1 : n * o.grad.batch + t * o.grad.position + grad_offset + channel * o.grad.channel;
      };
      const auto signal_shows = [&](int row, int word) -> int64_t {
        int64_t n, position;
        int channel;
        if (windows) {
          const auto [item, t] = place(at, 0);
          const ColumnBlock columns = column_block(0);
          n = item;
          position = t * o.stride + columns.tap * o.dilation + row;
          channel = columns.channel + word;
        } else {
          const auto [item, t] = place(at, row % kPositions);
          ColumnBlock columns = column_block(row / kPositions);
          channel = columns.channel + word;
          if (unfold) {
            columns.tap = channel % kernel_size;
            channel /= kernel_size;
          }
          n = item;
          position = t * o.stride + columns.tap * o.dilation;
        }
        if (n < 0 || channel >= channels) return -1;
        const int64_t shown = shown_at(o.signal, position - o.signal.padding_left);
        if (shown < 0) return -1;
        return n * o.signal.strides.batch + signal_offset + channel * o.signal.strides.channel + shown;
      };
      const Shared grads = grad_ring.from(step % kStages * kGradRows * kPitch);
      const Shared window = window_ring.from(step % kStages * window_bytes);
      if (plan.grad_vectors) {
        copy_vectors<T, kPitch>(grads, 0, kGradRows, grad, grad_shows);
      } else {
        grad_copier.start(grads, 0, kGradRows, grad, grad_shows);
      }
      if (plan.signal_vectors) {
        copy_vectors<T, kPitch>(window, 0, plan.window_rows, signal, signal_shows);
      } else {
        signal_copier.start(window, 0, plan.window_rows, signal, signal_shows);
      }
    };
    const auto finish_step = [&](int step) {
      grad_copier.finish(grad_ring.from(step % kStages * kGradRows * kPitch));
      signal_copier.finish(window_ring.from(step % kStages * window_bytes));
    };

    Units units;
    for (int step = 0; step < kAhead; ++step) {
      if (step < steps) {
        copy_step(step, first_step + step);
        finish_step(step);
      }
      commit_copies();
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      wait_copies<kAhead - 1>();
      sync_block();
      if (step + kAhead < steps) copy_step(step + kAhead, first_step + step + kAhead);
      commit_copies();
      units.multiply_outer(
          grad_ring.from(step % kStages * kGradRows * kPitch), window_ring.from(step % kStages * window_bytes),
          plan.block_step, plan.row_step);
      finish_step(step + kAhead);
    }

    const int64_t split_offset = split * o.groups * o.rows * o.channels * o.kernel_size;
    units.for_each_outer([&](int row, int column, typename Units::Sum sum) {
      const ColumnBlock columns = column_block(column / kChannels);
      int channel = columns.channel + column % kChannels, tap = columns.tap;
      if (unfold) {
        tap = channel % kernel_size;
        channel /= kernel_size;
      }
      if (row >= row_channels || channel >= channels || tap >= kernel_size) return;
      const int64_t out_channel = group * o.rows + row0 + row;
      partials.store(split_offset + (out_channel * o.channels + channel) * o.kernel_size + tap, sum);
    });
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
