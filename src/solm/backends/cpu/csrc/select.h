// Which channels and pages are kept, and how kept values are rounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// A number that exactly `count` of the keys exceed; the count-th largest key where equal ones allow none. `threshold`: that
// key but for its lowest `width` bits, which are 0.
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

// Calls keep(i) for the `count` of n elements with the largest key, ascending; of equal ones those of lower index.
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

#if defined(__AVX512BW__)
// The same for magnitudes, by their upper 16 bits first, which tell most of them apart and are half to read; those take
// `room` [n, up to a multiple of 32].
inline uint32_t magnitude_separator(const float* x, int n, int count, uint16_t* room) {
  const int whole = (n + 31) / 32 * 32;
  for (int i = 0; i < whole; i += 16) {
    const int there = std::clamp(n - i, 0, 16);
    const __m512i bits = _mm512_maskz_loadu_epi32(__mmask16((1u << there) - 1), x + i);
    const __m256i upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_slli_epi32(bits, 1), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(room + i), upper);
  }
  uint32_t threshold = 0;
  for (int bit = 15; bit >= 0; --bit) {
    const uint32_t guess = threshold | (1u << bit);
    const __m512i edge = _mm512_set1_epi16(short(guess));
    int above = 0;
    for (int i = 0; i < whole; i += 32)
      above += __builtin_popcount(_mm512_cmpge_epu16_mask(_mm512_loadu_si512(room + i), edge));
    if (above == count) return (guess << 15) - 1;
    if (above > count) threshold = guess;
  }
  return separator(x, n, count, 15, magnitude, threshold << 15);
}
#endif

// Indices and values of the count channels of largest |x|; of equal ones those of lower index. Returns count. Room for
// SPARE more is written to.
constexpr int SPARE = 16;
inline int select(const float* x, int n, int count, int32_t* index, float* values) {
  if (count >= n) {
    for (int i = 0; i < n; ++i) index[i] = i, values[i] = x[i];
    return n;
  }
  if (count <= 0) return 0;
  int kept = 0;
#if defined(__AVX512BW__) && defined(__BMI2__)
  const uint32_t threshold = magnitude_separator(x, n, count, reinterpret_cast<uint16_t*>(index));
  int ties = count;
#pragma omp simd reduction(- : ties)
  for (int i = 0; i < n; ++i) ties -= magnitude(x[i]) > threshold;
  const __m512i edge = _mm512_set1_epi32(int(threshold << 1)), step = _mm512_set1_epi32(16);
  __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int i = 0; i < n; i += 16, number = _mm512_add_epi32(number, step)) {
    const __mmask16 there = __mmask16(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
    const __m512i bits = _mm512_maskz_loadu_epi32(there, x + i), size = _mm512_slli_epi32(bits, 1);
    uint32_t keep = _mm512_mask_cmpgt_epu32_mask(there, size, edge);
    if (ties > 0) {
      const uint32_t equal = _mm512_mask_cmpeq_epi32_mask(there, size, edge);
      const uint32_t first = _pdep_u32(ties < 16 ? (1u << ties) - 1 : 0xffff, equal);  // the lowest `ties` of them
      ties -= __builtin_popcount(first), keep |= first;
    }
    _mm512_storeu_si512(index + kept, _mm512_maskz_compress_epi32(__mmask16(keep), number));
    _mm512_storeu_si512(values + kept, _mm512_maskz_compress_epi32(__mmask16(keep), bits));
    kept += __builtin_popcount(keep);
  }
#else
  largest(x, n, count, 31, magnitude, [&](int i, bool keep) {
    index[kept] = i, values[kept] = x[i];  // written always, kept or overwritten: no branch to guess wrong
    kept += keep;
  });
#endif
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
