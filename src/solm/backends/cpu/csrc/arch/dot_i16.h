// Dot products of int16 with int8, for a KV cache in int8.
#pragma once

#include <algorithm>
#include <cmath>

#include "dot_i8.h"

namespace solm {

inline float peak_of(const float* x, int count) {
  float peak = 0;
#pragma omp simd reduction(max : peak)
  for (int i = 0; i < count; ++i) peak = std::max(peak, std::fabs(x[i]));
  return peak;
}

// Int16s: a vector of int16 numbers and their scale. DotI16: sixteen sums, each of four products of an int16 number with a
// byte that is stored with BIAS added.
constexpr float MOST_INT16 = 127 * 254;  // the largest number, of two digits from -127 to 127

#if defined(DOT_I8_AVX2)

struct Int16s {
  const int16_t* number;
  float scale;

  // x [count], in room [count].
  static Int16s of(const float* x, int count, int16_t* room) {
    const float inverse = MOST_INT16 / std::max(peak_of(x, count), 1.17549435e-33f);
    for (int i = 0; i < count; ++i) room[i] = int16_t(int32_t(std::nearbyint(x[i] * inverse)));
    return {room, 1 / inverse};
  }
};

// Every lane has two neighbouring sums of 32 bits: lanes 0 to 3 in a, 4 to 7 in b, and so on.
template <int BIAS>
struct DotI16 {
  __m256i a, b, c, d;
  static DotI16 begin(const Int16s&) {
    const __m256i zero = _mm256_setzero_si256();
    return {zero, zero, zero, zero};
  }
  template <typename Part>
  void add(Part, const Bytes& bytes, const Int16s& wide, int i) {
    int64_t quad;
    std::memcpy(&quad, wide.number + 4 * i, sizeof quad);
    const __m256i number = _mm256_sub_epi8(bytes.v, _mm256_set1_epi8(char(BIAS))), x = _mm256_set1_epi64x(quad);
    const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(number));
    const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(number, 1));
    __m256i &first = Part::value ? c : a, &second = Part::value ? d : b;
    first = _mm256_add_epi32(first, _mm256_madd_epi16(low, x));
    second = _mm256_add_epi32(second, _mm256_madd_epi16(high, x));
  }
  Lanes lanes() const {
    auto together = [](__m256i x, __m256i y) {
      return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(_mm256_hadd_epi32(x, y), 0xd8));
    };
    return Lanes::of(together(a, b), together(c, d));
  }
};

#else

// A number is 254 * upper + lower.
struct Int16s {
  const int8_t *upper, *lower;
  int32_t upper_sum, lower_sum;
  float scale;

  static Int16s of(const float* x, int count, int16_t* room) {
    const float inverse = MOST_INT16 / std::max(peak_of(x, count), 1.17549435e-33f);
    auto *up = reinterpret_cast<int8_t*>(room), *down = up + count;
    int32_t up_sum = 0, down_sum = 0;
#pragma omp simd reduction(+ : up_sum, down_sum)
    for (int i = 0; i < count; ++i) {
      const int32_t number = int32_t(std::nearbyint(x[i] * inverse));
      const int32_t most = int32_t(std::nearbyint(float(number) * (1.0f / 254))), rest = number - 254 * most;
      up[i] = int8_t(most), down[i] = int8_t(rest);
      up_sum += most, down_sum += rest;
    }
    return {up, down, up_sum, down_sum, 1 / inverse};
  }
};

template <int BIAS>
struct DotI16 {
  DotI8<BIAS> upper, lower;
  static DotI16 begin(const Int16s& wide) {
    return {DotI8<BIAS>::begin(wide.upper_sum), DotI8<BIAS>::begin(wide.lower_sum)};
  }
  template <typename Part>
  void add(Part part, const Bytes& bytes, const Int16s& wide, int i) {
    int32_t up, down;
    std::memcpy(&up, wide.upper + 4 * i, 4), std::memcpy(&down, wide.lower + 4 * i, 4);
    upper.add(part, bytes, up), lower.add(part, bytes, down);
  }
  Lanes lanes() const {
    Lanes sum = lower.lanes();
    sum.add(Lanes::all(254), upper.lanes());
    return sum;
  }
};

#endif

}  // namespace solm
