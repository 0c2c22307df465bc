// Products of neighbouring pairs of bfloat16 with float32 factors.
#pragma once

#include "lanes.h"

namespace solm {

// On Intel processors with AMX the pair product is slower than widening to float32: 128 ns against 59 for the keys and
// 158 against 53 for the values of a page of three heads.
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define BF16_PAIR_DOT
#endif

// The float32 factors of two neighbouring bfloat16 values. Where one instruction multiplies pairs of bfloat16, a factor is
// split into the sum of two bfloat16, which keeps 16 of its bits.
#if defined(BF16_PAIR_DOT)
struct PairWeight {
  uint32_t high, low;
  static PairWeight of(float a, float b) {
    const bf16 x = narrow(a), y = narrow(b);
    const bf16 u = narrow(a - widen(x)), v = narrow(b - widen(y));
    return {x | uint32_t(y) << 16, u | uint32_t(v) << 16};
  }
};
#else
struct PairWeight {
  float first, second;
  static PairWeight of(float a, float b) { return {a, b}; }
};
#endif

#if defined(__AVX512F__)

// Adds to every lane the weighted pair of the 32 values at p that belongs to it. The two products go to `first` and
// `second`, which may be the same sum.
inline void add_pairs(const bf16* p, PairWeight w, Lanes& first, Lanes& second) {
  const __m512i raw = _mm512_loadu_si512(p);
#if defined(BF16_PAIR_DOT)
  first.v = _mm512_dpbf16_ps(first.v, (__m512bh)raw, (__m512bh)_mm512_set1_epi32(int(w.high)));
  second.v = _mm512_dpbf16_ps(second.v, (__m512bh)raw, (__m512bh)_mm512_set1_epi32(int(w.low)));
#else
  const __m512i odd = _mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000u)));
  first.add({_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))}, Lanes::all(w.first));
  second.add({_mm512_castsi512_ps(odd)}, Lanes::all(w.second));
#endif
}

#elif defined(__aarch64__)

inline void add_pairs(const bf16* p, PairWeight w, Lanes& first, Lanes& second) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t raw = vreinterpretq_u32_u16(vld1q_u16(p + 8 * i));
    first.v[i] = vfmaq_n_f32(first.v[i], vreinterpretq_f32_u32(vshlq_n_u32(raw, 16)), w.first);
    second.v[i] = vfmaq_n_f32(second.v[i], vreinterpretq_f32_u32(vandq_u32(raw, vdupq_n_u32(0xffff0000u))), w.second);
  }
}

#else

inline void add_pairs(const bf16* p, PairWeight w, Lanes& first, Lanes& second) {
  for (int h = 0; h < 2; ++h) {
    Lanes::Whole raw;
    std::memcpy(&raw, p + 16 * h, sizeof raw);
    first.half[h] += (Lanes::Floats)(raw << 16) * w.first;
    second.half[h] += (Lanes::Floats)(raw & 0xffff0000u) * w.second;
  }
}

#endif

}  // namespace solm
