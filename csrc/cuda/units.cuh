// The arithmetic of a block of threads: a tile of kRows x kCols sums in registers, and two ways to add products to it
// from shared memory. `multiply` sums over the channels of a row (forward, backward_input);
// `multiply_outer` over positions, that is, over rows (backward_weight). MatrixUnits does it on tensor cores,
// FmaUnits in the type itself.
#pragma once

#include <type_traits>

#include "cuda/staging.cuh"

namespace conv1d_ext::cuda {

// T: BFloat16, Float16 or Tf32. 8 warps, each with a part of the tile.
template <class T, int kRows_, int kCols_>
class MatrixUnits {
 public:
  using Number = T;
  using Storage = std::conditional_t<std::is_same_v<T, Tf32>, float, T>;
  using Sum = float;
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kBlocksPerSm = 2;
  // Bytes from row to row. load_matrices reads 8 rows, which 36 words between them (20 in multiply_outer) put into
  // different banks where the step is odd; the TF32 operands of multiply_outer are read one by one, 4 rows and 8
  // neighbours at once (24 words).
  static constexpr int kPitch = kStepBytes + 16, kOuterPitch = kRowBytes + (kIs16Bit<T> ? 16 : 32);
  static constexpr int kOuterPositions = kIs16Bit<T> ? 32 : 16;  // summed over by multiply_outer

 private:
  static constexpr int kWarpsDown = kRows >= 64 ? 2 : 1, kWarpsAcross = kWarps / kWarpsDown;
  static constexpr int kWarpRows = kRows / kWarpsDown, kWarpCols = kCols / kWarpsAcross;
  static constexpr int kDown = kWarpRows / 16, kAcross = kWarpCols / 8;
  static constexpr int kScratchPitch = kWarpCols + 8;  // floats; pairs of them to different banks

 public:
  static constexpr int kScratchBytes = kWarps * 16 * kScratchPitch * int(sizeof(float));

  // row_step: rows of the window from column to column.
  explicit __device__ MatrixUnits(int row_step)
      : lane_(thread_index() % 32),
        row_(thread_index() / 32 / kWarpsAcross * kWarpRows),
        col_(thread_index() / 32 % kWarpsAcross * kWarpCols),
        row_step_(row_step),
        window_byte_((col_ + lane_ / 16 * 8 + lane_ % 8) * row_step * kPitch + lane_ / 8 % 2 * 16) {
#pragma unroll
    for (int m = 0; m < kDown; ++m) {
#pragma unroll
      for (int n = 0; n < kAcross; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[m][n][e] = 0;
      }
    }
  }

  // sum[r][c] += rows[r] . window[c * row_step], of their first `blocks` blocks of channels
  __device__ void multiply(Shared rows, Shared window, int blocks) {
#pragma unroll
    for (int block = 0; block < kStepRows; ++block) {
      if (block == blocks) break;
#pragma unroll
      for (int byte = block * kRowBytes; byte < (block + 1) * kRowBytes; byte += 32) {
        uint32_t b[kAcross / 2][4];  // of two tiles of 8 columns each
#pragma unroll
        for (int n = 0; n < kAcross / 2; ++n) {
          load_matrices(b[n], window, window_byte_ + n * row_step_ * (16 * kPitch) + byte);
        }
#pragma unroll
        for (int m = 0; m < kDown; ++m) {
          uint32_t a[4];
          load_matrices(a, rows, (row_ + 16 * m + lane_ % 16) * kPitch + byte + lane_ / 16 * 16);
#pragma unroll
          for (int n = 0; n < kAcross; ++n) {
            multiply_matrices<T>(sum_[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
          }
        }
      }
    }
  }

  // sum[r][c] += sum over positions p of grad[r at p] * window[c at p]. Both come in blocks of kRowChannels: row r at p
  // is in row (block of r) * kOuterPositions + p of grad, column c at p in row (block of c) * block_step +
  // p * row_step.
  __device__ void multiply_outer(Shared grad, Shared window, int block_step) {
    constexpr int kBlock = kRowChannels<Storage>;
    uint32_t a[4];
    if constexpr (kIs16Bit<T>) {
#pragma unroll
      for (int p = 0; p < kOuterPositions; p += 16) {
        uint32_t b[kAcross / 2][4];  // of two tiles of 8 columns each
#pragma unroll
        for (int n = 0; n < kAcross / 2; ++n) {
          const int position = p + lane_ / 8 % 2 * 8 + lane_ % 8;
          const int col = col_ + 16 * n + lane_ / 16 * 8, row = col / kBlock * block_step + position * row_step_;
          load_matrices_transposed(b[n], window, row * kOuterPitch + col % kBlock * 2);
        }
#pragma unroll
        for (int m = 0; m < kDown; ++m) {
          const int r = row_ + 16 * m + lane_ / 8 % 2 * 8, position = p + lane_ / 16 * 8 + lane_ % 8;
          const int row = r / kBlock * kOuterPositions + position;
          load_matrices_transposed(a, grad, row * kOuterPitch + r % kBlock * 2);
#pragma unroll
          for (int n = 0; n < kAcross; ++n) {
            multiply_matrices<T>(sum_[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
          }
        }
      }
    } else {
      static_assert(kBlock == 16);
      const int g = lane_ / 4, i = lane_ % 4;
      grad = grad.from((row_ / kBlock * kOuterPositions + i) * kOuterPitch + g * 4);
      window = window.from((col_ / kBlock * block_step + i * row_step_) * kOuterPitch + g * 4);
#pragma unroll 1  // two sets of operands would not fit into the registers
      for (int p = 0; p < kOuterPositions; p += 8) {
        uint32_t b[kAcross][2];
#pragma unroll
        for (int n = 0; n < kAcross; ++n) {
          const int byte = n / 2 * block_step * kOuterPitch + n % 2 * 32;
          b[n][0] = window.load<uint32_t>(byte);
          b[n][1] = window.load<uint32_t>(byte + 4 * row_step_ * kOuterPitch);
        }
#pragma unroll
        for (int m = 0; m < kDown; ++m) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            a[e] = grad.load<uint32_t>((m * kOuterPositions + e / 2 * 4) * kOuterPitch + e % 2 * 32);
          }
#pragma unroll
          for (int n = 0; n < kAcross; ++n) multiply_matrices<T>(sum_[m][n], a, b[n][0], b[n][1]);
        }
        grad = grad.from(8 * kOuterPitch);
        window = window.from(8 * row_step_ * kOuterPitch);
      }
    }
  }

  // store(row, place(column), sum) for each element, lanes along the columns: through shared memory, kScratchBytes of
  // it, to which nobody has business any more.
  template <class Place, class Store>
  __device__ void for_each(Shared scratch, const Place& place, const Store& store) const {
    constexpr int kRowsAtOnce = 32 / kWarpCols;
    const Shared mine = scratch.from(thread_index() / 32 * 16 * kScratchPitch * int(sizeof(float)));
    const int64_t at = place(col_ + lane_ % kWarpCols);
    const int g = lane_ / 4, i = lane_ % 4;
#pragma unroll
    for (int m = 0; m < kDown; ++m) {
#pragma unroll
      for (int n = 0; n < kAcross; ++n) {
        const int byte = (g * kScratchPitch + 8 * n + 2 * i) * int(sizeof(float));
        mine.store<Pack<float, 2>>(byte, {sum_[m][n][0], sum_[m][n][1]});
        mine.store<Pack<float, 2>>(byte + 8 * kScratchPitch * int(sizeof(float)), {sum_[m][n][2], sum_[m][n][3]});
      }
      sync_warp();
#pragma unroll 8  // code has to stay in its cache, too
      for (int r = 0; r < 16; r += kRowsAtOnce) {
        const int row = r + lane_ / kWarpCols;
        const int byte = (row * kScratchPitch + lane_ % kWarpCols) * int(sizeof(float));
        store(row_ + 16 * m + row, at, mine.load<float>(byte));
      }
      sync_warp();
    }
  }

  // store(row, place(column), sum) for each element, after multiply_outer; store_pair(row, place(column), sums) for two
  // neighbouring columns, the first of them even, if `pairs`.
  template <class Place, class Store, class StorePair>
  __device__ void for_each_outer(
      bool pairs, const Place& place, const Store& store, const StorePair& store_pair) const {
    const int g = lane_ / 4, i = lane_ % 4;
#pragma unroll
    for (int n = 0; n < kAcross; ++n) {
      const int column = col_ + 8 * n + 2 * i;
      const int64_t first = place(column), second = pairs ? -1 : place(column + 1);
#pragma unroll
      for (int m = 0; m < kDown; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = row_ + 16 * m + g + half * 8;
          if (pairs) {
            store_pair(row, first, Pack<float, 2>{sum_[m][n][2 * half], sum_[m][n][2 * half + 1]});
          } else {
            store(row, first, sum_[m][n][2 * half]);
            store(row, second, sum_[m][n][2 * half + 1]);
          }
        }
      }
    }
  }

 private:
  int lane_, row_, col_, row_step_, window_byte_;
  float sum_[kDown][kAcross][4];
};

// T: float or double. Each thread has kThreadRows x kThreadCols sums; a warp is 4 threads high and 8 wide, so that its
// loads of 16 bytes are of 4 and of 8 rows, in different banks.
template <class T, int kRows_, int kCols_, int kThreadRows, int kThreadCols>
class FmaUnits {
 public:
  using Number = T;
  using Storage = T;
  using Sum = T;
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kBlocksPerSm = kThreadRows * kThreadCols * sizeof(T) > 128 ? 1 : 2;
  static constexpr int kPitch = kStepBytes + 16, kOuterPitch = kRowBytes + 16;
  static constexpr int kOuterPositions = 16;
  static constexpr int kScratchBytes = 0;

 private:
  static constexpr int kWarpRows = 4 * kThreadRows, kWarpCols = 8 * kThreadCols;
  static constexpr int kWarpsAcross = kCols / kWarpCols;
  static_assert(kRows / kWarpRows * kWarpsAcross == kWarps);
  static constexpr int kChunk = 16 / int(sizeof(T));  // numbers

 public:
  explicit __device__ FmaUnits(int row_step)
      : row_(thread_index() / 32 / kWarpsAcross * kWarpRows),
        col_(thread_index() / 32 % kWarpsAcross * kWarpCols),
        y_(thread_index() % 32 / 8),
        x_(thread_index() % 8),
        row_step_(row_step) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadCols; ++j) sum_[i][j] = 0;
    }
  }

  __device__ void multiply(Shared rows, Shared window, int blocks) {
    // Not unrolled: a second set of operands would not fit into the registers.
#pragma unroll 1
    for (int chunk = 0; chunk < blocks * kRowBytes; chunk += 16) {
      Pack<T, kChunk> b[kThreadCols];
#pragma unroll
      for (int j = 0; j < kThreadCols; ++j) {
        b[j] = window.load<Pack<T, kChunk>>((col_ + x_ + 8 * j) * row_step_ * kPitch + chunk);
      }
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const auto a = rows.load<Pack<T, kChunk>>((row_ + y_ + 4 * i) * kPitch + chunk);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
#pragma unroll
          for (int j = 0; j < kThreadCols; ++j) sum_[i][j] += a.at[e] * b[j].at[e];
        }
      }
    }
  }

  // Here a thread's rows and columns are neighbours, kChunk at a time.
  __device__ void multiply_outer(Shared grad, Shared window, int block_step) {
    constexpr int kBlock = kRowChannels<T>, kSize = int(sizeof(T));
#pragma unroll 2
    for (int p = 0; p < kOuterPositions; ++p) {
      Pack<T, kChunk> a[kThreadRows / kChunk], b[kThreadCols / kChunk];
#pragma unroll
      for (int i = 0; i < kThreadRows / kChunk; ++i) {
        const int r = outer_row(i * kChunk), row = r / kBlock * kOuterPositions + p;
        a[i] = grad.load<Pack<T, kChunk>>(row * kOuterPitch + r % kBlock * kSize);
      }
#pragma unroll
      for (int j = 0; j < kThreadCols / kChunk; ++j) {
        const int c = outer_col(j * kChunk), row = c / kBlock * block_step + p * row_step_;
        b[j] = window.load<Pack<T, kChunk>>(row * kOuterPitch + c % kBlock * kSize);
      }
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadCols; ++j) {
          sum_[i][j] += a[i / kChunk].at[i % kChunk] * b[j / kChunk].at[j % kChunk];
        }
      }
    }
  }

  template <class Place, class Store>
  __device__ void for_each(Shared, const Place& place, const Store& store) const {
#pragma unroll
    for (int j = 0; j < kThreadCols; ++j) {
      const int64_t at = place(col_ + x_ + 8 * j);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) store(row_ + y_ + 4 * i, at, sum_[i][j]);
    }
  }

  template <class Place, class Store, class StorePair>
  __device__ void for_each_outer(
      bool pairs, const Place& place, const Store& store, const StorePair& store_pair) const {
#pragma unroll
    for (int j = 0; j < kThreadCols; j += 2) {
      const int64_t first = place(outer_col(j)), second = pairs ? -1 : place(outer_col(j + 1));
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        if (pairs) {
          store_pair(outer_row(i), first, Pack<T, 2>{sum_[i][j], sum_[i][j + 1]});
        } else {
          store(outer_row(i), first, sum_[i][j]);
          store(outer_row(i), second, sum_[i][j + 1]);
        }
      }
    }
  }

 private:
  __device__ int outer_row(int i) const { return row_ + i / kChunk * 4 * kChunk + y_ * kChunk + i % kChunk; }
  __device__ int outer_col(int j) const { return col_ + j / kChunk * 8 * kChunk + x_ * kChunk + j % kChunk; }

  int row_, col_, y_, x_, row_step_;
  T sum_[kThreadRows][kThreadCols];
};

}  // namespace conv1d_ext::cuda
