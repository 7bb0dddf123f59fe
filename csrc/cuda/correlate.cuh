// forward and backward_input: each result is a sum over taps and channels of weights times a signal at shifted
// positions,
//   result[n, row, q] = sum over tap, c of weight[row, c, tap] * signal[n, c, q * step + tap * distance + first]
// A matrix product of a tile of rows (weights, packed beforehand) and a tile of columns (positions), of which no matrix
// of columns is ever made: a window of the signal lies in shared memory, one position a row, and each tap reads it from
// another row on.
#pragma once

#include "cuda/correlation.cuh"
#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// For tiles whose columns are taken from the whole batch: where each column's batch item begins, and its position.
struct Place {
  int64_t item;
  int position, unused;
};

// The steps of a tile: for each block of channels its windows, for each window its taps. All of it changes by little
// from step to step, so that a step costs few instructions beside its products.
struct Step {
  int channel_block = 0;
  int tap = 0, taps_left = 0;     // of the window, this one included
  int slot = 0, window_byte = 0;  // in the ring of windows: the window's, and where the tap's first row is
};

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) correlate(
    const Correlation c, const CorrelatePlan plan, const PackedSignal view,
    const Global<const typename Units::Storage> signal, const Global<const typename Units::Storage> packed,
    const Global<const typename Units::Storage> bias, const Global<typename Units::Storage> result) {
  wait_for_earlier_kernels();
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kPitch;
  constexpr int kChannels = kStepChannels<T>, kAhead = kStages - 1;

  const Shared places = shared_memory();
  const Shared weight_ring = places.from(kCols * int(sizeof(Place)));
  const Shared window_ring = weight_ring.from(kStages * kRows * kPitch);
  const bool in_windows = plan.staging == Staging::kWindow;
  constexpr int kRowChunks = kRowBytes / 16;
  const ChunkCopy<T, kStepBytes> copy;
  const int chunk_channel = copy.chunk * copy.kNumbers;

  struct Tile {
    uint32_t row_tile, split, group, item;
    int residue_index;
    int64_t first_column;  // of one batch item where there are windows, of all of them otherwise
  };
  const auto tile_at = [&](uint32_t index) -> Tile {
    const auto row_tiles = static_cast<uint32_t>(plan.row_tiles),
               column_tiles = static_cast<uint32_t>(plan.column_tiles);
    Tile tile{};
    // Residues side by side: together they read each part of the signal, and write all of a sector of the result.
    const uint32_t residue_tile = index / row_tiles, split_tile = residue_tile / residues(c);
    tile.row_tile = index - residue_tile * row_tiles;
    tile.residue_index = static_cast<int>(residue_tile - split_tile * residues(c));
    const uint32_t split_group = split_tile / column_tiles, column_tile = split_tile - split_group * column_tiles;
    const uint32_t item_tiles = in_windows ? column_tiles / static_cast<uint32_t>(c.batch) : 1;
    tile.split = split_group / static_cast<uint32_t>(c.groups);
    tile.group = split_group - tile.split * static_cast<uint32_t>(c.groups);
    tile.item = in_windows ? column_tile / item_tiles : 0;
    tile.first_column = int64_t{column_tile - tile.item * item_tiles} * kCols;
    return tile;
  };
  const auto columns_of = [&](const Residue& residue) -> int64_t {
    return in_windows ? residue.columns : c.batch * residue.columns;
  };

  // There are no more blocks than results, and of these no 2^32 are computed at a time.
  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    const auto index = static_cast<uint32_t>(block);
    const auto [row_tile, split, group, item, residue_index, first_column] = tile_at(index);
    const Residue residue = residue_of(c, residue_index);
    if (first_column >= columns_of(residue)) continue;
    const int first_block = static_cast<int>(int64_t{plan.channel_blocks} * split / c.splits);
    const int channel_blocks = static_cast<int>(int64_t{plan.channel_blocks} * (split + 1) / c.splits) - first_block;
    const int64_t item_offset = item * view.batch + group * view.group;
    if (!in_windows) {
      for (int i = thread_index(); i < kCols; i += kThreads) {
        Place entry{-1, 0, 0};  // shows nothing
        if (first_column + i < columns_of(residue)) {
          const int64_t n = (first_column + i) / residue.columns;
          entry.item = n * view.batch;
          entry.position = static_cast<int>(first_column + i - n * residue.columns) * residue.step + residue.first;
        }
        places.store(i * int(sizeof(Place)), entry);
      }
      sync_block();
    }
    const int first_position = in_windows ? static_cast<int>(first_column) * residue.step + residue.first : 0;

    const int taps = residue.taps, windows = (taps + plan.tap_block - 1) / plan.tap_block;
    // Of equal size, to within one: the first few have a tap more, up to there.
    const int fewest_taps = windows > 0 ? taps / windows : 0;
    const int end_of_longer = (taps - fewest_taps * windows) * (fewest_taps + 1);
    const int window_bytes = plan.window_rows * kPitch, tap_bytes = plan.row_distance * kPitch;
    // Weights of a tap beside those of the next, in numbers of their tiles.
    const int tap_tiles = residue.tap_step * plan.channel_blocks * plan.row_tiles;
    const int first_tile =
        static_cast<int>((group * c.kernel_size + residue.first_tap) * plan.channel_blocks * plan.row_tiles + row_tile);
    constexpr int kTile = kRows * kChannels;
    const int weight_byte = copy.line * kPitch + copy.chunk * 16;
    const auto thread_weights = packed.from(copy.line * kChannels + chunk_channel);

    // Of the last step's channels only the blocks that there are.
    const int last_channels = static_cast<int>(c.channels) - (first_block + channel_blocks - 1) * kChannels;
    const int last_blocks =
        last_channels >= kChannels ? kStepRows : (last_channels + kRowChannels<T> - 1) / kRowChannels<T>;
    const int steps = channel_blocks * taps, first_of_last = steps - taps;

    // Starts to copy the window that `at` is the first to read.
    const auto copy_window = [&](const Step& at) {
      const Shared window = window_ring.from(at.slot * window_bytes + copy.chunk * 16);
      const int row_block = at.channel_block * kStepRows + copy.chunk / kRowChunks;
      const auto from = signal.from(item_offset + row_block * view.block + copy.chunk % kRowChunks * copy.kNumbers);
      const bool is_there = at.channel_block * kChannels + chunk_channel < view.channels;
      const int first = first_position + at.tap * residue.distance - view.first;
      const auto copy_row = [&](int row, int64_t item_at, int position, bool shows) {
        const bool valid = shows && is_there && static_cast<unsigned>(position) < static_cast<unsigned>(view.length);
        copy_async(window, row * kPitch, from, valid ? item_at + int64_t{position} * view.position : 0, valid);
      };
      if (in_windows) {
        const int rows = (kCols - 1) * plan.row_step + (at.taps_left - 1) * plan.row_distance + 1;
        for (int row = copy.line; row < rows; row += copy.kLines) copy_row(row, 0, first + row, true);
      } else {
        for (int row = copy.line; row < kCols; row += copy.kLines) {
          const auto place = places.load<Place>(row * int(sizeof(Place)));
          copy_row(row, place.item, first + place.position, place.item >= 0);
        }
      }
    };

    Units units(plan.row_step);
    if (steps > 0) {
      Step ahead;
      ahead.channel_block = first_block;
      ahead.taps_left = fewest_taps + (end_of_longer > 0 ? 1 : 0);
      bool begins = true;  // a window
      auto weights = thread_weights.from(int64_t{first_tile + first_block * plan.row_tiles} * kTile);
      int window_bytes_at[kAhead] = {};  // of this step and those ahead
#pragma unroll 1
      for (int step = -kAhead; step < steps; ++step) {
        if (step >= 0) {
          wait_copies<kAhead - 1>();
          sync_block();
        }
        const int ahead_byte = ahead.window_byte;
        if (step + kAhead < steps) {
          const bool has_chunk = step + kAhead < first_of_last || copy.chunk * 16 < last_blocks * kRowBytes;
          const Shared to = weight_ring.from((step + kAhead) % kStages * kRows * kPitch + weight_byte);
#pragma unroll
          for (int row = 0; row < kRows; row += copy.kLines) {
            if (has_chunk && (kRows >= copy.kLines || copy.line < kRows)) {
              copy_async(to, row * kPitch, weights, row * kChannels, true);
            }
          }
          if (begins && has_chunk) copy_window(ahead);
          ++ahead.tap;
          begins = --ahead.taps_left == 0;
          if (begins) {
            if (++ahead.slot == plan.windows) ahead.slot = 0;
            if (ahead.tap == taps) {
              ahead.tap = 0;
              ++ahead.channel_block;
            }
            ahead.taps_left = fewest_taps + (ahead.tap < end_of_longer ? 1 : 0);
            ahead.window_byte = ahead.slot * window_bytes;
            const int tile = first_tile + ahead.tap * tap_tiles + ahead.channel_block * plan.row_tiles;
            weights = thread_weights.from(int64_t{tile} * kTile);
          } else {
            ahead.window_byte += tap_bytes;
            weights = weights.from(int64_t{tap_tiles} * kTile);
          }
        }
        commit_copies();
        if (step >= 0) {
          units.multiply(
              weight_ring.from(step % kStages * kRows * kPitch), window_ring.from(window_bytes_at[0]),
              step < first_of_last ? kStepRows : last_blocks);
        }
#pragma unroll
        for (int i = 0; i + 1 < kAhead; ++i) window_bytes_at[i] = window_bytes_at[i + 1];
        window_bytes_at[kAhead - 1] = ahead_byte;
      }
      sync_block();
    }

    // Where the first row's result of a column is; -1: there is none.
    const Tile tile = tile_at(forget(index));
    const int columns = residue_of(c, tile.residue_index).columns;
    const int row0 = static_cast<int>(tile.row_tile) * kRows;
    const int64_t first_row = tile.group * c.rows + row0;
    const auto place = [&](int tile_column) -> int64_t {
      const int64_t column = tile.first_column + tile_column;
      if (column >= (in_windows ? columns : c.batch * columns)) return -1;
      const int64_t n = in_windows ? tile.item : column / columns, q = in_windows ? column : column - n * columns;
      return n * c.result.batch + (tile.residue_index + q * column_step(c)) * c.result.position +
             first_row * c.result.channel + tile.split * c.split_step;
    };
    const auto row_step = static_cast<int>(c.result.channel);
    if (!c.accumulate && !c.negate && !c.result_is_sum && row_step == c.result.channel) {
      // The same as below in a third of the instructions, which are what layers of few channels are made of.
      const auto biases = bias.from(first_row);
      const int rows = c.rows - row0 < kRows ? static_cast<int>(c.rows) - row0 : kRows;
      units.for_each(weight_ring, place, [&](int row, int64_t at, typename Units::Sum sum) {
        if (at < 0 || row >= rows) return;
        if (!bias.is_null()) sum += widen(biases.load(row));
        result.store(at + int64_t{row} * row_step, narrow<T>(sum));
      });
    } else {
      units.for_each(weight_ring, place, [&](int row, int64_t at, typename Units::Sum sum) {
        if (at < 0 || row0 + row >= c.rows) return;
        store_sum<T>(c, sum, first_row + row, at + row * c.result.channel, bias, result);
      });
    }
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
