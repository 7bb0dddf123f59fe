// backward_weight: products of grad_output and the input, summed over all positions of all batch items. Both operands
// lie in shared memory one position a row, 64 bytes of channels in each; a tap of the input is again another row. The
// positions are split among blocks, whose sums `sum_partials` adds up in order: no atomics, so the same bits each time.
#pragma once

#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// kRowBytes of channels of the tile's columns: a block of channels of the group, and a tap.
struct ColumnBlock {
  int channel_block, tap;
  int64_t unused;
};

// Adds to `partials` where there are sums of an earlier part of the positions in them.
template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) multiply_outer(
    const OuterProduct o, const OuterPlan plan, const PackedSignal grad_view, const PackedSignal signal_view,
    const Global<const typename Units::Storage> grad, const Global<const typename Units::Storage> signal,
    const bool adds, const Global<typename Units::Sum> partials) {
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kOuterPitch;
  constexpr int kPositions = Units::kOuterPositions, kChannels = kRowChannels<T>;
  constexpr int kRowBlocks = (kRows + kChannels - 1) / kChannels, kColBlocks = kCols / kChannels;
  constexpr int kGradRows = kRowBlocks * kPositions, kAhead = kStages - 1;

  const Shared column_blocks = shared_memory();
  const Shared grad_ring = column_blocks.from(kColBlocks * int(sizeof(ColumnBlock)));
  const Shared window_ring = grad_ring.from(kStages * kGradRows * kPitch);
  const int window_bytes = plan.window_rows * kPitch;
  const bool in_windows = plan.staging == Staging::kWindow;
  const ChunkCopy<T> copy;
  const int chunk_channel = copy.chunk * copy.kNumbers;
  const auto out_length = static_cast<uint32_t>(o.out_length);

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = block / plan.row_tiles;
    const int row0 = static_cast<int>(block - rest * plan.row_tiles) * kRows;
    int64_t column_tile = rest;
    rest /= plan.column_tiles;
    column_tile -= rest * plan.column_tiles;
    const int64_t split = rest / o.groups, group = rest - split * o.groups;
    const int64_t first_step = plan.steps * split / plan.splits;
    const int steps = static_cast<int>(plan.steps * (split + 1) / plan.splits - first_step);

    if (thread_index() < kColBlocks) {
      ColumnBlock entry{};
      if (in_windows) {
        const int tap_blocks = (o.kernel_size + kColBlocks - 1) / kColBlocks;
        entry.channel_block = static_cast<int>(column_tile / tap_blocks);
        entry.tap = static_cast<int>(column_tile % tap_blocks) * kColBlocks + thread_index();
      } else {
        const int pair = static_cast<int>(column_tile) * kColBlocks + thread_index();
        entry.channel_block = pair / o.kernel_size;
        entry.tap = pair % o.kernel_size;
      }
      column_blocks.store(thread_index() * int(sizeof(ColumnBlock)), entry);
    }
    sync_block();
    const auto column_block = [&](int i) { return column_blocks.load<ColumnBlock>(i * int(sizeof(ColumnBlock))); };

    // Position p of a step, of a batch item: -1 beyond the last.
    struct At {
      uint32_t n;
      int t;
    };
    const auto position_at = [&](int64_t step, int p) -> At {
      if (in_windows) {
        const uint32_t item_steps = (out_length + kPositions - 1) / kPositions;
        const uint32_t n = static_cast<uint32_t>(step) / item_steps;
        const uint32_t t = (static_cast<uint32_t>(step) - n * item_steps) * kPositions + p;
        return {n, t < out_length ? static_cast<int>(t) : -1};
      }
      const uint32_t flat = static_cast<uint32_t>(step) * kPositions + p, n = flat / out_length;
      return {n, n < o.batch ? static_cast<int>(flat - n * out_length) : -1};
    };
    const auto input_position = [&](int t, int tap) {
      return (t + o.first_column) * o.stride + tap * o.dilation - o.padding_left;
    };
    const auto tile_of = [&](const Shared& ring, int step, int bytes) {
      return ring.from(step % kStages * bytes + copy.chunk * 16);
    };
    const auto grads = grad.from(group * grad_view.group + chunk_channel);
    const auto signals = signal.from(group * signal_view.group + chunk_channel);
    const auto copy_step = [&](int step) {
      const int64_t at = first_step + step;
      const Shared grad_tile = tile_of(grad_ring, step, kGradRows * kPitch);
#pragma unroll
      for (int row = copy.line; row < kGradRows; row += copy.kLines) {
        const int row_block = row0 / kChannels + row / kPositions;
        const auto [n, t] = position_at(at, row % kPositions);
        const bool valid = t >= 0 && row_block * kChannels + chunk_channel < grad_view.channels;
        const int64_t from = n * grad_view.batch + row_block * grad_view.block +
                             (t + o.first_column - grad_view.first) * grad_view.position;
        copy_async<16>(grad_tile, row * kPitch, grads, valid ? from : 0, valid);
      }
      const Shared window = tile_of(window_ring, step, window_bytes);
      const auto copy_row = [&](int row, const ColumnBlock& column, uint32_t n, int position) {
        position -= signal_view.first;
        const bool valid = static_cast<unsigned>(position) < static_cast<unsigned>(signal_view.length) &&
                           column.channel_block * kChannels + chunk_channel < signal_view.channels;
        const int64_t from = n * signal_view.batch + column.channel_block * signal_view.block +
                             position * signal_view.position;
        copy_async<16>(window, row * kPitch, signals, valid ? from : 0, valid);
      };
      if (in_windows) {
        const ColumnBlock first = column_block(0);
        const auto [n, t] = position_at(at, 0);
        const int position = input_position(t, first.tap);
        for (int row = copy.line; row < plan.window_rows; row += copy.kLines) copy_row(row, first, n, position + row);
      } else {
#pragma unroll
        for (int row = copy.line; row < kColBlocks * kPositions; row += copy.kLines) {
          const ColumnBlock column = column_block(row / kPositions);
          const auto [n, t] = position_at(at, row % kPositions);
          copy_row(row, column, n, t < 0 ? signal_view.first - 1 : input_position(t, column.tap));
        }
      }
    };

    Units units(plan.row_step);
#pragma unroll 1
    for (int step = -kAhead; step < steps; ++step) {
      if (step >= 0) {
        wait_copies<kAhead - 1>();
        sync_block();
      }
      if (step + kAhead < steps) copy_step(step + kAhead);
      commit_copies();
      if (step >= 0) {
        units.multiply_outer(
            grad_ring.from(step % kStages * kGradRows * kPitch), window_ring.from(step % kStages * window_bytes),
            plan.block_step);
      }
    }

    const auto sums = partials.from((split * o.groups + group) * o.rows * o.channels * o.kernel_size);
    units.for_each_outer([&](int row, int column, typename Units::Sum sum) {
      const ColumnBlock entry = column_block(column / kChannels);
      const int channel = entry.channel_block * kChannels + column % kChannels;
      if (row0 + row >= o.rows || channel >= o.channels || entry.tap >= o.kernel_size) return;
      const int64_t at = ((row0 + row) * o.channels + channel) * o.kernel_size + entry.tap;
      sums.store(at, adds ? sums.load(at) + sum : sum);
    });
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
