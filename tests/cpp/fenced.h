// A buffer in a field of NaN: what reads beyond it spoils its result, what writes beyond it is found by `intact`, and
// under AddressSanitizer either stops at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <sanitizer/asan_interface.h>

template <class T>
class Fenced {
 public:
  // Aligned to no more than T is, or to 64 bytes.
  Fenced(int64_t size, bool aligned) : size_(size), bytes_(kFence + 64 + size * sizeof(T) + kFence, kNan) {
    char* start = bytes_.data() + kFence;
    start += -reinterpret_cast<uintptr_t>(start) % 64 + (aligned ? 0 : sizeof(T));
    data_ = reinterpret_cast<T*>(start);
    ASAN_POISON_MEMORY_REGION(bytes_.data(), start - bytes_.data());
    ASAN_POISON_MEMORY_REGION(data_ + size, end() - reinterpret_cast<char*>(data_ + size));
  }
  Fenced(const Fenced&) = delete;
  ~Fenced() { ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return size_; }

  void fill_with_nan() { std::memset(static_cast<void*>(data_), kNan, size_ * sizeof(T)); }

  bool intact() {
    ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size());
    const auto is_fence = [](char byte) { return byte == kNan; };
    return std::all_of(bytes_.data(), reinterpret_cast<char*>(data_), is_fence) &&
           std::all_of(reinterpret_cast<char*>(data_ + size_), end(), is_fence);
  }

 private:
  static constexpr int64_t kFence = 256;  // bytes: four of the longest vectors
  static constexpr char kNan = '\xff';    // a NaN in every floating-point type

  char* end() { return bytes_.data() + bytes_.size(); }

  int64_t size_;
  std::vector<char> bytes_;
  T* data_;
};
