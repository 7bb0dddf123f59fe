// The operators made of torch's own: slower, but for everything that torch takes. They serve every backend without
// kernels of its own, and the CPU for the data types that its kernels do not cover; results and errors are torch's.
#pragma once

#include "conv1d.h"

namespace conv1d_ext::fallback {

at::Tensor conv1d(                         // [N, C_out, L_out]
    const Geometry<int64_t>& geometry,
    const at::Tensor& input,               // [N, C_in, L_in]
    const at::Tensor& weight,              // [C_out, C_in / groups, K]
    const std::optional<at::Tensor>& bias  // [C_out]
);

at::Tensor conv1d_backward_input(   // [N, C_in, L_in]
    const Geometry<int64_t>& geometry,
    const at::Tensor& grad_output,  // [N, C_out, L_out]
    const at::Tensor& weight,       // [C_out, C_in / groups, K]
    int64_t in_length);

at::Tensor conv1d_backward_weight(  // [C_out, C_in / groups, K]
    const Geometry<int64_t>& geometry,
    const at::Tensor& grad_output,  // [N, C_out, L_out]
    const at::Tensor& input,        // [N, C_in, L_in]
    int64_t kernel_size);

at::Tensor conv1d_backward_bias(    // [C_out]
    const at::Tensor& grad_output   // [N, C_out, L_out]
);

}  // namespace conv1d_ext::fallback
