// Sixteen floats at a time: one AVX-512 vector, four of NEON, elsewhere two vectors of eight, which compilers split into what
// the processor has. Results are the same to the last bit wherever there is a fused multiply-add: `sum` adds the upper half of
// the lanes to the lower one, and so on.
#pragma once

#include "convert.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace solm {

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
  static Lanes zero() { return {_mm512_setzero_ps()}; }
  static Lanes all(float x) { return {_mm512_set1_ps(x)}; }
  static Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Lanes load(const bf16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  static Lanes load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  void add(Lanes a, Lanes b) { v = _mm512_fmadd_ps(a.v, b.v, v); }
  Lanes plus(Lanes other) const { return {_mm512_add_ps(v, other.v)}; }
  static Lanes of(__m256 low, __m256 high) {
    return {_mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)), _mm256_castps_pd(high), 1))};
  }
  void write(float* p) const { _mm512_storeu_ps(p, v); }
  float sum() const { return _mm512_reduce_add_ps(v); }
};

#elif defined(__aarch64__)

struct Lanes {
  float32x4_t v[4];
  static Lanes zero() { return all(0); }
  static Lanes all(float x) {
    const float32x4_t four = vdupq_n_f32(x);
    return {{four, four, four, four}};
  }
  static Lanes load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
  static Lanes load(const bf16* p) {
    const uint16x8_t first = vld1q_u16(p), second = vld1q_u16(p + 8);
    auto wide = [](uint16x4_t four) { return vreinterpretq_f32_u32(vshll_n_u16(four, 16)); };
    return {{wide(vget_low_u16(first)), wide(vget_high_u16(first)), wide(vget_low_u16(second)), wide(vget_high_u16(second))}};
  }
  static Lanes load_half(const uint16_t* p) {
    Lanes r;
    for (int i = 0; i < 4; ++i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
  }
  static Lanes of(const int32x4_t* sums) {
    return {{vcvtq_f32_s32(sums[0]), vcvtq_f32_s32(sums[1]), vcvtq_f32_s32(sums[2]), vcvtq_f32_s32(sums[3])}};
  }
  void add(const Lanes& a, const Lanes& b) {
    for (int i = 0; i < 4; ++i) v[i] = vfmaq_f32(v[i], a.v[i], b.v[i]);
  }
  Lanes plus(const Lanes& other) const {
    Lanes r;
    for (int i = 0; i < 4; ++i) r.v[i] = vaddq_f32(v[i], other.v[i]);
    return r;
  }
  void write(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
  }
  float sum() const {
    const float32x4_t four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
};

#else

struct Lanes {
  using Floats = float __attribute__((vector_size(32)));
  using Whole = uint32_t __attribute__((vector_size(32)));
  using Shorts = uint16_t __attribute__((vector_size(16)));
  // In memory. Compilers keep sums in registers that are read and written so, but not those that are copied as bytes.
  using Anywhere = float __attribute__((vector_size(32), aligned(4), may_alias));
  Floats half[2];

  static Lanes zero() { return all(0); }
  static Lanes all(float x) { return {{Floats{} + x, Floats{} + x}}; }
  static Lanes load(const float* p) {
    const auto* from = reinterpret_cast<const Anywhere*>(p);
    return {{from[0], from[1]}};
  }
  static Lanes load(const bf16* p) {
    Lanes r;
    for (int h = 0; h < 2; ++h) {
      Shorts raw;
      std::memcpy(&raw, p + 8 * h, sizeof raw);
      r.half[h] = (Floats)(__builtin_convertvector(raw, Whole) << 16);
    }
    return r;
  }
  static Lanes load_half(const uint16_t* p) {
    Lanes r;
#if defined(__F16C__)
    for (int h = 0; h < 2; ++h)
      r.half[h] = (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * h)));
#else
    for (int i = 0; i < 16; ++i) r.half[i / 8][i % 8] = widen_half(p[i]);
#endif
    return r;
  }
  void add(const Lanes& a, const Lanes& b) {
    half[0] += a.half[0] * b.half[0];
    half[1] += a.half[1] * b.half[1];
  }
  Lanes plus(const Lanes& other) const { return {{half[0] + other.half[0], half[1] + other.half[1]}}; }
#if defined(__AVX__)
  static Lanes of(__m256 low, __m256 high) { return {{(Floats)low, (Floats)high}}; }
#endif
  void write(float* p) const {
    auto* to = reinterpret_cast<Anywhere*>(p);
    to[0] = half[0], to[1] = half[1];
  }
  float sum() const {
    const Floats both = half[0] + half[1];
    const float a = both[0] + both[4], b = both[1] + both[5], c = both[2] + both[6], d = both[3] + both[7];
    return (a + c) + (b + d);
  }
};

#endif

}  // namespace solm
