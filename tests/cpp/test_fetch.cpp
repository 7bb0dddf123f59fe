// What is fetched ahead: kernels whose prefetches are recorded, all others as they are. A kernel that fetches too
// little, or something else, computes the same numbers, only more slowly.
#include <cstdint>
#include <set>

#include "check.h"
#include "layer.h"

namespace {

std::set<uintptr_t> fetched;  // cache lines

uintptr_t line_of(const void* address) { return reinterpret_cast<uintptr_t>(address) / 64; }
inline void record(const void* address) { fetched.insert(line_of(address)); }

}  // namespace

#define __builtin_prefetch(address, ...) ::record(address)  // NOLINT(bugprone-reserved-identifier): the compiler's
#include "cpu/vec_portable.h"
// The vocabulary first: the kernels are written in it.
#include "cpu/kernels_inl.h"
#undef __builtin_prefetch

using namespace conv1d_ext;

namespace {

// Rows that begin anywhere in a line, in the given order: the address, the pitch from row to row, how many.
void test_next_rows() {
  alignas(64) static const char memory[64 * 64] = {};
  for (const int64_t pitch : {192, 200, 640}) {
    for (const int64_t begin : {0, 4, 60}) {
      for (const int64_t tiles : {1, 3, 5, 200}) {
        constexpr int64_t kRows = 5, kCount = 40, kSteps = 7;  // 160 bytes of each row
        NextRows next(
            reinterpret_cast<const float*>(memory + begin), pitch / int64_t{sizeof(float)}, kRows, kCount, tiles);
        fetched.clear();
        for (int64_t tile = 0; tile < tiles; ++tile) {
          CHECK(tile == 0 || next.any_left() || tiles > 15);
          if (tile % 3 == 1 && tile + 1 < tiles) {  // this one can't
            next.pass(1);
            continue;
          }
          const NextRows::Share share = next.take_share(1, kSteps, 100);
          CHECK(share.steps <= kSteps);
          for (int64_t step = 0; step < share.steps; ++step) next.fetch(share.lines);
        }
        int64_t missed = 0;
        for (int64_t row = 0; row < kRows; ++row) {
          for (int64_t i = 0; i < kCount; ++i) {
            missed += fetched.count(line_of(memory + begin + row * pitch + i * int64_t{sizeof(float)})) == 0;
          }
        }
        // What a last share leaves, and a line of rows that begin elsewhere in theirs.
        CHECK(missed <= (pitch % 64 == 0 ? 0 : kRows * 16) + (tiles == 1 ? 16 * 3 : 16));
      }
    }
  }
}

// The share of a tensor's lines that is fetched while an operator runs.
template <class Run>
double share_fetched(Fenced<float>& tensor, const Run& run) {
  fetched.clear();
  run();
  int64_t lines = 0, found = 0;
  for (uintptr_t line = line_of(tensor.begin()); line <= line_of(tensor.end() - 1); ++line, ++lines) {
    found += fetched.count(line);
  }
  return double(found) / double(lines);
}

void in_one_go(int64_t count, Memory, const Units& units) {
  if (count > 0) units(0, count);
}

// All that a thread reads but for its first block, which nothing comes before.
void test_operators(const Shape& shape, bool weight_gradient) {
  static const KernelTable table = make_kernel_table();
  const CacheSizes cache{48 << 10, 1 << 20};
  Layer<float> layer(table.float32, table.tile_float, make_problem(shape, false, false), cache, Flush::kBegin);
  const auto expect = [&](Op op, Fenced<float>& tensor, const auto& run) {
    const Plan plan = layer.plan(op);
    const double blocks =
        double(ceil_div(shape.batch, std::max<int64_t>(plan.batch_block, 1)) * plan.position_blocks * shape.groups);
    const double share = share_fetched(tensor, run), expected = 0.95 * (1 - 1 / blocks);
    if (share < expected) {
      std::fprintf(
          stderr, "%ld x %ld->%ld k %ld, operator %d, %s: %.2f of %.0f blocks\n", long(shape.batch),
          long(shape.in_channels), long(shape.out_channels), long(shape.kernel_size), int(op),
          algorithm_name(plan.algorithm), share, blocks);
    }
    CHECK(share >= expected);
  };
  Fenced<float> output(layer.output.size(), Flush::kBegin), grad_input(layer.input.size(), Flush::kBegin),
      grad_weight(layer.weight.size(), Flush::kBegin);
  expect(Op::kForward, layer.input, [&] { layer.forward(output, in_one_go); });
  expect(Op::kBackwardInput, layer.output, [&] { layer.backward_input(grad_input, in_one_go); });
  if (!weight_gradient) return;
  for (Fenced<float>* operand : {&layer.input, &layer.output}) {
    expect(Op::kBackwardWeight, *operand, [&] { layer.backward_weight(grad_weight, in_one_go); });
  }
}

}  // namespace

int main() {
  test_next_rows();
  constexpr auto kZeros = PaddingMode::kZeros;
  // batch, in_channels, in_length, out_channels, kernel_size, stride, padding, dilation, groups
  test_operators({1, 64, 4096, 64, 1, 1, 0, 0, 1, 1, kZeros}, true);
  test_operators({2, 64, 4100, 24, 1, 1, 0, 0, 1, 1, kZeros}, true);
  test_operators({2, 512, 1200, 20, 1, 1, 0, 0, 1, 1, kZeros}, true);  // in place, some channels at a time
  test_operators({1, 1024, 2000, 48, 1, 1, 0, 0, 1, 1, kZeros}, true);
  test_operators({1, 96, 4096, 40, 3, 1, 1, 1, 1, 1, kZeros}, true);   // by a panel
  test_operators({2, 256, 1000, 64, 3, 1, 1, 1, 1, 1, kZeros}, true);  // some channels at a time
  test_operators({1, 32, 8000, 2, 7, 1, 3, 3, 1, 1, kZeros}, false);   // few rows
  test_operators({2, 1, 8000, 64, 3, 1, 1, 1, 1, 1, kZeros}, false);   // input gradient by taps
  test_operators({2, 2, 8000, 48, 5, 2, 2, 2, 1, 1, kZeros}, false);
  test_operators({1, 64, 8000, 32, 3, 2, 1, 1, 1, 1, kZeros}, true);
  test_operators({1, 64, 8000, 64, 3, 1, 2, 2, 2, 4, kZeros}, true);
  test_operators({16, 64, 60, 48, 3, 1, 1, 1, 1, 1, kZeros}, true);  // items side by side
  test_operators({1, 48, 8000, 48, 5, 1, 4, 4, 2, 1, PaddingMode::kReflect}, true);
  return failures();
}
