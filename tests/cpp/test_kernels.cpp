// Every kernel of one instruction set (the argument) against a plain loop in double, over a list of small shapes: all
// storage types, two memory layouts, results stored and accumulated, large and tiny blocks, in fenced buffers.
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/scalar_inl.h"
#include "fenced.h"

using namespace conv1d_ext;

namespace {

struct Shape {
  int64_t batch, in_channels, in_length, out_channels, kernel_size;
  int64_t stride = 1, padding_left = 0, padding_right = 0, dilation = 1, groups = 1;
  PaddingMode mode = PaddingMode::kZeros;
};

// Channel counts, lengths and kernels that fill no tile or vector; each of the geometry's features; single elements.
const Shape kShapes[] = {
    {1, 1, 1, 1, 1},
    {2, 3, 20, 4, 3},
    {1, 17, 47, 33, 5},
    {2, 16, 40, 24, 3, 1, 1, 1},
    {2, 17, 33, 7, 1},
    {1, 40, 9, 8, 9},
    {2, 40, 4, 30, 3, 1, 1, 1},
    {9, 5, 7, 6, 3, 1, 1, 1},
    {2, 3, 4, 2, 9, 1, 4, 3},
    {1, 7, 50, 8, 5, 3, 2, 2},
    {2, 3, 40, 5, 2, 7, 1, 0},
    {1, 8, 70, 7, 5, 1, 12, 0, 3},
    {2, 3, 41, 5, 4, 2, 3, 3, 3},
    {1, 3, 67, 8, 4, 6, 5, 1, 4},
    {2, 8, 50, 8, 4, 1, 3, 0, 1, 8},
    {2, 9, 31, 21, 4, 2, 0, 0, 1, 3},
    {2, 3, 10, 4, 3, 1, 5, 9},
    {2, 3, 20, 4, 5, 1, 2, 2, 1, 1, PaddingMode::kReflect},
    {1, 4, 6, 5, 4, 2, 5, 3, 2, 1, PaddingMode::kReflect},
    {1, 6, 4, 8, 6, 3, 4, 9, 1, 2, PaddingMode::kReplicate},
    {1, 4, 5, 3, 4, 2, 5, 5, 3, 1, PaddingMode::kCircular},
    {2, 2, 300, 3, 16, 1, 7, 8},
};

Conv1dProblem make_problem(const Shape& s, bool channels_last, bool accumulate) {
  const int64_t padded = s.padding_left + s.in_length + s.padding_right;
  const int64_t out_length = (padded - s.dilation * (s.kernel_size - 1) - 1) / s.stride + 1;
  const auto strides = [&](int64_t channels, int64_t length) {
    return channels_last ? TensorStrides{channels * length, 1, channels} : TensorStrides{channels * length, length, 1};
  };
  const int64_t in_per_group = s.in_channels / s.groups;
  return {
      .batch = s.batch,
      .in_channels = s.in_channels,
      .out_channels = s.out_channels,
      .groups = s.groups,
      .in_length = s.in_length,
      .out_length = out_length,
      .kernel_size = s.kernel_size,
      .stride = s.stride,
      .dilation = s.dilation,
      .padding_left = s.padding_left,
      .padding_right = s.padding_right,
      .padding_mode = s.mode,
      .input = strides(s.in_channels, s.in_length),
      .output = strides(s.out_channels, out_length),
      .weight = {in_per_group * s.kernel_size, s.kernel_size, 1},
      .accumulate = accumulate,
      .negate = accumulate};  // complex products do either, and both at once
}

// The input position that stands at `i`, counted from the input's first; -1 for a zero.
int64_t source(const Conv1dProblem& p, int64_t i) {
  if (i >= 0 && i < p.in_length) return i;
  switch (p.padding_mode) {
    case PaddingMode::kZeros:
      return -1;
    case PaddingMode::kReflect:
      return i < 0 ? -i : 2 * (p.in_length - 1) - i;
    case PaddingMode::kReplicate:
      return i < 0 ? 0 : p.in_length - 1;
    case PaddingMode::kCircular:
      return (i + p.in_length) % p.in_length;
  }
  return -1;
}

// Calls f with the offsets in input, output and weight of each of the products whose sum is the convolution.
template <class F>
void for_each_product(const Conv1dProblem& p, const F& f) {
  const int64_t in_per_group = p.in_channels / p.groups, out_per_group = p.out_channels / p.groups;
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t oc = 0; oc < p.out_channels; ++oc) {
      for (int64_t ic = 0; ic < in_per_group; ++ic) {
        for (int64_t t = 0; t < p.out_length; ++t) {
          for (int64_t k = 0; k < p.kernel_size; ++k) {
            const int64_t from = source(p, t * p.stride + k * p.dilation - p.padding_left);
            if (from < 0) continue;
            const int64_t in_channel = oc / out_per_group * in_per_group + ic;
            f(n * p.input.batch + in_channel * p.input.channel + from * p.input.position,
              n * p.output.batch + oc * p.output.channel + t * p.output.position,
              oc * p.weight.out_channel + ic * p.weight.in_channel + k * p.weight.tap);
          }
        }
      }
    }
  }
}

// Half a unit in the last place.
template <class T>
constexpr double kStorageEpsilon = std::numeric_limits<T>::epsilon() / 2;
template <>
constexpr double kStorageEpsilon<BFloat16> = 0x1p-8;
template <>
constexpr double kStorageEpsilon<Float16> = 0x1p-11;

// A sum, and what bounds the rounding of any order of adding it up.
struct Exact {
  double sum = 0, magnitude = 0;
  int64_t terms = 0;

  void add(double term) {
    sum += term;
    magnitude += std::abs(term);
    ++terms;
  }
};

template <class T>
class KernelTest {
 public:
  KernelTest(const KernelSet& kernels, const TileShape& tile, const Conv1dProblem& problem, CacheSizes cache)
      : kernels_(kernels), tile_(tile), p_(problem), cache_(cache) {
    for (Fenced<T>* operand : {&input_, &weight_, &bias_, &output_}) randomize(*operand);
  }

  void forward() {
    std::vector<Exact> exact(output_.size());
    for_each_product(p_, [&](int64_t i, int64_t o, int64_t w) { exact[o].add(at(input_, i) * at(weight_, w)); });
    const bool with_bias = !p_.accumulate;
    for_each_output([&](int64_t oc, int64_t o) { with_bias ? exact[o].add(at(bias_, oc)) : void(); });
    check("forward", exact, [&](T* result) {
      const Plan plan = this->plan(Op::kForward);
      Fenced<char> packed(plan.packed_bytes, true);
      const ForwardArgs args{input_.data(), weight_.data(), with_bias ? bias_.data() : nullptr, result, packed.data()};
      pack(kernels_.pack_forward, plan, args);
      run(kernels_.forward, plan, args, plan.units);
      CHECK(packed.intact());
    });
  }

  void backward_input() {
    std::vector<Exact> exact(input_.size());
    for_each_product(p_, [&](int64_t i, int64_t o, int64_t w) { exact[i].add(at(output_, o) * at(weight_, w)); });
    check("backward_input", exact, [&](T* result) {
      for (int64_t i = 0; i < input_.size(); ++i) {
        if (!p_.accumulate && !meets_tap(i / p_.input.position % p_.in_length)) narrow(Accumulator{0}, &result[i]);
      }
      const Plan plan = this->plan(Op::kBackwardInput);
      Fenced<char> packed(plan.packed_bytes, true);
      const BackwardInputArgs args{output_.data(), weight_.data(), result, packed.data()};
      pack(kernels_.pack_backward_input, plan, args);
      run(kernels_.backward_input, plan, args, plan.units);
      run(kernels_.backward_input_edges, plan, args, plan.edge_units);
      kernels_.backward_input_ends(p_, args, 0, p_.batch * p_.in_channels);
      CHECK(packed.intact());
    });
  }

  void backward_weight() {
    std::vector<Exact> exact(weight_.size());
    for_each_product(p_, [&](int64_t i, int64_t o, int64_t w) { exact[w].add(at(output_, o) * at(input_, i)); });
    check("backward_weight", exact, [&](T* result) {
      const Plan plan = this->plan(Op::kBackwardWeight);
      Fenced<char> partial_sums(plan.partial_bytes, true);
      const BackwardWeightArgs args{output_.data(), input_.data(), result, partial_sums.data()};
      run(kernels_.backward_weight, plan, args, plan.units);
      if (plan.reduction_chunks > 1) kernels_.backward_weight_sum(p_, plan, args, 0, p_.out_channels);
      CHECK(partial_sums.intact());
    });
  }

  void backward_bias() {
    std::vector<Exact> exact(p_.out_channels);
    for_each_output([&](int64_t oc, int64_t o) { exact[oc].add(at(output_, o)); });
    check("backward_bias", exact, [&](T* result) {
      kernels_.backward_bias(p_, {output_.data(), result}, 0, p_.out_channels);
    });
  }

 private:
  using Accumulator = Acc<T>;

  static double at(Fenced<T>& buffer, int64_t i) { return widen(buffer[i]); }

  void randomize(Fenced<T>& buffer) {
    std::normal_distribution<Accumulator> normal;
    for (int64_t i = 0; i < buffer.size(); ++i) narrow(normal(random_), &buffer[i]);
  }

  template <class F>
  void for_each_output(const F& f) {
    for (int64_t n = 0; n < p_.batch; ++n) {
      for (int64_t oc = 0; oc < p_.out_channels; ++oc) {
        for (int64_t t = 0; t < p_.out_length; ++t) {
          f(oc, n * p_.output.batch + oc * p_.output.channel + t * p_.output.position);
        }
      }
    }
  }

  Plan plan(Op op) { return make_plan(op, p_, kernels_.sizes, tile_, cache_); }

  // Positions between the taps of all outputs are the caller's to fill with zeros.
  bool meets_tap(int64_t position) {
    for (int64_t k = 0; k < p_.kernel_size; ++k) {
      if ((position + p_.padding_left - k * p_.dilation) % p_.stride == 0) return true;
    }
    return false;
  }

  // The last tiles first, as threads may do it.
  template <class Kernel, class Args>
  void pack(Kernel kernel, const Plan& plan, const Args& args) {
    for (int64_t unit = p_.groups * plan.out_tiles - 1; unit >= 0 && plan.packed_bytes > 0; --unit) {
      kernel(p_, plan, args, unit, unit + 1);
    }
  }

  // The work in three ranges, as three threads would have it, each with scratch memory that holds NaN before.
  template <class Kernel, class Args>
  void run(Kernel kernel, const Plan& plan, const Args& args, int64_t units) {
    for (int64_t third = 0; third < 3; ++third) {
      const int64_t begin = units * third / 3, end = units * (third + 1) / 3;
      if (begin == end) continue;
      Fenced<char> scratch(plan.scratch_bytes, true);
      kernel(p_, plan, args, scratch.data(), begin, end);
      CHECK(scratch.intact());
    }
  }

  // Calls run(result) and compares with the sums.
  template <class Run>
  void check(const char* op, std::vector<Exact>& exact, const Run& run) {
    Fenced<T> result(exact.size(), false);
    if (p_.accumulate) randomize(result);
    for (int64_t i = 0; i < result.size(); ++i) {
      if (p_.negate) exact[i].sum = -exact[i].sum;
      if (p_.accumulate) exact[i].add(at(result, i));
    }
    run(result.data());

    // Each addition rounds, and the result is stored a few times (once for each part of the padding).
    constexpr double kAdd = std::numeric_limits<Accumulator>::epsilon(), kStore = 4 * kStorageEpsilon<T>;
    int64_t wrong = 0;
    for (int64_t i = 0; i < result.size(); ++i) {
      const double tolerance = (kAdd * exact[i].terms + kStore) * exact[i].magnitude;
      wrong += !(std::abs(at(result, i) - exact[i].sum) <= tolerance);  // NaN is wrong
    }
    const bool intact = result.intact() && input_.intact() && weight_.intact() && bias_.intact() && output_.intact();
    if (wrong == 0 && intact) return;
    ++failures();
    std::fprintf(
        stderr, "%s, %d-byte type: %d of %d wrong%s: N=%d C_in=%d L_in=%d C_out=%d K=%d stride=%d%s%s%s\n", op,
        int(sizeof(T)), int(wrong), int(result.size()), intact ? "" : ", fence broken", int(p_.batch),
        int(p_.in_channels), int(p_.in_length), int(p_.out_channels), int(p_.kernel_size), int(p_.stride),
        p_.input.channel == 1 ? ", channels last" : "", p_.accumulate ? ", accumulated" : "",
        cache_.l2 < CacheSizes{}.l2 ? ", tiny blocks" : "");
  }

  std::minstd_rand random_{1};
  const KernelSet& kernels_;
  const TileShape& tile_;
  const Conv1dProblem p_;
  const CacheSizes cache_;
  // Not aligned: kernels get whatever slice of memory a tensor is.
  Fenced<T> input_{p_.batch * p_.in_channels * p_.in_length, false};
  Fenced<T> weight_{p_.out_channels * (p_.in_channels / p_.groups) * p_.kernel_size, false};
  Fenced<T> bias_{p_.out_channels, false};
  Fenced<T> output_{p_.batch * p_.out_channels * p_.out_length, false};
};

template <class T>
void test_type(const KernelSet& kernels, const TileShape& tile) {
  // Caches of this size cut everything into many blocks.
  constexpr CacheSizes kTiny{512, 2048};
  for (const Shape& shape : kShapes) {
    for (const bool channels_last : {false, true}) {
      for (const bool accumulate : {false, true}) {
        for (const CacheSizes cache : {CacheSizes{}, kTiny}) {
          KernelTest<T> test(kernels, tile, make_problem(shape, channels_last, accumulate), cache);
          test.forward();
          test.backward_input();
          test.backward_weight();
          test.backward_bias();
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Isa isa{};
  if (argc != 2 || !parse_isa(argv[1], &isa)) return 2;
  if (!isa_supported(isa)) return 77;
  const KernelTable& table = kernel_table(isa);
  test_type<float>(table.float32, table.tile_float);
  test_type<double>(table.float64, table.tile_double);
  test_type<BFloat16>(table.bfloat16, table.tile_float);
  test_type<Float16>(table.float16, table.tile_float);
  return failures() > 0;
}
