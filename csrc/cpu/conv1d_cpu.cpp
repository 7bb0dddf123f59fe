// Dispatch key CPU: tensors -> Conv1dProblem and pointers, results allocated. What the kernels don't cover goes to
// torch's operator (fallback.h).
#include <ATen/Functions.h>
#include <torch/library.h>

#include <array>

#include "checks.h"
#include "conv1d.h"
#include "cpu/parallel.h"
#include "cpu/run.h"
#include "fallback.h"
#include "tensors.h"

namespace conv1d_ext {
namespace {

// Large results, too: the allocator returns large blocks to the system, so that each call touches them for the first
// time.
at::Tensor in_huge_pages(at::Tensor result) {
  advise_huge_pages(result.mutable_data_ptr(), int64_t(result.nbytes()));
  return result;
}

at::Tensor conv1d_cpu(
    const Geometry<int64_t>& geometry, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias) {
  if (!is_covered(input, weight)) return fallback::conv1d(geometry, input, weight, bias);
  Conv1dProblem problem = check_conv1d(geometry, input, weight, bias);
  if (problem.in_channels == 0) return fallback::conv1d(geometry, input, weight, bias);
  const at::Tensor output =
      in_huge_pages(empty_result({problem.batch, problem.out_channels, problem.out_length}, input.options(), weight));
  problem.input = strides(input);
  problem.output = strides(output);
  problem.weight = weight_strides(weight);
  if (output.numel() == 0) return output;
  const Kernels kernels = kernels_for(at::toRealValueType(input.scalar_type()));
  if (!input.is_complex()) {
    const at::Tensor bias_row = bias.has_value() && bias->defined() ? bias->contiguous() : at::Tensor();
    run(kernels, problem,
        ForwardArgs{
            input.const_data_ptr(), weight.const_data_ptr(), bias_row.defined() ? bias_row.const_data_ptr() : nullptr,
            output.mutable_data_ptr(), nullptr});
    return output;
  }
  const at::Tensor bias_rows = bias_parts(bias);
  multiply_parts(problem, input, weight, [&](const Conv1dProblem& real, int in_part, int weight_part, int out_part) {
    // The first product of each part brings the bias, which is subtracted along with a product that is.
    at::Tensor bias_row;
    if (bias_rows.defined() && !real.accumulate) bias_row = real.negate ? -bias_rows[out_part] : bias_rows[out_part];
    run_direct(
        kernels, real,
        ForwardArgs{
            part(input, in_part), part(weight, weight_part), bias_row.defined() ? bias_row.const_data_ptr() : nullptr,
            mutable_part(output, out_part), nullptr});
  });
  return output;
}

at::Tensor conv1d_backward_input_cpu(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& weight, int64_t in_length) {
  if (!is_covered(grad_output, weight))
    return fallback::conv1d_backward_input(geometry, grad_output, weight, in_length);
  Conv1dProblem problem = check_conv1d_backward_input(geometry, grad_output, weight, in_length);
  const std::array<int64_t, 3> sizes{problem.batch, problem.in_channels, problem.in_length};
  const at::Tensor grad_input = in_huge_pages(
      grad_output.is_complex() ? at::empty(sizes, grad_output.options())
                               : empty_result(sizes, grad_output.options(), weight));
  problem.input = strides(grad_input);
  problem.output = strides(grad_output);
  problem.weight = weight_strides(weight);
  if (grad_input.numel() == 0) return grad_input;
  if (leaves_gaps(problem)) grad_input.zero_();
  const Kernels kernels = kernels_for(at::toRealValueType(grad_output.scalar_type()));
  if (!grad_output.is_complex()) {
    run(kernels, problem,
        BackwardInputArgs{
            grad_output.const_data_ptr(), weight.const_data_ptr(), grad_input.mutable_data_ptr(), nullptr});
    return grad_input;
  }
  multiply_parts(
      problem, grad_output, weight, [&](const Conv1dProblem& real, int grad_part, int weight_part, int part_) {
        run_direct(
            kernels, real,
            BackwardInputArgs{
                part(grad_output, grad_part), part(weight, weight_part), mutable_part(grad_input, part_), nullptr});
      });
  return grad_input;
}

at::Tensor conv1d_backward_weight_cpu(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& input, int64_t kernel_size) {
  if (!is_covered(grad_output, input))
    return fallback::conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  Conv1dProblem problem = check_conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  at::Tensor grad_weight = in_huge_pages(
      at::empty({problem.out_channels, problem.in_channels / problem.groups, kernel_size}, input.options()));
  problem.input = strides(input);
  problem.output = strides(grad_output);
  problem.weight = weight_strides(grad_weight);
  if (input.numel() == 0 || grad_weight.numel() == 0) return grad_weight.zero_();
  const Kernels kernels = kernels_for(at::toRealValueType(input.scalar_type()));
  if (!input.is_complex()) {
    run(kernels, problem,
        BackwardWeightArgs{
            grad_output.const_data_ptr(), input.const_data_ptr(), grad_weight.mutable_data_ptr(), nullptr});
    return grad_weight;
  }
  multiply_parts(problem, grad_output, input, [&](const Conv1dProblem& real, int grad_part, int in_part, int part_) {
    run_direct(
        kernels, real,
        BackwardWeightArgs{
            part(grad_output, grad_part), part(input, in_part), mutable_part(grad_weight, part_), nullptr});
  });
  return grad_weight;
}

at::Tensor conv1d_backward_bias_cpu(const at::Tensor& grad_output) {
  if (!is_covered(grad_output, grad_output)) return fallback::conv1d_backward_bias(grad_output);
  Conv1dProblem problem = check_conv1d_backward_bias(grad_output);
  problem.output = strides(grad_output);
  const Kernels kernels = kernels_for(at::toRealValueType(grad_output.scalar_type()));
  if (!grad_output.is_complex()) {
    const at::Tensor grad_bias = at::empty({problem.out_channels}, grad_output.options());
    run(kernels, problem, BackwardBiasArgs{grad_output.const_data_ptr(), grad_bias.mutable_data_ptr()});
    return grad_bias;
  }
  view_parts(problem);
  const at::Tensor parts =
      at::empty({2, problem.out_channels}, grad_output.options().dtype(at::toRealValueType(grad_output.scalar_type())));
  for (int index : {0, 1}) {
    problem.negate = index == 1 && grad_output.is_conj();
    run(kernels, problem, BackwardBiasArgs{part(grad_output, index), parts[index].mutable_data_ptr()});
  }
  return at::complex(parts[0], parts[1]);
}

TORCH_LIBRARY_IMPL(conv1d_ext, CPU, m) {
  m.impl("conv1d", Flat<&conv1d_cpu>::call);
  m.impl("conv1d_backward_input", Flat<&conv1d_backward_input_cpu>::call);
  m.impl("conv1d_backward_weight", Flat<&conv1d_backward_weight_cpu>::call);
  m.impl("conv1d_backward_bias", conv1d_backward_bias_cpu);
}

}  // namespace
}  // namespace conv1d_ext
