// Sixteen floats at a time: AVX-512 where there is, elsewhere two vectors of eight that compilers cut down to what the
// processor has.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using bf16 = uint16_t;

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float widen_half(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = x & 0x7fff;
  uint32_t bits = magnitude << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  value *= 0x1p112f;  // from float16's exponents to float's, its subnormal numbers included
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <typename T>
T store(float x);
template <>
inline float store<float>(float x) { return x; }
template <>
inline bf16 store<bf16>(float x) { return narrow(x); }

// Intel's processors, those with tiles, take longer over products of bfloat16 pairs than over widening them: 128 ns for the
// keys and 158 for the values of a page of three heads, where the latter takes 59 and 53.
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define PAIRS_AT_ONCE
#endif

// Two weights that go with two neighbouring bfloat16 values. Where one instruction multiplies pairs of bfloat16, a weight
// is split into two of them, whose sum has 16 bits.
#if defined(PAIRS_AT_ONCE)
struct Both {
  uint32_t high, low;
  static Both of(float a, float b) {
    const bf16 x = narrow(a), y = narrow(b);
    const bf16 u = narrow(a - widen(x)), v = narrow(b - widen(y));
    return {x | uint32_t(y) << 16, u | uint32_t(v) << 16};
  }
};
#else
struct Both {
  float first, second;
  static Both of(float a, float b) { return {a, b}; }
};
#endif

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

// Adds to every lane its pair of the 32 values at p, weighted: in two parts, which may go to the same sum.
inline void add_pairs(const bf16* p, Both w, Lanes& first, Lanes& second) {
  const __m512i raw = _mm512_loadu_si512(p);
#if defined(PAIRS_AT_ONCE)
  first.v = _mm512_dpbf16_ps(first.v, (__m512bh)raw, (__m512bh)_mm512_set1_epi32(int(w.high)));
  second.v = _mm512_dpbf16_ps(second.v, (__m512bh)raw, (__m512bh)_mm512_set1_epi32(int(w.low)));
#else
  const __m512i odd = _mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000u)));
  first.add({_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))}, Lanes::all(w.first));
  second.add({_mm512_castsi512_ps(odd)}, Lanes::all(w.second));
#endif
}

#else

struct Lanes {
  using Floats = float __attribute__((vector_size(32)));
  using Whole = uint32_t __attribute__((vector_size(32)));
  using Shorts = uint16_t __attribute__((vector_size(16)));
  Floats half[2];

  static Lanes zero() { return all(0); }
  static Lanes all(float x) { return {{Floats{} + x, Floats{} + x}}; }
  static Lanes load(const float* p) {
    Lanes r;
    std::memcpy(&r, p, sizeof r);
    return r;
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
    for (int h = 0; h < 2; ++h) half[h] += a.half[h] * b.half[h];
  }
  Lanes plus(const Lanes& other) const { return {{half[0] + other.half[0], half[1] + other.half[1]}}; }
#if defined(__AVX__)
  static Lanes of(__m256 low, __m256 high) { return {{(Floats)low, (Floats)high}}; }
#endif
  void write(float* p) const { std::memcpy(p, half, sizeof half); }
  float sum() const {
    const Floats both = half[0] + half[1];
    float total = 0;
    for (int i = 0; i < 8; ++i) total += both[i];
    return total;
  }
};

inline void add_pairs(const bf16* p, Both w, Lanes& first, Lanes& second) {
  for (int h = 0; h < 2; ++h) {
    Lanes::Whole raw;
    std::memcpy(&raw, p + 16 * h, sizeof raw);
    first.half[h] += (Lanes::Floats)(raw << 16) * w.first;
    second.half[h] += (Lanes::Floats)(raw & 0xffff0000u) * w.second;
  }
}

#endif
