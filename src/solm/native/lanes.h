// Sixteen floats at a time: AVX-512 where there is, plain loops that any compiler vectorises elsewhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
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
inline float widen(int8_t x) { return float(int32_t(x)); }

// Round to nearest, ties to even.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
T store(float x);
template <>
inline float store<float>(float x) { return x; }
template <>
inline bf16 store<bf16>(float x) { return narrow(x); }

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
  static Lanes load(const int8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw))};
  }
  void add(Lanes a, Lanes b) { v = _mm512_fmadd_ps(a.v, b.v, v); }
  void write(float* p) const { _mm512_storeu_ps(p, v); }
  float sum() const { return _mm512_reduce_add_ps(v); }
};

#else

struct Lanes {
  float v[16];
  static Lanes zero() { return all(0); }
  static Lanes all(float x) {
    Lanes r;
    for (int i = 0; i < 16; ++i) r.v[i] = x;
    return r;
  }
  template <typename T>
  static Lanes load(const T* p) {
    Lanes r;
    for (int i = 0; i < 16; ++i) r.v[i] = widen(p[i]);
    return r;
  }
  void add(const Lanes& a, const Lanes& b) {
    for (int i = 0; i < 16; ++i) v[i] += a.v[i] * b.v[i];
  }
  void write(float* p) const { std::memcpy(p, v, sizeof v); }
  float sum() const {
    float total = 0;
    for (int i = 0; i < 16; ++i) total += v[i];
    return total;
  }
};

#endif
