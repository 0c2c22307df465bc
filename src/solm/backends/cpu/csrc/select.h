// Selecting the largest channels, and rounding what is kept to a grid.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "arch/select_avx2.h"
#include "arch/select_avx512.h"

namespace solm {

// Moves the `count` largest of `values` [n] to their front, the last of them the smallest.
inline void take_largest(float* values, int n, int count) {
  if (count == 1) std::swap(values[0], *std::max_element(values, values + n));
  else if (count) std::nth_element(values, values + count - 1, values + n, std::greater<float>());
}

// Indices, ascending, and values of the `count` channels of largest |x|, among equal ones those of lower index. Returns the
// number of them. Up to SPARE more elements of both arrays are overwritten.
constexpr int SPARE = 16;
inline int select(const float* x, int n, int count, int32_t* index, float* values) {
  if (count >= n) {
    for (int i = 0; i < n; ++i) index[i] = i, values[i] = x[i];
    return n;
  }
  if (count <= 0) return 0;
  int kept = 0;
#if defined(__AVX512BW__) && defined(__BMI2__)
  kept = select_avx512(x, n, count, index, values);
#elif defined(__AVX2__)
  kept = select_avx2(x, n, count, index, values);
#else
  largest(x, n, count, 31, magnitude, [&](int i, bool keep) {
    index[kept] = i, values[kept] = x[i];  // unconditional, since a branch would often be mispredicted
    kept += keep;
  });
#endif
  return kept;
}

// The same for the channels of at least `limit` in magnitude.
inline int select_from(const float* x, int n, float limit, int32_t* index, float* values) {
#if defined(__AVX512BW__) && defined(__BMI2__)
  return select_from_avx512(x, n, limit, index, values);
#elif defined(__AVX2__)
  return select_from_avx2(x, n, limit, index, values);
#else
  int kept = 0;
  for (int i = 0; i < n; ++i) {
    index[kept] = i, values[kept] = x[i];
    kept += std::fabs(x[i]) >= limit;
  }
  return kept;
#endif
}

// x [n] with zeros in place of what is below `limit` in magnitude, to `kept`. Returns how many channels keep their value.
inline int zero_below(const float* x, int n, float limit, float* kept) {
  int found = 0;
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const bool keeps = std::fabs(x[i]) >= limit;
    kept[i] = keeps ? x[i] : 0.0f, found += keeps;
  }
  return found;
}

// Adds the magnitudes of x [n] to a histogram [MAGNITUDES] that other threads may add to as well.
inline void count_magnitudes(const float* x, int n, uint32_t* histogram) {
  for (int i = 0; i < n; ++i) __atomic_fetch_add(&histogram[magnitude(x[i]) >> 17], 1u, __ATOMIC_RELAXED);
}

// Rounds kept values to `bits` bits with one scale per `group` channels of the whole vector.
inline void round_to_grid(const int32_t* index, float* values, int count, int bits, int group) {
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

}  // namespace solm
