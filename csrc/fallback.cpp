// See fallback.h. torch's convolution pads with zeros, as much on the left as on the right, and its backward is real;
// here the other paddings are made explicit and complex gradients are put together from real ones.
#include "fallback.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <array>

namespace conv1d_ext::fallback {
namespace {

using at::Tensor;

// Of the padding, as much as torch's convolution does by itself.
int64_t implicit_padding(const Geometry<int64_t>& geometry) {
  const bool symmetric_zeros = geometry.padding_mode == "zeros" && geometry.padding_left == geometry.padding_right;
  return symmetric_zeros ? geometry.padding_left : 0;
}

// The rest of it, left and right.
std::array<int64_t, 2> explicit_padding(const Geometry<int64_t>& geometry) {
  const int64_t implicit = implicit_padding(geometry);
  return {geometry.padding_left - implicit, geometry.padding_right - implicit};
}

constexpr std::array<int64_t, 2> kNoPadding = {0, 0};

// `zero` is what zero padding consists of.
Tensor pad_explicitly(const Geometry<int64_t>& geometry, const Tensor& input, double zero = 0) {
  const auto padding = explicit_padding(geometry);
  if (padding == kNoPadding) return input;
  if (geometry.padding_mode == "zeros") return at::constant_pad_nd(input, padding, zero);
  return at::pad(input, padding, geometry.padding_mode);
}

// For each position of the padded input the position that it shows; in_length where it shows none.
Tensor shown_positions(const Geometry<int64_t>& geometry, int64_t in_length) {  // [padded length]
  const Tensor positions = at::arange(in_length, at::kLong).view({1, 1, in_length});
  return pad_explicitly(geometry, positions, static_cast<double>(in_length)).view({-1});
}

// One of the two gradients of a real convolution, by its place in convolution_backward's result. torch looks at the
// operand that it is towards just for its shape.
template <size_t place>
Tensor gradient(
    const Geometry<int64_t>& geometry, const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  return std::get<place>(at::convolution_backward(
      grad_output, input, weight, /*bias_sizes=*/std::nullopt, geometry.stride, implicit_padding(geometry),
      geometry.dilation, /*transposed=*/false, /*output_padding=*/0, geometry.groups, {place == 0, place == 1, false}));
}

// (a + bi)(c + di), for a bilinear `product` of real tensors; contiguous, as torch's complex gradients are.
template <class Product>
Tensor complex_product(const Tensor& left, const Tensor& right, const Product& product) {
  if (!left.is_complex()) return product(left, right);
  const Tensor a = at::real(left), b = at::imag(left), c = at::real(right), d = at::imag(right);
  return at::complex(product(a, c) - product(b, d), product(a, d) + product(b, c)).contiguous();
}

}  // namespace

Tensor conv1d(
    const Geometry<int64_t>& geometry, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  return at::conv1d(
      pad_explicitly(geometry, input), weight, bias, geometry.stride, implicit_padding(geometry), geometry.dilation,
      geometry.groups);
}

Tensor conv1d_backward_input(
    const Geometry<int64_t>& geometry, const Tensor& grad_output, const Tensor& weight, int64_t in_length) {
  const Tensor positions = shown_positions(geometry, in_length);
  const int64_t batch = grad_output.size(0), in_channels = geometry.groups * weight.size(1);
  Tensor grad_padded = complex_product(grad_output, weight, [&](const Tensor& g, const Tensor& w) {
    return gradient<0>(geometry, g, at::empty({batch, in_channels, positions.size(0)}, g.options()), w);
  });
  if (explicit_padding(geometry) == kNoPadding) return grad_padded;
  // Each position adds to the one that it shows. The copies are made in the strides that torch gave the gradient.
  return at::zeros_like(grad_padded)
      .index_add_(2, positions.to(grad_padded.device()), grad_padded)
      .narrow(2, 0, in_length)
      .clone();
}

Tensor conv1d_backward_weight(
    const Geometry<int64_t>& geometry, const Tensor& grad_output, const Tensor& input, int64_t kernel_size) {
  TORCH_CHECK(geometry.groups > 0, "non-positive groups is not supported");
  const int64_t out_channels = grad_output.size(1), in_channels = input.size(1);
  return complex_product(grad_output, pad_explicitly(geometry, input), [&](const Tensor& g, const Tensor& x) {
    return gradient<1>(
        geometry, g, x, at::empty({out_channels, in_channels / geometry.groups, kernel_size}, g.options()));
  });
}

Tensor conv1d_backward_bias(const Tensor& grad_output) {
  const auto sum = [](const Tensor& g) { return g.sum({0, 2}, /*keepdim=*/false, g.scalar_type()); };
  if (!grad_output.is_complex()) return sum(grad_output);
  return at::complex(sum(at::real(grad_output)), sum(at::imag(grad_output)));
}

}  // namespace conv1d_ext::fallback

namespace conv1d_ext {

TORCH_LIBRARY_IMPL(conv1d_ext, CompositeExplicitAutograd, m) {
  m.impl("conv1d", Flat<&fallback::conv1d>::call);
  m.impl("conv1d_backward_input", Flat<&fallback::conv1d_backward_input>::call);
  m.impl("conv1d_backward_weight", Flat<&fallback::conv1d_backward_weight>::call);
  m.impl("conv1d_backward_bias", fallback::conv1d_backward_bias);
}

}  // namespace conv1d_ext
