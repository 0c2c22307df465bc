// Products of neighbouring pairs of bfloat16 with float32 factors.
#pragma once

#include "lanes.h"

namespace solm {

// add_pairs: adds to every lane the pair of the 32 values at p that belongs to it, times w[0] and w[1]. The two products go to
// `first` and `second`, which may be the same sum. There is an instruction that multiplies pairs of bfloat16: it was no faster
// than widening them on AMD Zen 4, slower on Intel processors with AMX, and it rounds in another way.

#if defined(__AVX512F__)

inline void add_pairs(const bf16* p, const float* w, Lanes& first, Lanes& second) {
  const __m512i raw = _mm512_loadu_si512(p);
  const __m512i odd = _mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000u)));
  first.add({_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))}, Lanes::all(w[0]));
  second.add({_mm512_castsi512_ps(odd)}, Lanes::all(w[1]));
}

#elif defined(__aarch64__)

inline void add_pairs(const bf16* p, const float* w, Lanes& first, Lanes& second) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t raw = vreinterpretq_u32_u16(vld1q_u16(p + 8 * i));
    first.v[i] = vfmaq_n_f32(first.v[i], vreinterpretq_f32_u32(vshlq_n_u32(raw, 16)), w[0]);
    second.v[i] = vfmaq_n_f32(second.v[i], vreinterpretq_f32_u32(vandq_u32(raw, vdupq_n_u32(0xffff0000u))), w[1]);
  }
}

#else

inline void add_pairs(const bf16* p, const float* w, Lanes& first, Lanes& second) {
  for (int h = 0; h < 2; ++h) {
    Lanes::Whole raw;
    std::memcpy(&raw, p + 16 * h, sizeof raw);
    first.half[h] += (Lanes::Floats)(raw << 16) * w[0];
    second.half[h] += (Lanes::Floats)(raw & 0xffff0000u) * w[1];
  }
}

#endif

}  // namespace solm
