// The C++ face of the operators: typed calls into the dispatcher, which joins the layers (Autocast -> Autograd ->
// CPU | CUDA | torch's own operator). Convolution is trilinear in (grad_output, input, weight); each of the first
// three operators computes one of them from the other two, so they are closed under differentiation.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string_view>

namespace conv1d_ext {

// How output position t meets input position t * stride + k * dilation - padding_left. `Int` is c10::SymInt above the
// backends and int64_t inside them.
template <class Int>
struct Geometry {
  Int stride = 1;
  Int padding_left = 0;
  Int padding_right = 0;
  Int dilation = 1;
  Int groups = 1;
  std::string_view padding_mode = "zeros";  // zeros | reflect | replicate | circular
};

using SymGeometry = Geometry<c10::SymInt>;

at::Tensor conv1d(                         // [N, C_out, L_out]
    const SymGeometry& geometry,
    const at::Tensor& input,               // [N, C_in, L_in]
    const at::Tensor& weight,              // [C_out, C_in / groups, K]
    const std::optional<at::Tensor>& bias  // [C_out]
);

at::Tensor conv1d_backward_input(   // [N, C_in, L_in]
    const SymGeometry& geometry,
    const at::Tensor& grad_output,  // [N, C_out, L_out]
    const at::Tensor& weight,       // [C_out, C_in / groups, K]
    c10::SymInt in_length);

at::Tensor conv1d_backward_weight(  // [C_out, C_in / groups, K]
    const SymGeometry& geometry,
    const at::Tensor& grad_output,  // [N, C_out, L_out]
    const at::Tensor& input,        // [N, C_in, L_in]
    c10::SymInt kernel_size);

at::Tensor conv1d_backward_bias(    // [C_out]
    const at::Tensor& grad_output   // [N, C_out, L_out]
);

// A kernel is written as `Result kernel(const Geometry<Int>&, Args...)`. `Flat<kernel>::call` is the same function in
// the schema's argument order, the operands first and then the geometry one by one, ready to be registered.
template <auto kernel>
struct Flat;

template <class Result, class Int, class... Args, Result (*kernel)(const Geometry<Int>&, Args...)>
struct Flat<kernel> {
  static Result call(
      Args... args, Int stride, Int padding_left, Int padding_right, Int dilation, Int groups,
      std::string_view padding_mode) {
    return kernel(
        {std::move(stride), std::move(padding_left), std::move(padding_right), std::move(dilation), std::move(groups),
         padding_mode},
        std::forward<Args>(args)...);
  }
};

}  // namespace conv1d_ext
