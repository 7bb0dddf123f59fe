// The C++ face of the operators: each function is a typed call into the dispatcher. The operator is looked up once,
// and `Flat` spells its signature, so that no argument list stands here a second time.
#include "conv1d.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <utility>

namespace conv1d_ext {
namespace {

template <auto face>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<decltype(Flat<face>::call)>();
}

template <class Operator, class... Args>
at::Tensor call(const Operator& op, const SymGeometry& geometry, Args&&... args) {
  return op.call(
      std::forward<Args>(args)..., geometry.stride, geometry.padding_left, geometry.padding_right, geometry.dilation,
      geometry.groups, geometry.padding_mode);
}

}  // namespace

at::Tensor conv1d(
    const SymGeometry& geometry, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias) {
  static const auto op = find_operator<&conv1d>("conv1d_ext::conv1d");
  return call(op, geometry, input, weight, bias);
}

at::Tensor conv1d_backward_input(
    const SymGeometry& geometry, const at::Tensor& grad_output, const at::Tensor& weight, c10::SymInt in_length) {
  static const auto op = find_operator<&conv1d_backward_input>("conv1d_ext::conv1d_backward_input");
  return call(op, geometry, grad_output, weight, std::move(in_length));
}

at::Tensor conv1d_backward_weight(
    const SymGeometry& geometry, const at::Tensor& grad_output, const at::Tensor& input, c10::SymInt kernel_size) {
  static const auto op = find_operator<&conv1d_backward_weight>("conv1d_ext::conv1d_backward_weight");
  return call(op, geometry, grad_output, input, std::move(kernel_size));
}

at::Tensor conv1d_backward_bias(const at::Tensor& grad_output) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("conv1d_ext::conv1d_backward_bias", "")
                             .typed<decltype(conv1d_backward_bias)>();
  return op.call(grad_output);
}

}  // namespace conv1d_ext
