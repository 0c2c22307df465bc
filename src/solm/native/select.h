// Which channels and pages are kept, and how kept values are rounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

inline uint32_t magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7fffffffu;
}

// The integers that order as floats do.
inline uint32_t order(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The count-th largest key(x[i]), a number of `width` bits.
template <typename Key>
uint32_t kth_largest(const float* x, int n, int count, int width, Key key) {
  uint32_t threshold = 0;
  for (int bit = width - 1; bit >= 0; --bit) {
    const uint32_t guess = threshold | (1u << bit);
    int above = 0;
#pragma omp simd reduction(+ : above)
    for (int i = 0; i < n; ++i) above += key(x[i]) >= guess;
    if (above >= count) threshold = guess;
  }
  return threshold;
}

// Calls keep(i) for the `count` of n elements with the largest key, ascending; of equal ones those of lower index.
template <typename Key, typename Keep>
void largest(const float* x, int n, int count, int width, Key key, Keep keep) {
  const uint32_t threshold = kth_largest(x, n, count, width, key);
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

// Indices and values of the count channels of largest |x|; of equal ones those of lower index. Returns count.
inline int select(const float* x, int n, int count, int32_t* index, float* values) {
  if (count >= n) {
    for (int i = 0; i < n; ++i) index[i] = i, values[i] = x[i];
    return n;
  }
  if (count <= 0) return 0;
  int kept = 0;
  largest(x, n, count, 31, magnitude, [&](int i, bool keep) {
    index[kept] = i, values[kept] = x[i];  // written always, kept or overwritten: no branch to guess wrong
    kept += keep;
  });
  return kept;
}

// Round kept values to a grid of `bits` bits with one scale per `group` channels of the whole vector.
inline void quantise(const int32_t* index, float* values, int count, int bits, int group) {
  if (bits >= 16) return;
  const float most = float((1 << (bits - 1)) - 1);
  for (int start = 0; start < count;) {
    const int block = index[start] / group;
    int end = start;
    float peak = 0;
    for (; end < count && index[end] / group == block; ++end) peak = std::max(peak, std::fabs(values[end]));
    const float scale = peak / most, divisor = std::max(scale, 1.17549435e-38f);
    for (; start < end; ++start) values[start] = std::nearbyint(values[start] / divisor) * scale;
  }
}
