// How conv1d_backward_input splits the taps. Input position p = j * stride + residue gets
//   sum over oc and the taps k with (residue + padding_left - k * dilation) divisible by stride of
//   weight[oc, ic, k] * grad_output[oc, j + (residue + padding_left - k * dilation) / stride].
// Taps k, k + period, k + 2 * period, ... share a residue: a class. Residues that no tap meets get nothing.
#pragma once

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

struct TapClasses {
  const Conv1dProblem& problem;
  const int64_t period;  // stride / gcd(stride, dilation)
  const int64_t count = min_of(period, problem.kernel_size);

  // The first tap of a class reads grad_output at j + offset(class), and its residue is the rest of that division.
  int64_t offset(int64_t tap_class) const {
    return ceil_div(problem.padding_left - tap_class * problem.dilation, problem.stride);
  }
  int64_t residue(int64_t tap_class) const {
    return offset(tap_class) * problem.stride - problem.padding_left + tap_class * problem.dilation;
  }
  int64_t taps(int64_t tap_class) const { return ceil_div(problem.kernel_size - tap_class, period); }

  // Classes [begin, end) which read the same positions: they share the register tile, whose rows are pairs of an input
  // channel and a class, classes first.
  struct Segment {
    int64_t begin, end;
    int64_t classes() const { return end - begin; }
  };
  Segment segment_from(int64_t begin) const {
    int64_t end = begin + 1;
    while (end < count && offset(end) == offset(begin) && taps(end) == taps(begin)) ++end;
    return {begin, end};
  }
};

}  // namespace
}  // namespace conv1d_ext
