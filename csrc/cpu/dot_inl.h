// Dot products along contiguous memory, vectors along the sum: for weight gradients of few output channels (the sum is
// over positions) and for outputs of few positions (the sum is over input channels and taps).
#pragma once

namespace conv1d_ext {
namespace {

// c[row * c_row + column] += sum over i < length of a[a_row[row] + i] * b[b_column[column] + i]; where b is not
// widened, the CPU multiplies pairs of its elements.
template <class A, class B>
struct Dots {
  using T = Acc<B>;
  const A* a;
  const int64_t* a_row;
  const B* b;
  const int64_t* b_column;
  int64_t length;
  T* c;  // kVectorSums: each element is a vector, whose lanes are to be added at last
  int64_t c_row;
  int64_t ahead = 0;  // elements from a to what is read next, of which rows [ahead_begin, ahead_end) are fetched; or 0
  int64_t ahead_begin = 0, ahead_end = 0;
  bool fetches_rows = false;  // those of a of the next tile
};

// A vector of elements, or of pairs of them; partial: of the first n elements, and zeros.
template <int kProducts, class Storage>
auto load_products(const Storage* p) {
  if constexpr (kProducts == 2) {
    return load_pairs(p);
  } else {
    return load(p);
  }
}
template <int kProducts, class Storage>
auto load_products_partial(const Storage* p, int64_t n) {
  if constexpr (kProducts == 2) {
    return load_pairs_partial(p, n);
  } else {
    return load_partial(p, n);
  }
}

// The sums of the lanes of each of kCount vectors, one after the other.
template <int64_t kCount, class T>
Vec<T> sum_each(const T* vectors) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  if constexpr (kCount == 1) {
    return load(vectors);
  } else {
    Vec<T> even, odd;
    split(sum_each<kCount / 2>(vectors), sum_each<kCount / 2>(vectors + kCount / 2 * kLanes), &even, &odd);
    return add(even, odd);
  }
}

// A tile of kRows x kColumns sums. Each is split over kChains registers where the rows are too few independent FMAs to
// hide their latency; the columns, which a batch decides on, don't count, so that it changes no result.
template <bool kVectorSums, int kRows, int kColumns, class A, class B>
void run_dot_tile(const Dots<A, B>& dots) {
  using T = Acc<B>;
  constexpr int kProducts = kPair<B>;
  constexpr int64_t kLanes = Vec<T>::kLanes, kStep = kLanes * kProducts;
  constexpr int kChains = kDotRows / kRows;
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
    for (int q = 0; q < kColumns; ++q) b[q] = load_at(dots.b + dots.b_column[q]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> a = load_at(dots.a + dots.a_row[r]);
#pragma GCC unroll 16
      for (int q = 0; q < kColumns; ++q) acc[chain][r][q] = multiply_add<kProducts>(a, b[q], acc[chain][r][q]);
    }
  };
  // Where the rows to be fetched lie: half of them at most but for a single tile; the last one again in place of those
  // that are fewer. (With a loop over as many as there are, float32 took 1 to 5 % longer.)
  constexpr int kHalf = (kRows + 1) / 2;
  const bool fetches_more = dots.ahead_end - dots.ahead_begin > kHalf;
  const int64_t last_fetched = max_of(dots.ahead_end - 1, 0);  // that of another tile where this one's share is empty
  const A* fetched[kRows];
  for (int r = 0; r < kRows; ++r) {
    fetched[r] = dots.a + dots.a_row[min_of(dots.ahead_begin + r, last_fetched)] + dots.ahead;
  }
  int64_t i = 0;
  for (; i + kChains * kStep <= dots.length; i += kChains * kStep) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t at = i + chain * kStep;
      step(chain, [&](const auto* p) __attribute__((always_inline)) { return load_products<kProducts>(p + at); });
      if (dots.ahead == 0) continue;
#pragma GCC unroll 16
      for (int r = 0; r < kHalf; ++r) __builtin_prefetch(fetched[r] + at, 0, 2);
      if (!fetches_more) continue;
#pragma GCC unroll 16
      for (int r = kHalf; r < kRows; ++r) __builtin_prefetch(fetched[r] + at, 0, 2);
    }
  }
  for (; i + kStep <= dots.length; i += kStep) {
    step(0, [&](const auto* p) __attribute__((always_inline)) { return load_products<kProducts>(p + i); });
  }
  const int64_t tail = dots.length - i;
  if (tail > 0) {  // of both: behind the end may be anything, NaN too
    step(
        0, [&](const auto* p) __attribute__((always_inline)) { return load_products_partial<kProducts>(p + i, tail); });
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int q = 0; q < kColumns; ++q) {
#pragma GCC unroll 16
      for (int chain = 1; chain < kChains; ++chain) acc[0][r][q] = add(acc[0][r][q], acc[chain][r][q]);
      if constexpr (kVectorSums) {
        T* c = dots.c + (r * dots.c_row + q) * kLanes;
        store(c, add(load(c), acc[0][r][q]));
      } else {
        dots.c[r * dots.c_row + q] += sum(acc[0][r][q]);
      }
    }
  }
}

template <bool kVectorSums, int kRows, int kColumns, class A, class B>
void run_dot_columns(const Dots<A, B>& dots, int64_t columns) {
  if constexpr (kColumns > 0) {
    if (columns == kColumns) return run_dot_tile<kVectorSums, kRows, kColumns>(dots);
    run_dot_columns<kVectorSums, kRows, kColumns - 1>(dots, columns);
  }
}

// All columns of so many rows, in tiles of nearly equal width, of which each fetches some rows of what is read next.
template <bool kVectorSums, int kRows = kDotRows, class A, class B>
void run_dot_rows(Dots<A, B> dots, int64_t rows, int64_t columns) {
  if constexpr (kRows > 0) {
    if (rows < kRows) return run_dot_rows<kVectorSums, kRows - 1>(dots, rows, columns);
    const Dots<A, B> first = dots;
    const int64_t tiles = ceil_div(columns, kDotColumns);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = part_begin(columns, tiles, i), end = part_begin(columns, tiles, i + 1);
      dots.b_column = first.b_column + begin;
      dots.c = first.c + begin * (kVectorSums ? Vec<Acc<B>>::kLanes : 1);
      dots.ahead_begin = part_begin(rows, tiles, i);
      dots.ahead_end = part_begin(rows, tiles, i + 1);
      run_dot_columns<kVectorSums, kRows, kDotColumns>(dots, end - begin);
    }
  }
}

template <bool kVectorSums, class A, class B>
void run_dots(Dots<A, B> dots, int64_t rows, int64_t columns) {
  const int64_t tiles = ceil_div(rows, kDotRows);
  const Dots<A, B> first = dots;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = part_begin(rows, tiles, i);
    dots.a_row = first.a_row + begin;
    dots.c = first.c + begin * dots.c_row * (kVectorSums ? Vec<Acc<B>>::kLanes : 1);
    const int64_t count = part_begin(rows, tiles, i + 1) - begin;
    if (first.fetches_rows) dots.ahead = i + 1 < tiles ? dots.a_row[count] - dots.a_row[0] : 0;
    run_dot_rows<kVectorSums>(dots, count, columns);
  }
}

}  // namespace
}  // namespace conv1d_ext
