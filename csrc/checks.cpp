#include "checks.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>

namespace conv1d_ext {

PaddingMode parse_padding_mode(std::string_view name) {
  if (name == "zeros") return PaddingMode::kZeros;
  if (name == "reflect") return PaddingMode::kReflect;
  if (name == "replicate") return PaddingMode::kReplicate;
  if (name == "circular") return PaddingMode::kCircular;
  TORCH_CHECK_VALUE(
      false, "padding_mode must be one of {'zeros', 'reflect', 'replicate', 'circular'}, but got padding_mode='", name,
      "'");
}

namespace {

Conv1dProblem check_geometry(const Geometry<int64_t>& geometry) {
  TORCH_CHECK(geometry.padding_left >= 0 && geometry.padding_right >= 0, "negative padding is not supported");
  TORCH_CHECK(geometry.stride > 0, "non-positive stride is not supported");
  TORCH_CHECK(geometry.dilation > 0, "dilation should be greater than zero, but got ", geometry.dilation);
  TORCH_CHECK(geometry.groups > 0, "non-positive groups is not supported");
  Conv1dProblem problem{};
  problem.stride = geometry.stride;
  problem.dilation = geometry.dilation;
  problem.groups = geometry.groups;
  problem.padding_left = geometry.padding_left;
  problem.padding_right = geometry.padding_right;
  problem.padding_mode = parse_padding_mode(geometry.padding_mode);
  return problem;
}

void check_dims(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(
      tensor.dim() == 3, "Expected a 3-dimensional ", name, " [batch, channels, length], but got one of size ",
      tensor.sizes());
}

void check_weight(const Conv1dProblem& problem, const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() >= 3, "weight should have at least three dimensions");
  TORCH_CHECK(
      weight.dim() == 3,
      "Expected 3-dimensional weight [out_channels, in_channels / groups, kernel_size], but got weight "
      "of size ",
      weight.sizes());
  TORCH_CHECK(
      weight.size(0) >= problem.groups, "Given groups=", problem.groups, ", expected weight to be at least ",
      problem.groups, " at dimension 0, but got weight of size ", weight.sizes(), " instead");
  TORCH_CHECK(
      weight.size(0) % problem.groups == 0, "Given groups=", problem.groups, ", expected weight to be divisible by ",
      problem.groups, " at dimension 0, but got weight of size ", weight.sizes(), " instead");
}

// Fills in out_length, and refuses what no output position fits into. Sums and products may not overflow.
void check_lengths(Conv1dProblem& problem, int64_t batch, int64_t channels) {
  TORCH_CHECK(
      problem.kernel_size > 0, "kernel size should be greater than zero, but got kernel_size: ", problem.kernel_size);
  uint64_t padded = 0, reach = 0;
  const bool overflow = c10::add_overflows(uint64_t(problem.padding_left), uint64_t(problem.padding_right), &padded) ||
                        c10::add_overflows(padded, uint64_t(problem.in_length), &padded) ||
                        c10::mul_overflows(uint64_t(problem.kernel_size - 1), uint64_t(problem.dilation), &reach) ||
                        // The kernels add a few of these up in 64 bits.
                        padded > (uint64_t{1} << 60) || reach > (uint64_t{1} << 60);
  TORCH_CHECK(
      !overflow, "padding=(", problem.padding_left, ", ", problem.padding_right, ") or dilation=", problem.dilation,
      " is too large for an input of length ", problem.in_length, " and kernel_size=", problem.kernel_size,
      ": positions do not fit into 64-bit integers");
  TORCH_CHECK(
      padded > reach, "Calculated padded input size per channel: (", padded, "). Kernel size: (", reach + 1,
      "). Kernel size can't be greater than actual input size");
  TORCH_CHECK(
      problem.in_length > 0 || batch == 0 || channels == 0,
      "Only zero batch or zero channel inputs are supported, but got input shape: [", batch, ", ", channels, ", 0]");
  problem.out_length = int64_t(padded - reach - 1) / problem.stride + 1;
  // Numbers that do not matter may be as large as they like: any stride over a single output, any dilation of one tap.
  if (problem.out_length == 1) problem.stride = std::min(problem.stride, int64_t(padded));
  if (problem.kernel_size == 1) problem.dilation = 1;

  const int64_t widest = std::max(problem.padding_left, problem.padding_right);
  TORCH_CHECK(
      problem.padding_mode != PaddingMode::kReflect || widest < problem.in_length,
      "Padding size should be less than the corresponding input dimension, but got: padding (", problem.padding_left,
      ", ", problem.padding_right, ") at dimension 2 of input [", batch, ", ", channels, ", ", problem.in_length, "]");
  TORCH_CHECK(
      problem.padding_mode != PaddingMode::kCircular || widest <= problem.in_length,
      "Padding value causes wrapping around more than once.");
  TORCH_CHECK(
      problem.padding_mode != PaddingMode::kReplicate || problem.in_length > 0,
      "Padding mode 'replicate' needs an input of non-zero length, but got input shape: [", batch, ", ", channels,
      ", 0]");
}

void check_same_type(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(
      a.scalar_type() == b.scalar_type(), "expected scalar type ", at::toString(a.scalar_type()), " but found ",
      at::toString(b.scalar_type()));
  TORCH_CHECK(
      a.device() == b.device(), "Expected all tensors to be on the same device, but found at least two devices, ",
      a.device(), " and ", b.device(), "!");
}

void check_grad_output(const Conv1dProblem& problem, const at::Tensor& grad_output) {
  TORCH_CHECK(
      grad_output.size(1) == problem.out_channels && grad_output.size(2) == problem.out_length,
      "Expected grad_output of size [", problem.batch, ", ", problem.out_channels, ", ", problem.out_length,
      "], but got ", grad_output.sizes());
}

}  // namespace

Conv1dProblem check_conv1d(
    const Geometry<int64_t>& geometry, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias) {
  check_dims(input, "input");
  Conv1dProblem problem = check_geometry(geometry);
  check_weight(problem, weight);
  TORCH_CHECK(
      input.size(1) % problem.groups == 0 && input.size(1) / problem.groups == weight.size(1),
      "Given groups=", problem.groups, ", weight of size ", weight.sizes(), ", expected input", input.sizes(),
      " to have ", weight.size(1) * problem.groups, " channels, but got ", input.size(1), " channels instead");
  problem.batch = input.size(0);
  problem.in_channels = input.size(1);
  problem.in_length = input.size(2);
  problem.out_channels = weight.size(0);
  problem.kernel_size = weight.size(2);
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == problem.out_channels, "Given weight of size ", weight.sizes(),
        ", expected bias to be 1-dimensional with ", problem.out_channels, " elements, but got bias of size ",
        bias->sizes(), " instead");
    TORCH_CHECK(
        bias->dtype() == input.dtype(), "Input type (", input.dtype(), ") and bias type (", bias->dtype(),
        ") should be the same");
    check_same_type(input, *bias);
  }
  check_lengths(problem, problem.batch, problem.in_channels);
  check_same_type(input, weight);
  return problem;
}

Conv1dProblem check_conv1d_backward_input(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& weight, int64_t in_length) {
  check_dims(grad_output, "grad_output");
  Conv1dProblem problem = check_geometry(geometry);
  check_weight(problem, weight);
  TORCH_CHECK(in_length >= 0, "in_length should not be negative, but got ", in_length);
  problem.batch = grad_output.size(0);
  problem.in_channels = weight.size(1) * problem.groups;
  problem.in_length = in_length;
  problem.out_channels = weight.size(0);
  problem.kernel_size = weight.size(2);
  check_lengths(problem, problem.batch, problem.in_channels);
  check_grad_output(problem, grad_output);
  check_same_type(grad_output, weight);
  return problem;
}

Conv1dProblem check_conv1d_backward_weight(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& input, int64_t kernel_size) {
  check_dims(grad_output, "grad_output");
  check_dims(input, "input");
  Conv1dProblem problem = check_geometry(geometry);
  problem.batch = input.size(0);
  problem.in_channels = input.size(1);
  problem.in_length = input.size(2);
  problem.out_channels = grad_output.size(1);
  problem.kernel_size = kernel_size;
  TORCH_CHECK(
      problem.in_channels % problem.groups == 0 && problem.out_channels % problem.groups == 0,
      "Given groups=", problem.groups, ", expected input", input.sizes(), " and grad_output", grad_output.sizes(),
      " to have channels divisible by it");
  check_lengths(problem, problem.batch, problem.in_channels);
  TORCH_CHECK(
      grad_output.size(0) == problem.batch, "Expected input and grad_output of the same batch size, but got ",
      input.sizes(), " and ", grad_output.sizes());
  check_grad_output(problem, grad_output);
  check_same_type(grad_output, input);
  return problem;
}

Conv1dProblem check_conv1d_backward_bias(const at::Tensor& grad_output) {
  check_dims(grad_output, "grad_output");
  Conv1dProblem problem{};
  problem.batch = grad_output.size(0);
  problem.out_channels = grad_output.size(1);
  problem.out_length = grad_output.size(2);
  return problem;
}

}  // namespace conv1d_ext
