// Tensors as kernels take them, on any device: strides, results in the memory format of torch's, and complex numbers as
// pairs of real ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "problem.h"

namespace conv1d_ext {

// Whether there are kernels for the type of `a`, and for the layouts of both.
bool is_covered(const at::Tensor& a, const at::Tensor& b);

inline TensorStrides strides(const at::Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2)}; }
inline WeightStrides weight_strides(const at::Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2)}; }

// torch's convolutions follow the memory format of the weight, but for an empty batch.
at::Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options, const at::Tensor& weight);

// Complex numbers are pairs of real ones: the real (0) or imaginary (1) part of a tensor is a real tensor in place, of
// twice the strides.
void view_parts(Conv1dProblem& problem);
inline const void* part(const at::Tensor& t, int index) {
  return static_cast<const char*>(t.const_data_ptr()) + index * (t.element_size() / 2);
}
inline void* mutable_part(const at::Tensor& t, int index) {
  return static_cast<char*>(t.mutable_data_ptr()) + index * (t.element_size() / 2);
}

// The parts of a complex bias, [2, C_out]; undefined where there is none.
at::Tensor bias_parts(const std::optional<at::Tensor>& bias);

// The product of a and b, complex, out of real ones: multiply(problem, part of a, part of b, part of the result).
template <class Multiply>
void multiply_parts(Conv1dProblem problem, const at::Tensor& a, const at::Tensor& b, const Multiply& multiply) {
  view_parts(problem);
  for (int part_a : {0, 1}) {
    for (int part_b : {0, 1}) {
      const bool squared_i = part_a == 1 && part_b == 1;
      problem.accumulate = part_a == 1;
      // A conjugate tensor is stored as it was and its imaginary part is read with the other sign.
      problem.negate = squared_i ^ (part_a == 1 && a.is_conj()) ^ (part_b == 1 && b.is_conj());
      multiply(problem, part_a, part_b, part_a ^ part_b);
    }
  }
}

}  // namespace conv1d_ext
