// Selection of the channels of largest magnitude with AVX-512.
#pragma once

#include "../separator.h"

#if defined(__AVX512BW__) && defined(__BMI2__)
#include <immintrin.h>

namespace solm {

// `separator` for magnitudes. Their upper 16 bits are compared first: they separate most numbers at half the memory traffic.
// room: n elements, rounded up to a multiple of 32.
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

// See `select`.
__attribute__((always_inline)) inline int select_avx512(const float* x, int n, int count, int32_t* index, float* values) {
  int kept = 0;
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
  return kept;
}

// See `select_from`.
inline int select_from_avx512(const float* x, int n, float limit, int32_t* index, float* values) {
  int kept = 0;
  const __m512 edge = _mm512_set1_ps(limit);
  const __m512i step = _mm512_set1_epi32(16);
  __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int i = 0; i < n; i += 16, number = _mm512_add_epi32(number, step)) {
    const __mmask16 there = __mmask16(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
    const __m512 here = _mm512_maskz_loadu_ps(there, x + i);
    const __mmask16 keep = _mm512_mask_cmp_ps_mask(there, _mm512_abs_ps(here), edge, _CMP_GE_OQ);
    _mm512_storeu_si512(index + kept, _mm512_maskz_compress_epi32(keep, number));
    _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(keep, here));
    kept += __builtin_popcount(uint32_t(keep));
  }
  return kept;
}

}  // namespace solm
#endif
