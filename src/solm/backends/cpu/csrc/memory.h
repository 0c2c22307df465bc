// Zeroed memory in huge pages, where the system has them: a step reads all weights, and would miss the TLB at every 4 KiB.
// It comes straight from the system, because malloc hands out again what was mapped in small pages before.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "allocations.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace solm {

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
    count_allocation();
#if defined(__linux__)
    const size_t mapped = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = base, mapped_ = mapped;
    data_ = reinterpret_cast<char*>((reinterpret_cast<size_t>(base_) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    // In less than a huge page, most of it would stay unused: a cache of a few tokens.
    const size_t whole = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (bytes >= HUGE_PAGE) madvise(data_, whole, MADV_HUGEPAGE);
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

}  // namespace solm
