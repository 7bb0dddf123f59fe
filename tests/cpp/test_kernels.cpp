// Every kernel of one instruction set (the argument) against a plain loop in double, over the list of shapes: all
// storage types, two memory layouts, results stored and accumulated, large and tiny blocks, buffers fenced at both
// ends.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "layer.h"

using namespace conv1d_ext;

namespace {

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

// Half a unit of the denormals, where sums of a few products can come so low.
template <class T>
constexpr double kHalfDenormal = 0;
template <>
constexpr double kHalfDenormal<Float16> = 0x1p-25;

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

// The results of all operators, but for the bias and what they are added to.
struct ExactResults {
  std::vector<Exact> output, grad_input, grad_weight, grad_bias;
};

template <class T>
ExactResults exact_results(Layer<T>& layer) {
  const Conv1dProblem& p = layer.p;
  ExactResults exact;
  exact.output.resize(layer.output.size());
  exact.grad_input.resize(layer.input.size());
  exact.grad_weight.resize(layer.weight.size());
  exact.grad_bias.resize(layer.bias.size());
  for_each_product(p, [&](int64_t i, int64_t o, int64_t w) {
    const double input = widen(layer.input[i]), grad_output = widen(layer.output[o]), weight = widen(layer.weight[w]);
    exact.output[o].add(input * weight);
    exact.grad_input[i].add(grad_output * weight);
    exact.grad_weight[w].add(grad_output * input);
  });
  for (int64_t o = 0; o < layer.output.size(); ++o) {
    exact.grad_bias[o / p.output.channel % p.out_channels].add(widen(layer.output[o]));
  }
  return exact;
}

// Three ranges, the last first, as threads may do it.
void in_three_ranges(int64_t count, Memory, const Units& units) {
  for (int64_t third = 2; third >= 0; --third) {
    const int64_t begin = count * third / 3, end = count * (third + 1) / 3;
    if (begin < end) units(begin, end);
  }
}

// Compares what `run` makes with the sums.
template <class T, class Run>
void check(Layer<T>& layer, const char* op, std::vector<Exact> exact, Run run) {
  const Conv1dProblem& p = layer.p;
  Fenced<T> result(exact.size(), layer.flush);
  if (p.accumulate) layer.randomize(result, 9);
  for (int64_t i = 0; i < result.size(); ++i) {
    if (p.negate) exact[i].sum = -exact[i].sum;
    if (p.accumulate) exact[i].add(widen(result[i]));
  }
  (layer.*run)(result, in_three_ranges);

  // Each addition rounds, and the result is stored a few times (once for each part of the padding).
  constexpr double kAdd = std::numeric_limits<Acc<T>>::epsilon(), kStore = 4 * kStorageEpsilon<T>;
  int64_t wrong = 0;
  for (int64_t i = 0; i < result.size(); ++i) {
    const double tolerance = (kAdd * exact[i].terms + kStore) * exact[i].magnitude + kHalfDenormal<T>;
    wrong += !(std::abs(widen(result[i]) - exact[i].sum) <= tolerance);  // NaN is wrong
  }
  const bool intact = result.intact() && layer.intact(), slow = layer.met_denormals();
  if (wrong == 0 && intact && !slow) return;
  ++failures();
  std::fprintf(
      stderr, "%s, %d-byte type: %d of %d wrong%s%s: N=%d C_in=%d L_in=%d C_out=%d K=%d stride=%d%s%s%s\n", op,
      int(sizeof(T)), int(wrong), int(result.size()), intact ? "" : ", fence broken",
      slow ? ", denormal numbers met" : "", int(p.batch), int(p.in_channels), int(p.in_length), int(p.out_channels),
      int(p.kernel_size), int(p.stride), p.input.channel == 1 ? ", channels last" : "",
      p.accumulate ? ", accumulated" : "", layer.cache.l2 < CacheSizes{}.l2 ? ", tiny blocks" : "");
}

template <class T>
void test_layer(Layer<T>& layer, const ExactResults& exact) {
  check(layer, "backward_bias", exact.grad_bias, &Layer<T>::backward_bias);
  if (layer.p.batch == 0) return;  // conv1d_cpu.cpp asks no kernel for the others
  std::vector<Exact> output = exact.output;
  for (int64_t o = 0; o < layer.output.size() && !layer.p.accumulate; ++o) {
    output[o].add(widen(layer.bias[o / layer.p.output.channel % layer.p.out_channels]));
  }
  check(layer, "forward", std::move(output), &Layer<T>::forward);
  check(layer, "backward_input", exact.grad_input, &Layer<T>::backward_input);
  check(layer, "backward_weight", exact.grad_weight, &Layer<T>::backward_weight);
}

// Errors of the Fourier transform are relative to the norm of a whole block. They grow with the root of the number of
// roundings: three for each of 2 * 18 levels, and one for each source row that is added up. Those of Toom-Cook's
// algorithm are some times larger than those of the sums at reduced precision (backends.py), else as large, and so are
// the matrix unit's.
template <class T>
void check_indirect(Layer<T>& layer, Indirect by, Op op, const std::vector<Exact>& exact) {
  if (!layer.tests(by, op)) return;
  Fenced<T> result(exact.size(), layer.flush);
  layer.indirect(by, op, result, in_three_ranges);
  double largest = 0, error = 0, terms = 0;
  for (int64_t i = 0; i < result.size(); ++i) {
    const double e = std::abs(widen(result[i]) - exact[i].sum);
    if (!(e <= error)) error = e;  // NaN is an error
    largest = std::max(largest, std::abs(exact[i].sum));
    terms = std::max(terms, double(exact[i].terms));
  }
  const bool intact = result.intact() && layer.intact();
  constexpr double kAdd = std::numeric_limits<Acc<T>>::epsilon();
  if (error <= ((12 + 2 * std::sqrt(terms)) * kAdd + kStorageEpsilon<T>)*largest && intact) return;
  ++failures();
  const Conv1dProblem& p = layer.p;
  const char* const names[] = {
      "direct", "FFT", by.reduced_precision ? "Toom-Cook by fours" : "Toom-Cook", "matrix unit"};
  std::fprintf(
      stderr, "operator %d by %s, %d-byte type: off by %g of %g%s: N=%d C_in=%d L_in=%d C_out=%d K=%d stride=%d%s%s\n",
      int(op), names[int(by.family)], int(sizeof(T)), error, largest, intact ? "" : ", fence broken", int(p.batch),
      int(p.in_channels), int(p.in_length), int(p.out_channels), int(p.kernel_size), int(p.stride),
      p.input.channel == 1 ? ", channels last" : "", layer.cache.l2 < CacheSizes{}.l2 ? ", tiny blocks" : "");
}

template <class T>
void test_indirect(Layer<T>& layer, const ExactResults& exact) {
  std::vector<Exact> output = exact.output;
  for (int64_t o = 0; o < layer.output.size(); ++o) {
    output[o].add(widen(layer.bias[o / layer.p.output.channel % layer.p.out_channels]));
  }
  for (const Indirect by : kIndirect) {
    check_indirect(layer, by, Op::kForward, output);
    if (layer.p.padding_mode == PaddingMode::kZeros) {
      check_indirect(layer, by, Op::kBackwardInput, exact.grad_input);
    }
    check_indirect(layer, by, Op::kBackwardWeight, exact.grad_weight);
  }
}

// The plans that the shapes have met.
struct Met {
  Op op;
  Plan plan;
  int64_t tile_columns;
  bool by_matrix_unit;
};

// A list of shapes that leaves an algorithm out, or a way to it, proves nothing of it.
void check_plans(const std::vector<Met>& plans) {
  const auto met = [&](Op op, auto condition) {
    return std::any_of(plans.begin(), plans.end(), [&](const Met& m) { return m.op == op && condition(m.plan); });
  };
  const auto uses = [](Algorithm algorithm) { return [=](const Plan& plan) { return plan.algorithm == algorithm; }; };
  for (const Op op : {Op::kForward, Op::kBackwardInput}) {
    for (const PackWeight way : {PackWeight::kNo, PackWeight::kTiles, PackWeight::kAll}) {
      CHECK(met(op, [&](const Plan& p) { return p.algorithm == Algorithm::kPanel && p.pack_weight == way; }));
    }
    CHECK(met(op, uses(Algorithm::kDepthwise)));
    CHECK(met(op, uses(Algorithm::kColumns)));
    for (const bool fetch : {false, true}) {
      CHECK(met(op, [&](const Plan& p) { return p.in_place && p.fetch_rows == fetch; }));
    }
    for (const bool direct : {false, true}) CHECK(met(op, [&](const Plan& p) { return p.direct == direct; }));
    CHECK(std::any_of(plans.begin(), plans.end(), [&](const Met& m) {  // items side by side that each fill a tile
      return m.op == op && m.plan.algorithm == Algorithm::kPanel && m.plan.batch_block > 1 &&
             m.plan.position_block >= m.tile_columns;
    }));
  }
  CHECK(met(Op::kBackwardWeight, uses(Algorithm::kColumns)));
  CHECK(met(Op::kBackwardInput, uses(Algorithm::kTaps)));
  CHECK(met(Op::kBackwardInput, [](const Plan& p) { return p.edge_units > 0; }));
  for (const Algorithm algorithm : {Algorithm::kPanel, Algorithm::kDot, Algorithm::kDepthwise}) {
    for (const bool in_parts : {false, true}) {
      CHECK(met(Op::kBackwardWeight, [&](const Plan& p) {
        return p.algorithm == algorithm && (p.reduction_chunks > 1) == in_parts;
      }));
    }
  }
  for (const Op op : {Op::kForward, Op::kBackwardInput, Op::kBackwardWeight}) {
    CHECK(met(op, [](const Plan& p) { return p.batch_block > 1; }));
    CHECK(met(op, [](const Plan& p) { return p.position_blocks > 1; }));
  }
}

}  // namespace

int main(int argc, char** argv) {
  Isa isa{};
  if (argc != 2 || !parse_isa(argv[1], &isa)) return 2;
  if (!isa_supported(isa)) return 77;
  std::vector<Met> plans;
  for (const Shape& shape : kShapes) {
    for (const bool channels_last : {false, true}) {
      for_each_type(isa, [&](const KernelSet& kernels, const TileShape& tile, auto type) {
        const int64_t tile_columns = tile.accumulators / tile.rows * tile.lanes;
        ExactResults exact;
        for (const bool accumulate : {false, true}) {
          const Conv1dProblem problem = make_problem(shape, channels_last, accumulate);
          for (const CacheSizes cache : {CacheSizes{}, kTinyCaches}) {
            for (const Flush flush : {Flush::kBegin, Flush::kEnd}) {
              Layer<decltype(type)> layer(kernels, tile, problem, cache, flush);
              if (exact.grad_bias.empty()) exact = exact_results(layer);
              if (isa != Isa::kAmx) test_layer(layer, exact);  // those of AVX-512
              if (shape.batch == 0) continue;
              // One flush each: it takes long.
              if (!accumulate && (flush == Flush::kEnd) == channels_last) test_indirect(layer, exact);
              for (const Op op : {Op::kForward, Op::kBackwardInput, Op::kBackwardWeight}) {
                plans.push_back({op, layer.plan(op), tile_columns, layer.tests({Family::kAmx}, op)});
              }
            }
          }
        }
      });
    }
  }
  if (isa == Isa::kAmx) {
    for (const Op op : {Op::kForward, Op::kBackwardInput, Op::kBackwardWeight}) {
      CHECK(std::any_of(plans.begin(), plans.end(), [&](const Met& m) { return m.op == op && m.by_matrix_unit; }));
    }
  } else if (isa != Isa::kAvx512Bf16) {
    check_plans(plans);
  }
  return failures() > 0;
}
