// Dispatch key CUDA: tensors -> Conv1dProblem and pointers, results and workspace allocated, kernels started on the
// current stream; nothing waits for them. The only file where torch meets the CUDA kernels. What they don't cover goes
// to torch's operator (fallback.h).
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "checks.h"
#include "conv1d.h"
#include "cuda/kernels.h"
#include "cuda_switch.h"
#include "fallback.h"
#include "tensors.h"

namespace conv1d_ext::cuda {
namespace {

constexpr std::string_view kArchitectures = CONV1D_EXT_CUDA_ARCHITECTURES;

// The newest of what was built that runs on GPUs of this capability; 0: nothing. Machine code, sm_80, does on those of
// its generation that are no older; PTX, compute_80, on all that are no older; with a letter, sm_90a, on its own kind
// alone.
int newest_code(int capability) {
  int newest = 0;
  for (size_t begin = 0; begin < kArchitectures.size();) {
    const size_t end = std::min(kArchitectures.find(' ', begin), kArchitectures.size());
    const std::string_view name = kArchitectures.substr(begin, end - begin);
    const std::string_view number = name.substr(name.find('_') + 1);
    int built = 0;
    const char* rest = std::from_chars(number.data(), number.data() + number.size(), built).ptr;
    const bool is_special = rest != number.data() + number.size(), is_ptx = name[0] == 'c';
    const bool runs =
        is_special ? built == capability : built <= capability && (is_ptx || built / 10 == capability / 10);
    if (runs) newest = std::max(newest, built);
    begin = end + 1;
  }
  return newest;
}

// As torch's own convolutions decide it, by torch.backends.cudnn, at each call.
bool allows_tf32() {
  const at::Context& context = at::globalContext();
  return context.userEnabledCuDNN() && context.allowTF32CuDNN(at::Float32Op::CONV);
}

// How numbers of a type are multiplied on the device; none where there are no kernels for it.
std::optional<Type> arithmetic(at::ScalarType type, Device device) {
  device.capability = newest_code(device.capability);  // old code runs on new GPUs, but knows nothing of them
  if (!runs_on(device)) return std::nullopt;
  switch (type) {
    case at::kDouble:
    case at::kComplexDouble:
      return Type::kFloat64;
    case at::kFloat:
    case at::kComplexFloat:
      return allows_tf32() ? Type::kTf32 : Type::kFloat32;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kHalf:
      return Type::kFloat16;
    default:
      return std::nullopt;
  }
}

const char* arithmetic_name(at::ScalarType type, int capability, int64_t shared_bytes) {
  const std::optional<Type> found = arithmetic(type, {.capability = capability, .shared_bytes = shared_bytes});
  if (!found) return nullptr;
  switch (*found) {
    case Type::kFloat64:
      return "float64";
    case Type::kFloat32:
      return "float32";
    case Type::kTf32:
      return "TF32";
    case Type::kBFloat16:
      return "bfloat16";
    case Type::kFloat16:
      return "float16";
  }
  return nullptr;
}

int attribute(cudaDeviceAttr which, c10::DeviceIndex index) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, index));
  return value;
}

const Device& device_at(c10::DeviceIndex index) {
  struct Known {
    std::once_flag once;
    Device device;
  };
  static std::vector<Known> devices(c10::cuda::device_count());
  Known& known = devices.at(index);
  std::call_once(known.once, [&] {
    known.device.capability =
        10 * attribute(cudaDevAttrComputeCapabilityMajor, index) + attribute(cudaDevAttrComputeCapabilityMinor, index);
    known.device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  });
  return known.device;
}

struct Target {
  Type type;
  Device device;
};

// None where torch's operator computes: tensors not covered or on several devices (its error then), or a GPU too old.
std::optional<Target> find_target(const at::Tensor& a, const at::Tensor& b) {
  if (!cuda_enabled() || !is_covered(a, b) || !a.is_cuda() || a.device() != b.device()) return std::nullopt;
  const Device& device = device_at(a.device().index());
  const std::optional<Type> type = arithmetic(a.scalar_type(), device);
  if (!type) {
    TORCH_WARN_ONCE(
        "conv1d_ext: ", a.scalar_type(), " goes to torch's own conv1d on ", a.device(), ", of compute capability ",
        device.capability / 10, ".", device.capability % 10, ": the CUDA kernels, which were built for ",
        CONV1D_EXT_CUDA_ARCHITECTURES, ", do not run there");
    return std::nullopt;
  }
  Target target{*type, device};
  target.device.capability = newest_code(device.capability);
  return target;
}

// The workspace is given back while the kernels are still to run: to the same stream, whose next user comes after them.
void compute(Op op, const Target& target, const Conv1dProblem& problem, const Pointers& pointers) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t bytes = workspace_bytes(op, target.type, problem, target.device, pointers);
  at::Tensor workspace;
  if (bytes > 0) workspace = at::empty({bytes}, at::TensorOptions(stream.device()).dtype(at::kByte));
  run(op, target.type, problem, target.device, pointers, bytes > 0 ? workspace.mutable_data_ptr() : nullptr,
      stream.stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor conv1d_cuda(
    const Geometry<int64_t>& geometry, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias) {
  const bool has_bias = bias.has_value() && bias->defined();
  const auto target = find_target(input, weight);
  if (!target || (has_bias && bias->device() != input.device())) {
    return fallback::conv1d(geometry, input, weight, bias);
  }
  Conv1dProblem problem = check_conv1d(geometry, input, weight, bias);
  if (problem.in_channels == 0 || !fits(problem)) return fallback::conv1d(geometry, input, weight, bias);
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_result({problem.batch, problem.out_channels, problem.out_length}, input.options(), weight);
  problem.input = strides(input);
  problem.output = strides(output);
  problem.weight = weight_strides(weight);
  if (output.numel() == 0) return output;
  if (input.numel() == 0) return has_bias ? output.copy_(bias->unsqueeze(1)) : output.zero_();
  if (!input.is_complex()) {
    const at::Tensor bias_row = has_bias ? bias->contiguous() : at::Tensor();
    compute(
        Op::kForward, *target, problem,
        {input.const_data_ptr(), weight.const_data_ptr(), has_bias ? bias_row.const_data_ptr() : nullptr,
         output.mutable_data_ptr()});
    return output;
  }
  const at::Tensor bias_rows = bias_parts(bias);
  multiply_parts(problem, input, weight, [&](const Conv1dProblem& real, int in_part, int weight_part, int out_part) {
    // The first product of each part brings the bias.
    const bool brings_bias = has_bias && !real.accumulate;
    compute(
        Op::kForward, *target, real,
        {part(input, in_part), part(weight, weight_part), brings_bias ? bias_rows[out_part].const_data_ptr() : nullptr,
         mutable_part(output, out_part)});
  });
  return output;
}

at::Tensor conv1d_backward_input_cuda(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& weight, int64_t in_length) {
  const auto target = find_target(grad_output, weight);
  if (!target) return fallback::conv1d_backward_input(geometry, grad_output, weight, in_length);
  Conv1dProblem problem = check_conv1d_backward_input(geometry, grad_output, weight, in_length);
  if (!fits(problem)) return fallback::conv1d_backward_input(geometry, grad_output, weight, in_length);
  const c10::cuda::CUDAGuard guard(grad_output.device());
  const std::array<int64_t, 3> sizes{problem.batch, problem.in_channels, problem.in_length};
  at::Tensor grad_input = grad_output.is_complex() ? at::empty(sizes, grad_output.options())
                                                   : empty_result(sizes, grad_output.options(), weight);
  problem.input = strides(grad_input);
  problem.output = strides(grad_output);
  problem.weight = weight_strides(weight);
  if (grad_input.numel() == 0) return grad_input;
  if (!grad_output.is_complex()) {
    compute(
        Op::kBackwardInput, *target, problem,
        {grad_output.const_data_ptr(), weight.const_data_ptr(), nullptr, grad_input.mutable_data_ptr()});
    return grad_input;
  }
  multiply_parts(
      problem, grad_output, weight, [&](const Conv1dProblem& real, int grad_part, int weight_part, int result_part) {
        compute(
            Op::kBackwardInput, *target, real,
            {part(grad_output, grad_part), part(weight, weight_part), nullptr, mutable_part(grad_input, result_part)});
      });
  return grad_input;
}

at::Tensor conv1d_backward_weight_cuda(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& input, int64_t kernel_size) {
  const auto target = find_target(grad_output, input);
  if (!target) return fallback::conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  Conv1dProblem problem = check_conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  if (!fits(problem)) return fallback::conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor grad_weight =
      at::empty({problem.out_channels, problem.in_channels / problem.groups, kernel_size}, input.options());
  problem.input = strides(input);
  problem.output = strides(grad_output);
  problem.weight = weight_strides(grad_weight);
  if (input.numel() == 0 || grad_weight.numel() == 0) return grad_weight.zero_();
  if (!input.is_complex()) {
    compute(
        Op::kBackwardWeight, *target, problem,
        {input.const_data_ptr(), grad_output.const_data_ptr(), nullptr, grad_weight.mutable_data_ptr()});
    return grad_weight;
  }
  multiply_parts(
      problem, grad_output, input, [&](const Conv1dProblem& real, int grad_part, int in_part, int result_part) {
        compute(
            Op::kBackwardWeight, *target, real,
            {part(input, in_part), part(grad_output, grad_part), nullptr, mutable_part(grad_weight, result_part)});
      });
  return grad_weight;
}

at::Tensor conv1d_backward_bias_cuda(const at::Tensor& grad_output) {
  const auto target = find_target(grad_output, grad_output);
  if (!target) return fallback::conv1d_backward_bias(grad_output);
  Conv1dProblem problem = check_conv1d_backward_bias(grad_output);
  const c10::cuda::CUDAGuard guard(grad_output.device());
  problem.output = strides(grad_output);
  const auto sum = [&](const void* signal, const at::Tensor& result) {
    if (grad_output.numel() == 0) {
      result.zero_();
    } else {
      compute(Op::kBackwardBias, *target, problem, {signal, nullptr, nullptr, result.mutable_data_ptr()});
    }
  };
  if (!grad_output.is_complex()) {
    const at::Tensor grad_bias = at::empty({problem.out_channels}, grad_output.options());
    sum(grad_output.const_data_ptr(), grad_bias);
    return grad_bias;
  }
  view_parts(problem);
  const at::Tensor parts =
      at::empty({2, problem.out_channels}, grad_output.options().dtype(at::toRealValueType(grad_output.scalar_type())));
  for (int index : {0, 1}) {
    problem.negate = index == 1 && grad_output.is_conj();
    sum(part(grad_output, index), parts[index]);
  }
  return at::complex(parts[0], parts[1]);
}

TORCH_LIBRARY_IMPL(conv1d_ext, CUDA, m) {
  m.impl("conv1d", Flat<&conv1d_cuda>::call);
  m.impl("conv1d_backward_input", Flat<&conv1d_backward_input_cuda>::call);
  m.impl("conv1d_backward_weight", Flat<&conv1d_backward_weight_cuda>::call);
  m.impl("conv1d_backward_bias", conv1d_backward_bias_cuda);
}

constexpr CudaKernels kKernels{CONV1D_EXT_CUDA_ARCHITECTURES, arithmetic_name};
[[maybe_unused]] const bool kRegistered = register_cuda_kernels(kKernels);

}  // namespace
}  // namespace conv1d_ext::cuda
