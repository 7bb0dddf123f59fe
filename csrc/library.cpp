// The operators' schemas. Each backend and each layer registers its kernels at the foot of its own file.
#include <torch/library.h>

// Fake kernels, autograd and functional semantics hold (tests/test_ops.py), so compilers may keep the operators in a
// graph.
const std::vector<at::Tag> kTags{at::Tag::pt2_compliant_tag};

TORCH_LIBRARY(conv1d_ext, m) {
  m.def(
      "conv1d(Tensor input, Tensor weight, Tensor? bias=None, SymInt stride=1, SymInt padding_left=0, "
      "SymInt padding_right=0, SymInt dilation=1, SymInt groups=1, str padding_mode='zeros') -> Tensor",
      kTags);
  m.def(
      "conv1d_backward_input(Tensor grad_output, Tensor weight, SymInt in_length, SymInt stride=1, "
      "SymInt padding_left=0, SymInt padding_right=0, SymInt dilation=1, SymInt groups=1, "
      "str padding_mode='zeros') -> Tensor",
      kTags);
  m.def(
      "conv1d_backward_weight(Tensor grad_output, Tensor input, SymInt kernel_size, SymInt stride=1, "
      "SymInt padding_left=0, SymInt padding_right=0, SymInt dilation=1, SymInt groups=1, "
      "str padding_mode='zeros') -> Tensor",
      kTags);
  m.def("conv1d_backward_bias(Tensor grad_output) -> Tensor", kTags);
}

// Kernels read lazily conjugated tensors as they are; without this, torch would make a copy first.
TORCH_LIBRARY_IMPL(conv1d_ext, Conjugate, m) {
  for (const char* op : {"conv1d", "conv1d_backward_input", "conv1d_backward_weight", "conv1d_backward_bias"}) {
    m.impl(op, torch::CppFunction::makeFallthrough());
  }
}
