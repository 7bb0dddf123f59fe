// A buffer of NaN in a field of NaN: what reads beyond it spoils its result, what writes beyond it is found by
// `intact`, and under AddressSanitizer either stops at once.
#pragma once

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdint>
#include <vector>

template <class T>
class Fenced {
 public:
  // Aligned to no more than T is, or to 64 bytes.
  Fenced(int64_t size, bool aligned) : size_(size), bytes_(kFence + 64 + size * sizeof(T) + kFence, kNan) {
    char* start = bytes_.data() + kFence;
    start += -reinterpret_cast<uintptr_t>(start) % 64 + (aligned ? 0 : sizeof(T));
    data_ = reinterpret_cast<T*>(start);
    poison();
  }
  Fenced(const Fenced&) = delete;
  ~Fenced() { ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return size_; }

  bool intact() {
    ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size());
    const auto is_fence = [](char byte) { return byte == kNan; };
    const bool intact = std::all_of(begin(), data_begin(), is_fence) && std::all_of(data_end(), end(), is_fence);
    poison();
    return intact;
  }

 private:
  static constexpr int64_t kFence = 256;  // bytes: four of the longest vectors
  static constexpr char kNan = '\xff';    // a NaN in every floating-point type

  char* begin() { return bytes_.data(); }
  char* data_begin() { return reinterpret_cast<char*>(data_); }
  char* data_end() { return reinterpret_cast<char*>(data_ + size_); }
  char* end() { return bytes_.data() + bytes_.size(); }

  void poison() {
    ASAN_POISON_MEMORY_REGION(begin(), data_begin() - begin());
    ASAN_POISON_MEMORY_REGION(data_end(), end() - data_end());
  }

  int64_t size_;
  std::vector<char> bytes_;
  T* data_;
};
