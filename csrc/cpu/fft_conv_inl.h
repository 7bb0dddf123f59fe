// Convolution through the discrete Fourier transform, in the terms of fft_plan.h. forward and backward_input are two
// passes: the spectra of the weights, then blocks of the rows: transformed, multiplied, summed up over the source rows
// number by number, transformed back. backward_weight sums up the products of the spectra of all blocks, and transforms
// back once.
//
// A number that is not finite spoils its whole block: kernels set the alarm of its batch item, which the direct
// kernels then compute again (run.cpp). Sums that only overflow on the way end up there as well.
#pragma once

namespace conv1d_ext {
namespace {

template <class T>
class FftConv {
 public:
  FftConv(Op op, const Conv1dProblem& problem, const FftPlan& plan, const FftArgs& args, void* memory)
      : op_(op), p_(problem), plan_(plan), args_(args), fft_(plan.length, static_cast<const T*>(args.roots)) {
    Scratch scratch{static_cast<char*>(memory)};
    row_ = scratch.take<T>(plan.length);
    if (op == Op::kBackwardWeight) return;
    source_ = scratch.take<T>(spectra_stride(plan.block_tile * plan.source_rows) * plan.length);
    result_ = scratch.take<T>(spectra_stride(plan.block_tile * plan.row_block) * plan.length);
  }

  // Work units: [group of the pass][row of the pass][source row].
  void transform_weights(int64_t begin, int64_t end) const {
    // Sums over later elements of the source, as in the forward pass, take the conjugate; the factor M is taken out.
    const bool forward = op_ == Op::kForward;
    const T sign = forward ? -1 : 1, scale = T{2} / T(plan_.length);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t source_row = unit % sources(), index = unit / sources();
      const int64_t g = index / rows(), group = args_.first_group + g, row = index % rows();
      const Taps taps = forward ? taps_of(group, args_.first_row + row, source_row)
                                : taps_of(group, source_row, args_.first_row + row);
      const T* weight = static_cast<const T*>(args_.operands.weight) + taps.offset;
      for (int64_t j = 0; j < taps.count; ++j) row_[j] = weight[j * taps.stride] * scale;
      const Spectra weights = weight_spectra(g);
      fft_.transform(row_, taps.count, weights.at(0, row * sources() + source_row), weights.stride(), sign);
    }
  }

  // Work units: [group of the pass][batch][phase][block].
  void multiply_blocks(int64_t begin, int64_t end) const {
    const int64_t per_group = p_.batch * plan_.phases * plan_.blocks;
    for (int64_t unit = begin; unit < end;) {
      const int64_t g = unit / per_group, group = args_.first_group + g;
      const int64_t left = min_of(end, (g + 1) * per_group) - unit;
      const int64_t tile = ceil_div(left, ceil_div(left, plan_.block_tile));
      const Spectra weights = weight_spectra(g), blocks{source_, tile * sources()}, sums{result_, rows() * tile};
      // Rows outside, so that what is read and written of one is a long run.
      for (int64_t s = 0; s < sources(); ++s) {
        for (int64_t i = 0; i < tile; ++i) {
          const Block block = block_at(unit % per_group + i);
          const int64_t count = op_ == Op::kForward
                                    ? pack_input(block, group, s)
                                    : pack_grad_output(block, group, s, block.first - (plan_.taps - 1), plan_.length);
          fft_.transform(row_, count, blocks.at(0, i * sources() + s), blocks.stride(), 1);
        }
      }
      for (int64_t v = 0; v < fft_.vectors(); ++v) {
        multiply_spectra(weights.at(v, 0), rows(), blocks.at(v, 0), tile, sources(), sums.at(v, 0), false);
      }
      for (int64_t row = 0; row < rows(); ++row) {
        for (int64_t i = 0; i < tile; ++i) {
          fft_.invert(sums.at(0, row * tile + i), sums.stride(), row_);
          store_result(block_at(unit % per_group + i), group, args_.first_row + row);
        }
      }
      unit += tile;
    }
  }

  // backward_weight: work units [group of the pass][row of the input, then of grad_output][block of those held].
  void transform_signals(int64_t begin, int64_t end) const {
    const int64_t rows_held = sources() + rows(), blocks = args_.block_count;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t i = unit % blocks, row = unit / blocks % rows_held;
      const int64_t g = unit / blocks / rows_held, group = args_.first_group + g;
      const Block block = block_at(args_.first_block + i);
      if (row < sources()) {
        const int64_t count = pack_input(block, group, row);
        fft_.transform(row_, count, input_spectra(g).at(0, row * blocks + i), input_spectra(g).stride(), 1);
      } else {
        const int64_t r = row - sources();
        const int64_t count = pack_grad_output(block, group, args_.first_row + r, block.first, plan_.block);
        fft_.transform(row_, count, grad_spectra(g).at(0, r * blocks + i), grad_spectra(g).stride(), -1);
      }
    }
  }

  // Work units: [group of the pass][vector of the spectrum].
  void multiply_signals(int64_t begin, int64_t end) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t g = unit / fft_.vectors(), v = unit % fft_.vectors();
      multiply_spectra(
          grad_spectra(g).at(v, 0), rows(), input_spectra(g).at(v, 0), sources(), args_.block_count,
          weight_spectra(g).at(v, 0), args_.first_block > 0);
    }
  }

  // Work units: [group of the pass][row of the pass][source row].
  void store_taps(int64_t begin, int64_t end) const {
    const T scale = T{2} / T(plan_.length);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t source_row = unit % sources(), index = unit / sources();
      const int64_t g = index / rows(), group = args_.first_group + g, row = index % rows();
      const Spectra weights = weight_spectra(g);
      fft_.invert(weights.at(0, row * sources() + source_row), weights.stride(), row_);
      const Taps taps = taps_of(group, args_.first_row + row, source_row);
      T* weight = static_cast<T*>(args_.operands.result) + taps.offset;
      T seen = 0;
      for (int64_t j = 0; j < taps.count; ++j) {
        const T value = row_[j] * scale;
        seen += 0 * value;
        weight[j * taps.stride] = value;
      }
      if (seen != 0) raise_alarm(0);
    }
  }

 private:
  static constexpr int64_t kComplex = Fft<T>::kComplex;

  struct Block {
    int64_t n, phase, first;  // `first`: of the elements that it adds
  };
  Block block_at(int64_t index) const {
    return {
        index / plan_.blocks / plan_.phases, index / plan_.blocks % plan_.phases,
        plan_.first + index % plan_.blocks * plan_.block};
  }

  // The taps of a row of the input, (channel, residue) with stride residues, for one output channel.
  struct Taps {
    int64_t offset, stride, count;
  };
  Taps taps_of(int64_t group, int64_t out_channel, int64_t in_row) const {
    const int64_t residue = in_row % p_.stride, oc = group * (p_.out_channels / p_.groups) + out_channel;
    const int64_t offset =
        oc * p_.weight.out_channel + in_row / p_.stride * p_.weight.in_channel + residue * p_.weight.tap;
    return {offset, p_.stride * p_.weight.tap, ceil_div(p_.kernel_size - residue, p_.stride)};
  }

  // Of element e of a row of the input, counted from the input's first.
  int64_t position(const Block& block, int64_t in_row, int64_t e) const {
    return e * plan_.step + in_row % p_.stride + block.phase - p_.padding_left;
  }
  int64_t in_offset(int64_t n, int64_t group, int64_t in_row) const {
    return n * p_.input.batch + (group * (p_.in_channels / p_.groups) + in_row / p_.stride) * p_.input.channel;
  }
  int64_t out_offset(int64_t n, int64_t group, int64_t out_channel) const {
    return n * p_.output.batch + (group * (p_.out_channels / p_.groups) + out_channel) * p_.output.channel;
  }

  // Both copy the start of a row to row_ and return its length; what follows is zero.
  int64_t pack_input(const Block& block, int64_t group, int64_t in_row) const {
    const T* data = static_cast<const T*>(args_.operands.source) + in_offset(block.n, group, in_row);
    const int64_t start = position(block, in_row, block.first);
    // No further than the padding goes, which is what padding modes are defined for.
    const int64_t most = ceil_div(p_.in_length + p_.padding_right - start, plan_.step);
    const int64_t count = max_of(0, min_of(most, plan_.length));
    pack_row<T>({data, p_.input.position, p_.in_length, p_.padding_mode}, start, plan_.step, count, count, row_);
    return count;
  }
  // `count` elements from `first` on at most.
  int64_t pack_grad_output(const Block& block, int64_t group, int64_t out_channel, int64_t first, int64_t count) const {
    const void* grad_output = op_ == Op::kBackwardWeight ? args_.operands.weight : args_.operands.source;
    const T* data = static_cast<const T*>(grad_output) + out_offset(block.n, group, out_channel);
    const int64_t start = first * plan_.phases + block.phase;
    count = max_of(0, min_of(count, ceil_div(p_.out_length - start, plan_.phases)));
    pack_row<T>(
        {data, p_.output.position, p_.out_length, PaddingMode::kZeros}, start, plan_.phases, count, count, row_);
    return count;
  }

  // The sums of a block from row_ to their tensor.
  void store_result(const Block& block, int64_t group, int64_t result_row) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const bool forward = op_ == Op::kForward;
    const int64_t step = forward ? plan_.phases : plan_.step;
    const int64_t length = forward ? p_.out_length : p_.in_length;
    const int64_t stride = forward ? p_.output.position : p_.input.position;
    const int64_t start = forward ? block.first * step + block.phase : position(block, result_row, block.first);
    const int64_t count = min_of(plan_.block, plan_.first + plan_.elements - block.first);
    const int64_t from = max_of(0, min_of(count, ceil_div(-start, step)));
    const int64_t to = max_of(from, min_of(count, ceil_div(length - start, step)));
    T* sums = row_ + (forward ? 0 : plan_.taps - 1) + from;
    const T bias = forward && args_.operands.bias != nullptr
                       ? static_cast<const T*>(args_.operands.bias)[group * (p_.out_channels / p_.groups) + result_row]
                       : 0;
    Vec<T> seen = broadcast(T{0});
    const auto look_at = [&](Vec<T> sum) {
      seen = fma(broadcast(T{0}), sum, seen);
      return sum;
    };
    int64_t i = 0;
    for (; i + kLanes <= to - from; i += kLanes) store(sums + i, look_at(add(load(sums + i), broadcast(bias))));
    if (const int64_t rest = to - from - i; rest > 0) {
      store_partial(sums + i, look_at(add(load_partial(sums + i, rest), broadcast(bias))), rest);
    }
    T* data = static_cast<T*>(args_.operands.result) +
              (forward ? out_offset(block.n, group, result_row) : in_offset(block.n, group, result_row));
    store_row(p_, sums, to - from, data + (start + from * step) * stride, step * stride);
    if (sum(seen) != 0) raise_alarm(block.n);
  }

  // Not a number is not 0.
  void raise_alarm(int64_t index) const { __atomic_store_n(args_.alarms + index, uint8_t{1}, __ATOMIC_RELAXED); }

  int64_t sources() const { return plan_.source_rows; }
  int64_t rows() const { return args_.row_count; }

  // `count` spectra side by side.
  struct Spectra {
    T* data;
    int64_t count;

    int64_t stride() const { return spectra_stride(count) * kComplex; }
    T* at(int64_t vector, int64_t index) const { return data + vector * stride() + index * kComplex; }
  };
  Spectra of_group(T* data, int64_t g, int64_t count) const {
    return {data + g * spectra_stride(count) * plan_.length, count};
  }
  Spectra weight_spectra(int64_t g) const { return of_group(static_cast<T*>(args_.spectra), g, rows() * sources()); }
  Spectra input_spectra(int64_t g) const {
    return of_group(static_cast<T*>(args_.signals), g, sources() * args_.block_count);
  }
  Spectra grad_spectra(int64_t g) const {
    return of_group(input_spectra(args_.group_count).data, g, rows() * args_.block_count);
  }

  const Op op_;
  const Conv1dProblem& p_;
  const FftPlan& plan_;
  const FftArgs& args_;
  const Fft<T> fft_;
  T* row_;
  T *source_ = nullptr, *result_ = nullptr;
};

template <class T, void (FftConv<T>::*pass)(int64_t, int64_t) const>
void fft_pass(
    Op op, const Conv1dProblem& problem, const FftPlan& plan, const FftArgs& args, void* scratch, int64_t begin,
    int64_t end) {
  (FftConv<T>(op, problem, plan, args, scratch).*pass)(begin, end);
}

template <class T>
constexpr FftKernels fft_kernels() {
  return {
      fft_pass<T, &FftConv<T>::transform_weights>, fft_pass<T, &FftConv<T>::multiply_blocks>,
      fft_pass<T, &FftConv<T>::transform_signals>, fft_pass<T, &FftConv<T>::multiply_signals>,
      fft_pass<T, &FftConv<T>::store_taps>};
}

}  // namespace
}  // namespace conv1d_ext
