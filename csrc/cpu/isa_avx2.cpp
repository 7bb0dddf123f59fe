#include "cpu/vec_avx2.h"
// The vocabulary first: the kernels are written in it.
#include "cpu/kernels_inl.h"

namespace conv1d_ext::avx2 {
extern const KernelTable kernel_table = make_kernel_table();
}
