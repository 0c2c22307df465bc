// Vectors of 32 and, with AVX-512, of 64 bytes, under one set of names, for code that is written once for both.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>

#include <cstdint>

#include "each.h"

namespace solm {

#define SOLM_WIDE(NAME, BITS, HALVES, LOAD_HALVES)                                                                          \
  struct NAME {                                                                                                             \
    using Vector = __m##BITS##i;                                                                                            \
    using Floats = __m##BITS;                                                                                               \
    static constexpr int BYTES = BITS / 8;                                                                                  \
    SOLM_INLINE static Vector load(const void* p) { return _mm##BITS##_loadu_si##BITS(static_cast<const Vector*>(p)); }     \
    SOLM_INLINE static void write(void* p, Vector a) { _mm##BITS##_storeu_si##BITS(static_cast<Vector*>(p), a); }           \
    SOLM_INLINE static Vector zero() { return _mm##BITS##_setzero_si##BITS(); }                                             \
    SOLM_INLINE static Vector all_bytes(int x) { return _mm##BITS##_set1_epi8(char(x)); }                                   \
    SOLM_INLINE static Vector all_words(int x) { return _mm##BITS##_set1_epi16(short(x)); }                                 \
    SOLM_INLINE static Vector all_integers(int x) { return _mm##BITS##_set1_epi32(x); }                                     \
    SOLM_INLINE static Vector masked(Vector a, Vector mask) { return _mm##BITS##_and_si##BITS(a, mask); }                   \
    SOLM_INLINE static Vector words_down(Vector a, int bits) { return _mm##BITS##_srli_epi16(a, bits); }                    \
    SOLM_INLINE static Vector first_bytes(Vector a, Vector b) { return _mm##BITS##_unpacklo_epi8(a, b); }                   \
    SOLM_INLINE static Vector last_bytes(Vector a, Vector b) { return _mm##BITS##_unpackhi_epi8(a, b); }                    \
    SOLM_INLINE static Vector first_words(Vector a, Vector b) { return _mm##BITS##_unpacklo_epi16(a, b); }                  \
    SOLM_INLINE static Vector last_words(Vector a, Vector b) { return _mm##BITS##_unpackhi_epi16(a, b); }                   \
    SOLM_INLINE static Vector add_words(Vector a, Vector b) { return _mm##BITS##_add_epi16(a, b); }                         \
    SOLM_INLINE static Vector add_integers(Vector a, Vector b) { return _mm##BITS##_add_epi32(a, b); }                      \
    SOLM_INLINE static Vector byte_products(Vector numbers, Vector x) { return _mm##BITS##_maddubs_epi16(numbers, x); }     \
    SOLM_INLINE static Vector word_products(Vector a, Vector b) { return _mm##BITS##_madd_epi16(a, b); }                    \
    SOLM_INLINE static Floats floats(Vector a) { return _mm##BITS##_cvtepi32_ps(a); }                                       \
    SOLM_INLINE static Floats all_floats(float x) { return _mm##BITS##_set1_ps(x); }                                        \
    SOLM_INLINE static Floats load_floats(const float* p) { return _mm##BITS##_loadu_ps(p); }                               \
    SOLM_INLINE static void write_floats(float* p, Floats a) { _mm##BITS##_storeu_ps(p, a); }                               \
    SOLM_INLINE static Floats load_halves(const uint16_t* p) {                                                              \
      return _mm##BITS##_cvtph_ps(LOAD_HALVES(reinterpret_cast<const HALVES*>(p)));                                         \
    }                                                                                                                       \
    SOLM_INLINE static Floats times(Floats a, Floats b) { return _mm##BITS##_mul_ps(a, b); }                                \
    SOLM_INLINE static Floats times_plus(Floats a, Floats b, Floats c) { return _mm##BITS##_fmadd_ps(a, b, c); }            \
  };

SOLM_WIDE(Wide32, 256, __m128i, _mm_loadu_si128)
#if defined(__AVX512BW__)
SOLM_WIDE(Wide64, 512, __m256i, _mm256_loadu_si256)
using Widest = Wide64;
#else
using Widest = Wide32;
#endif
#undef SOLM_WIDE

}  // namespace solm

#endif
