// Toom-Cook's algorithm for m sums of r products, F(m, r), with m + r - 1 multiplications instead of m r:
//   y[i] = sum over k of w[k] x[i + k],  i < m, k < r
// is the transpose of a product of polynomials, which is known by its values at m + r - 1 points: transform x,
// transform w, multiply number by number, transform back. All transforms are linear, so sums over channels (and over
// chunks of taps) are taken of the products, and only what they add up to is transformed back.
//
// The transforms have their numbers in the order of planes. Those of pairs of sums are as precise as direct ones, those
// of pairs of pairs nearly, those of four by points less.
#pragma once

namespace conv1d_ext {
namespace {

template <class Number, int kSums, int kTaps>
class ToomCook;

// F(2, 2), at the points 0, 1 and infinity. Each y[i] is made of nothing but the x that it has anyway, and small
// integers come out exactly. Products are some larger than direct ones (in the norm by up to sqrt(2)), so parts of sums
// are half as long (toom_cook_plan.cpp).
template <class Number>
class ToomCook<Number, 2, 2> {
 public:
  using T = Number;
  static constexpr int kOutputs = 2, kTaps = 2, kInputs = 3, kPlanes = 3;
  static constexpr int last_tap(int plane) { return plane == 0 ? 0 : kTaps - 1; }

  static void transform_source(const Vec<T> (&x)[kPlanes], Vec<T> (&out)[kPlanes]) {
    out[0] = sub(x[0], x[1]);
    out[1] = x[1];
    out[2] = sub(x[2], x[1]);
  }
  static void transform_taps(const Vec<T> (&w)[kTaps], Vec<T> (&out)[kPlanes]) {
    out[0] = w[0];
    out[1] = add(w[0], w[1]);
    out[2] = w[1];
  }
  static void invert(const Vec<T> (&in)[kPlanes], Vec<T> (&y)[kOutputs]) {
    y[0] = add(in[0], in[1]);
    y[1] = add(in[2], in[1]);
  }
  static void transform_grad(const Vec<T> (&g)[kOutputs], Vec<T> (&out)[kPlanes]) {
    out[0] = g[0];
    out[1] = add(g[0], g[1]);
    out[2] = g[1];
  }
  static void invert_taps(const Vec<T> (&in)[kPlanes], Vec<T> (&w)[kTaps]) {
    w[0] = add(in[0], in[1]);
    w[1] = add(in[2], in[1]);
  }
};

// F(2, 3), at the points 0, 1, -1 and infinity; otherwise as F(2, 2).
template <class Number>
class ToomCook<Number, 2, 3> {
 public:
  using T = Number;
  static constexpr int kOutputs = 2, kTaps = 3, kInputs = 4, kPlanes = 4;
  static constexpr int last_tap(int plane) { return plane == 0 ? 0 : kTaps - 1; }

  static void transform_source(const Vec<T> (&x)[kPlanes], Vec<T> (&out)[kPlanes]) {
    out[0] = sub(x[0], x[2]);
    out[1] = add(x[2], x[1]);
    out[2] = sub(x[2], x[1]);
    out[3] = sub(x[3], x[1]);
  }
  static void transform_taps(const Vec<T> (&w)[kTaps], Vec<T> (&out)[kPlanes]) {
    const Vec<T> half = broadcast(T(0.5)), even = mul(half, add(w[0], w[2]));
    out[0] = w[0];
    out[1] = fma(half, w[1], even);
    out[2] = fnma(half, w[1], even);
    out[3] = w[2];
  }
  static void invert(const Vec<T> (&in)[kPlanes], Vec<T> (&y)[kOutputs]) {
    y[0] = add(in[0], add(in[1], in[2]));
    y[1] = add(in[3], sub(in[1], in[2]));
  }
  static void transform_grad(const Vec<T> (&g)[kOutputs], Vec<T> (&out)[kPlanes]) {
    out[0] = g[0];
    out[1] = add(g[0], g[1]);
    out[2] = sub(g[0], g[1]);
    out[3] = g[1];
  }
  static void invert_taps(const Vec<T> (&in)[kPlanes], Vec<T> (&w)[kTaps]) {
    const Vec<T> half = broadcast(T(0.5)), even = mul(half, add(in[1], in[2]));
    w[0] = add(in[0], even);
    w[1] = mul(half, sub(in[1], in[2]));
    w[2] = add(in[3], even);
  }
};

// F(4, 4) by pairs of pairs: F(2, 2) of blocks of two, [0, 1] and [2, 3], whose products are F(2, 2) themselves. It
// takes 9 multiplications, two more than Toom-Cook's algorithm at 7 points, but is nearly as precise as F(2, 2), and
// small integers come out exactly, too. Planes: [of blocks][within a block].
template <class Number>
class PairsOfPairs {
 public:
  using T = Number;
  using Pair = ToomCook<Number, 2, 2>;
  static constexpr int kOutputs = 4, kTaps = 4, kInputs = 7, kPlanes = 9;

  // The last tap that a plane has a part of.
  static constexpr int last_tap(int plane) { return (plane < 3 ? 0 : 2) + (plane % 3 == 0 ? 0 : 1); }

  static void transform_source(const Vec<T> (&x)[kInputs], Vec<T> (&out)[kPlanes]) {
    of_blocks<3>([&](const Vec<T>(&in)[3], Vec<T>(&to)[3]) { Pair::transform_source(in, to); }, x, out);
  }
  static void transform_taps(const Vec<T> (&w)[kTaps], Vec<T> (&out)[kPlanes]) {
    of_blocks<2>([&](const Vec<T>(&in)[2], Vec<T>(&to)[3]) { Pair::transform_taps(in, to); }, w, out);
  }
  static void transform_grad(const Vec<T> (&g)[kOutputs], Vec<T> (&out)[kPlanes]) {
    of_blocks<2>([&](const Vec<T>(&in)[2], Vec<T>(&to)[3]) { Pair::transform_grad(in, to); }, g, out);
  }
  static void invert(const Vec<T> (&in)[kPlanes], Vec<T> (&y)[kOutputs]) {
    to_blocks([&](const Vec<T>(&products)[3], Vec<T>(&to)[2]) { Pair::invert(products, to); }, in, y);
  }
  static void invert_taps(const Vec<T> (&in)[kPlanes], Vec<T> (&w)[kTaps]) {
    to_blocks([&](const Vec<T>(&products)[3], Vec<T>(&to)[2]) { Pair::invert_taps(products, to); }, in, w);
  }

 private:
  // Transforms of blocks, which begin two numbers apart and of which there are as many as numbers in each.
  template <int kSide, int kCount, class Transform>
  static void of_blocks(const Transform& transform, const Vec<T> (&in)[kCount], Vec<T> (&out)[kPlanes]) {
    Vec<T> of[3][kSide];  // differences and sums of blocks
#pragma GCC unroll 4
    for (int i = 0; i < kSide; ++i) {
      Vec<T> block[kSide], transformed[3];
#pragma GCC unroll 4
      for (int b = 0; b < kSide; ++b) block[b] = in[2 * b + i];
      transform(block, transformed);
#pragma GCC unroll 4
      for (int p = 0; p < 3; ++p) of[p][i] = transformed[p];
    }
#pragma GCC unroll 4
    for (int p = 0; p < 3; ++p) {
      Vec<T> planes[3];
      transform(of[p], planes);
#pragma GCC unroll 4
      for (int q = 0; q < 3; ++q) out[3 * p + q] = planes[q];
    }
  }
  template <class Invert>
  static void to_blocks(const Invert& invert, const Vec<T> (&in)[kPlanes], Vec<T> (&out)[4]) {
    Vec<T> of[2][3];
#pragma GCC unroll 4
    for (int p = 0; p < 3; ++p) {
      const Vec<T> planes[3] = {in[3 * p], in[3 * p + 1], in[3 * p + 2]};
      Vec<T> block[2];
      invert(planes, block);
      of[0][p] = block[0], of[1][p] = block[1];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 2; ++i) {
      Vec<T> both[2];
      invert(of[i], both);
      out[i] = both[0], out[2 + i] = both[1];
    }
  }
};

// F(4, r). The points are pairs a, -a, whose transforms share their even and odd parts; 0, where r is odd; and
// infinity. With
//   M(x) = x^z product of (x^2 - a^2),  z = 1 if 0 is a point, else 0,
// x is multiplied by the coefficients of M(x) / (x - point), w by point^k / M'(point), and y[i] by point^i.
//
// The a of the pairs. Of all sets of eighths up to 3 those with the least error, or close to it (float32, 64 and 1024
// channels of normal numbers): 3e-7 and 5e-7 of the norm for 2 taps, 4e-7 and 6e-7 for 3, 5e-7 and 1.0e-6 for 4,
// 7e-7 and 1.3e-6 for 5. With the customary 1, 2, 1/2, ... it is 1.2 to 1.6 times as much.
template <int kTaps>
constexpr double kToomCookPoints[] = {0};
template <>
constexpr double kToomCookPoints<2>[] = {0.5, 1.25};
template <>
constexpr double kToomCookPoints<3>[] = {0.625, 1.5};
template <>
constexpr double kToomCookPoints<4>[] = {0.25, 0.75, 2};
template <>
constexpr double kToomCookPoints<5>[] = {0.5, 1, 2};

// Planes: a, -a for each pair, 0, infinity.
template <class Number, int kR>
class ToomCook<Number, 4, kR> {
 public:
  using T = Number;
  static constexpr int kOutputs = 4, kTaps = kR, kInputs = kTaps + 3, kPlanes = kTaps + 3;
  static constexpr int last_tap(int) { return kTaps - 1; }

  static void transform_source(const Vec<T> (&x)[kPlanes], Vec<T> (&out)[kPlanes]) {
#pragma GCC unroll 8
    for (int a = 0; a < kPairs; ++a) {
      Vec<T> high = x[kZero + 2 * kPairs - 1], low = x[kZero + 2 * kPairs - 2];
#pragma GCC unroll 8
      for (int m = 0; m < kPairs - 1; ++m) {
        high = fma(broadcast(k.other_pairs[a][m]), x[kZero + 2 * m + 1], high);
        low = fma(broadcast(k.other_pairs[a][m]), x[kZero + 2 * m], low);
      }
      out[2 * a] = fma(broadcast(k.power[a][1]), low, high);
      out[2 * a + 1] = fnma(broadcast(k.power[a][1]), low, high);
    }
    Vec<T> at_zero = x[2 * kPairs], at_infinity = x[kPlanes - 1];
#pragma GCC unroll 8
    for (int m = 0; m < kPairs; ++m) {
      at_zero = fma(broadcast(k.pairs[m]), x[2 * m], at_zero);
      at_infinity = fma(broadcast(k.pairs[m]), x[kZero + 2 * m], at_infinity);
    }
    if (kZero) out[2 * kPairs] = at_zero;
    out[kPlanes - 1] = at_infinity;
  }

  // The taps of a row of weights; those that are none are zero.
  static void transform_taps(const Vec<T> (&w)[kTaps], Vec<T> (&out)[kPlanes]) {
#pragma GCC unroll 8
    for (int a = 0; a < kPairs; ++a) {
      Vec<T> even = mul(broadcast(k.weight[a][0]), w[0]), odd = mul(broadcast(k.weight[a][1]), w[1]);
#pragma GCC unroll 8
      for (int t = 2; t < kTaps; ++t) {
        Vec<T>& part = t % 2 == 0 ? even : odd;
        part = fma(broadcast(k.weight[a][t]), w[t], part);
      }
      out[2 * a] = add(even, odd);
      out[2 * a + 1] = kZero ? sub(even, odd) : sub(odd, even);
    }
    if (kZero) out[2 * kPairs] = mul(broadcast(k.weight_at_zero), w[0]);
    out[kPlanes - 1] = w[kTaps - 1];
  }

  // From products to sums.
  static void invert(const Vec<T> (&in)[kPlanes], Vec<T> (&y)[kOutputs]) {
    Vec<T> even = add(in[0], in[1]), odd = sub(in[0], in[1]);
    y[0] = kZero ? add(in[2 * kPairs], even) : even;
    y[1] = mul(broadcast(k.power[0][1]), odd);
    y[2] = mul(broadcast(k.power[0][2]), even);
    y[3] = fma(broadcast(k.power[0][3]), odd, in[kPlanes - 1]);
#pragma GCC unroll 8
    for (int a = 1; a < kPairs; ++a) {
      even = add(in[2 * a], in[2 * a + 1]);
      odd = sub(in[2 * a], in[2 * a + 1]);
      y[0] = add(y[0], even);
      y[1] = fma(broadcast(k.power[a][1]), odd, y[1]);
      y[2] = fma(broadcast(k.power[a][2]), even, y[2]);
      y[3] = fma(broadcast(k.power[a][3]), odd, y[3]);
    }
  }

  // Gradients: the transposes of the last two. Of four sums:
  static void transform_grad(const Vec<T> (&g)[kOutputs], Vec<T> (&out)[kPlanes]) {
#pragma GCC unroll 8
    for (int a = 0; a < kPairs; ++a) {
      const Vec<T> even = fma(broadcast(k.power[a][2]), g[2], g[0]);
      const Vec<T> odd = fma(broadcast(k.power[a][3]), g[3], mul(broadcast(k.power[a][1]), g[1]));
      out[2 * a] = add(even, odd);
      out[2 * a + 1] = sub(even, odd);
    }
    if (kZero) out[2 * kPairs] = g[0];
    out[kPlanes - 1] = g[3];
  }

  // ... and to taps.
  static void invert_taps(const Vec<T> (&in)[kPlanes], Vec<T> (&w)[kTaps]) {
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) {
      Vec<T> total = t == kTaps - 1 ? in[kPlanes - 1] : broadcast(T{0});
#pragma GCC unroll 8
      for (int a = 0; a < kPairs; ++a) {
        const bool adds = (t % 2 == 0) == kZero;
        const Vec<T> both = adds ? add(in[2 * a], in[2 * a + 1]) : sub(in[2 * a], in[2 * a + 1]);
        total = fma(broadcast(k.weight[a][t]), both, total);
      }
      w[t] = kZero && t == 0 ? fma(broadcast(k.weight_at_zero), in[2 * kPairs], total) : total;
    }
  }

 private:
  static constexpr int kPairs = (kPlanes - 1) / 2;
  static constexpr bool kZero = kPlanes % 2 == 0;

  struct Constants {
    T power[kPairs][4];             // a^i
    T other_pairs[kPairs][kPairs];  // product of (x^2 - b^2) for all b but a: the coefficient of x^(2m)
    T pairs[kPairs + 1];            // the same for all b
    T weight[kPairs][kTaps];        // a^k / M'(a)
    T weight_at_zero;
  };

  static constexpr Constants constants() {
    Constants c{};
    const auto& points = kToomCookPoints<kTaps>;
    // The coefficients of the product of (x^2 - b^2) for all pairs but `omitted`.
    const auto product = [&](int omitted, double (&coefficient)[kPairs + 1]) {
      for (double& value : coefficient) value = 0;
      coefficient[0] = 1;
      for (int b = 0; b < kPairs; ++b) {
        if (b == omitted) continue;
        for (int m = kPairs; m >= 0; --m) {
          coefficient[m] = (m > 0 ? coefficient[m - 1] : 0) - points[b] * points[b] * coefficient[m];
        }
      }
    };
    double all[kPairs + 1] = {};
    product(-1, all);
    for (int m = 0; m <= kPairs; ++m) c.pairs[m] = T(all[m]);
    c.weight_at_zero = T(1 / all[0]);
    for (int a = 0; a < kPairs; ++a) {
      double others[kPairs + 1] = {};
      product(a, others);
      double slope = 2 * points[a] * (kZero ? points[a] : 1), value = 0;  // M'(a)
      for (int m = kPairs - 1; m >= 0; --m) {
        c.other_pairs[a][m] = T(others[m]);
        value = value * points[a] * points[a] + others[m];
      }
      slope *= value;
      double power = 1;
      for (int i = 0; i < kOutputs; ++i, power *= points[a]) c.power[a][i] = T(power);
      power = 1 / slope;
      for (int t = 0; t < kTaps; ++t, power *= points[a]) c.weight[a][t] = T(power);
    }
    return c;
  }
  static constexpr Constants k = constants();
};

}  // namespace
}  // namespace conv1d_ext
