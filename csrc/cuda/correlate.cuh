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

// The steps of a tile: blocks of channels, the windows of each, and the taps of each window. Begins with a window of
// one tap before the first, during whose step the first one is copied.
class Steps {
 public:
  __device__ Steps(int taps, int tap_block)
      : windows_((taps + tap_block - 1) / tap_block), taps_(taps / windows_), longer_(taps % windows_) {}
  __device__ void advance() {
    if (++tap_ < window_end()) return;
    *this = next_window();
    tap_ = window_begin();
  }
  __device__ Steps next_window() const {
    Steps next = *this;
    ++next.count_;
    if (++next.window_ == windows_) next.window_ = 0;
    if (next.window_ == 0) ++next.channel_block_;
    return next;
  }
  __device__ int channel_block() const { return channel_block_; }
  __device__ int tap() const { return tap_; }
  // Of the window: how many were before it, and which taps it has. Of equal number, to within one.
  __device__ int count() const { return count_; }
  __device__ int window_begin() const { return begin_of(window_); }
  __device__ int window_end() const { return window_ < 0 ? 0 : begin_of(window_ + 1); }

 private:
  __device__ int begin_of(int window) const { return window * taps_ + (window < longer_ ? window : longer_); }

  int windows_, taps_, longer_;  // of the first `longer_` windows each has a tap more
  int channel_block_ = -1, window_ = -1, count_ = -1, tap_ = -1;
};

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) correlate(
    const Correlation c, const CorrelatePlan plan, const Global<const typename Units::Storage> signal,
    const Global<const typename Units::Storage> packed, const Global<const typename Units::Storage> bias,
    const Global<typename Units::Storage> result) {
  using T = typename Units::Storage;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kPitch;
  constexpr int kChannels = kRowChannels<T>, kChunksPerTile = kRows * kRowBytes / 16;
  constexpr int kAhead = kStages - 1;

  const Shared places = shared_memory();
  const Shared weight_ring = places.from(kCols * int(sizeof(Place)));
  const Shared window_ring = weight_ring.from(kStages * kRows * kPitch);
  const bool in_windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = block / plan.row_tiles;
    const int row_tile = static_cast<int>(block - rest * plan.row_tiles);
    // Residues side by side: together they read each part of the signal, and write all of a sector of the result.
    const int64_t tile_group = rest / residues(c);
    const int residue_index = static_cast<int>(rest - tile_group * residues(c));
    const int64_t group = tile_group / plan.column_tiles;
    const int64_t column_tile = tile_group - group * plan.column_tiles;
    const Residue residue = residue_of(c, residue_index);

    // The tile's columns: of one batch item where there are windows, of all of them otherwise.
    const int64_t item_tiles = in_windows ? plan.column_tiles / c.batch : 1;
    const int64_t item = in_windows ? column_tile / item_tiles : 0;
    const int64_t first_column = (column_tile - item * item_tiles) * kCols;
    const int64_t columns = in_windows ? residue.columns : c.batch * residue.columns;
    if (first_column >= columns) continue;

    const int64_t group_offset = group * c.channels * c.signal.strides.channel;
    const auto item_of = [&](int64_t column) { return in_windows ? item : column / residue.columns; };
    const auto position_of = [&](int64_t column, int64_t n) {
      return static_cast<int>(in_windows ? column : column - n * residue.columns);
    };
    if (!in_windows) {
      for (int i = thread_index(); i < kCols; i += kThreads) {
        Place entry{-1, 0, 0};  // shows nothing
        if (first_column + i < columns) {
          const int64_t n = item_of(first_column + i);
          entry.item = n * c.signal.strides.batch + group_offset;
          entry.position = position_of(first_column + i, n) * residue.step + residue.first;
        }
        places.store(i * int(sizeof(Place)), entry);
      }
      sync_block();
    }

    const int taps = unfold ? 1 : residue.taps;
    const int channels = static_cast<int>(unfold ? c.channels * residue.taps : c.channels);
    const int steps = (channels + kChannels - 1) / kChannels * taps;
    const int64_t item_offset = item * c.signal.strides.batch + group_offset;
    const int first_position = in_windows ? static_cast<int>(first_column) * residue.step + residue.first : 0;

    Copier<T, kPitch, Units::kHeldRows> copier;
    const auto window_at = [&](const Steps& at) {
      return window_ring.from(at.count() % plan.windows * plan.window_rows * kPitch);
    };
    // All copies of the step at `at`: its weights, and its share of the window after its own.
    const auto copy_step = [&](const Steps& at, int step) {
      if (step >= 0) {
        const int64_t tap = unfold ? 0 : residue.first_tap + at.tap() * residue.tap_step;
        const int64_t tile =
            ((group * plan.packed_taps + tap) * plan.channel_blocks + at.channel_block()) * plan.row_tiles + row_tile;
        const auto from = packed.from(tile * kChunksPerTile * (16 / int(sizeof(T))));
        const Shared weights = weight_ring.from(step % kStages * kRows * kPitch);
        for (int chunk = thread_index(); chunk < kChunksPerTile; chunk += kThreads) {
          copy_async<16>(weights, chunk / 4 * kPitch + chunk % 4 * 16, from, chunk * (16 / int(sizeof(T))), true);
        }
      }
      const Steps next = at.next_window();
      const int channel0 = next.channel_block() * kChannels;
      if (channel0 >= channels) return;
      const int rows = in_windows ? (kCols - 1) * plan.row_step +
                                        (next.window_end() - next.window_begin() - 1) * plan.row_distance + 1
                                  : kCols;
      const int parts = step < 0 ? 1 : at.window_end() - at.window_begin();
      const int part = step < 0 ? 0 : at.tap() - at.window_begin();
      const int position0 = first_position + next.window_begin() * residue.distance;
      const auto channel_at = [&](int, int word) -> Channel {
        const int channel = channel0 + word;
        if (channel >= channels) return {-1, 0};
        if (!unfold) return {channel * c.signal.strides.channel, 0};
        const int own = channel / residue.taps;
        return {own * c.signal.strides.channel, (channel - own * residue.taps) * residue.distance};
      };
      const auto row_at = [&](int row, int shift) -> int64_t {
        int64_t item_at = item_offset;
        int position = position0 + row;
        if (!in_windows) {
          const auto place = places.load<Place>(row * int(sizeof(Place)));
          if (place.item < 0) return -1;
          item_at = place.item;
          position = place.position + position0 + shift;
        }
        const int64_t shown = shown_at(c.signal, position);
        return shown < 0 ? -1 : item_at + shown;
      };
      const int first = rows * part / parts, last = rows * (part + 1) / parts;
      if (plan.vectors) {
        copy_vectors<T, kPitch>(window_at(next), first, last, signal, channel_at, row_at);
      } else {
        copier.start(window_at(next), first, last, signal, channel_at, row_at);
      }
    };

    Units units;
    if (steps > 0) {
      Steps ahead(taps, plan.tap_block);
      int first_bytes[kAhead] = {};  // of the window, for the first column: of this step and those ahead
#pragma unroll 1
      for (int step = -kAhead - 1; step < steps; ++step) {
        if (step >= 0) {
          wait_copies<kAhead - 1>();
          sync_block();
        }
        if (step + kAhead < steps) copy_step(ahead, step + kAhead);
        commit_copies();
        if (step >= 0) {
          units.multiply(
              weight_ring.from(step % kStages * kRows * kPitch), window_ring.from(first_bytes[0]), plan.row_step);
        }
        copier.finish(window_at(ahead.next_window()));
#pragma unroll
        for (int i = 0; i + 1 < kAhead; ++i) first_bytes[i] = first_bytes[i + 1];
        const int tap = ahead.tap() - ahead.window_begin();
        first_bytes[kAhead - 1] = (ahead.count() % plan.windows * plan.window_rows + tap * plan.row_distance) * kPitch;
        ahead.advance();
      }
      sync_block();
    }

    const int row0 = row_tile * kRows;
    units.for_each(
        weight_ring,
        [&](int column) -> int64_t {
          if (first_column + column >= columns) return -1;
          const int64_t n = item_of(first_column + column);
          const int64_t q = position_of(first_column + column, n);
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
