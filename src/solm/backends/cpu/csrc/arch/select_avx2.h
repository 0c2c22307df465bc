// Selection of the channels of largest magnitude with AVX2.
#pragma once

#include "../separator.h"
#include "compress.h"

#if defined(__AVX2__)

namespace solm {

// Eight numbers, 0 in place of those from `there` on, and their magnitudes.
inline __m256i eight_numbers(const float* x, int there) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(there), lane);
  return _mm256_castps_si256(there >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, inside));
}
inline __m256i magnitudes(__m256i eight) { return _mm256_and_si256(eight, _mm256_set1_epi32(0x7fffffff)); }
inline __m256i eight_magnitudes(const float* x, int there) { return magnitudes(eight_numbers(x, there)); }

// Writes the lanes of eight numbers whose bit is set next to one another, and then what may be overwritten.
inline void write_lanes(uint32_t bits, __m256i numbers, void* to) {
  const __m128i positions = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&POSITIONS_OF_BITS[bits]));
  const __m256i order = _mm256_cvtepu8_epi32(positions);
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(numbers, order));
}

inline uint32_t bits_of_lanes(__m256i all) { return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(all))); }

// How many of `whole` numbers, a multiple of 16, are at least `edge`.
inline int count_from(const uint16_t* numbers, int whole, uint16_t edge) {
  constexpr int MOST = 16 * 32767;  // that sums of 16 bits can count
  const __m256i from = _mm256_set1_epi16(short(edge));
  int above = 0;
  for (int start = 0; start < whole; start += MOST) {
    __m256i sums = _mm256_setzero_si256();
    for (int i = start; i < std::min(whole, start + MOST); i += 16) {
      const __m256i here = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + i));
      sums = _mm256_sub_epi16(sums, _mm256_cmpeq_epi16(_mm256_max_epu16(here, from), here));
    }
    int32_t eight[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(eight), _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
    for (int part : eight) above += part;
  }
  return above;
}

// See `separator`, for magnitudes. ties: how many of those that equal it are among the `count` largest. Their upper 16 bits are
// compared first; what they leave open, only those numbers decide that share them. keys, room: n elements and 16 more.
inline uint32_t magnitude_separator(const float* x, int n, int count, uint16_t* keys, float* room, int& ties) {
  const int whole = (n + 15) / 16 * 16;
  for (int i = 0; i < whole; i += 16) {  // in an order of their own
    const __m256i first = _mm256_srli_epi32(eight_magnitudes(x + i, n - i), 15);
    const __m256i second = n - i > 8 ? _mm256_srli_epi32(eight_magnitudes(x + i + 8, n - i - 8), 15) : _mm256_setzero_si256();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + i), _mm256_packus_epi32(first, second));
  }
  ties = 0;
  uint32_t upper = 0;
  int larger = 0;
  for (int bit = 15; bit >= 0; --bit) {
    const uint32_t guess = upper | (1u << bit);
    const int above = count_from(keys, whole, uint16_t(guess));
    if (above == count) return (guess << 15) - 1;
    if (above > count) upper = guess;
    else larger = above;
  }
  int open = 0;
  const __m256i shared = _mm256_set1_epi32(int(upper));
  for (int i = 0; i < n; i += 8) {
    const __m256i size = eight_magnitudes(x + i, n - i);
    const uint32_t inside = n - i >= 8 ? 255 : (1u << (n - i)) - 1;
    const uint32_t same = bits_of_lanes(_mm256_cmpeq_epi32(_mm256_srli_epi32(size, 15), shared)) & inside;
    write_lanes(same, size, room + open);
    open += __builtin_popcount(same);
  }
  const int wanted = count - larger;
  const uint32_t threshold = separator(room, open, wanted, 15, magnitude, upper << 15);
  ties = wanted;
  for (int i = 0; i < open; ++i) ties -= magnitude(room[i]) > threshold;
  return threshold;
}

// Writes the channels that are kept, and up to 8 more. keep(sizes, inside): the bits of those that are, of eight magnitudes of
// which the bits `inside` are there. Returns the number of them.
template <typename Keep>
int write_kept(const float* x, int n, int32_t* index, float* values, Keep keep) {
  int kept = 0;
  const __m256i eight = _mm256_set1_epi32(8);
  __m256i number = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  for (int i = 0; i < n; i += 8, number = _mm256_add_epi32(number, eight)) {
    const __m256i bits = eight_numbers(x + i, n - i);
    const uint32_t found = keep(magnitudes(bits), n - i >= 8 ? 255u : (1u << (n - i)) - 1);
    write_lanes(found, number, index + kept);
    write_lanes(found, bits, values + kept);
    kept += __builtin_popcount(found);
  }
  return kept;
}

// See `select`.
inline int select_avx2(const float* x, int n, int count, int32_t* index, float* values) {
  int ties;
  const uint32_t threshold = magnitude_separator(x, n, count, reinterpret_cast<uint16_t*>(index), values, ties);
  const __m256i edge = _mm256_set1_epi32(int(threshold));
  return write_kept(x, n, index, values, [&](__m256i size, uint32_t inside) {
    uint32_t keep = bits_of_lanes(_mm256_cmpgt_epi32(size, edge));
    if (ties > 0) {
      uint32_t equal = bits_of_lanes(_mm256_cmpeq_epi32(size, edge)) & inside;
      while (__builtin_popcount(equal) > ties) equal &= ~(0x80000000u >> __builtin_clz(equal));  // the last one
      ties -= __builtin_popcount(equal), keep |= equal;
    }
    return keep;
  });
}

// See `select_from`.
inline int select_from_avx2(const float* x, int n, float limit, int32_t* index, float* values) {
  const __m256 edge = _mm256_set1_ps(limit);
  return write_kept(x, n, index, values, [&](__m256i size, uint32_t inside) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_castsi256_ps(size), edge, _CMP_GE_OQ))) & inside;
  });
}

}  // namespace solm

#endif
