#include "cpu/vec_avx512.h"
// The vocabulary first: the kernels are written in it.
#include "cpu/kernel_table.h"
// In order of use.
#include "cpu/tile_inl.h"
#include "cpu/panel_inl.h"
#include "cpu/view_inl.h"
#include "cpu/amx_tile_inl.h"
#include "cpu/amx_conv_inl.h"

namespace conv1d_ext::amx {
extern const AmxKernels float32_kernels = amx_kernels<float>();
extern const AmxKernels bfloat16_kernels = amx_kernels<BFloat16>();
}  // namespace conv1d_ext::amx
