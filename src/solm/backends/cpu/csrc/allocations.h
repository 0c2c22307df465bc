// Counting and failing allocations, in test builds only (-DSOLM_TEST_ALLOCATIONS).
#pragma once

#if defined(SOLM_TEST_ALLOCATIONS)

#include <atomic>
#include <cstdint>
#include <new>

namespace solm {

inline std::atomic<int64_t> allocations{0}, allocations_left{-1};

// Called for every allocation. Throws std::bad_alloc where the test asked for it.
inline void count_allocation() {
  allocations.fetch_add(1);
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
}

}  // namespace solm

#else

namespace solm {
inline void count_allocation() {}
}  // namespace solm

#endif
