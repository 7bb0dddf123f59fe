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

// What a column is: a channel of the group (-1: none) and a tap.
struct Column {
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
  const Shared grad_ring = columns.from(kCols * int(sizeof(Column)));
  const Shared window_ring = grad_ring.from(kStages * kGradRows * kPitch);
  const int window_bytes = plan.window_rows * kPitch;
  const bool in_windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = block / plan.row_tiles;
    const int64_t row0 = (block - rest * plan.row_tiles) * kRows;
    int64_t column_tile = rest;
    rest /= plan.column_tiles;
    column_tile -= rest * plan.column_tiles;
    const int64_t split = rest / o.groups, group = rest - split * o.groups;
    const int64_t first_step = plan.steps * split / plan.splits;
    const int steps = static_cast<int>(plan.steps * (split + 1) / plan.splits - first_step);
    const int row_channels = static_cast<int>(o.rows - row0 < kRows ? o.rows - row0 : kRows);
    const int channels = static_cast<int>(o.channels);

    if (thread_index() < kCols) {
      const int block_of = thread_index() / kChannels, word = thread_index() % kChannels;
      Column entry;
      if (in_windows) {
        const int tap_blocks = (o.kernel_size + kColBlocks - 1) / kColBlocks;
        entry.channel = static_cast<int>(column_tile / tap_blocks) * kChannels + word;
        entry.tap = static_cast<int>(column_tile % tap_blocks) * kColBlocks + block_of;
      } else if (unfold) {
        const int both = static_cast<int>(column_tile) * kCols + thread_index();
        entry.channel = both / o.kernel_size;
        entry.tap = both % o.kernel_size;
      } else {
        const int pair = static_cast<int>(column_tile) * kColBlocks + block_of;
        entry.channel = pair / o.kernel_size * kChannels + word;
        entry.tap = pair % o.kernel_size;
      }
      if (entry.channel >= channels || entry.tap >= o.kernel_size) entry.channel = -1;
      columns.store(thread_index() * int(sizeof(Column)), entry);
    }
    const auto column_at = [&](int column) { return columns.load<Column>(column * int(sizeof(Column))); };
    // The places of a step, each found by one thread.
    const auto find_places = [&](int step) {
      const int p = thread_index();
      if (p >= kPositions) return;
      const int64_t at = first_step + step;
      int64_t n, t;
      if (in_windows) {
        const int64_t item_steps = (o.out_length + kPositions - 1) / kPositions;
        n = at / item_steps;
        t = (at - n * item_steps) * kPositions + p;
      } else {
        n = (at * kPositions + p) / o.out_length;
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

    Copier<T, kPitch, Units::kOuterHeldRows> copier;
    const auto grad_tile = [&](int step) { return grad_ring.from(step % kStages * kGradRows * kPitch); };
    const auto window_of = [&](int step) { return window_ring.from(step % kStages * window_bytes); };
    const auto copy_grads = [&](int step) {
      const Shared step_places = places.from(step % 2 * kPositions * int(sizeof(OuterPlace)));
      const auto grad_channel_at = [&](int row, int word) -> Channel {
        const int channel = row / kPositions * kChannels + word;
        return {channel < row_channels ? channel * o.grad.channel : -1, 0};
      };
      const auto grad_row_at = [&](int row, int) {
        return step_places.load<OuterPlace>(row % kPositions * int(sizeof(OuterPlace))).grad;
      };
      if (plan.grad_vectors) {
        copy_vectors<T, kPitch>(grad_tile(step), 0, kGradRows, grads, grad_channel_at, grad_row_at);
      } else {
        copier.start(grad_tile(step), 0, kGradRows, grads, grad_channel_at, grad_row_at);
      }
    };
    const auto copy_window = [&](int step) {
      const Shared step_places = places.from(step % 2 * kPositions * int(sizeof(OuterPlace)));
      const auto channel_at = [&](int row, int word) -> Channel {
        const Column column = column_at((in_windows ? 0 : row / kPositions * kChannels) + word);
        return {column.channel < 0 ? -1 : column.channel * o.signal.strides.channel, column.tap * o.dilation};
      };
      const auto row_at = [&](int row, int shift) -> int64_t {
        const int p = in_windows ? 0 : row % kPositions;
        const auto place = step_places.load<OuterPlace>(p * int(sizeof(OuterPlace)));
        if (place.grad < 0) return -1;
        const int64_t shown = shown_at(o.signal, place.position + shift + (in_windows ? row : 0));
        return shown < 0 ? -1 : place.item + shown;
      };
      if (plan.signal_vectors) {
        copy_vectors<T, kPitch>(window_of(step), 0, plan.window_rows, signals, channel_at, row_at);
      } else {
        copier.start(window_of(step), 0, plan.window_rows, signals, channel_at, row_at);
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
      const auto multiply_part = [&](int part) {
        if (step >= 0) units.multiply_outer(grad_tile(step), window_of(step), plan.block_step, plan.row_step, part);
      };
      // What 16-bit numbers wait for in registers, grad_output first, then the input, there is half a step for.
      if (ahead < steps) copy_grads(ahead);
      if constexpr (Units::kOuterParts == 2) {
        multiply_part(0);
        copier.finish(grad_tile(ahead));
      }
      if (ahead < steps) copy_window(ahead);
      commit_copies();
      multiply_part(Units::kOuterParts - 1);
      copier.finish(window_of(ahead));
    }

    const auto sums = partials.from((split * o.groups + group) * o.rows * o.channels * o.kernel_size);
    units.for_each_outer([&](int row, int column, typename Units::Sum sum) {
      const auto [channel, tap] = column_at(column);
      if (row >= row_channels || channel < 0) return;
      sums.store(((row0 + row) * o.channels + channel) * o.kernel_size + tap, sum);
    });
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
