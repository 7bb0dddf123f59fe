// Derivatives of every order in both modes, made of the operators themselves. With g the gradient of the output,
//   sum over n, oc, t of g[n, oc, t] * conv1d(x, w)[n, oc, t]
// is trilinear in g, x and w, and each operator computes one of the three from the other two. So the derivative of any
// operator is another one, with the cotangent in place of the result: one table, one autograd node, and forward mode is
// the same table read the other way. It is written as torch's generated code is: torch::autograd::Function has no
// forward mode and is refused by torch.func, torch.library.register_autograd silently yields zero tangents.
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <array>
#include <mutex>
#include <string>

#include "conv1d.h"

namespace conv1d_ext {
namespace {

using at::Tensor;
using c10::SymInt;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::IValuePacker;
using torch::dynamo::autograd::PackedArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// The tensors which the operators relate. An operator is named by the one it computes, and its node has an edge for
// each. Plain integers, because compiled autograd has to store them.
constexpr int64_t kInput = 0, kWeight = 1, kBias = 2, kGradOutput = 3, kSlots = 4;
constexpr int64_t kTrilinear[] = {kInput, kWeight, kGradOutput};
using Operands = std::array<Tensor, kSlots>;

// What an operator has to know besides its operands.
struct Setting {
  SymGeometry geometry = {};
  SymInt batch = 0, in_length = 0, out_length = 0, kernel_size = 0;
};

// The operator `out`, that is, the operand `out` made of the others. The bias alone yields its share of the output.
Tensor compute(int64_t out, const Setting& setting, const Operands& operands) {
  const auto& [input, weight, bias, grad_output] = operands;
  switch (out) {
    case kInput:
      return conv1d_backward_input(setting.geometry, grad_output, weight, setting.in_length);
    case kWeight:
      return conv1d_backward_weight(setting.geometry, grad_output, input, setting.kernel_size);
    case kBias:
      return conv1d_backward_bias(grad_output);
    default:
      if (!input.defined()) {
        return bias.unsqueeze(1).expand_symint({setting.batch, bias.sym_size(0), setting.out_length});
      }
      return conv1d(setting.geometry, input, weight, bias.defined() ? std::optional(bias) : std::nullopt);
  }
}

// As torch sees it, through a fourth dimension: strides of [O, 1, K, I] under the shape [O, I, 1, K].
bool is_channels_last_like(const Tensor& weight) {
  const auto size = weight.sym_sizes(), stride = weight.sym_strides();
  return c10::is_channels_last_strides_2d<SymInt>(
      {size[0], size[1], 1, size[2]}, {stride[0], stride[1], size[2] * stride[2], stride[2]});
}

// What a node keeps besides operands. Not to be copied: the geometry refers to the string.
struct NodeState {
  NodeState() = default;
  NodeState(const NodeState&) = delete;
  NodeState& operator=(const NodeState&) = delete;

  int64_t out = 0;
  Setting setting;
  std::string padding_mode;
  bool weight_grad_is_channels_last = false;  // torch gives a real weight's gradient the strides of the weight

  // Applies `visit` to every member: the one list that all dealings with compiled autograd go through.
  template <class Self, class Visit>
  static void each(Self& self, const Visit& visit) {
    const auto visit_all = [&](auto&... members) { (visit(members), ...); };
    auto& [geometry, batch, in_length, out_length, kernel_size] = self.setting;
    visit_all(
        self.out, self.padding_mode, self.weight_grad_is_channels_last, geometry.stride, geometry.padding_left,
        geometry.padding_right, geometry.dilation, geometry.groups, batch, in_length, out_length, kernel_size);
  }
};

// The gradients towards the `wanted` operands, from the cotangent of the result and the `saved` operands.
variable_list gradients(
    const NodeState& state, const Tensor& cotangent, Operands saved, const std::array<bool, kSlots>& wanted) {
  variable_list grads(kSlots);
  if (!cotangent.defined()) return grads;
  for (Tensor& operand : saved) {
    if (operand.defined()) operand = operand.conj();
  }
  saved[state.out] = cotangent;
  for (int64_t slot = 0; slot < kSlots; ++slot) {
    if (wanted[slot]) grads[slot] = compute(slot, state.setting, saved);
  }
  if (grads[kWeight].defined() && state.weight_grad_is_channels_last) {
    grads[kWeight] = grads[kWeight].mT().contiguous().mT();
  }
  return grads;
}

// `gradients` for compiled autograd, which puts it into a graph with its arguments packed as IValues.
variable_list packed_gradients(const variable_list& cotangents, const std::vector<c10::IValue>& values) {
  PackedArgs packed(values);
  NodeState state;
  NodeState::each(state, [&](auto& member) { member = packed.unpack<std::decay_t<decltype(member)>>(); });
  state.setting.geometry.padding_mode = state.padding_mode;
  const auto wanted = packed.unpack<std::array<bool, kSlots>>();
  Operands saved;
  for (Tensor& operand : saved) operand = packed.unpack<Tensor>();
  return gradients(state, cotangents[0], std::move(saved), wanted);
}

class Conv1dNode final : public torch::autograd::TraceableFunction {
 public:
  Conv1dNode(int64_t out, const Setting& setting, const Operands& operands)
      : TraceableFunction(torch::autograd::collect_next_edges(operands[0], operands[1], operands[2], operands[3])) {
    state_.out = out;
    state_.setting = setting;
    state_.padding_mode = setting.geometry.padding_mode;
    state_.setting.geometry.padding_mode = state_.padding_mode;
    // The gradient towards `slot` takes the one operand which is neither that nor the result.
    for (const int64_t slot : kTrilinear) {
      for (const int64_t other : kTrilinear) {
        if (should_compute_output(slot) && other != slot && operands[other].defined()) {
          saved_[other] = SavedVariable(operands[other], /*is_output=*/false);
        }
      }
    }
    state_.weight_grad_is_channels_last =
        should_compute_output(kWeight) && !operands[kWeight].is_complex() && is_channels_last_like(operands[kWeight]);
  }

  std::string name() const override {
    static constexpr std::array<const char*, kSlots> kNames = {
        "Conv1dBackwardInputBackward0", "Conv1dBackwardWeightBackward0", "Conv1dBackwardBiasBackward0",
        "Conv1dBackward0"};
    return kNames[state_.out];
  }

  variable_list apply(variable_list&& cotangents) override {
    const std::lock_guard lock(mutex_);
    return gradients(state_, cotangents[0], unpack(), wanted());
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& operand : saved_) operand.reset_data();
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    NodeState::each(state_, [&](const auto& member) { args.collect(member); });
    for (const SavedVariable& operand : saved_) args.collect(operand, /*is_output=*/false);
  }

  // Called with stand-ins for what compiled_args collected. It records a call of packed_gradients and computes nothing.
  variable_list apply_with_saved(const variable_list& cotangents, SwapSavedVariables& swap) override {
    NodeState::each(state_, [&](auto& member) { swap.before(member); });
    for (SavedVariable& operand : saved_) swap.before(operand);

    PackedArgs packed;
    std::vector<at::TypePtr> types;
    const auto pack = [&](const auto& value) {
      packed.pack(value);
      types.push_back(IValuePacker<std::decay_t<decltype(value)>>::packed_type());
    };
    NodeState::each(state_, pack);
    pack(wanted());
    for (const Tensor& operand : unpack()) pack(operand);

    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    static const std::string function =
        compiler->bind_function(swap.get_py_compiler(), "conv1d_ext_gradients", packed_gradients, types);
    auto grads = compiler->call_function(
        swap.get_py_compiler(), "apply_functional", function, cotangents, packed.vec(),
        IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            torch::dynamo::autograd::get_input_metadata(next_edges())));

    NodeState::each(state_, [&](auto& member) { swap.after(member); });
    for (SavedVariable& operand : saved_) swap.after(operand);
    return grads;
  }

 private:
  Operands unpack() const {
    Operands operands;
    for (int64_t slot = 0; slot < kSlots; ++slot) operands[slot] = saved_[slot].unpack();
    return operands;
  }

  // Asked for by this run of backward; never true where there is no edge.
  std::array<bool, kSlots> wanted() const {
    std::array<bool, kSlots> wanted;
    for (int64_t slot = 0; slot < kSlots; ++slot) wanted[slot] = task_should_compute_output(slot);
    return wanted;
  }

  NodeState state_;
  std::array<SavedVariable, kSlots> saved_;
};

// torch 2.14 tells torch.autograd.graph.node_creation_hook of each new node; 2.13 has no such call.
template <class NodePtr>
void announce(const NodePtr& node) {
  if constexpr (requires { fire_node_creation_hooks(node); }) fire_node_creation_hooks(node);
}

// The result's tangent: for each operand that has one, the operator with the tangent in its place, added up.
Tensor tangent(int64_t out, const Setting& setting, const Operands& operands) {
  Tensor sum;
  for (int64_t slot = 0; slot < kSlots; ++slot) {
    if (!torch::autograd::isFwGradDefined(operands[slot])) continue;
    Operands term;
    if (slot != kBias) {
      for (const int64_t other : kTrilinear) {
        if (operands[other].defined()) term[other] = operands[other]._fw_primal(/*level=*/0);
      }
    }
    term[slot] = operands[slot]._fw_grad(/*level=*/0);
    const Tensor share = compute(out, setting, term);
    sum = sum.defined() ? sum + share : share;
  }
  return sum;
}

// The operator `out` in the Autograd kernel: computed below it, with history and tangent where they are called for.
Tensor differentiable(int64_t out, Setting setting, const Operands& operands) {
  const Tensor result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return compute(out, setting, operands);
  }();
  const auto& [input, weight, bias, grad_output] = operands;
  const bool requires_grad = torch::autograd::compute_requires_grad(input, weight, bias, grad_output);
  const bool has_tangent = torch::autograd::isFwGradDefinedTensorList(operands);
  if (!requires_grad && !has_tangent) return result;

  const auto size = [&](int64_t slot, int64_t dim) {
    const Tensor& tensor = slot == out ? result : operands[slot];
    return tensor.defined() ? tensor.sym_size(dim) : SymInt(0);
  };
  setting.batch = size(kGradOutput, 0);
  setting.in_length = size(kInput, 2);
  setting.out_length = size(kGradOutput, 2);
  setting.kernel_size = size(kWeight, 2);
  if (requires_grad) {
    const c10::intrusive_ptr<torch::autograd::Node> node = c10::make_intrusive<Conv1dNode>(out, setting, operands);
    torch::autograd::set_history(result, node);
    announce(node);
  }
  if (has_tangent) {
    result._set_fw_grad(tangent(out, setting, operands), /*level=*/0, /*is_inplace_op=*/false);
  }
  return result;
}

Tensor conv1d_autograd(
    const SymGeometry& geometry, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  return differentiable(kGradOutput, {.geometry = geometry}, {input, weight, bias.value_or(Tensor()), Tensor()});
}

Tensor conv1d_backward_input_autograd(
    const SymGeometry& geometry, const Tensor& grad_output, const Tensor& weight, SymInt in_length) {
  return differentiable(
      kInput, {.geometry = geometry, .in_length = std::move(in_length)}, {Tensor(), weight, Tensor(), grad_output});
}

Tensor conv1d_backward_weight_autograd(
    const SymGeometry& geometry, const Tensor& grad_output, const Tensor& input, SymInt kernel_size) {
  return differentiable(
      kWeight, {.geometry = geometry, .kernel_size = std::move(kernel_size)}, {input, Tensor(), Tensor(), grad_output});
}

Tensor conv1d_backward_bias_autograd(const Tensor& grad_output) {
  return differentiable(kBias, {}, {Tensor(), Tensor(), Tensor(), grad_output});
}

}  // namespace

TORCH_LIBRARY_IMPL(conv1d_ext, Autograd, m) {
  m.impl("conv1d", Flat<&conv1d_autograd>::call);
  m.impl("conv1d_backward_input", Flat<&conv1d_backward_input_autograd>::call);
  m.impl("conv1d_backward_weight", Flat<&conv1d_backward_weight_autograd>::call);
  m.impl("conv1d_backward_bias", conv1d_backward_bias_autograd);
}

}  // namespace conv1d_ext
