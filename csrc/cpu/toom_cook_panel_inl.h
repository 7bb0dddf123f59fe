// What operators through Toom-Cook's algorithm share, in the terms of toom_cook_plan.h: blocks of patches, and a panel
// of transformed rows of the input (or grad_output),
//   panel[row][plane][patch].
// Rows are channels, or, of a stride, [phase][channel], so that planes that have no part of the first phases leave out
// the first rows.
//
// As with the Fourier transform, a number that is not finite spoils its neighbours: kernels set the alarm of its batch
// item (backward_weight: the only one), which the direct kernels then compute again.
#pragma once

namespace conv1d_ext {
namespace {

template <class Transform>
class ToomCookPanel {
 protected:
  using T = typename Transform::T;
  static constexpr int kTaps = Transform::kTaps, kInputs = Transform::kInputs, kPlanes = Transform::kPlanes,
                       kOutputs = Transform::kOutputs;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

 public:
  ToomCookPanel(Op op, const Conv1dProblem& problem, const ToomCookPlan& plan, const TiledArgs& args, void* memory)
      : p_(problem),
        plan_(plan),
        args_(args),
        view_(op == Op::kBackwardInput, problem),
        scratch_{static_cast<char*>(memory)} {
    panel_ = scratch_.take<T>(plan.panel_elements);
    sums_ = scratch_.take<T>(plan.sum_elements);
    line_ = scratch_.take<T>(plan.line_elements);
    patches_ = scratch_.take<T>(plan.gathered_rows * plan.patch_width);
    b_step_ = scratch_.take<int64_t>(plan.step_table);
    for (int plane = 0; plane + 1 < kPlanes; ++plane) {
      pieces_before_[plane + 1] = pieces_before_[plane] + pieces_of(plane);
    }
  }

 protected:
  // Patches [u0, u1) of batch items [n0, n1).
  struct Block {
    int64_t n0, n1, group, u0, u1;
    int64_t patches() const { return u1 - u0; }
  };
  Block block_at(int64_t index, int64_t group) const {
    Block block;
    block.n0 = index / plan_.patch_blocks * plan_.batch_block;
    block.n1 = min_of(block.n0 + plan_.batch_block, p_.batch);
    block.group = group;
    const int64_t i = index % plan_.patch_blocks;
    block.u0 = block_begin(plan_.patches, plan_.patch_step, plan_.patch_blocks, i);
    block.u1 = block_begin(plan_.patches, plan_.patch_step, plan_.patch_blocks, i + 1);
    return block;
  }

  void fill_panel(const Block& block, int64_t row0, int64_t row1) const {
    const int64_t count = block.patches() + halo();
    // Whole vectors are read: what is behind the last one that is stored must only be numbers.
    const int64_t items_before = (block.n1 - block.n0 - 1) * plan_.item_pitch;
    const int64_t stored = items_before + round_up(count, kLanes);
    const int64_t behind = halo() + round_up(items_before + block.patches(), kLanes) - stored;
    const int64_t channels = view_.channels, phase0 = row0 / channels, phase1 = ceil_div(row1, channels);
    // All phases of a channel, while its lines are near.
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t first = max_of(phase0, ceil_div(row0 - channel, channels));
      const int64_t last = min_of(phase1, ceil_div(row1 - channel, channels));
      if (first < last) prefetch_source(block, min_of(channel + 2, channels - 1));
      for (int64_t phase = first; phase < last;) {
        const int64_t together = phases_together(), end = min_of(phase + together, last);
        for (int64_t i = phase; i < end; ++i) {
          T* to = panel_ + (i * channels + channel - row0) * panel_row();
          for (int64_t plane = 0; plane < kPlanes; ++plane, to += plan_.panel_width) {
            for (int64_t j = 0; j < behind; j += kLanes) {
              store_lanes(to + stored + j, broadcast(T{0}), min_of(kLanes, behind - j));
            }
          }
        }
        T* to = panel_ + (phase * channels + channel - row0) * panel_row();
        for (int64_t n = block.n0; n < block.n1; ++n, to += plan_.item_pitch) {
          const Row<T> row{
              source_row(block, n, channel), view_.source.position, view_.source_length, view_.padding_mode};
          if (p_.dilation > 1) {
            transform_gathered(row, block.u0, count, to);
          } else if (together == 1) {
            const int64_t positions = kOutputs * (round_up(count, kLanes) + kLanes);
            transform_line(
                line_at(row, left() - phase, view_.end, kOutputs * block.u0, positions, plan_.source_phases), count,
                to);
          } else {
            transform_phases(row, phase, end, block.u0, count, to);
          }
        }
        phase = end;
      }
    }
  }

  // A channel's taps are transformed in pieces: chunks, or phases of a stride. The tap that is a piece's t-th, or one
  // that there is none of.
  int64_t tap_at(int64_t piece, int64_t t) const {
    if (p_.stride == 1) {
      return t < kOutputs || piece + 1 == plan_.chunks ? kOutputs * piece + t - plan_.lead : p_.kernel_size;
    }
    // A missing tap is the first, too, where taps are in reverse.
    return view_.reversed ? piece + (kTaps - 1 - t) * p_.stride : piece + t * p_.stride - plan_.lead;
  }
  bool is_tap(int64_t tap) const { return tap >= 0 && tap < p_.kernel_size; }

  // Planes that have a part of none of the first chunk's taps begin with the second.
  int64_t first_chunk(int plane) const { return p_.stride == 1 && Transform::last_tap(plane) < plan_.lead ? 1 : 0; }
  int64_t chunks_of(int plane) const { return plan_.chunks - first_chunk(plane); }
  // So many phases of the source lack a tap, which is a plane's only one.
  int64_t first_phase(int plane) const {
    return p_.stride > 1 && !view_.reversed && Transform::last_tap(plane) == 0 ? plan_.lead : 0;
  }
  // Either of them.
  int64_t first_piece(int plane) const { return first_chunk(plane) + first_phase(plane); }
  int64_t pieces() const { return plan_.chunks * plan_.source_phases * plan_.result_phases; }
  int64_t pieces_of(int plane) const { return pieces() - first_piece(plane); }

  int64_t halo() const { return (plan_.chunks - 1) * p_.dilation; }
  int64_t panel_row() const { return kPlanes * plan_.panel_width; }
  // Positions before the row's first that a block of the first patches begins at: where taps are lacking in front,
  // before the padding. That is in no product of pairs: only planes that leave it out have it.
  int64_t left() const {
    if (p_.stride > 1 && view_.reversed) return kTaps - 1 - p_.padding_left / p_.stride;
    return view_.left + plan_.lead * p_.dilation;
  }

  static Vec<T> load_lanes(const T* from, int64_t lanes) {
    return lanes == kLanes ? load(from) : load_partial(from, lanes);
  }
  static void store_lanes(T* to, Vec<T> value, int64_t lanes) {
    lanes == kLanes ? store(to, value) : store_partial(to, value, lanes);
  }

  // patches[j][i], j < kCount: position u0 + i of a padded row, j dilations on; whole vectors up to i = count.
  // `memory`: kCount rows of plan_.patch_width. `left`: positions before the row's first; none from `end` on are
  // defined.
  template <int kCount>
  void gather(
      const Row<T>& row, int64_t left, int64_t end, int64_t u0, int64_t count, T* memory,
      const T* (&patches)[kCount]) const {
    const int64_t dilation = p_.dilation, pitch = plan_.patch_width;
    if (dilation > kLanes) {
      const int64_t width = round_up(count, kLanes);
      for (int j = 0; j < kCount; ++j) {
        T* to = memory + j * pitch;
        patches[j] = to;
        for_runs(u0, width, [&](int64_t i, int64_t position, int64_t run) {
          const int64_t start = position + j * dilation - left;
          pack_row<T>(row, start, 1, max_of(0, min_of(run, end - start)), run, to + i);
        });
      }
      return;
    }
    // Blocks begin with a whole group of `dilation` patches. The last j read the first ones, a group further on.
    const int64_t width = round_up(count + (kCount > kOutputs ? dilation : 0), dilation == 1 ? kLanes : dilation);
    const T* line = line_at(row, left, end, kOutputs * u0, kOutputs * width + kLanes);
    for (int64_t i = 0; i < width && dilation == 1; i += kLanes) {
      Vec<T> out[kOutputs];
      split_line(line + kOutputs * i, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) store(memory + j * pitch + i, out[j]);
    }
    for (int j = 0; j < kOutputs && dilation > 1; ++j) {
      T* to = memory + j * pitch;
      for (int64_t i = 0; i < width; i += dilation) store(to + i, load(line + kOutputs * i + j * dilation));
    }
    for (int j = 0; j < kCount; ++j) patches[j] = memory + j % kOutputs * pitch + j / kOutputs * dilation;
  }

  // `count` positions of a padded row, `step` apart, from `position` steps on, where they are or in line_; as for
  // gather.
  const T* line_at(
      const Row<T>& row, int64_t left, int64_t end, int64_t position, int64_t count, int64_t step = 1) const {
    const int64_t start = position * step - left;
    if (step == 1 && row.position_stride == 1 && start >= 0 && start + count <= row.length) return row.data + start;
    pack_row<T>(row, start, step, max_of(0, min_of(count, ceil_div(end - start, step))), count, line_);
    return line_;
  }

  // body(i, position, run) for the runs of `count` patches from u0 on: patches u0 + i .. u0 + i + run begin at
  // positions side by side.
  template <class Body>
  void for_runs(int64_t u0, int64_t count, const Body& body) const {
    for (int64_t i = 0; i < count;) {
      const int64_t rest = (u0 + i) % p_.dilation, run = min_of(p_.dilation - rest, count - i);
      body(i, (u0 + i) / p_.dilation * kOutputs * p_.dilation + rest, run);
      i += run;
    }
  }

  const T* source_row(const Block& block, int64_t n, int64_t channel) const {
    return static_cast<const T*>(args_.operands.source) + n * view_.source.batch +
           (block.group * view_.channels + channel) * view_.source.channel;
  }

  // A row's positions of a block are too few for the CPU to see those of the next row coming, but for long strides.
  static constexpr int64_t kMostPrefetched = 4096;
  static void prefetch(const T* row, int64_t begin, int64_t end) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = begin; i < end; i += kLine) __builtin_prefetch(row + i);
  }
  // The positions of a row that a block reads, or, where dilations are longer than vectors, as many near them.
  struct Reach {
    int64_t begin, end;
  };
  Reach source_reach(const Block& block) const {
    const int64_t step = kOutputs * plan_.source_phases, start = step * block.u0 - left();
    return {max_of(start, 0), min_of(start + step * (block.patches() + halo()), view_.source_length)};
  }
  void prefetch_source(const Block& block, int64_t channel) const {
    const Reach reach = source_reach(block);
    if (view_.source.position != 1 || reach.end - reach.begin > kMostPrefetched) return;
    prefetch(source_row(block, block.n0, channel), reach.begin, reach.end);
  }

  void raise_alarm(int64_t index) const { __atomic_store_n(args_.alarms + index, uint8_t{1}, __ATOMIC_RELAXED); }

  const Conv1dProblem& p_;
  const ToomCookPlan& plan_;
  const TiledArgs& args_;
  const ForwardView view_;
  Scratch scratch_;
  T *panel_, *sums_, *line_, *patches_;
  int64_t* b_step_;
  int64_t pieces_before_[kPlanes] = {};  // of a channel, in the planes before

 private:
  void transform_to(const Vec<T> (&in)[kInputs], T* to) const {
    Vec<T> out[kPlanes];
    Transform::transform_source(in, out);
#pragma GCC unroll 16
    for (int p = 0; p < kPlanes; ++p) store(to + p * plan_.panel_width, out[p]);
  }

  // `count` patches of a row from u0 on, of a dilation.
  void transform_gathered(const Row<T>& row, int64_t u0, int64_t count, T* to) const {
    const T* patches[kInputs];
    gather(row, left(), view_.end, u0, count, patches_, patches);
    for (int64_t i = 0; i < count; i += kLanes) {
      Vec<T> in[kInputs];
#pragma GCC unroll 8
      for (int j = 0; j < kInputs; ++j) in[j] = load(patches[j] + i);
      transform_to(in, to + i);
    }
  }

  // Of a stride with many phases those of a line of memory are taken apart together.
  int64_t phases_together() const {
    return view_.source.position == 1 && plan_.source_phases >= kManyPhases ? kPhasesTogether : 1;
  }
  // Phases [begin, end).
  void transform_phases(const Row<T>& row, int64_t begin, int64_t end, int64_t u0, int64_t count, T* to) const {
    const int64_t step = plan_.source_phases, positions = kOutputs * (round_up(count, kLanes) + kLanes);
    pack_phases(row, kOutputs * u0 * step - left() + begin, step, positions, end - begin, line_, positions);
    for (int64_t phase = begin; phase < end; ++phase, to += view_.channels * panel_row()) {
      transform_line(line_ + (phase - begin) * positions, count, to);
    }
  }

  // The same for dilation 1, in registers: `count` patches of a line, of which a vector more is read.
  void transform_line(const T* line, int64_t count, T* to) const {
    Vec<T> in[kInputs], next[kOutputs];
    split_line(line, next);
    for (int64_t i = 0; i < count; i += kLanes) {
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) in[j] = next[j];
      split_line(line + kOutputs * (i + kLanes), next);
#pragma GCC unroll 8
      for (int j = kOutputs; j < kInputs; ++j) in[j] = shift_in(in[j - kOutputs], next[j - kOutputs]);
      transform_to(in, to + i);
    }
  }

  // Numbers in the order of positions to those of patches.
  static void split_line(const T* line, Vec<T> (&patches)[kOutputs]) {
    if constexpr (kOutputs == 2) {
      split(load(line), load(line + kLanes), &patches[0], &patches[1]);
    } else {
      Vec<T> even[2], odd[2];
      for (int64_t i = 0; i < 2; ++i) {
        split(load(line + 2 * i * kLanes), load(line + (2 * i + 1) * kLanes), &even[i], &odd[i]);
      }
      split(even[0], even[1], &patches[0], &patches[2]);
      split(odd[0], odd[1], &patches[1], &patches[3]);
    }
  }
};

}  // namespace
}  // namespace conv1d_ext
