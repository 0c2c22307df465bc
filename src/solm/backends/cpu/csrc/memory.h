// Zeroed memory in huge pages, where the system has them: a step walks through all weights, and would miss the TLB at every
// 4 KiB. Straight from the system, since what malloc hands out again was mapped in small pages before.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { release(); }

  // Throws std::bad_alloc where there is not enough.
  void allocate(size_t bytes) {
    release();
    if (!bytes) return;
#if defined(__linux__)
    mapped_ = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) {
      base_ = nullptr;
      throw std::bad_alloc();
    }
    data_ = reinterpret_cast<char*>((reinterpret_cast<size_t>(base_) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    // Little of it would be used: a cache of a few tokens.
    if (bytes >= HUGE_PAGE) madvise(data_, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#else
    base_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!base_) throw std::bad_alloc();
    data_ = static_cast<char*>(std::memset(base_, 0, bytes));
#endif
  }

  char* data() { return data_; }
  const char* data() const { return data_; }

 private:
  static constexpr size_t HUGE_PAGE = size_t(2) << 20;
  void* base_ = nullptr;
  char* data_ = nullptr;
#if defined(__linux__)
  size_t mapped_ = 0;
#endif

  void release() {
#if defined(__linux__)
    if (base_) munmap(base_, mapped_);
#else
    std::free(base_);
#endif
    base_ = nullptr, data_ = nullptr;
  }
};
