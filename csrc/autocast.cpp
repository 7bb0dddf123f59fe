// Autocast as torch has it for its own conv1d: floating point operands but float64 are cast to the autocast dtype,
// complex ones stay. Only the forward operator needs it; its derivatives see operands that are cast already.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "conv1d.h"

namespace conv1d_ext {
namespace {

template <c10::DeviceType device>
constexpr auto kAutocast = &at::autocast::WrapFunction_<
    at::autocast::CastPolicy::lower_precision_fp, device, decltype(conv1d), conv1d, at::Tensor,
    c10::guts::typelist::typelist<
        const SymGeometry&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&>>::call;

}  // namespace

TORCH_LIBRARY_IMPL(conv1d_ext, AutocastCPU, m) { m.impl("conv1d", Flat<kAutocast<c10::DeviceType::CPU>>::call); }

TORCH_LIBRARY_IMPL(conv1d_ext, AutocastCUDA, m) { m.impl("conv1d", Flat<kAutocast<c10::DeviceType::CUDA>>::call); }

}  // namespace conv1d_ext
