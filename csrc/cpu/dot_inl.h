// Dot products along contiguous memory, vectors along the sum: for weight gradients of few output channels (the sum is
// over positions) and for outputs of few positions (the sum is over input channels and taps).
#pragma once

namespace conv1d_ext {
namespace {

// c[row * c_row + column * c_column] += sum over i < length of a[a_row[row] + i] * b[column * b_column + i]
template <class Storage, class T>
struct Dots {
  const Storage* a;
  const int64_t* a_row;
  const T* b;
  int64_t b_column;
  int64_t length;
  T* c;
  int64_t c_row, c_column;
};

// A tile of kRows x kColumns sums. Each is split over kChains registers where the tile alone has too few independent
// FMAs to hide their latency.
template <int kRows, int kColumns, class Storage, class T>
void run_dot_tile(const Dots<Storage, T>& dots) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  constexpr int kChains = kRows * kColumns >= 8 ? 1 : 8 / (kRows * kColumns);
  Vec<T> acc[kChains][kRows][kColumns];
#pragma GCC unroll 16
  for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int q = 0; q < kColumns; ++q) acc[chain][r][q] = broadcast(T{0});
    }
  }
  const auto step = [&](int chain, auto load_at) __attribute__((always_inline)) {
    Vec<T> b[kColumns];
#pragma GCC unroll 16
    for (int q = 0; q < kColumns; ++q) b[q] = load_at(dots.b + q * dots.b_column);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> a = load_at(dots.a + dots.a_row[r]);
#pragma GCC unroll 16
      for (int q = 0; q < kColumns; ++q) acc[chain][r][q] = fma(a, b[q], acc[chain][r][q]);
    }
  };
  int64_t i = 0;
  for (; i + kChains * kLanes <= dots.length; i += kChains * kLanes) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain) {
      step(chain, [&](const auto* p) __attribute__((always_inline)) { return load(p + i + chain * kLanes); });
    }
  }
  for (; i + kLanes <= dots.length; i += kLanes) {
    step(0, [&](const auto* p) __attribute__((always_inline)) { return load(p + i); });
  }
  const int64_t tail = dots.length - i;
  if (tail > 0) {  // of both: behind the end may be anything, NaN too
    step(0, [&](const auto* p) __attribute__((always_inline)) { return load_partial(p + i, tail); });
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int q = 0; q < kColumns; ++q) {
#pragma GCC unroll 16
      for (int chain = 1; chain < kChains; ++chain) acc[0][r][q] = add(acc[0][r][q], acc[chain][r][q]);
      dots.c[r * dots.c_row + q * dots.c_column] += sum(acc[0][r][q]);
    }
  }
}

template <int kRows, int kColumns, class Storage, class T>
void run_dot_columns(Dots<Storage, T> dots, int64_t columns) {
  if constexpr (kColumns > 0) {
    for (; columns >= kColumns; columns -= kColumns) {
      run_dot_tile<kRows, kColumns>(dots);
      dots.b += kColumns * dots.b_column;
      dots.c += kColumns * dots.c_column;
    }
    run_dot_columns<kRows, kColumns - 1>(dots, columns);
  }
}

template <int kRows = kDotRows, class Storage, class T>
void run_dots(Dots<Storage, T> dots, int64_t rows, int64_t columns) {
  if constexpr (kRows > 0) {
    for (; rows >= kRows; rows -= kRows) {
      run_dot_columns<kRows, kDotColumns>(dots, columns);
      dots.a_row += kRows;
      dots.c += kRows * dots.c_row;
    }
    run_dots<kRows - 1>(dots, rows, columns);
  }
}

}  // namespace
}  // namespace conv1d_ext
