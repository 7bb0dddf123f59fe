// Dispatch key CPU: tensors -> Conv1dProblem and pointers, results allocated, work dealt to the threads. The only file
// where torch meets the CPU kernels. What they don't cover goes to torch's operator (fallback.h).
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <omp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <array>
#include <cstring>
#include <vector>

#include "checks.h"
#include "conv1d.h"
#include "cpu/allowed.h"
#include "cpu/isa.h"
#include "fallback.h"
#include "tensors.h"

namespace conv1d_ext {
namespace {

struct Kernels {
  const KernelSet& run;
  const TileShape& tile;
};

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
      std::memcmp(&known.cache, &cache, sizeof cache) != 0 || known.uses.fft != uses.fft ||
      known.uses.toom_cook != uses.toom_cook || known.uses.amx != uses.amx) {
    plans = make_plans(op, problem, kernels.run.sizes, kernels.tile, cache, uses);
    known = {problem, &kernels.run, cache, uses};
  }
  return plans;
}

// Of small pages the first touch costs more than many a convolution.
void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t before = int64_t(-reinterpret_cast<uintptr_t>(data) % kHugePage);
  const int64_t pages = (bytes - before) / kHugePage;
  if (pages > 0) madvise(static_cast<char*>(data) + before, pages * kHugePage, MADV_HUGEPAGE);
#endif
}

at::DataPtr allocate(int64_t bytes) {
  at::DataPtr data = c10::GetCPUAllocator()->allocate(bytes);
  advise_huge_pages(data.get(), bytes);
  return data;
}

// Memory of a thread for the duration of a call, kept for its next one unless it is unusually large.
void* scratch_memory(int64_t bytes) {
  constexpr int64_t kKeptBytes = 4 << 20;
  thread_local at::DataPtr kept;
  thread_local int64_t size = 0;
  if (bytes > size || size > kKeptBytes) {
    kept.clear();
    size = 0;
    kept = c10::GetCPUAllocator()->allocate(bytes);
    size = bytes;
  }
  return kept.get();
}

// A child of fork has none of its parent's OpenMP threads, but GNU's runtime would wait for them, forever, for torch's
// own operators as well. So the parent dismisses its threads before, and either starts new ones when it needs them.
[[maybe_unused]] const int fork_handler =
    pthread_atfork([] { omp_pause_resource_all(omp_pause_soft); }, nullptr, nullptr);

// Calls run(begin, end) for ranges that make up [0, units).
template <class Run>
void for_ranges(int64_t units, double work, const Run& run) {
  // Multiply-adds that outweigh waking a thread (a few microseconds, at some 20 a nanosecond).
  constexpr double kWorkPerThread = 1 << 17;
  const double range = work > 0 ? units * kWorkPerThread / work : 1;
  const int64_t grain = range < 1 ? 1 : int64_t(std::min(range, 0x1p62));
  if (units <= grain || at::get_num_threads() == 1) {
    if (units > 0) run(int64_t{0}, units);
    return;
  }
  at::parallel_for(0, units, grain, run);
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

void run_direct(const Kernels& kernels, const Conv1dProblem& problem, ForwardArgs args) {
  const Plan plan = plans_for<Op::kForward>(problem, kernels).direct;
  const at::DataPtr packed = packed_memory(plan, &args);
  run_passes(kernels.run.pack_forward, kernels.run.forward, problem, plan, &args);
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

// A call through the Fourier transform: its memory, and its passes. Returns the alarms.
std::vector<uint8_t> run_fft(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const FftPlan& plan, const Operands& operands) {
  FftArgs args{};
  args.operands = operands;
  const int64_t blocks = problem.batch * plan.phases * plan.blocks;
  // Two units for each thread, where the pass of the blocks has so many.
  const int64_t groups =
      std::clamp((int64_t{2} * at::get_num_threads() + blocks - 1) / blocks, plan.fewest_groups, plan.most_groups);
  const at::DataPtr spectra = allocate(groups * plan.weight_bytes), signals = allocate(groups * plan.signal_bytes);
  std::vector<uint8_t> alarms(op == Op::kBackwardWeight ? 1 : problem.batch);
  const bool is_float = kernels.run.sizes.storage == sizeof(float);
  args.roots = is_float ? static_cast<const void*>(fft_roots<float>(plan.length, kernels.tile.lanes))
                        : fft_roots<double>(plan.length, kernels.tile.lanes);
  args.spectra = spectra.get();
  args.signals = signals.get();
  args.alarms = alarms.data();
  const auto pass = [&](FftPass kernel, int64_t units, double operations) {
    for_ranges(units, double(units) * operations, [&](int64_t begin, int64_t end) {
      kernel(op, problem, plan, args, scratch_memory(plan.scratch_bytes), begin, end);
    });
  };
  const FftKernels& fft = kernels.run.fft;
  const double transform = 30.0 * plan.length, rows = plan.source_rows + plan.row_block;
  const auto run_rows = [&] {
    const int64_t pairs = args.group_count * args.row_count * plan.source_rows;
    if (op != Op::kBackwardWeight) {
      pass(fft.transform_weights, pairs, transform);
      pass(fft.multiply_blocks, args.group_count * blocks, transform * rows);
      return;
    }
    for (args.first_block = 0; args.first_block < blocks; args.first_block += plan.block_tile) {
      args.block_count = std::min(plan.block_tile, blocks - args.first_block);
      const int64_t signals = args.group_count * (plan.source_rows + args.row_count) * args.block_count;
      pass(fft.transform_signals, signals, transform);
      const int64_t vectors = plan.length / 2 / kernels.tile.lanes;
      pass(fft.multiply_signals, args.group_count * vectors, double(pairs) * args.block_count * kernels.tile.lanes);
    }
    pass(fft.store_taps, pairs, transform);
  };
  for (args.first_group = 0; args.first_group < problem.groups; args.first_group += groups) {
    args.group_count = std::min(groups, problem.groups - args.first_group);
    for (args.first_row = 0; args.first_row < plan.result_rows; args.first_row += plan.row_block) {
      args.row_count = std::min(plan.row_block, plan.result_rows - args.first_row);
      run_rows();
    }
  }
  return alarms;
}

// Weight gradients of chunks of the sum, added up.
void add_chunks(
    const Kernels& kernels, const Conv1dProblem& problem, int64_t chunks, const Operands& operands,
    void* partial_sums) {
  if (chunks == 1) return;
  Plan plan{};
  plan.reduction_chunks = chunks;
  const BackwardWeightArgs args{operands.weight, operands.source, operands.result, partial_sums};
  const int64_t in_per_group = problem.in_channels / problem.groups;
  const double work = double(chunks) * problem.out_channels * in_per_group * problem.kernel_size;
  for_ranges(problem.out_channels, work, [&](int64_t begin, int64_t end) {
    kernels.run.backward_weight_sum(problem, plan, args, begin, end);
  });
}

// The same through Toom-Cook's algorithm.
std::vector<uint8_t> run_toom_cook(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const ToomCookPlan& plan, const Operands& operands) {
  const ToomCookKernels& toom_cook = kernels.run.toom_cook[plan.taps - 2];
  const at::DataPtr packed_weight = allocate(plan.packed_bytes), partial_sums = allocate(plan.partial_bytes);
  std::vector<uint8_t> alarms(op == Op::kBackwardWeight ? 1 : problem.batch);
  ToomCookArgs args{};
  args.operands = operands;
  args.packed_weight = packed_weight.get();
  args.partial_sums = partial_sums.get();
  args.alarms = alarms.data();
  const auto pass = [&](ToomCookPass kernel, int64_t units, double work) {
    for_ranges(units, work, [&](int64_t begin, int64_t end) {
      kernel(op, problem, plan, args, scratch_memory(plan.scratch_bytes), begin, end);
    });
  };
  if (op == Op::kBackwardWeight) {
    pass(toom_cook.sum_products, plan.units, plan.multiplications);
    add_chunks(kernels, problem, plan.reduction_chunks, operands, partial_sums.get());
    return alarms;
  }
  const int64_t tiles = problem.groups * plan.row_tiles;
  for (args.first_tile = 0; args.first_tile < tiles; args.first_tile += plan.pass_tiles) {
    args.tile_count = std::min(plan.pass_tiles, tiles - args.first_tile);
    const double share = double(args.tile_count) / tiles;
    pass(toom_cook.transform_weights, args.tile_count, plan.packed_bytes);
    pass(toom_cook.multiply_blocks, plan.units * args.tile_count, share * plan.multiplications);
  }
  return alarms;
}

// The same by the matrix unit.
std::vector<uint8_t> run_amx(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const AmxPlan& plan, const Operands& operands) {
  const AmxKernels& amx = kernels.run.amx;
  const at::DataPtr packed_weight = allocate(plan.packed_bytes), partial_sums = allocate(plan.partial_bytes);
  std::vector<uint8_t> alarms(op == Op::kBackwardWeight ? 1 : problem.batch);
  AmxArgs args{};
  args.operands = operands;
  args.packed_weight = packed_weight.get();
  args.partial_sums = partial_sums.get();
  args.alarms = alarms.data();
  const auto pass = [&](AmxPass kernel, int64_t units, double work) {
    for_ranges(units, work, [&](int64_t begin, int64_t end) {
      kernel(op, problem, plan, args, scratch_memory(plan.scratch_bytes), begin, end);
    });
  };
  const double work = plan.cycles * kernels.tile.lanes;  // backward_weight: of the batch
  if (op == Op::kBackwardWeight) {
    pass(amx.sum_products, plan.units, work);
    add_chunks(kernels, problem, plan.reduction_chunks, operands, partial_sums.get());
    return alarms;
  }
  const int64_t tiles = problem.groups * plan.row_tiles;
  for (args.first_tile = 0; args.first_tile < tiles; args.first_tile += plan.pass_tiles) {
    args.tile_count = std::min(plan.pass_tiles, tiles - args.first_tile);
    if (plan.all_packed) pass(amx.pack_weights, args.tile_count, plan.packed_bytes);
    pass(amx.multiply_blocks, plan.units * args.tile_count, work * problem.batch * args.tile_count / tiles);
  }
  return alarms;
}

// The same of an input gradient of a stride.
std::vector<uint8_t> run_amx_by_class(const Kernels& kernels, const Conv1dProblem& problem, const Operands& operands) {
  std::vector<uint8_t> alarms(problem.batch);
  const int64_t element = kernels.run.sizes.storage;
  for (int64_t i = 0; i < amx_classes(problem); ++i) {
    const AmxClass part = amx_class(problem, i);
    if (part.problem.in_length == 0) continue;
    Operands of_class = operands;
    of_class.weight = static_cast<const char*>(operands.weight) + part.weight_offset * element;
    of_class.result = static_cast<char*>(operands.result) + part.result_offset * element;
    const AmxPlan plan = make_amx_plan(
        Op::kBackwardInput, part.problem, kernels.run.sizes, kernels.tile, cache_sizes(), Use::kWherePossible);
    const std::vector<uint8_t> of_part = run_amx(Op::kBackwardInput, kernels, part.problem, plan, of_class);
    for (size_t n = 0; n < alarms.size(); ++n) alarms[n] |= of_part[n];
  }
  return alarms;
}

// By another algorithm than the direct one. Returns the alarms.
std::vector<uint8_t> run_indirect(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const Plans& plans, const Operands& operands) {
  switch (plans.family) {
    case Family::kDirect:
      break;
    case Family::kFft:
      return run_fft(op, kernels, problem, plans.fft, operands);
    case Family::kToomCook:
      return run_toom_cook(op, kernels, problem, plans.toom_cook, operands);
    case Family::kAmx:
      if (op == Op::kBackwardInput && problem.stride > 1) return run_amx_by_class(kernels, problem, operands);
      return run_amx(op, kernels, problem, plans.amx, operands);
  }
  return {};
}

// Computes the batch items that have an alarm again. at(n): the arguments for batch item n.
template <class ArgsAt>
void mend_items(const Kernels& kernels, Conv1dProblem problem, const std::vector<uint8_t>& alarms, const ArgsAt& at) {
  problem.batch = 1;
  for (size_t n = 0; n < alarms.size(); ++n) {
    if (alarms[n]) run_direct(kernels, problem, at(int64_t(n)));
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

// Large results, too: the allocator returns large blocks to the system, so that each call touches them for the first
// time.
at::Tensor in_huge_pages(at::Tensor result) {
  advise_huge_pages(result.mutable_data_ptr(), int64_t(result.nbytes()));
  return result;
}

at::Tensor conv1d_cpu(
    const Geometry<int64_t>& geometry, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias) {
  if (!is_covered(input, weight)) return fallback::conv1d(geometry, input, weight, bias);
  Conv1dProblem problem = check_conv1d(geometry, input, weight, bias);
  if (problem.in_channels == 0) return fallback::conv1d(geometry, input, weight, bias);
  const at::Tensor output =
      in_huge_pages(empty_result({problem.batch, problem.out_channels, problem.out_length}, input.options(), weight));
  problem.input = strides(input);
  problem.output = strides(output);
  problem.weight = weight_strides(weight);
  if (output.numel() == 0) return output;
  const Kernels kernels = kernels_for(at::toRealValueType(input.scalar_type()));
  if (!input.is_complex()) {
    const at::Tensor bias_row = bias.has_value() && bias->defined() ? bias->contiguous() : at::Tensor();
    run(kernels, problem,
        ForwardArgs{
            input.const_data_ptr(), weight.const_data_ptr(), bias_row.defined() ? bias_row.const_data_ptr() : nullptr,
            output.mutable_data_ptr(), nullptr});
    return output;
  }
  const at::Tensor bias_rows = bias_parts(bias);
  multiply_parts(problem, input, weight, [&](const Conv1dProblem& real, int in_part, int weight_part, int out_part) {
    // The first product of each part brings the bias, which is subtracted along with a product that is.
    at::Tensor bias_row;
    if (bias_rows.defined() && !real.accumulate) bias_row = real.negate ? -bias_rows[out_part] : bias_rows[out_part];
    run_direct(
        kernels, real,
        ForwardArgs{
            part(input, in_part), part(weight, weight_part), bias_row.defined() ? bias_row.const_data_ptr() : nullptr,
            mutable_part(output, out_part), nullptr});
  });
  return output;
}

at::Tensor conv1d_backward_input_cpu(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& weight, int64_t in_length) {
  if (!is_covered(grad_output, weight))
    return fallback::conv1d_backward_input(geometry, grad_output, weight, in_length);
  Conv1dProblem problem = check_conv1d_backward_input(geometry, grad_output, weight, in_length);
  const std::array<int64_t, 3> sizes{problem.batch, problem.in_channels, problem.in_length};
  const at::Tensor grad_input = in_huge_pages(
      grad_output.is_complex() ? at::empty(sizes, grad_output.options())
                               : empty_result(sizes, grad_output.options(), weight));
  problem.input = strides(grad_input);
  problem.output = strides(grad_output);
  problem.weight = weight_strides(weight);
  if (grad_input.numel() == 0) return grad_input;
  if (leaves_gaps(problem)) grad_input.zero_();
  const Kernels kernels = kernels_for(at::toRealValueType(grad_output.scalar_type()));
  if (!grad_output.is_complex()) {
    run(kernels, problem,
        BackwardInputArgs{
            grad_output.const_data_ptr(), weight.const_data_ptr(), grad_input.mutable_data_ptr(), nullptr});
    return grad_input;
  }
  multiply_parts(
      problem, grad_output, weight, [&](const Conv1dProblem& real, int grad_part, int weight_part, int part_) {
        run_direct(
            kernels, real,
            BackwardInputArgs{
                part(grad_output, grad_part), part(weight, weight_part), mutable_part(grad_input, part_), nullptr});
      });
  return grad_input;
}

at::Tensor conv1d_backward_weight_cpu(
    const Geometry<int64_t>& geometry, const at::Tensor& grad_output, const at::Tensor& input, int64_t kernel_size) {
  if (!is_covered(grad_output, input))
    return fallback::conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  Conv1dProblem problem = check_conv1d_backward_weight(geometry, grad_output, input, kernel_size);
  at::Tensor grad_weight = in_huge_pages(
      at::empty({problem.out_channels, problem.in_channels / problem.groups, kernel_size}, input.options()));
  problem.input = strides(input);
  problem.output = strides(grad_output);
  problem.weight = weight_strides(grad_weight);
  if (input.numel() == 0 || grad_weight.numel() == 0) return grad_weight.zero_();
  const Kernels kernels = kernels_for(at::toRealValueType(input.scalar_type()));
  if (!input.is_complex()) {
    run(kernels, problem,
        BackwardWeightArgs{
            grad_output.const_data_ptr(), input.const_data_ptr(), grad_weight.mutable_data_ptr(), nullptr});
    return grad_weight;
  }
  multiply_parts(problem, grad_output, input, [&](const Conv1dProblem& real, int grad_part, int in_part, int part_) {
    run_direct(
        kernels, real,
        BackwardWeightArgs{
            part(grad_output, grad_part), part(input, in_part), mutable_part(grad_weight, part_), nullptr});
  });
  return grad_weight;
}

at::Tensor conv1d_backward_bias_cpu(const at::Tensor& grad_output) {
  if (!is_covered(grad_output, grad_output)) return fallback::conv1d_backward_bias(grad_output);
  Conv1dProblem problem = check_conv1d_backward_bias(grad_output);
  problem.output = strides(grad_output);
  const Kernels kernels = kernels_for(at::toRealValueType(grad_output.scalar_type()));
  if (!grad_output.is_complex()) {
    const at::Tensor grad_bias = at::empty({problem.out_channels}, grad_output.options());
    run(kernels, problem, BackwardBiasArgs{grad_output.const_data_ptr(), grad_bias.mutable_data_ptr()});
    return grad_bias;
  }
  view_parts(problem);
  const at::Tensor parts =
      at::empty({2, problem.out_channels}, grad_output.options().dtype(at::toRealValueType(grad_output.scalar_type())));
  for (int index : {0, 1}) {
    problem.negate = index == 1 && grad_output.is_conj();
    run(kernels, problem, BackwardBiasArgs{part(grad_output, index), parts[index].mutable_data_ptr()});
  }
  return at::complex(parts[0], parts[1]);
}

TORCH_LIBRARY_IMPL(conv1d_ext, CPU, m) {
  m.impl("conv1d", Flat<&conv1d_cpu>::call);
  m.impl("conv1d_backward_input", Flat<&conv1d_backward_input_cpu>::call);
  m.impl("conv1d_backward_weight", Flat<&conv1d_backward_weight_cpu>::call);
  m.impl("conv1d_backward_bias", conv1d_backward_bias_cpu);
}

}  // namespace
}  // namespace conv1d_ext
