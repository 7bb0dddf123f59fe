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

// One of a tile's steps, each of which is a tap of a window of a block of channels.
class Step {
 public:
  __device__ Step(int taps, int tap_block)
      : taps_(taps), windows_((taps + tap_block - 1) / tap_block), fewest_(taps / windows_) {
    begin_window();
  }
  __device__ void advance(int slots) {
    if (++tap < window_end) return;
    if (++slot == slots) slot = 0;
    if (++window_ == windows_) {
      window_ = tap = 0;
      ++channel_block;
    }
    begin_window();
  }

  int channel_block = 0, tap = 0, window_begin = 0, window_end = 0;
  int slot = 0;  // of the ring of windows

 private:
  // Windows have equal numbers of taps, to within one.
  __device__ void begin_window() {
    window_begin = tap;
    window_end = tap + fewest_ + (window_ < taps_ - fewest_ * windows_ ? 1 : 0);
  }

  int taps_, windows_, fewest_, window_ = 0;
};

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) correlate(
    const Correlation c, const CorrelatePlan plan, const PackedSignal view,
    const Global<const typename Units::Storage> signal, const Global<const typename Units::Storage> packed,
    const Global<const typename Units::Storage> bias, const Global<typename Units::Storage> result) {
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kPitch;
  constexpr int kChannels = kRowChannels<T>, kAhead = kStages - 1;

  const Shared places = shared_memory();
  const Shared weight_ring = places.from(kCols * int(sizeof(Place)));
  const Shared window_ring = weight_ring.from(kStages * kRows * kPitch);
  const bool in_windows = plan.staging == Staging::kWindow;
  const ChunkCopy<T> copy;
  const int chunk_channel = copy.chunk * copy.kNumbers;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    // There are no more blocks than results, and of these no 2^32 are computed at a time.
    const auto row_tiles = static_cast<uint32_t>(plan.row_tiles), index = static_cast<uint32_t>(block);
    const uint32_t tile = index / row_tiles, row_tile = index - tile * row_tiles;
    // Residues side by side: together they read each part of the signal, and write all of a sector of the result.
    const uint32_t tile_group = tile / residues(c);
    const int residue_index = static_cast<int>(tile - tile_group * residues(c));
    const auto column_tiles = static_cast<uint32_t>(plan.column_tiles);
    const uint32_t group = tile_group / column_tiles, column_tile = tile_group - group * column_tiles;
    const Residue residue = residue_of(c, residue_index);

    // The tile's columns: of one batch item where there are windows, of all of them otherwise.
    const uint32_t item_tiles = in_windows ? column_tiles / static_cast<uint32_t>(c.batch) : 1;
    const uint32_t item = in_windows ? column_tile / item_tiles : 0;
    const int64_t first_column = int64_t{column_tile - item * item_tiles} * kCols;
    const int64_t columns = in_windows ? residue.columns : c.batch * residue.columns;
    if (first_column >= columns) continue;

    const int64_t item_offset = item * view.batch + group * view.group;
    const auto item_of = [&](int64_t column) -> int64_t { return in_windows ? item : column / residue.columns; };
    if (!in_windows) {
      for (int i = thread_index(); i < kCols; i += kThreads) {
        Place entry{-1, 0, 0};  // shows nothing
        if (first_column + i < columns) {
          const int64_t n = item_of(first_column + i);
          entry.item = n * view.batch;
          entry.position = static_cast<int>(first_column + i - n * residue.columns) * residue.step + residue.first;
        }
        places.store(i * int(sizeof(Place)), entry);
      }
      sync_block();
    }
    const int first_position = in_windows ? static_cast<int>(first_column) * residue.step + residue.first : 0;

    // All that step number `step` of the tile is the first to read: its weights, and a window before its first tap.
    const auto copy_step = [&](const Step& at, int step) {
      const int64_t tap = residue.first_tap + at.tap * residue.tap_step;
      const int64_t weight_tile =
          ((group * c.kernel_size + tap) * plan.channel_blocks + at.channel_block) * plan.row_tiles + row_tile;
      const auto weights = packed.from(weight_tile * (kRows * kChannels) + chunk_channel);
      const Shared to = weight_ring.from(step % kStages * kRows * kPitch + copy.chunk * 16);
#pragma unroll
      for (int row = copy.line; row < kRows; row += copy.kLines) {
        copy_async<16>(to, row * kPitch, weights, row * kChannels, true);
      }
      if (at.tap != at.window_begin) return;
      const Shared window = window_ring.from(at.slot * plan.window_rows * kPitch + copy.chunk * 16);
      const auto from = signal.from(item_offset + at.channel_block * view.block + chunk_channel);
      const bool is_there = at.channel_block * kChannels + chunk_channel < view.channels;
      const int first = first_position + at.tap * residue.distance - view.first;
      const int rows = in_windows
                           ? (kCols - 1) * plan.row_step + (at.window_end - at.tap - 1) * plan.row_distance + 1
                           : kCols;
      if (in_windows) {
#pragma unroll 2
        for (int row = copy.line; row < rows; row += copy.kLines) {
          const int position = first + row;
          const bool valid = is_there && static_cast<unsigned>(position) < static_cast<unsigned>(view.length);
          copy_async<16>(window, row * kPitch, from, valid ? position * view.position : 0, valid);
        }
      } else {
        for (int row = copy.line; row < rows; row += copy.kLines) {
          const auto place = places.load<Place>(row * int(sizeof(Place)));
          const int position = first + place.position;
          const bool valid = is_there && place.item >= 0 &&
                             static_cast<unsigned>(position) < static_cast<unsigned>(view.length);
          copy_async<16>(window, row * kPitch, from, valid ? place.item + position * view.position : 0, valid);
        }
      }
    };

    Units units;
    const int taps = residue.taps, steps = static_cast<int>(plan.channel_blocks) * taps;
    if (steps > 0) {
      Step ahead(taps, plan.tap_block);
      int first_bytes[kAhead] = {};  // of the window, for the first column: of this step and those ahead
#pragma unroll 1
      for (int step = -kAhead; step < steps; ++step) {
        if (step >= 0) {
          wait_copies<kAhead - 1>();
          sync_block();
        }
        const int window_byte =
            (ahead.slot * plan.window_rows + (ahead.tap - ahead.window_begin) * plan.row_distance) * kPitch;
        if (step + kAhead < steps) copy_step(ahead, step + kAhead);
        commit_copies();
        ahead.advance(plan.windows);
        if (step >= 0) {
          units.multiply(
              weight_ring.from(step % kStages * kRows * kPitch), window_ring.from(first_bytes[0]), plan.row_step);
        }
#pragma unroll
        for (int i = 0; i + 1 < kAhead; ++i) first_bytes[i] = first_bytes[i + 1];
        first_bytes[kAhead - 1] = window_byte;
      }
      sync_block();
    }

    const int row0 = static_cast<int>(row_tile) * kRows;
    units.for_each(
        weight_ring,
        [&](int column) -> int64_t {
          if (first_column + column >= columns) return -1;
          const int64_t n = item_of(first_column + column);
          const int64_t q = first_column + column - (in_windows ? 0 : n * residue.columns);
          return n * c.result.batch + (residue_index + q * column_step(c)) * c.result.position;
        },
        [&](int row, int64_t at, typename Units::Sum sum) {
          if (at < 0 || row0 + row >= c.rows) return;
          const int64_t channel = group * c.rows + row0 + row;
          store_sum<T>(c, sum, channel, at + channel * c.result.channel, bias, result);
        });
    sync_block();
  }
}

}  // namespace conv1d_ext::cuda
