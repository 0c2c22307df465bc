// The threshold between the `count` largest of some numbers and the others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace solm {

inline uint32_t magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7fffffffu;
}

// An integer that orders as the float does.
inline uint32_t order(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// A number that exactly `count` of the keys exceed, or, where equal keys leave none, the count-th largest key. threshold: that
// key with its lowest `width` bits, which are still to be found, set to 0.
template <typename Key>
uint32_t separator(const float* x, int n, int count, int width, Key key, uint32_t threshold = 0) {
  for (int bit = width - 1; bit >= 0; --bit) {
    const uint32_t guess = threshold | (1u << bit);
    int above = 0;
#pragma omp simd reduction(+ : above)
    for (int i = 0; i < n; ++i) above += key(x[i]) >= guess;
    if (above == count) return guess - 1;
    if (above > count) threshold = guess;
  }
  return threshold;
}

// Calls keep(i, kept) for all n elements, ascending, where the `count` with the largest keys are kept; among equal keys
// those of lower index.
template <typename Key, typename Keep>
void largest(const float* x, int n, int count, int width, Key key, Keep keep) {
  const uint32_t threshold = separator(x, n, count, width, key);
  int above = 0;
#pragma omp simd reduction(+ : above)
  for (int i = 0; i < n; ++i) above += key(x[i]) > threshold;
  int ties = count - above;
  for (int i = 0; i < n; ++i) {
    const uint32_t k = key(x[i]);
    const bool tie = k == threshold && ties > 0;
    ties -= tie;
    keep(i, k > threshold || tie);
  }
}

}  // namespace solm
