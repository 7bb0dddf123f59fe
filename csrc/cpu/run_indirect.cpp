#include "cpu/run_indirect.h"

#include "cpu/parallel.h"

namespace conv1d_ext {
namespace {

// Through the Fourier transform: its memory, and its passes.
std::vector<uint8_t> run_fft(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const FftPlan& plan, const Operands& operands) {
  FftArgs args{};
  args.operands = operands;
  const int64_t blocks = problem.batch * plan.phases * plan.blocks;
  // Two units for each thread, where the pass of the blocks has so many. backward_weight's units are rows.
  const int64_t units = op == Op::kBackwardWeight ? 1 : int64_t{2} * at::get_num_threads();
  const int64_t groups = std::clamp((units + blocks - 1) / blocks, plan.fewest_groups, plan.most_groups);
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

// Through Toom-Cook's algorithm or by the matrix unit. `work`: multiply-adds, or what takes as long.
template <class TiledPlan>
std::vector<uint8_t> run_tiled(
    Op op, const Kernels& kernels, const TiledKernels<TiledPlan>& tiled, const Conv1dProblem& problem,
    const TiledPlan& plan, const Operands& operands, double work) {
  const at::DataPtr packed_weight = allocate(plan.packed_bytes), partial_sums = allocate(plan.partial_bytes);
  std::vector<uint8_t> alarms(op == Op::kBackwardWeight ? 1 : problem.batch);
  TiledArgs args{operands, packed_weight.get(), partial_sums.get(), alarms.data()};
  const auto pass = [&](auto kernel, int64_t units, double operations) {
    for_ranges(units, operations, [&](int64_t begin, int64_t end) {
      kernel(op, problem, plan, args, scratch_memory(plan.scratch_bytes), begin, end);
    });
  };
  if (op == Op::kBackwardWeight) {
    pass(tiled.sum_products, plan.units, work);
    add_chunks(kernels, problem, plan.reduction_chunks, operands, partial_sums.get());
    return alarms;
  }
  const int64_t tiles = problem.groups * plan.row_tiles;
  for (; args.first_tile < tiles; args.first_tile += plan.pass_tiles) {
    args.tile_count = std::min(plan.pass_tiles, tiles - args.first_tile);
    if (plan.packed_bytes > 0) pass(tiled.pack_weights, args.tile_count, plan.packed_bytes);
    pass(tiled.multiply_blocks, plan.units * args.tile_count, work * args.tile_count / tiles);
  }
  return alarms;
}

std::vector<uint8_t> run_amx(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const AmxPlan& plan, const Operands& operands) {
  const int64_t items = op == Op::kBackwardWeight ? 1 : problem.batch;  // that plan.cycles are of
  const double work = plan.cycles * kernels.tile.lanes * items;
  return run_tiled(op, kernels, kernels.run.amx, problem, plan, operands, work);
}

// An input gradient of a stride by the matrix unit.
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

}  // namespace

std::vector<uint8_t> run_indirect(
    Op op, const Kernels& kernels, const Conv1dProblem& problem, const Plans& plans, const Operands& operands) {
  switch (plans.family) {
    case Family::kDirect:
      break;
    case Family::kFft:
      return run_fft(op, kernels, problem, plans.fft, operands);
    case Family::kToomCook:
      return run_tiled(
          op, kernels, toom_cook_kernels(kernels.run, plans.toom_cook), problem, plans.toom_cook, operands,
          plans.toom_cook.multiplications);
    case Family::kAmx:
      if (op == Op::kBackwardInput && problem.stride > 1) return run_amx_by_class(kernels, problem, operands);
      return run_amx(op, kernels, problem, plans.amx, operands);
  }
  return {};
}

}  // namespace conv1d_ext
