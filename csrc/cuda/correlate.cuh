// forward and backward_input: each result is a sum over taps and channels of weights times a signal at shifted
// positions,
//   result[n, row, q] = sum over tap, c of weight[row, c, tap] * signal[n, c, q * step + tap * distance + first]
// A matrix product of a tile of rows (weights, packed beforehand) and a tile of columns (positions), of which no matrix
// of columns is ever made: a window of the signal lies in shared memory, one position a row, and each tap reads it from
// another row on.
#pragma once

#include "cuda/plan.h"
#include "cuda/units.cuh"

namespace conv1d_ext::cuda {

// One residue of it.
struct Residue {
  int64_t columns;                // results of each row of the batch item: at residue + column * column_step
  int64_t first, step, distance;  // positions of the signal: of column 0 and tap 0, from column to column, tap to tap
  int taps, first_tap, tap_step;  // tap i is the kernel's tap first_tap + i * tap_step
};

__device__ inline int64_t residues(const Correlation& c) { return c.is_backward ? c.stride : 1; }
__device__ inline int64_t column_step(const Correlation& c) { return c.is_backward ? c.stride : 1; }

__device__ inline Residue residue_of(const Correlation& c, int64_t residue) {
  if (!c.is_backward) {
    return {c.result_length, -c.padding_left, c.stride, c.dilation, static_cast<int>(c.kernel_size), 0, 1};
  }
  // Input position j meets output position t in tap k where j + padding_left == t * stride + k * dilation.
  Residue r{};
  r.columns = residue < c.result_length ? (c.result_length - residue - 1) / c.stride + 1 : 0;
  r.step = 1;
  r.distance = c.dilation / c.gcd;
  const int64_t padded = residue + c.padding_left, tap_step = c.stride / c.gcd;
  if (padded % c.gcd != 0) return r;  // no tap meets any of these
  const int64_t lowest = padded / c.gcd % tap_step * c.inverse % tap_step;
  if (lowest >= c.kernel_size) return r;
  r.taps = static_cast<int>((c.kernel_size - 1 - lowest) / tap_step) + 1;
  // From the last tap to the first, so that positions grow.
  r.first_tap = static_cast<int>(lowest + (r.taps - 1) * tap_step);
  r.tap_step = static_cast<int>(-tap_step);
  r.first = (padded - r.first_tap * c.dilation) / c.stride;
  return r;
}

// For tiles whose columns are taken from the whole batch: where each column's batch item begins, and its position.
struct Place {
  int64_t item, position;
};

template <class T, class Sum>
__device__ inline void store_sum(
    const Correlation& c, Sum sum, int64_t channel, int64_t at, Global<const T> bias, Global<T> result) {
  if (c.negate) sum = -sum;
  if (c.result_is_sum) {
    Global<Sum>{reinterpret_cast<Sum*>(result.data)}.store(at, sum);
    return;
  }
  if (c.accumulate) {
    sum += widen(result.load(at));
  } else if (!bias.is_null()) {
    sum += widen(bias.load(channel));
  }
  result.store(at, narrow<T>(sum));
}

// Which tap of which channels, in the order in which they are added up: windows, and the taps in each.
class Steps {
 public:
  __device__ Steps(int taps, int tap_block)
      : taps_(taps), blocks_((taps + tap_block - 1) / tap_block), window_end_(block_end(0)) {}
  __device__ void advance() {
    if (++tap_ == window_end_) next_window();
  }
  __device__ void next_window() {
    ++window_;
    if (++block_ == blocks_) {
      block_ = 0;
      ++channel_block_;
    }
    tap_ = window_begin_ = block_ == 0 ? 0 : block_end(block_ - 1);
    window_end_ = block_end(block_);
  }
  __device__ int channel_block() const { return channel_block_; }
  __device__ int window() const { return window_; }
  __device__ int tap() const { return tap_; }
  __device__ int window_begin() const { return window_begin_; }  // its first tap
  __device__ int window_end() const { return window_end_; }

 private:
  // Blocks of equal size, to within one tap.
  __device__ int block_end(int block) const { return static_cast<int>(int64_t{block + 1} * taps_ / blocks_); }

  int taps_, blocks_, channel_block_ = 0, block_ = 0, window_ = 0, tap_ = 0, window_begin_ = 0, window_end_;
};

template <class Units>
__global__ void __launch_bounds__(kThreads, Units::kBlocksPerSm) correlate(
    const Correlation c, const CorrelatePlan plan, const Global<const typename Units::Storage> signal,
    const Global<const typename Units::Storage> packed, const Global<const typename Units::Storage> bias,
    const Global<typename Units::Storage> result) {
  using T = typename Units::Storage;
  using Sum = typename Units::Sum;
  constexpr int kRows = Units::kRows, kCols = Units::kCols, kPitch = Units::kPitch;
  constexpr int kChannels = kRowChannels<T>, kChunksPerTile = kRows * kRowBytes / 16;
  constexpr int kAhead = kStages - 1;

  const Shared memory = shared_memory();
  const Shared places = memory;
  const Shared weight_ring = places.from(kCols * int(sizeof(Place)));
  const Shared window_ring = weight_ring.from(kStages * kRows * kPitch);
  const int window_bytes = plan.window_rows * kPitch;

  for (int64_t block = block_index(); block < plan.blocks; block += block_count()) {
    int64_t rest = block;
    const int64_t row_tile = rest % plan.row_tiles;
    rest = divide(rest, plan.row_tiles);
    const int64_t column_tile = rest % plan.column_tiles;
    rest = divide(rest, plan.column_tiles);
    const int64_t residue_index = rest % residues(c);
    const int64_t group = divide(rest, residues(c));
    const Residue residue = residue_of(c, residue_index);

    // The tile's columns: of one batch item where there are windows, of all of them otherwise.
    const bool windows = plan.staging == Staging::kWindow, unfold = plan.staging == Staging::kUnfold;
    const int64_t item_tiles = windows ? divide(plan.column_tiles, c.batch) : 1;
    const int64_t item = windows ? divide(column_tile, item_tiles) : 0;
    const int64_t first_column = (column_tile - item * item_tiles) * kCols;
    const int64_t columns = windows ? residue.columns : c.batch * residue.columns;
    if (first_column >= columns) continue;

    const int64_t group_offset = group * c.channels * c.signal.strides.channel;
    const auto place = [&](int64_t column) -> Place {
      const int64_t n = windows ? item : divide(column, residue.columns);
      const int64_t q = windows ? column : column - n * residue.columns;
      return {n, q};
    };
    if (!windows) {
      for (int i = thread_index(); i < kCols; i += kThreads) {
        const bool exists = first_column + i < columns;
        const auto [n, q] = exists ? place(first_column + i) : Place{};
        // -1: shows nothing
        const Place entry{
            exists ? n * c.signal.strides.batch + group_offset : -1, q * residue.step + residue.first};
        places.store(i * int(sizeof(Place)), entry);
      }
      sync_block();
    }

    const int taps = unfold ? 1 : residue.taps;
    const int channels = static_cast<int>(unfold ? c.channels * residue.taps : c.channels);
    const int steps = taps > 0 ? (channels + kChannels - 1) / kChannels * taps : 0;
    const int64_t item_offset = item * c.signal.strides.batch + group_offset;

    Copier<T, kPitch> copier;
    // Rows [first, last) of the window at `at`.
    const auto copy_window = [&](const Steps& at, int first, int last) {
      const Shared window = window_ring.from(at.window() % plan.windows * window_bytes);
      const int channel0 = at.channel_block() * kChannels;
      const int64_t position0 =
          windows ? first_column * residue.step + residue.first + at.window_begin() * residue.distance
                  : at.window_begin() * residue.distance;
      const auto shows = [&](int row, int word) -> int64_t {
        int channel = channel0 + word;
        if (channel >= channels) return -1;
        int64_t offset = item_offset, position = position0 + row;
        if (!windows) {
          const auto from = places.load<Place>(row * int(sizeof(Place)));
          if (from.item < 0) return -1;
          offset = from.item;
          position = from.position + position0;
          if (unfold) {
            const int virtual_channel = channel;
            channel = virtual_channel / residue.taps;
            position += (virtual_channel - channel * residue.taps) * residue.distance;
          }
        }
        const int64_t shown = shown_at(c.signal, position);
        return shown < 0 ? -1 : offset + channel * c.signal.strides.channel + shown;
      };
      if (plan.vectors) {
        copy_vectors<T, kPitch>(window, first, last, signal, shows);
      } else {
        copier.start(window, first, last, signal, shows);
      }
      return window;
    };
    // All copies of the step at `at`: its weights, and its share of the next window. Returns where the latter goes.
    const auto copy_step = [&](const Steps& at, int step) {
      const int64_t tap = unfold ? 0 : residue.first_tap + int64_t{at.tap()} * residue.tap_step;
      const int64_t tile =
          ((group * plan.packed_taps + tap) * plan.channel_blocks + at.channel_block()) * plan.row_tiles + row_tile;
      const Shared weights = weight_ring.from(step % kStages * kRows * kPitch);
      for (int chunk = thread_index(); chunk < kChunksPerTile; chunk += kThreads) {
        copy_async<16>(
            weights, chunk / 4 * kPitch + chunk % 4 * 16, packed, (tile * kChunksPerTile + chunk) * (16 / int(sizeof(T))),
            true);
      }
      const int taps_here = at.window_end() - at.window_begin(), index = at.tap() - at.window_begin();
      Steps next = at;
      next.next_window();
      if (next.channel_block() * kChannels >= channels) return window_ring;
      const int rows = windows ? (kCols - 1) * plan.row_step +
                                     (next.window_end() - next.window_begin() - 1) * plan.row_distance + 1
                               : kCols;
      return copy_window(next, rows * index / taps_here, rows * (index + 1) / taps_here);
    };

    Units units;
    if (steps > 0) {
      Steps ahead(taps, plan.tap_block), at = ahead;
      const int rows = windows ? (kCols - 1) * plan.row_step + (at.window_end() - 1) * plan.row_distance + 1 : kCols;
      copier.finish(copy_window(ahead, 0, rows));
      for (int step = 0; step < kAhead; ++step) {
        if (step < steps) copier.finish(copy_step(ahead, step));
        commit_copies();
        ahead.advance();
      }
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        wait_copies<kAhead - 1>();
        sync_block();
        Shared window = window_ring;
        if (step + kAhead < steps) window = copy_step(ahead, step + kAhead);
        commit_copies();
        units.multiply(
            weight_ring.from(step % kStages * kRows * kPitch), window_ring.from(at.window() % plan.windows * window_bytes),
            (at.tap() - at.window_begin()) * plan.row_distance, plan.row_step);
        copier.finish(window);
        ahead.advance();
        at.advance();
      }
      sync_block();
    }

    const int64_t row0 = row_tile * kRows;
    units.for_each(
        weight_ring,
        [&](int column) -> int64_t {
          if (first_column + column >= columns) return -1;
          const auto [n, q] = place(first_column + column);
          return n * c.result.batch + (residue_index + q * column_step(c)) * c.result.position;
        },
        [&](int row, int64_t at, Sum sum) {
          if (at < 0 || row0 + row >= c.rows) return;
          const int64_t channel = group * c.rows + row0 + row;
          store_sum<T>(c, sum, channel, at + channel * c.result.channel, bias, result);
        });
    sync_block();
  }
}

// Where weight[row, channel, tap] of a group is.
struct WeightView {
  int64_t group, row, channel, tap;
};

// The weights in the order in which `correlate` reads them: [group][tap][block of channels][row][64 bytes of channels],
// rows and channels filled up with zeros, and rounded to TF32 where it is that. Unfolded, channel and tap are one.
template <class Units>
__global__ void __launch_bounds__(kThreads) pack_weights(
    const Correlation c, const CorrelatePlan plan, const WeightView view,
    const Global<const typename Units::Storage> weight, const Global<typename Units::Storage> packed) {
  using T = typename Units::Storage;
  constexpr int kChannels = kRowChannels<T>;
  const bool unfold = plan.staging == Staging::kUnfold;
  const int64_t channels = unfold ? c.channels * c.kernel_size : c.channels;
  const int64_t rows = plan.row_tiles * Units::kRows;
  for (int64_t i = block_index() * kThreads + thread_index(); i < plan.packed_elements;
       i += block_count() * kThreads) {
    int64_t rest = i;
    int64_t channel = rest % kChannels;
    rest /= kChannels;
    const int64_t row = rest % rows;
    rest = divide(rest, rows);
    channel += rest % plan.channel_blocks * kChannels;
    rest = divide(rest, plan.channel_blocks);
    int64_t tap = rest % plan.packed_taps;
    const int64_t group = divide(rest, plan.packed_taps);
    T value{};
    if (row < c.rows && channel < channels) {
      if (unfold) {
        tap = channel % c.kernel_size;
        channel = divide(channel, c.kernel_size);
      }
      value = weight.load(group * view.group + row * view.row + channel * view.channel + tap * view.tap);
    }
    packed.store(i, rounded<typename Units::Number>(value));
  }
}

}  // namespace conv1d_ext::cuda
