// A convolution as the forward pass sees it, for algorithms that compute the input gradient of stride 1 as a forward
// pass of grad_output with the taps in reverse (of other strides `left` is not that of an input gradient):
//   result[n][row][t] = sum over channel, k of
//     weight(row, channel, k) * source[n][channel][t * stride + k * dilation - left].
#pragma once

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

struct ForwardView {
  TensorStrides source, result;
  int64_t source_length, result_length, channels, rows;
  int64_t left;
  int64_t end;  // of source positions that are defined: length and padding
  PaddingMode padding_mode;
  int64_t weight_row, weight_channel;
  bool reversed;  // taps

  ForwardView(bool backward_input, const Conv1dProblem& p) : reversed(backward_input) {
    const int64_t in = p.in_channels / p.groups, out = p.out_channels / p.groups;
    if (reversed) {
      source = p.output, result = p.input, source_length = end = p.out_length, result_length = p.in_length;
      channels = out, rows = in, left = p.dilation * (p.kernel_size - 1) - p.padding_left;
      padding_mode = PaddingMode::kZeros;
      weight_row = p.weight.in_channel, weight_channel = p.weight.out_channel;
    } else {
      source = p.input, result = p.output, source_length = p.in_length, result_length = p.out_length;
      channels = in, rows = out, left = p.padding_left, end = p.in_length + p.padding_right;
      padding_mode = p.padding_mode;
      weight_row = p.weight.out_channel, weight_channel = p.weight.in_channel;
    }
  }
};

}  // namespace
}  // namespace conv1d_ext
