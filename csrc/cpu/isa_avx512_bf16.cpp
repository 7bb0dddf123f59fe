#include "cpu/vec_avx512.h"
// The vocabulary first: the kernels are written in it.
#include "cpu/kernels_inl.h"

namespace conv1d_ext::avx512_bf16 {
extern const KernelSet bfloat16_kernels = kernel_set<BFloat16>();
}
