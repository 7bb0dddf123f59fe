#include "cpu/vec_avx512.h"
// The vocabulary first: the kernels are written in it.
#include "cpu/kernel_table.h"
// In order of use.
#include "cpu/tile_inl.h"
#include "cpu/panel_inl.h"
#include "cpu/view_inl.h"
#include "cpu/amx_tile_inl.h"
#include "cpu/amx_conv_inl.h"
#include "cpu/amx_weight_inl.h"

namespace conv1d_ext {
namespace {

template <class Kernel, void (Kernel::*pass)(int64_t, int64_t) const>
void amx_pass(
    Op op, const Conv1dProblem& problem, const AmxPlan& plan, const AmxArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  (Kernel(op, problem, plan, args, scratch).*pass)(begin, end);
}

template <class Storage>
constexpr AmxKernels amx_kernels() {
  using Conv = AmxConv<Storage>;
  using WeightGradient = AmxWeightGradient<Storage>;
  return {
      amx_pass<Conv, &Conv::pack_weights>, amx_pass<Conv, &Conv::multiply_blocks>,
      amx_pass<WeightGradient, &WeightGradient::sum_products>};
}

}  // namespace
}  // namespace conv1d_ext

namespace conv1d_ext::amx {
extern const AmxKernels float32_kernels = amx_kernels<float>();
extern const AmxKernels bfloat16_kernels = amx_kernels<BFloat16>();
}  // namespace conv1d_ext::amx
