// A buffer in a field of NaN, between two pages that nobody may touch. What reads beyond the buffer spoils its result,
// what writes beyond it is found by `intact`, AddressSanitizer stops either at once, and at the end that lies at its
// page the processor itself does: of masked loads and stores neither compilers nor sanitizers know what they touch.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// Which end of the data lies at a forbidden page.
enum class Flush { kBegin, kEnd };

template <class T>
class Fenced {
 public:
  Fenced(int64_t size, Flush flush, int64_t alignment = alignof(T)) : size_(size) {
    const int64_t page = sysconf(_SC_PAGESIZE), bytes = size * sizeof(T);
    field_bytes_ = (bytes + page - 1) / page * page;
    char* mapping = static_cast<char*>(
        mmap(nullptr, field_bytes_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (mapping == MAP_FAILED) std::abort();
    field_ = mapping + page;
    if (field_bytes_ > 0 && mprotect(field_, field_bytes_, PROT_READ | PROT_WRITE) != 0) std::abort();
    fill_with_nan();
    const int64_t room = flush == Flush::kBegin ? 0 : field_bytes_ - bytes;
    data_ = reinterpret_cast<T*>(field_ + room / alignment * alignment);
    poison();
  }
  Fenced(const Fenced&) = delete;
  ~Fenced() {
    ASAN_UNPOISON_MEMORY_REGION(field_, field_bytes_);
    const int64_t page = sysconf(_SC_PAGESIZE);
    munmap(field_ - page, field_bytes_ + 2 * page);
  }

  T* data() { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * sizeof(T); }

  bool intact() {
    ASAN_UNPOISON_MEMORY_REGION(field_, field_bytes_);
    const auto is_nan = [](char byte) { return byte == kNan; };
    const bool intact =
        std::all_of(field_, data_begin(), is_nan) && std::all_of(data_end(), field_ + field_bytes_, is_nan);
    poison();
    return intact;
  }

 private:
  static constexpr char kNan = '\xff';  // a NaN in every floating-point type

  char* data_begin() { return reinterpret_cast<char*>(data_); }
  char* data_end() { return reinterpret_cast<char*>(data_ + size_); }

  void fill_with_nan() {
    if (field_bytes_ > 0) std::memset(field_, kNan, field_bytes_);
  }
  void poison() {
    ASAN_POISON_MEMORY_REGION(field_, data_begin() - field_);
    ASAN_POISON_MEMORY_REGION(data_end(), field_ + field_bytes_ - data_end());
  }

  int64_t size_, field_bytes_;
  char* field_;
  T* data_;
};
