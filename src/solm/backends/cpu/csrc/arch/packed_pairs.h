// Products of one step's inputs with packed weights, two input channels at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dot_i8.h"
#include "each.h"

#if defined(__AVX2__)
#include <immintrin.h>

#define PACKED_PAIRS

namespace solm {

// Vectors of 32 and, with AVX-512, of 64 bytes, under one set of names, for code that is written once for both.
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
    SOLM_INLINE static Floats plus(Floats a, Floats b) { return _mm##BITS##_add_ps(a, b); }                                 \
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

// Numbers of 4 + LOW bits. The upper 4 bits and the lower ones are multiplied apart, as numbers below 16, of which 16 products
// fit into 16 bits. Two channels side by side take one instruction to interleave, and the sums of 64 or 128 outputs stay in
// registers. V: the vectors that are used.
template <int LOW, typename V>
struct PackedPairs {
  static constexpr int HALF = 8;                      // pairs whose products fit into 16 bits
  static constexpr int OF_CHUNK = LOW ? 8 / LOW : 2;  // blocks of outputs that share 64 bytes of lower bits
  static constexpr int PARTS = 64 / V::BYTES;         // of 64 bytes
  using Vector = typename V::Vector;
  using Rows = Vector[2 * HALF][2];  // of all pairs, the lower and upper half of both rows

  // The lower bits of a chunk, by part: as they are, and moved so that the upper half of a byte is the lower one.
  struct Chunk {
    Rows rows[2][PARTS];
  };

  // Lower bits of a block in a part of a chunk, read where they lie in half a byte: too large by a power of two, `shift`.
  struct Field {
    const Vector (*rows)[2];
    Vector mask;
    int shift;

    Field(const Chunk& chunk, int part, int block)
        : rows(chunk.rows[block * LOW / 4][part]), shift(block * LOW % 4) {
      mask = V::all_bytes(((1 << LOW) - 1) << shift);
    }
  };

  // Sums of 16 bits: of either half of the pairs, for the lower and upper halves of bytes, of a half of each 16 bytes of a row.
  struct Sums {
    Vector of[2][2][2];
  };

  const int pairs;
  const uint8_t* const* row;
  int32_t input[2 * HALF];  // two numbers, twice

  // row: of `count` channels; q: their inputs. After an odd number one more row follows, whose input is 0.
  PackedPairs(int count, const uint8_t* const* row, const int8_t* q) : pairs((count + 1) / 2), row(row) {
    for (int i = 0; i < 2 * HALF; i += 8) {
      const __m256i two = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 2 * i)));
      Wide32::write(input + i, _mm256_or_si256(two, _mm256_slli_epi32(two, 16)));
    }
  }

  // Reads lower bits, `place` bytes from where rows start. fetch() is called for every pair.
  template <typename Fetch>
  void read_chunk(size_t place, Fetch fetch, Chunk& chunk) const {
    for (int i = 0; i < pairs; ++i) {
      for (int part = 0; part < PARTS; ++part) {
        Vector both[2];
        interleave_pair(place + part * V::BYTES, i, both);
        for (int u = 0; u < 2; ++u) {
          chunk.rows[0][part][i][u] = both[u];
          chunk.rows[1][part][i][u] = V::words_down(both[u], 4);
        }
      }
      fetch();
    }
  }

  // Multiplies the lower and upper halves of a vector of every row, `place` bytes from where it starts, and the lower bits
  // `first` and `second` of these numbers. HALVES: 1 for at most HALF pairs. fetch() is called for every pair. AHEAD: how many
  // bytes further on rows are fetched into the first-level cache; 0: they are not.
  template <int HALVES, int AHEAD, typename Fetch>
  SOLM_INLINE void multiply(size_t place, const Field& first, const Field& second, Fetch fetch, Sums& upper, Sums& lower) const {
    const Vector most = V::all_bytes(15);
    for (int half = 0; half < HALVES; ++half) {
      Vector high[2][2], low[2][2];
      for (auto* sums : {high, low}) sums[0][0] = sums[0][1] = sums[1][0] = sums[1][1] = V::zero();
      for (int i = half * HALF; i < std::min(pairs, half * HALF + HALF); ++i) {
        const Vector x = V::all_integers(input[i]);
        Vector both[2];
        interleave_pair(place, i, both);
        if constexpr (AHEAD > 0) fetch_near(row[2 * i] + place + AHEAD), fetch_near(row[2 * i + 1] + place + AHEAD);
#pragma GCC unroll 2
        for (int u = 0; u < 2; ++u) {
          add(high[0][u], V::masked(both[u], most), x);
          add(high[1][u], V::masked(V::words_down(both[u], 4), most), x);
          if constexpr (LOW > 0) {
            add(low[0][u], V::masked(first.rows[i][u], first.mask), x);
            add(low[1][u], V::masked(second.rows[i][u], second.mask), x);
          }
        }
        fetch();
      }
#pragma GCC unroll 2
      for (int which = 0; which < 2; ++which)
        for (int u = 0; u < 2; ++u) upper.of[half][which][u] = high[which][u], lower.of[half][which][u] = low[which][u];
    }
  }

  // The sums of the numbers of the lower (which 0) or upper halves, those of outputs 16 k + [0, V::BYTES / 4), times 2^shift.
  template <int HALVES>
  SOLM_INLINE static Vector total(const Sums& upper, const Sums& lower, int which, int k, int shift) {
    const int by = 1 << (LOW + shift);
    if constexpr (LOW > 0 && HALVES == 1)
      return V::word_products(side_by_side(upper.of[0][which][k / 2], lower.of[0][which][k / 2], k),
                              V::all_integers(by | 1 << 16));
    auto both = [&](const Sums& sums) {
      return side_by_side(sums.of[0][which][k / 2], HALVES == 2 ? sums.of[1][which][k / 2] : V::zero(), k);
    };
    const Vector sums = V::word_products(both(upper), V::all_words(by));
    if constexpr (LOW == 0) return sums;
    else return V::add_integers(sums, V::word_products(both(lower), V::all_words(1)));
  }

 private:
  SOLM_INLINE static void fetch_near(const uint8_t* from) { __builtin_prefetch(from, 0, 3); }

  SOLM_INLINE void interleave_pair(size_t place, int i, Vector* both) const {
    const Vector a = V::load(row[2 * i] + place), b = V::load(row[2 * i + 1] + place);
    both[0] = V::first_bytes(a, b), both[1] = V::last_bytes(a, b);
  }

  SOLM_INLINE static void add(Vector& sums, Vector numbers, Vector x) {
    sums = V::add_words(sums, V::byte_products(numbers, x));
  }

  SOLM_INLINE static Vector side_by_side(Vector first, Vector second, int k) {
    return k % 2 ? V::last_words(first, second) : V::first_words(first, second);
  }
};

}  // namespace solm

#endif
