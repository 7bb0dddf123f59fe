// One convolution as plain data, with the names used everywhere else (C++, Python, tests, docs):
//   output[n, oc, t] = bias[oc] + sum over ic, k of weight[oc, ic, k] * padded[n, ic, t * stride + k * dilation]
// where `padded` is the input with padding_left and padding_right positions added. No torch, no functions: kernel files
// compiled for different instruction sets include this, and an inline function would be emitted once for each.
#pragma once

#include <cstdint>

namespace conv1d_ext {

// 16-bit storage types; arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class PaddingMode { kZeros, kReflect, kReplicate, kCircular };

// In elements; any value, zero (expanded) and negative ones included.
struct TensorStrides {
  int64_t batch, channel, position;
};
struct WeightStrides {
  int64_t out_channel, in_channel, tap;
};

struct Conv1dProblem {
  int64_t batch, in_channels, out_channels, groups;
  int64_t in_length, out_length, kernel_size;
  int64_t stride, dilation, padding_left, padding_right;
  PaddingMode padding_mode;

  TensorStrides input;   // input, or grad_input:   [N, C_in, L_in]
  TensorStrides output;  // output, or grad_output: [N, C_out, L_out]
  WeightStrides weight;  // weight, or grad_weight: [C_out, C_in / groups, K]

  // The result is stored as  result = (accumulate ? result : bias) + (negate ? -sum : sum).  Complex convolutions are
  // made of real ones this way.
  bool accumulate, negate;
};

}  // namespace conv1d_ext
