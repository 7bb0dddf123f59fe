// The entries of the kernel table for an algorithm of tiles of rows (kernel_table.h), out of two classes whose methods
// are its passes.
#pragma once

namespace conv1d_ext {
namespace {

template <class PlanType, class Kernel, void (Kernel::*pass)(int64_t, int64_t) const>
void tiled_pass(
    Op op, const Conv1dProblem& problem, const PlanType& plan, const TiledArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  (Kernel(op, problem, plan, args, scratch).*pass)(begin, end);
}

// Conv: forward and backward_input.
template <class PlanType, class Conv, class WeightGradient>
constexpr TiledKernels<PlanType> tiled_kernels() {
  return {
      tiled_pass<PlanType, Conv, &Conv::pack_weights>, tiled_pass<PlanType, Conv, &Conv::multiply_blocks>,
      tiled_pass<PlanType, WeightGradient, &WeightGradient::sum_products>};
}

}  // namespace
}  // namespace conv1d_ext
