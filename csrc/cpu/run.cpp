#include "cpu/run.h"

#include <cstring>
#include <vector>

#include "cpu/allowed.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/run_indirect.h"

namespace conv1d_ext {
namespace {

// The plans, remembered: models call the same layers over and over, and a plan takes longer than the smallest of them.
template <Op op>
const Plans& plans_for(const Conv1dProblem& problem, const Kernels& kernels) {
  struct Known {
    Conv1dProblem problem;
    const KernelSet* kernels;
    CacheSizes cache;
    Uses uses;
  };
  thread_local Known known{};
  thread_local Plans plans{};
  const CacheSizes cache = cache_sizes();
  const Uses uses = allowed_uses();
  // Byte by byte: where padding between the members differs, the plan is made once more.
  // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison)
  if (known.kernels != &kernels.run || std::memcmp(&known.problem, &problem, sizeof problem) != 0 ||
      known.cache.l1 != cache.l1 || known.cache.l2 != cache.l2 || known.cache.amd != cache.amd || known.uses != uses) {
    plans = make_plans(op, problem, kernels.run.sizes, kernels.tile, cache, uses);
    known = {problem, &kernels.run, cache, uses};
  }
  return plans;
}

template <class Kernel, class Args>
void for_units(Kernel kernel, const Conv1dProblem& problem, const Plan& plan, const Args& args, int64_t units) {
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const double work =
      double(problem.batch) * problem.out_channels * problem.out_length * in_per_group * problem.kernel_size;
  for_ranges(units, work, [&](int64_t begin, int64_t end) {
    kernel(problem, plan, args, scratch_memory(plan.scratch_bytes), begin, end);
  });
}

// Memory for packed weights, which args point to.
template <class Args>
at::DataPtr packed_memory(const Plan& plan, Args* args) {
  at::DataPtr packed;
  if (plan.packed_bytes > 0) {
    packed = allocate(plan.packed_bytes);
    args->packed_weight = packed.get();
  }
  return packed;
}

// Sets out on the pass that begins with a tile: packs its weights, where the plan says so.
template <class Kernel, class Args>
void begin_pass(Kernel pack, const Conv1dProblem& problem, const Plan& plan, Args* args, int64_t first_tile) {
  args->first_tile = first_tile;
  args->tile_count = std::min(plan.pass_tiles, plan.out_tiles - first_tile);
  if (plan.packed_bytes == 0) return;
  for_ranges(problem.groups * args->tile_count, plan.packed_bytes, [&](int64_t begin, int64_t end) {
    pack(problem, plan, *args, begin, end);
  });
}

template <class Pack, class Kernel, class Args>
void run_passes(Pack pack, Kernel kernel, const Conv1dProblem& problem, const Plan& plan, Args* args) {
  for (int64_t tile = 0; tile < plan.out_tiles; tile += plan.pass_tiles) {
    begin_pass(pack, problem, plan, args, tile);
    for_units(kernel, problem, plan, *args, plan.units / plan.out_tiles * args->tile_count);
  }
}

// The padding's share of the gradient, where the padding repeats the input.
void add_edges(const Kernels& kernels, const Conv1dProblem& problem, const Plan& plan, const BackwardInputArgs& args) {
  for_units(kernels.run.backward_input_edges, problem, plan, args, plan.edge_units);
  if (problem.padding_mode != PaddingMode::kZeros) {
    const int64_t rows = problem.batch * problem.in_channels;
    for_ranges(rows, double(rows) * problem.kernel_size, [&](int64_t begin, int64_t end) {
      kernels.run.backward_input_ends(problem, args, begin, end);
    });
  }
}

// Computes the batch items that have an alarm again. at(n): the arguments for batch item n.
template <class ArgsAt>
void mend_items(const Kernels& kernels, Conv1dProblem problem, const std::vector<uint8_t>& alarms, const ArgsAt& at) {
  problem.batch = 1;
  for (size_t n = 0; n < alarms.size(); ++n) {
    if (alarms[n]) run_direct(kernels, problem, at(int64_t(n)));
  }
}

}  // namespace

Kernels kernels_for(at::ScalarType real_type) {
  const KernelTable& table = kernel_table();
  switch (real_type) {
    case at::kFloat:
      return {table.float32, table.tile_float};
    case at::kDouble:
      return {table.float64, table.tile_double};
    case at::kBFloat16:
      return {table.bfloat16, table.tile_float};
    case at::kHalf:
      return {table.float16, table.tile_float};
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernels for ", real_type);
  }
}

void run_direct(const Kernels& kernels, const Conv1dProblem& problem, ForwardArgs args) {
  const Plan plan = plans_for<Op::kForward>(problem, kernels).direct;
  const at::DataPtr packed = packed_memory(plan, &args);
  run_passes(kernels.run.pack_forward, kernels.run.forward, problem, plan, &args);
}

void run_direct(const Kernels& kernels, const Conv1dProblem& problem, BackwardInputArgs args) {
  const Plan plan = plans_for<Op::kBackwardInput>(problem, kernels).direct;
  const at::DataPtr packed = packed_memory(plan, &args);
  run_passes(kernels.run.pack_backward_input, kernels.run.backward_input, problem, plan, &args);
  add_edges(kernels, problem, plan, args);
}

void run_direct(const Kernels& kernels, const Conv1dProblem& problem, BackwardWeightArgs args) {
  const Plan plan = plans_for<Op::kBackwardWeight>(problem, kernels).direct;
  const at::DataPtr partial_sums = allocate(plan.partial_bytes);
  args.partial_sums = partial_sums.get();
  for_units(kernels.run.backward_weight, problem, plan, args, plan.units);
  if (plan.reduction_chunks > 1) {
    const int64_t sums = plan.partial_bytes / kernels.run.sizes.accumulate;
    for_ranges(problem.out_channels, sums, [&](int64_t begin, int64_t end) {
      kernels.run.backward_weight_sum(problem, plan, args, begin, end);
    });
  }
}

void run(const Kernels& kernels, const Conv1dProblem& problem, const ForwardArgs& args) {
  const Plans plans = plans_for<Op::kForward>(problem, kernels);
  if (plans.family == Family::kDirect) return run_direct(kernels, problem, args);
  const std::vector<uint8_t> alarms =
      run_indirect(Op::kForward, kernels, problem, plans, {args.input, args.weight, args.bias, args.output});
  mend_items(kernels, problem, alarms, [&](int64_t n) {
    ForwardArgs item = args;
    item.input = static_cast<const char*>(args.input) + n * problem.input.batch * kernels.run.sizes.storage;
    item.output = static_cast<char*>(args.output) + n * problem.output.batch * kernels.run.sizes.storage;
    return item;
  });
}

void run(const Kernels& kernels, const Conv1dProblem& problem, BackwardInputArgs args) {
  const Plans plans = plans_for<Op::kBackwardInput>(problem, kernels);
  if (plans.family == Family::kDirect) return run_direct(kernels, problem, args);
  const std::vector<uint8_t> alarms = run_indirect(
      Op::kBackwardInput, kernels, problem, plans, {args.grad_output, args.weight, nullptr, args.grad_input});
  if (plans.direct.edge_units > 0) {
    const at::DataPtr packed = packed_memory(plans.direct, &args);
    begin_pass(kernels.run.pack_backward_input, problem, plans.direct, &args, 0);
    add_edges(kernels, problem, plans.direct, args);
  }
  mend_items(kernels, problem, alarms, [&](int64_t n) {
    BackwardInputArgs item = args;
    item.grad_output =
        static_cast<const char*>(args.grad_output) + n * problem.output.batch * kernels.run.sizes.storage;
    item.grad_input = static_cast<char*>(args.grad_input) + n * problem.input.batch * kernels.run.sizes.storage;
    return item;
  });
}

void run(const Kernels& kernels, const Conv1dProblem& problem, const BackwardWeightArgs& args) {
  const Plans plans = plans_for<Op::kBackwardWeight>(problem, kernels);
  if (plans.family == Family::kDirect) return run_direct(kernels, problem, args);
  const std::vector<uint8_t> alarms = run_indirect(
      Op::kBackwardWeight, kernels, problem, plans, {args.input, args.grad_output, nullptr, args.grad_weight});
  if (alarms[0]) run_direct(kernels, problem, args);
}

void run(const Kernels& kernels, const Conv1dProblem& problem, const BackwardBiasArgs& args) {
  for_ranges(
      problem.out_channels, double(problem.batch) * problem.out_channels * problem.out_length,
      [&](int64_t begin, int64_t end) { kernels.run.backward_bias(problem, args, begin, end); });
}

}  // namespace conv1d_ext
