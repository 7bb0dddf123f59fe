#include "tensors.h"

#include <ATen/Functions.h>

namespace conv1d_ext {

bool is_covered(const at::Tensor& a, const at::Tensor& b) {
  const auto type = a.scalar_type();
  return (type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf ||
          type == at::kComplexFloat || type == at::kComplexDouble) &&
         a.layout() == at::kStrided && b.layout() == at::kStrided;
}

namespace {

// What torch takes for a weight in channels-last order: at::Tensor::suggest_memory_format of the weight as an image of
// height 1, without the cost of that view, which shows in small layers.
bool is_channels_last(const at::Tensor& weight) {
  const int64_t channels = weight.size(1), taps = weight.size(2);
  const int64_t channel = weight.stride(1), tap = weight.stride(2);
  return channels * taps > 1 && channel > 0 && tap >= channel * channels && tap * taps != channel &&
         weight.stride(0) >= tap * taps;
}

}  // namespace

at::Tensor empty_result(at::IntArrayRef sizes, const at::TensorOptions& options, const at::Tensor& weight) {
  if (sizes[0] > 0 && is_channels_last(weight)) {
    return at::empty({sizes[0], sizes[2], sizes[1]}, options).transpose(1, 2);
  }
  return at::empty(sizes, options);
}

void view_parts(Conv1dProblem& problem) {
  for (TensorStrides* s : {&problem.input, &problem.output}) *s = {2 * s->batch, 2 * s->channel, 2 * s->position};
  problem.weight = {2 * problem.weight.out_channel, 2 * problem.weight.in_channel, 2 * problem.weight.tap};
}

at::Tensor bias_parts(const std::optional<at::Tensor>& bias) {
  if (!bias.has_value() || !bias->defined()) return {};
  return at::view_as_real(bias->resolve_conj()).t().contiguous();
}

}  // namespace conv1d_ext
