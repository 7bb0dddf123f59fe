// See problems.h.
#include "cuda/problems.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace conv1d_ext::cuda {
namespace {

// The x below n with a * x = 1 modulo n, by Euclid's algorithm; a and n have no common divisor.
int inverse_modulo(int64_t a, int64_t n) {
  int64_t r = n, next_r = a % n, x = 0, next_x = 1;
  while (next_r != 0) {
    const int64_t quotient = r / next_r;
    r = std::exchange(next_r, r - quotient * next_r);
    x = std::exchange(next_x, x - quotient * next_x);
  }
  return to_int(n == 1 ? 0 : (x % n + n) % n);
}

}  // namespace

Signal input_of(const Conv1dProblem& p) {
  return {p.input, to_int(p.in_length), to_int(p.padding_left), to_int(p.padding_right), p.padding_mode};
}

Correlation correlation(Op op, const Conv1dProblem& p) {
  Correlation c{};
  c.is_backward = op == Op::kBackwardInput;
  c.batch = p.batch;
  c.groups = p.groups;
  c.kernel_size = to_int(p.kernel_size);
  c.stride = to_int(p.stride);
  c.dilation = to_int(p.dilation);
  c.padding_left = to_int(p.padding_left);
  c.gcd = c.splits = 1;
  c.accumulate = p.accumulate;
  c.negate = p.negate;
  const int64_t in_channels = p.in_channels / p.groups, out_channels = p.out_channels / p.groups;
  if (c.is_backward) {
    c.rows = in_channels;
    c.channels = out_channels;
    c.signal = {p.output, to_int(p.out_length), 0, 0, PaddingMode::kZeros};
    c.result = p.input;
    c.result_length = to_int(p.in_length);
    c.gcd = std::gcd(c.stride, c.dilation);
    c.inverse = inverse_modulo(p.dilation / c.gcd, p.stride / c.gcd);
  } else {
    c.rows = out_channels;
    c.channels = in_channels;
    c.signal = input_of(p);
    c.result = p.output;
    c.result_length = to_int(p.out_length);
  }
  return c;
}

OuterProduct outer_product(const Conv1dProblem& p) {
  return {p.batch,          p.groups,           p.out_channels / p.groups, p.in_channels / p.groups,
          p.output,         input_of(p),        to_int(p.out_length),      to_int(p.kernel_size),
          to_int(p.stride), to_int(p.dilation), to_int(p.padding_left),    0};
}

Signal grads_of(const OuterProduct& o) { return {o.grad, o.out_length, 0, 0, PaddingMode::kZeros}; }

Correlation pointwise(int64_t batch, int64_t groups, int64_t channels, const Signal& signal) {
  Correlation c{};
  c.batch = batch;
  c.groups = groups;
  c.channels = channels;
  c.signal = signal;
  c.result_length = signal.length;
  c.kernel_size = c.stride = c.dilation = c.gcd = c.splits = 1;
  return c;
}

Correlation unfolded(Correlation c) {
  c.is_backward = false;
  c.channels *= c.kernel_size;
  c.kernel_size = c.stride = c.dilation = c.gcd = 1;
  c.padding_left = 0;
  return c;
}

SignalPacking packing_of(const Correlation& c, bool unfold, const Chunk& chunk, int row_channels) {
  SignalPacking p{};
  p.items = chunk.items;
  p.groups = c.groups;
  p.channels = to_int(c.channels);
  p.taps = unfold ? c.kernel_size : 1;
  p.blocks = to_int(ceil_div(c.channels * p.taps, row_channels));
  const int64_t reach = int64_t{c.kernel_size - 1} * c.dilation, columns = chunk.columns;
  if (unfold) {
    p.rows = to_int(columns);
    p.first = to_int(chunk.first_column * c.stride + (c.is_backward ? c.padding_left : -c.padding_left));
    p.step = c.stride;
    p.distance = c.is_backward ? -c.dilation : c.dilation;
    return p;
  }
  int64_t first = chunk.first_column, last = first + columns - 1;
  if (c.is_backward) {  // of all residues; rounded down and up
    first += (c.padding_left - reach) / c.stride - 1;
    last += (c.padding_left + c.stride - 1) / c.stride;
  } else {
    first = first * c.stride - c.padding_left;
    last = last * c.stride - c.padding_left + reach;
  }
  if (c.signal.padding_mode == PaddingMode::kZeros) {  // which need not be stored
    first = std::max<int64_t>(first, 0);
    last = std::min<int64_t>(last, c.signal.length - 1);
  }
  p.first = to_int(first);
  p.rows = to_int(std::max<int64_t>(last + 1 - first, 0));
  p.step = 1;
  return p;
}

PackedSignal packed_by(const SignalPacking& p, const Chunk& chunk, int row_channels) {
  const int64_t block = int64_t{p.rows} * row_channels, group = block * p.blocks;
  const int first = p.taps == 1 ? p.first : to_int(chunk.first_column);
  return {group * p.groups, group, block, row_channels, p.blocks * row_channels, first, p.rows};
}

}  // namespace conv1d_ext::cuda
