#include "cpu/vec_avx512.h"
// The vocabulary first: the kernels are written in it.
#include "cpu/kernel_table.h"
// In order of use.
#include "cpu/tile_inl.h"
#include "cpu/panel_inl.h"
#include "cpu/view_inl.h"
#include "cpu/tiled_inl.h"
#include "cpu/amx_tile_inl.h"
#include "cpu/amx_conv_inl.h"
#include "cpu/amx_weight_inl.h"

namespace conv1d_ext::amx {
extern const AmxKernels float32_kernels = tiled_kernels<AmxPlan, AmxConv<float>, AmxWeightGradient<float>>();
extern const AmxKernels bfloat16_kernels = tiled_kernels<AmxPlan, AmxConv<BFloat16>, AmxWeightGradient<BFloat16>>();
}  // namespace conv1d_ext::amx
