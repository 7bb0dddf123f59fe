// Every check of the operators' arguments, with torch's messages where it has one. Called by the backends themselves,
// so that no path around autograd (inference_mode, redispatch) skips them.
#pragma once

#include "conv1d.h"
#include "problem.h"

namespace conv1d_ext {

// zeros, reflect, replicate or circular.
PaddingMode parse_padding_mode(std::string_view name);

// The problem without the operands' strides, which depend on how a backend views them.
Conv1dProblem check_conv1d(
    const Geometry<int64_t>& geometry,
    const at::Tensor& input,               // [N, C_in, L_in]
    const at::Tensor& weight,              // [C_out, C_in / groups, K]
    const std::optional<at::Tensor>& bias  // [C_out]
);

Conv1dProblem check_conv1d_backward_input(
    const Geometry<int64_t>& geometry,
    const at::Tensor& grad_output,  // [N, C_out, L_out]
    const at::Tensor& weight,       // [C_out, C_in / groups, K]
    int64_t in_length);

Conv1dProblem check_conv1d_backward_weight(
    const Geometry<int64_t>& geometry,
    const at::Tensor& grad_output,  // [N, C_out, L_out]
    const at::Tensor& input,        // [N, C_in, L_in]
    int64_t kernel_size);

Conv1dProblem check_conv1d_backward_bias(const at::Tensor& grad_output /* [N, C_out, L_out] */);

}  // namespace conv1d_ext
