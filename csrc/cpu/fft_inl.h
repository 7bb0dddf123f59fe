// The discrete Fourier transform of rows of N = 2 M real numbers, M a power of two, for products of polynomials modulo
// x^N + 1. Over the complex numbers that is (x^M - i)(x^M + i), and a real polynomial is determined by what it is
// modulo the first factor: x[n] + i x[n + M] for n < M. So the two halves of a row are real and imaginary parts as they
// stand, and M complex numbers hold the whole spectrum.
//
// A polynomial modulo x^(2h) - c, a block of 2h numbers, is known by what it is modulo x^h - s and x^h + s, where
// s = sqrt(c): a + s b and a - s b of the block's halves a and b. One number s for all of a block's vectors: no
// shuffles, and no reordering, since products take the spectrum in any order and the inverse undoes the steps one by
// one. Blocks shorter than a few vectors are transposed, so that the lanes are blocks.
#pragma once

namespace conv1d_ext {
namespace {

template <class V>
struct Complex {
  V re, im;
};

template <class V>
inline Complex<V> add(Complex<V> a, Complex<V> b) {
  return {add(a.re, b.re), add(a.im, b.im)};
}
template <class V>
inline Complex<V> sub(Complex<V> a, Complex<V> b) {
  return {sub(a.re, b.re), sub(a.im, b.im)};
}
template <class V>
inline Complex<V> mul(Complex<V> a, Complex<V> b) {
  return {fnma(a.im, b.im, mul(a.re, b.re)), fma(a.im, b.re, mul(a.re, b.im))};
}
// conj(a) * b
template <class V>
inline Complex<V> mul_conj(Complex<V> a, Complex<V> b) {
  return {fma(a.im, b.im, mul(a.re, b.re)), fnma(a.im, b.re, mul(a.re, b.im))};
}
// a + i b, a - i b
template <class V>
inline Complex<V> add_i(Complex<V> a, Complex<V> b) {
  return {sub(a.re, b.im), add(a.im, b.re)};
}
template <class V>
inline Complex<V> sub_i(Complex<V> a, Complex<V> b) {
  return {add(a.re, b.im), sub(a.im, b.re)};
}

template <class T>
class Fft {
 public:
  static constexpr int64_t kLanes = Vec<T>::kLanes;
  static constexpr int64_t kComplex =
      2 * kLanes;  // elements of a vector of complex numbers: real parts, imaginary ones

  // roots: of fft_roots (fft_plan.h), for this length.
  Fft(int64_t length, const T* roots)
      : half_(length / 2),
        groups_(half_ / (kLanes * kLanes)),
        roots_(roots),
        short_roots_(roots + 2 * (half_ / kLanes)) {}

  int64_t vectors() const { return half_ / kLanes; }  // of complex numbers, in a spectrum

  // x[0..count) is a row whose other numbers are zero; all of x, N numbers, is spent. Vector v of the spectrum goes to
  // spectrum + v * stride, its imaginary parts times `sign`.
  void transform(T* x, int64_t count, T* spectrum, int64_t stride, T sign) const {
    int64_t blocks = 1, length = half_;
    // A block whose second half is zero has two parts that are equal to its first half.
    for (; length > kLanes && count <= length / 2; length /= 2) blocks *= 2;
    fill_zero(x + count, (blocks > 1 ? length : 2 * half_) - count);
    if (blocks > 1) {
      for (int64_t b = 1; b < blocks; ++b) {
        for (int64_t i = 0; i < length; i += kLanes) store(x + b * length + i, load(x + i));
      }
      fill_zero(x + half_, half_);
    }
    if (log2(length / kLanes) % 2 == 1) {
      halve(x, blocks, length);
      blocks *= 2;
      length /= 2;
    }
    for (; length > kLanes; length /= 4, blocks *= 4) quarter(x, blocks, length);
    const V signs = broadcast(sign);
    for (int64_t g = 0; g < groups_; ++g) {
      alignas(64) T re[kLanes * kLanes], im[kLanes * kLanes];
      const int64_t at = g * kLanes * kLanes;
      transpose_lanes(x + at, re);
      transpose_lanes(x + half_ + at, im);
      finish_group(re, im, short_roots_ + g * (kLanes - 1) * kComplex);
      T* out = spectrum + g * kLanes * stride;
      for (int64_t i = 0; i < kLanes; ++i, out += stride) {
        store(out, load(re + i * kLanes));
        store(out + kLanes, mul(signs, load(im + i * kLanes)));
      }
    }
  }

  // The reverse, but for a factor of M.
  void invert(const T* spectrum, int64_t stride, T* x) const {
    for (int64_t g = 0; g < groups_; ++g) {
      alignas(64) T re[kLanes * kLanes], im[kLanes * kLanes];
      const T* in = spectrum + g * kLanes * stride;
      for (int64_t i = 0; i < kLanes; ++i, in += stride) {
        store(re + i * kLanes, load(in));
        store(im + i * kLanes, load(in + kLanes));
      }
      begin_group(re, im, short_roots_ + g * (kLanes - 1) * kComplex);
      const int64_t at = g * kLanes * kLanes;
      transpose_lanes(re, x + at);
      transpose_lanes(im, x + half_ + at);
    }
    const bool odd = log2(half_ / kLanes) % 2 == 1;
    for (int64_t length = 4 * kLanes; length <= (odd ? half_ / 2 : half_); length *= 4) {
      unquarter(x, half_ / length, length);
    }
    if (odd) unhalve(x);
  }

 private:
  using V = Vec<T>;
  using C = Complex<V>;

  static int64_t log2(int64_t n) { return 63 - __builtin_clzll(uint64_t(n)); }

  // Block b of 2^level: the s of the block. Those of the next level are s' and i s' of s' = root(2 * blocks, 2 * b).
  C root(int64_t blocks, int64_t b) const {
    return {broadcast(roots_[2 * (blocks + b)]), broadcast(roots_[2 * (blocks + b) + 1])};
  }
  C at(const T* x, int64_t i) const { return {load(x + i), load(x + half_ + i)}; }
  void put(T* x, int64_t i, C c) const {
    store(x + i, c.re);
    store(x + half_ + i, c.im);
  }

  static void fill_zero(T* x, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(x + i, broadcast(T{0}));
    if (i < count) store_partial(x + i, broadcast(T{0}), count - i);
  }

  void halve(T* x, int64_t blocks, int64_t length) const {
    const int64_t step = length / 2;
    for (int64_t b = 0; b < blocks; ++b) {
      const C s = root(blocks, b);
      for (int64_t i = b * length; i < b * length + step; i += kLanes) {
        const C a = at(x, i), sb = mul(s, at(x, i + step));
        put(x, i, add(a, sb));
        put(x, i + step, sub(a, sb));
      }
    }
  }
  void unhalve(T* x) const {
    const C s = root(1, 0);
    for (int64_t i = 0; i < half_ / 2; i += kLanes) {
      const C p = at(x, i), q = at(x, i + half_ / 2);
      put(x, i, add(p, q));
      put(x, i + half_ / 2, mul_conj(s, sub(p, q)));
    }
  }

  // Two levels at once: of a block's quarters, and back.
  static void quarter(C c[4], C s, C next) {
    const C b = mul(s, c[2]), d = mul(s, c[3]);
    const C p0 = add(c[0], b), p2 = sub(c[0], b), p1 = mul(next, add(c[1], d)), p3 = mul(next, sub(c[1], d));
    c[0] = add(p0, p1);
    c[1] = sub(p0, p1);
    c[2] = add_i(p2, p3);
    c[3] = sub_i(p2, p3);
  }
  static void unquarter(C c[4], C s, C next) {
    // (c2 - c3) / i, and what that leads to.
    const C p0 = add(c[0], c[1]), p1 = mul_conj(next, sub(c[0], c[1]));
    const C p2 = add(c[2], c[3]), e = mul_conj(next, sub(c[2], c[3]));
    c[0] = add(p0, p2);
    c[1] = sub_i(p1, e);
    c[2] = mul_conj(s, sub(p0, p2));
    c[3] = mul_conj(s, add_i(p1, e));
  }

  void quarter(T* x, int64_t blocks, int64_t length) const {
    const int64_t step = length / 4;
    for (int64_t b = 0; b < blocks; ++b) {
      const C s = root(blocks, b), next = root(2 * blocks, 2 * b);
      for (int64_t i = b * length; i < b * length + step; i += kLanes) {
        C c[4] = {at(x, i), at(x, i + step), at(x, i + 2 * step), at(x, i + 3 * step)};
        quarter(c, s, next);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) put(x, i + q * step, c[q]);
      }
    }
  }
  void unquarter(T* x, int64_t blocks, int64_t length) const {
    const int64_t step = length / 4;
    for (int64_t b = 0; b < blocks; ++b) {
      const C s = root(blocks, b), next = root(2 * blocks, 2 * b);
      for (int64_t i = b * length; i < b * length + step; i += kLanes) {
        C c[4] = {at(x, i), at(x, i + step), at(x, i + 2 * step), at(x, i + 3 * step)};
        unquarter(c, s, next);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) put(x, i + q * step, c[q]);
      }
    }
  }

  // The last levels, on kLanes blocks of kLanes numbers: number e of block b is lane b of vector e. The roots of a
  // level are one vector for each of the parts that blocks have there.
  static constexpr bool kOddLevels = kLanes == 8 || kLanes == 2;
  static C short_root(const T* roots, int64_t parts, int64_t part) {
    const T* p = roots + (parts - 1 + part) * kComplex;
    return {load(p), load(p + kLanes)};
  }
  template <class Body>
  static void for_quarters(T* re, T* im, int64_t parts, const Body& body) {
    const int64_t length = kLanes / parts, step = length / 4;
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part) {
#pragma GCC unroll 4
      for (int64_t i = part * length; i < part * length + step; ++i) {
        C c[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) c[q] = {load(re + (i + q * step) * kLanes), load(im + (i + q * step) * kLanes)};
        body(c, part);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          store(re + (i + q * step) * kLanes, c[q].re);
          store(im + (i + q * step) * kLanes, c[q].im);
        }
      }
    }
  }
  template <class Body>
  static void for_halves(T* re, T* im, const Body& body) {
    constexpr int64_t kHalf = kLanes / 2 * kLanes;
    for (int64_t i = 0; i < kHalf; i += kLanes) {
      C a{load(re + i), load(im + i)}, b{load(re + kHalf + i), load(im + kHalf + i)};
      body(a, b);
      store(re + i, a.re);
      store(im + i, a.im);
      store(re + kHalf + i, b.re);
      store(im + kHalf + i, b.im);
    }
  }

  static void finish_group(T* re, T* im, const T* roots) {
    if constexpr (kOddLevels) {
      const C s = short_root(roots, 1, 0);
      for_halves(re, im, [&](C& a, C& b) {
        const C sb = mul(s, b);
        b = sub(a, sb);
        a = add(a, sb);
      });
    }
#pragma GCC unroll 2
    for (int64_t parts = kOddLevels ? 2 : 1; parts < kLanes; parts *= 4) {
      for_quarters(re, im, parts, [&](C c[4], int64_t part) {
        quarter(c, short_root(roots, parts, part), short_root(roots, 2 * parts, 2 * part));
      });
    }
  }
  static void begin_group(T* re, T* im, const T* roots) {
#pragma GCC unroll 2
    for (int64_t parts = kLanes / 4; parts >= 1; parts /= 4) {
      for_quarters(re, im, parts, [&](C c[4], int64_t part) {
        unquarter(c, short_root(roots, parts, part), short_root(roots, 2 * parts, 2 * part));
      });
    }
    if constexpr (kOddLevels) {
      const C s = short_root(roots, 1, 0);
      for_halves(re, im, [&](C& a, C& b) {
        const C difference = sub(a, b);
        a = add(a, b);
        b = mul_conj(s, difference);
      });
    }
  }

  static void transpose_lanes(const T* src, T* dst) {
    constexpr int64_t kSide = kSquare<T>;
    if constexpr (kSide > kLanes) {
      for (int64_t i = 0; i < kLanes * kLanes; ++i) dst[i % kLanes * kLanes + i / kLanes] = src[i];
    } else {
#pragma GCC unroll 4
      for (int64_t column = 0; column < kLanes; column += kSide) {
#pragma GCC unroll 4
        for (int64_t row = 0; row < kLanes; row += kSide) {
          transpose_square(src + row * kLanes + column, kLanes, kSide, kSide, dst + column * kLanes + row, kLanes);
        }
      }
    }
  }

  const int64_t half_, groups_;
  const T* const roots_;
  const T* const short_roots_;
};

// Products of spectra, number by number: c[row][column] = (add ? c : 0) + sum over i < terms of a[row][i] *
// b[column][i]. Each element of the arrays is a vector of complex numbers, the sum of a column is in the order of i.
template <int kRows, int kColumns, class T>
void multiply_spectra_tile(const T* a, const T* b, int64_t terms, T* c, int64_t c_row, bool add_up) {
  constexpr int64_t kLanes = Vec<T>::kLanes, kComplex = 2 * kLanes;
  Complex<Vec<T>> sum[kRows][kColumns];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int column = 0; column < kColumns; ++column) {
      const T* p = c + row * c_row + column * kComplex;
      sum[row][column] =
          add_up ? Complex<Vec<T>>{load(p), load(p + kLanes)} : Complex<Vec<T>>{broadcast(T{0}), broadcast(T{0})};
    }
  }
  for (int64_t i = 0; i < terms; ++i) {
    Complex<Vec<T>> y[kColumns];
#pragma GCC unroll 8
    for (int column = 0; column < kColumns; ++column) {
      const T* p = b + (column * terms + i) * kComplex;
      y[column] = {load(p), load(p + kLanes)};
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const T* p = a + (row * terms + i) * kComplex;
      const Complex<Vec<T>> x{load(p), load(p + kLanes)};
#pragma GCC unroll 8
      for (int column = 0; column < kColumns; ++column) {
        Complex<Vec<T>>& s = sum[row][column];
        s.re = fnma(x.im, y[column].im, fma(x.re, y[column].re, s.re));
        s.im = fma(x.im, y[column].re, fma(x.re, y[column].im, s.im));
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int column = 0; column < kColumns; ++column) {
      T* p = c + row * c_row + column * kComplex;
      store(p, sum[row][column].re);
      store(p + kLanes, sum[row][column].im);
    }
  }
}

// Rows or columns of the next tile of so many that are left: 2 and 2 of 4 rather than 3 and 1.
inline int64_t next_tile(int64_t left, int64_t most) { return left == most + 1 ? (most + 1) / 2 : min_of(left, most); }

template <int kRows, class T>
void multiply_spectra_rows(const T* a, const T* b, int64_t columns, int64_t terms, T* c, bool add_up) {
  constexpr int64_t kComplex = 2 * Vec<T>::kLanes;
  for (int64_t column = 0; column < columns;) {
    const int64_t tile = next_tile(columns - column, kSpectrumColumns);
    const T* from = b + column * terms * kComplex;
    T* to = c + column * kComplex;
    if (tile == 3) {
      if constexpr (kSpectrumColumns >= 3) {
        multiply_spectra_tile<kRows, 3>(a, from, terms, to, columns * kComplex, add_up);
      }
    } else if (tile == 2) {
      if constexpr (kSpectrumColumns >= 2) {
        multiply_spectra_tile<kRows, 2>(a, from, terms, to, columns * kComplex, add_up);
      }
    } else {
      multiply_spectra_tile<kRows, 1>(a, from, terms, to, columns * kComplex, add_up);
    }
    column += tile;
  }
}

template <class T>
void multiply_spectra(const T* a, int64_t rows, const T* b, int64_t columns, int64_t terms, T* c, bool add_up) {
  constexpr int64_t kComplex = 2 * Vec<T>::kLanes;
  for (int64_t row = 0; row < rows;) {
    const int64_t tile = next_tile(rows - row, kSpectrumRows);
    const T* from = a + row * terms * kComplex;
    T* to = c + row * columns * kComplex;
    if (tile == 3) {
      if constexpr (kSpectrumRows >= 3) multiply_spectra_rows<3>(from, b, columns, terms, to, add_up);
    } else if (tile == 2) {
      multiply_spectra_rows<2>(from, b, columns, terms, to, add_up);
    } else {
      multiply_spectra_rows<1>(from, b, columns, terms, to, add_up);
    }
    row += tile;
  }
}

}  // namespace
}  // namespace conv1d_ext
