// The split of the work, for every kernel of one instruction set (the argument): units that run at the same time do not
// meet in memory, and no deal of them changes a bit.
//
// Two proofs, since either has a gap. ThreadSanitizer (the preset "threads") sees every plain load and store, of
// vectors too, but not the masked ones of AVX2 and AVX-512. Each unit alone shows what a unit changes, and that it
// needs nothing that another one of its pass has written; what it might write back as it was, it does not show, and a
// masked store does not do that.
#include <cstring>
#include <thread>

#include "check.h"
#include "layer.h"

using namespace conv1d_ext;

namespace {

void in_one_go(int64_t count, Memory, const Units& units) {
  if (count > 0) units(0, count);
}

void on_threads(int64_t count, Memory, const Units& units) {
  constexpr int64_t kThreads = 4;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < kThreads; ++i) {
    const int64_t begin = part_begin(count, kThreads, i), end = part_begin(count, kThreads, i + 1);
    if (begin < end) threads.emplace_back(units, begin, end);
  }
  for (std::thread& thread : threads) thread.join();
}

// Every unit starts from what the memory held before the pass. What they change must be disjoint, and all of it
// together what the whole pass makes.
[[maybe_unused]] void each_alone(int64_t count, Memory shared, const Units& units) {
  const std::vector<char> before(shared.data, shared.data + shared.bytes);
  in_one_go(count, shared, units);
  const std::vector<char> after(shared.data, shared.data + shared.bytes);
  std::vector<char> together = before;
  bool disjoint = true;
  constexpr int64_t kLine = 256;  // compared at once, for speed
  for (int64_t unit = 0; unit < count; ++unit) {
    std::copy(before.begin(), before.end(), shared.data);
    units(unit, unit + 1);
    for (int64_t line = 0; line < shared.bytes; line += kLine) {
      const int64_t end = std::min(line + kLine, shared.bytes);
      if (std::memcmp(shared.data + line, before.data() + line, end - line) == 0) continue;
      for (int64_t i = line; i < end; ++i) {
        if (shared.data[i] == before[i]) continue;
        disjoint = disjoint && together[i] == before[i];
        together[i] = shared.data[i];
      }
    }
  }
  CHECK(disjoint);
  CHECK(together == after);
  std::copy(after.begin(), after.end(), shared.data);
}

#ifdef __SANITIZE_THREAD__  // the other proof needs no sanitizer, and time
const Deal kDeals[] = {on_threads};
const std::vector<Indirect> kTested{std::begin(kIndirect), std::end(kIndirect)};
#else
const Deal kDeals[] = {on_threads, each_alone};
// Of the transforms each unit alone takes long: much scratch memory.
const std::vector<Indirect> kTested{{Family::kAmx}};
#endif

// `direct`: the direct kernels are tested, too.
template <class T>
void test_layer(Layer<T>& layer, bool direct) {
  const auto check_run = [&](const auto& run, int64_t size) {
    Fenced<T> expected(size, Flush::kEnd);
    run(expected, in_one_go);
    for (const Deal& deal : kDeals) {
      Fenced<T> result(size, Flush::kEnd);
      run(result, deal);
      CHECK(std::memcmp(result.data(), expected.data(), result.bytes()) == 0);
    }
  };
  const auto check = [&](auto op, int64_t size) {
    const auto run = [&](Fenced<T>& result, const Deal& deal) {
      if (layer.p.accumulate) layer.randomize(result, 9);
      (layer.*op)(result, deal);
    };
    check_run(run, size);
  };
  if (direct) {
    check(&Layer<T>::forward, layer.output.size());
    check(&Layer<T>::backward_input, layer.input.size());
    check(&Layer<T>::backward_weight, layer.weight.size());
    check(&Layer<T>::backward_bias, layer.bias.size());
  }
  const auto check_indirect = [&](Op op, int64_t size) {
    for (const Indirect by : kTested) {
      const auto run = [&](Fenced<T>& result, const Deal& deal) { layer.indirect(by, op, result, deal); };
      if (layer.tests(by, op)) check_run(run, size);
    }
  };
  check_indirect(Op::kForward, layer.output.size());
  check_indirect(Op::kBackwardInput, layer.input.size());
  check_indirect(Op::kBackwardWeight, layer.weight.size());
}

}  // namespace

int main(int argc, char** argv) {
  Isa isa{};
  if (argc != 2 || !parse_isa(argv[1], &isa)) return 2;
  if (!isa_supported(isa)) return 77;
  for (const Shape& shape : kShapes) {
    if (shape.batch == 0) continue;
    for (const bool accumulate : {false, true}) {
      const Conv1dProblem problem = make_problem(shape, accumulate, accumulate);
      for (const CacheSizes cache : {CacheSizes{}, kTinyCaches}) {
        for_each_type(isa, [&](const KernelSet& kernels, const TileShape& tile, auto type) {
          Layer<decltype(type)> layer(kernels, tile, problem, cache, Flush::kEnd);
          test_layer(layer, isa != Isa::kAmx);  // those of AVX-512
        });
      }
    }
  }
  return failures() > 0;
}
