// What a test build allocates with.
#include "allocations.h"

#if defined(SOLM_TEST_ALLOCATIONS)

#include <cstdlib>

void* operator new(size_t bytes) {
  solm::count_allocation();
  if (void* place = std::malloc(bytes ? bytes : 1)) return place;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  solm::count_allocation();
  const size_t to = size_t(alignment);
  if (void* place = std::aligned_alloc(to, (bytes + to - 1) / to * to)) return place;
  throw std::bad_alloc();
}
void operator delete(void* place) noexcept { std::free(place); }
void operator delete(void* place, size_t) noexcept { std::free(place); }
void operator delete(void* place, std::align_val_t) noexcept { std::free(place); }
void operator delete(void* place, size_t, std::align_val_t) noexcept { std::free(place); }

extern "C" {
// Allocations of any thread so far.
int64_t solm_test_allocations() { return solm::allocations.load(); }
// Let `count` more allocations succeed and fail the next one; -1: fail none.
void solm_test_fail_allocation(int64_t count) { solm::allocations_left.store(count); }
}

#endif
