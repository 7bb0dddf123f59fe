// What is read next, fetched into the L2 cache while products are added up: row after row, and in each step of a tile
// no more lines than it has to, so that memory and FMAs are busy at once.
#pragma once

#include "cpu/scalar_inl.h"

namespace conv1d_ext {
namespace {

// A part of each of some rows of memory. Lines are due in proportion to the work that has been done, whichever tiles do
// it: what a tile does not fetch is left to the next one.
class NextRows {
 public:
  NextRows() = default;
  // `count` elements of each of so many rows, `pitch` apart, to be fetched in the course of so much work.
  template <class Storage>
  NextRows(const Storage* first, int64_t pitch, int64_t rows, int64_t count, int64_t work)
      : pitch_(pitch * int64_t{sizeof(Storage)}), work_(work) {
    const char* begin = reinterpret_cast<const char*>(first);
    const int64_t in_line = int64_t(reinterpret_cast<uintptr_t>(begin) % kLine);
    row_ = begin - in_line;
    row_bytes_ = in_line + count * int64_t{sizeof(Storage)};
    lines_ = count > 0 ? rows * ceil_div(row_bytes_, kLine) : 0;
    lines_of_work_ = double(lines_) / double(work);
  }

  bool any_left() const { return taken_ < lines_; }
  // Work that was done beyond what the lines are due in.
  int64_t surplus() const { return max_of(0, done_ - work_); }

  // So many lines are to be fetched in each of a tile's first steps.
  struct Share {
    int64_t lines, steps;
  };
  // For a tile that does so much of the work in so many steps. What does not come out even is left to the next tile; of
  // more than `most` lines a step the rest is given up: loads would have to wait for them.
  Share take_share(int64_t work, int64_t steps, int64_t most) {
    pass(work);
    const int64_t due = done_ >= work_ ? lines_ : int64_t(double(done_) * lines_of_work_);
    const int64_t lines = due - taken_;
    // Most tiles are done here, without a division: those of AVX2 last no more than 800 cycles.
    if (lines <= 0) return {0, 0};
    if (lines <= steps) {
      taken_ = due;
      return {1, lines};
    }
    const int64_t in_a_step = ceil_div(lines, steps);
    if (in_a_step > most) {
      taken_ = due;
      return {most, steps};
    }
    const int64_t fetching = lines / in_a_step;
    taken_ += in_a_step * fetching;
    return {in_a_step, fetching};
  }

  // Work of a tile that fetches nothing.
  void pass(int64_t work) { done_ += work; }

  // The lines in their order.
  __attribute__((always_inline)) const char* next_line() {
    const char* line = row_ + at_;
    at_ += kLine;
    const bool at_end = at_ >= row_bytes_;
    at_ = at_end ? 0 : at_;
    row_ += at_end ? pitch_ : 0;
    return line;
  }

  __attribute__((always_inline)) void fetch(int64_t lines) {
    do {
      __builtin_prefetch(next_line(), 0, 2);
    } while (--lines > 0);
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_ = nullptr;
  int64_t pitch_ = 0, row_bytes_ = 0;
  int64_t at_ = 0;  // in the row
  int64_t lines_ = 0, taken_ = 0;
  int64_t work_ = 0, done_ = 0;
  double lines_of_work_ = 0;
};

}  // namespace
}  // namespace conv1d_ext
