// backward_weight: products of grad_output and the input, summed over all positions of all batch items. Both operands
// lie in shared memory one position a row, 64 bytes of channels in each; a tap of the input is again another row. The
// positions are split among blocks, whose sums `sum_partials` adds up in order: no atomics, so the same bits each time.
#pragma once

#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// Where a position that is summed over is: the offsets of its row of grad_output (-1: there is none such position) and
// of its batch item of the input, and the position in the latter of tap 0.
struct OuterPlace {
  int64_t grad, item;
  int position, unused;
};

// What the columns of a block of columns are: channels from `channel` on, of tap `tap`.
struct ColumnBlock {
  int channel, tap;
};

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) multiply_outer(
    const OuterProduct o, const OuterPlan plan, const Global<const typename Units::Storage> grad,
    const Global<const typename Units::Storage> signal, const Global<typename Units::Sum> partials) {
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kOuterPitch;
  constexpr int kPositions = Units::kOuterPositions, kChannels = kRowChannels<T>;
  constexpr int kRowBlocks = (kRows + kChannels - 1) / kChannels, kColBlocks = kCols / kChannels;
  constexpr int kGradRows = kRowBlocks * kPositions, kAhead = kStages - 1;

  const Shared places = shared_memory();  // of two steps
  const Shared columns = places.from(2 * kPositions * int(sizeof(OuterPlace)));
  const Shared grad_ring = columns.from(kColBlocks * int(sizeof(ColumnBlock)));
  const Shared window_ring = grad_ring.from(kStages * kGradRows * kPitch);
  const int window_bytes = plan.window_rows * kPitch;
  const bool in_windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = divide(block, plan.row_tiles);
    const int64_t row0 = (block - rest * plan.row_tiles) * kRows;
    int64_t column_tile = rest;
    rest = divide(rest, plan.column_tiles);
    column_tile -= rest * plan.column_tiles;
    const int64_t split = divide(rest, o.groups), group = rest - split * o.groups;
    const int64_t first_step = divide(plan.steps * split, plan.splits);
    const int steps = static_cast<int>(divide(plan.steps * (split + 1), plan.splits) - first_step);
    const int row_channels = static_cast<int>(o.rows - row0 < kRows ? o.rows - row0 : kRows);
    const int channels = static_cast<int>(o.channels);

    if (thread_index() < kColBlocks) {
      ColumnBlock entry;
      if (in_windows) {
        const int tap_blocks = (o.kernel_size + kColBlocks - 1) / kColBlocks;
        entry.channel = static_cast<int>(divide(column_tile, tap_blocks)) * kChannels;
        entry.tap = static_cast<int>(column_tile % tap_blocks) * kColBlocks + thread_index();
      } else {
        const int index = static_cast<int>(column_tile) * kColBlocks + thread_index();
        entry.channel = (unfold ? index : index / o.kernel_size) * kChannels;
        entry.tap = unfold ? 0 : index % o.kernel_size;
      }
      columns.store(thread_index() * int(sizeof(ColumnBlock)), entry);
    }
    const auto column_block = [&](int index) { return columns.load<ColumnBlock>(index * int(sizeof(ColumnBlock))); };
    // The places of a step, each found by one thread.
    const auto find_places = [&](int step) {
      const int p = thread_index();
      if (p >= kPositions) return;
      const int64_t at = first_step + step;
      int64_t n, t;
      if (in_windows) {
        const int64_t item_steps = (o.out_length + kPositions - 1) / kPositions;
        n = divide(at, item_steps);
        t = (at - n * item_steps) * kPositions + p;
      } else {
        n = divide(at * kPositions + p, o.out_length);
        t = at * kPositions + p - n * o.out_length;
      }
      OuterPlace entry{-1, 0, 0, 0};
      if (n < o.batch && t < o.out_length) {
        entry.grad = n * o.grad.batch + t * o.grad.position;
        entry.item = n * o.signal.strides.batch;
        entry.position = static_cast<int>(t) * o.stride - o.signal.padding_left;
      }
      places.store((step % 2 * kPositions + p) * int(sizeof(OuterPlace)), entry);
    };
    const auto grads = grad.from((group * o.rows + row0) * o.grad.channel);
    const auto signals = signal.from(group * o.channels * o.signal.strides.channel);

    Copier<T, kPitch, Units::kHeldRows> grad_copier, signal_copier;
    const auto copy_step = [&](int step) {
      const Shared step_places = places.from(step % 2 * kPositions * int(sizeof(OuterPlace)));
      const auto grad_shows = [&](int row, int word) -> int64_t {
        const int channel = row / kPositions * kChannels + word;
        const auto place = step_places.load<OuterPlace>(row % kPositions * int(sizeof(OuterPlace)));
        return place.grad < 0 || channel >= row_channels ? -1 : place.grad + channel * o.grad.channel;
      };
      const auto signal_shows = [&](int row, int word) -> int64_t {
        const int p = in_windows ? 0 : row % kPositions;
        const auto place = step_places.load<OuterPlace>(p * int(sizeof(OuterPlace)));
        auto [channel, tap] = column_block(in_windows ? 0 : row / kPositions);
        channel += word;
        if (unfold) {
          tap = channel % o.kernel_size;
          channel /= o.kernel_size;
        }
        if (place.grad < 0 || channel >= channels) return -1;
        const int64_t shown = shown_at(o.signal, place.position + tap * o.dilation + (in_windows ? row : 0));
        return shown < 0 ? -1 : place.item + channel * o.signal.strides.channel + shown;
      };
      const Shared grad_tile = grad_ring.from(step % kStages * kGradRows * kPitch);
      const Shared window = window_ring.from(step % kStages * window_bytes);
      if (plan.grad_vectors) {
        copy_vectors<T, kPitch>(grad_tile, 0, kGradRows, grads, grad_shows);
      } else {
        grad_copier.start(grad_tile, 0, kGradRows, grads, grad_shows);
      }
      if (plan.signal_vectors) {
        copy_vectors<T, kPitch>(window, 0, plan.window_rows, signals, signal_shows);
      } else {
        signal_copier.start(window, 0, plan.window_rows, signals, signal_shows);
      }
    };

    Units units;
    find_places(0);
#pragma unroll 1
    for (int step = -kAhead; step < steps; ++step) {
      if (step >= 0) wait_copies<kAhead - 1>();
      sync_block();
      const int ahead = step + kAhead;
      if (ahead + 1 < steps) find_places(ahead + 1);
      if (ahead < steps) copy_step(ahead);
      commit_copies();
      if (step >= 0) {
        units.multiply_outer(
            grad_ring.from(step % kStages * kGradRows * kPitch), window_ring.from(step % kStages * window_bytes),
            plan.block_step, plan.row_step);
      }
      grad_copier.finish(grad_ring.from(ahead % kStages * kGradRows * kPitch));
      signal_copier.finish(window_ring.from(ahead % kStages * window_bytes));
    }

    const auto sums = partials.from((split * o.groups + group) * o.rows * o.channels * o.kernel_size);
    units.for_each_outer([&](int row, int column, typename Units::Sum sum) {
      auto [channel, tap] = column_block(column / kChannels);
      channel += column % kChannels;
      if (unfold) {
        tap = channel % o.kernel_size;
        channel /= o.kernel_size;
      }
      if (row >= row_channels || channel >= channels || tap >= o.kernel_size) return;
      sums.store(((row0 + row) * o.channels + channel) * o.kernel_size + tap, sum);
    });
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
