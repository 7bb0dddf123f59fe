// backward_weight: products of grad_output and the input, summed over all positions of all batch items. Both operands
// lie in shared memory one position a row, 64 bytes of channels in each; a tap of the input is again another row. The
// positions are split among blocks, whose sums `sum_partials` adds up in order: no atomics, so the same bits each time.
#pragma once

#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// kRowBytes of channels of the tile's columns: a block of channels of the group, where it begins, and a tap.
struct ColumnBlock {
  int channel_block, tap;
  int64_t offset;
};

// Adds to `partials` where there are sums of an earlier part of the positions in them.
template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) multiply_outer(
    const OuterProduct o, const OuterPlan plan, const PackedSignal grad_view, const PackedSignal signal_view,
    const Global<const typename Units::Storage> grad, const Global<const typename Units::Storage> signal,
    const bool adds, const Global<typename Units::Sum> partials) {
  wait_for_earlier_kernels();
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kOuterPitch;
  constexpr int kPositions = Units::kOuterPositions, kChannels = kRowChannels<T>;
  constexpr int kRowBlocks = (kRows + kChannels - 1) / kChannels, kColBlocks = kCols / kChannels;
  constexpr int kGradRows = kRowBlocks * kPositions, kAhead = kOuterStages - 1;

  const Shared column_blocks = shared_memory();
  const Shared grad_ring = column_blocks.from(kColBlocks * int(sizeof(ColumnBlock)));
  const Shared window_ring = grad_ring.from(kOuterStages * kGradRows * kPitch);
  const int window_bytes = plan.window_rows * kPitch;
  const bool in_windows = plan.staging == Staging::kWindow;
  const ChunkCopy<T, kRowBytes> copy;
  const int chunk_channel = copy.chunk * copy.kNumbers;
  const auto out_length = static_cast<uint32_t>(o.out_length);

  struct Tile {
    int row0, column_tile;
    int64_t split, group;
  };
  const auto tile_at = [&](uint32_t index) -> Tile {
    const auto row_tiles = static_cast<uint32_t>(plan.row_tiles),
               column_tiles = static_cast<uint32_t>(plan.column_tiles);
    const uint32_t column = index / row_tiles, split_group = column / column_tiles;
    const uint32_t split = split_group / static_cast<uint32_t>(o.groups);
    return {
        static_cast<int>(index - column * row_tiles) * kRows, static_cast<int>(column - split_group * column_tiles),
        split, split_group - split * static_cast<uint32_t>(o.groups)};
  };

  // Each block has sums of its own, of which there are no 2^32.
  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    const auto index = static_cast<uint32_t>(block);
    const auto [row0, column_tile, split, group] = tile_at(index);
    const int64_t first_step = plan.steps * split / plan.splits;
    const int steps = static_cast<int>(plan.steps * (split + 1) / plan.splits - first_step);

    if (thread_index() < kColBlocks) {
      ColumnBlock entry{};
      if (in_windows) {
        const int tap_blocks = (o.kernel_size + kColBlocks - 1) / kColBlocks;
        entry.channel_block = column_tile / tap_blocks;
        entry.tap = column_tile % tap_blocks * kColBlocks + thread_index();
      } else {
        const int pair = column_tile * kColBlocks + thread_index();
        entry.channel_block = pair / o.kernel_size;
        entry.tap = pair % o.kernel_size;
      }
      entry.offset = entry.channel_block * signal_view.block;
      column_blocks.store(thread_index() * int(sizeof(ColumnBlock)), entry);
    }
    sync_block();
    const auto column_block = [&](int i) { return column_blocks.load<ColumnBlock>(i * int(sizeof(ColumnBlock))); };

    // A thread copies the same position of every step, of some blocks of channels: at n, t now, which moves on with the
    // steps. Windows begin with the step's first position.
    static_assert(copy.kLines % kPositions == 0);
    constexpr int kBlockStep = copy.kLines / kPositions;
    const int position = copy.line % kPositions, first_block = copy.line / kPositions;
    const uint32_t row_length = in_windows ? (out_length + kPositions - 1) / kPositions * kPositions : out_length;
    const auto first_flat = static_cast<uint32_t>(first_step) * kPositions + position;
    int n = static_cast<int>(first_flat / row_length), t = static_cast<int>(first_flat - n * row_length);
    const auto input_position = [&](int at, int tap) {
      return (at + o.first_column) * o.stride + tap * o.dilation - o.padding_left - signal_view.first;
    };
    // Where they begin: the batch item of the input, and the position of grad_output in the thread's first block.
    const int first_row_block = row0 / kChannels + first_block;
    auto item = signal.from(group * signal_view.group + n * signal_view.batch + chunk_channel);
    auto grad_row = grad.from(
        group * grad_view.group + n * grad_view.batch + first_row_block * grad_view.block +
        int64_t{t + o.first_column - grad_view.first} * grad_view.position + chunk_channel);
    const auto copy_step = [&](int step) {
      const bool is_position = n < o.batch && t < o.out_length;
      const Shared grad_tile = grad_ring.from(step % kOuterStages * kGradRows * kPitch + copy.chunk * 16);
#pragma unroll
      for (int i = 0; i < kRowBlocks; i += kBlockStep) {
        if (first_block + i >= kRowBlocks) break;
        const bool valid = is_position && (first_row_block + i) * kChannels + chunk_channel < grad_view.channels;
        copy_async(
            grad_tile, ((first_block + i) * kPositions + position) * kPitch, grad_row, valid ? i * grad_view.block : 0,
            valid);
      }
      const Shared window = window_ring.from(step % kOuterStages * window_bytes + copy.chunk * 16);
      const auto copy_row = [&](int row, const ColumnBlock& column, int at, bool shows) {
        const bool valid = shows && static_cast<unsigned>(at) < static_cast<unsigned>(signal_view.length) &&
                           column.channel_block * kChannels + chunk_channel < signal_view.channels;
        const int64_t from = column.offset + int64_t{at} * signal_view.position;
        copy_async(window, row * kPitch, item, valid ? from : 0, valid);
      };
      if (in_windows) {
        const ColumnBlock first = column_block(0);
        const int begin = input_position(t - position, first.tap);
        for (int row = copy.line; row < plan.window_rows; row += copy.kLines) copy_row(row, first, begin + row, true);
      } else {
#pragma unroll
        for (int i = 0; i < kColBlocks; i += kBlockStep) {
          const ColumnBlock column = column_block(first_block + i);
          copy_row((first_block + i) * kPositions + position, column, input_position(t, column.tap), is_position);
        }
      }
      t += kPositions;
      grad_row = grad_row.from(int64_t{kPositions} * grad_view.position);
      while (t >= static_cast<int>(row_length)) {
        t -= static_cast<int>(row_length);
        ++n;
        item = item.from(signal_view.batch);
        grad_row = grad_row.from(grad_view.batch - int64_t{row_length} * grad_view.position);
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
            grad_ring.from(step % kOuterStages * kGradRows * kPitch),
            window_ring.from(step % kOuterStages * window_bytes), plan.block_step);
      }
    }

    // [split][tap][output channel][channel]: neighbouring columns are neighbours, and mostly two to 8 or 16 bytes.
    using Sum = typename Units::Sum;
    const Tile tile = tile_at(forget(index));
    const int64_t out_channels = o.groups * o.rows;
    const auto sums =
        partials.from((tile.split * o.kernel_size * out_channels + tile.group * o.rows + tile.row0) * o.channels);
    const int rows = o.rows - tile.row0 < kRows ? static_cast<int>(o.rows) - tile.row0 : kRows;
    const auto channels = static_cast<int>(o.channels);
    const Shared offsets = grad_ring;  // of the columns; -1: there is none. The ring's numbers have been read.
    constexpr int kOffsetBytes = sizeof(int64_t);
    sync_block();
    if (const int column = thread_index(); column < kCols) {
      const ColumnBlock entry = column_block(column / kChannels);
      const int channel = entry.channel_block * kChannels + column % kChannels;
      const bool is_there = channel < channels && entry.tap < o.kernel_size;
      offsets.store(column * kOffsetBytes, is_there ? entry.tap * out_channels * channels + channel : int64_t{-1});
    }
    sync_block();
    units.for_each_outer(
        channels % 2 == 0, [&](int column) { return offsets.load<int64_t>(column * kOffsetBytes); },
        [&](int row, int64_t at, Sum sum) {
          if (row >= rows || at < 0) return;
          at += int64_t{row} * channels;
          sums.store(at, adds ? sums.load(at) + sum : sum);
        },
        [&](int row, int64_t at, Pack<Sum, 2> pair) {
          if (row >= rows || at < 0) return;
          at += int64_t{row} * channels;
          if (adds) {
            const auto before = sums.template load_pack<2>(at);
            pair = {before.at[0] + pair.at[0], before.at[1] + pair.at[1]};
          }
          sums.store_pack(at, pair);
        });
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
