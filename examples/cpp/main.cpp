// A convolution and its gradients from C++, next to torch's own. Autograd, autocast and the kernels are those of the
// Python package: both call the same operators.
#include <conv1d.h>
#include <torch/torch.h>

#include <cstdio>
#include <vector>

// Result and gradients of one step of `conv`, from fresh leaves.
template <class Conv>
std::vector<at::Tensor> step(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, Conv conv) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& tensor : {input, weight, bias}) leaves.push_back(tensor.clone().requires_grad_());
  const at::Tensor output = conv(leaves[0], leaves[1], leaves[2]);
  output.sin().sum().backward();
  return {output.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

int main() {
  torch::manual_seed(0);
  const at::Tensor input = torch::randn({4, 6, 100}, at::kDouble);  // [N, C_in, L_in]
  const at::Tensor weight = torch::randn({8, 3, 5}, at::kDouble);   // [C_out, C_in / groups, K]
  const at::Tensor bias = torch::randn({8}, at::kDouble);           // [C_out]

  const conv1d_ext::SymGeometry geometry{
      .stride = 2, .padding_left = 4, .padding_right = 4, .dilation = 2, .groups = 2};
  const auto ours = step(input, weight, bias, [&](const auto& x, const auto& w, const auto& b) {
    return conv1d_ext::conv1d(geometry, x, w, b);
  });
  const auto torchs = step(input, weight, bias, [](const auto& x, const auto& w, const auto& b) {
    return at::conv1d(x, w, b, /*stride=*/2, /*padding=*/4, /*dilation=*/2, /*groups=*/2);
  });

  const char* names[] = {"output", "grad input", "grad weight", "grad bias"};
  bool equal = true;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double error = (ours[i] - torchs[i]).abs().max().item<double>();
    std::printf("%-12s largest difference from torch %.1e\n", names[i], error);
    equal &= error < 1e-11;  // sums of some 400 terms of size 1, in double: rounding stays below 1e-12
  }
  return equal ? 0 : 1;
}
