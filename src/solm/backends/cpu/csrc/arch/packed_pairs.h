// Products of one step's inputs with packed weights, two input channels at a time in vectors of 32 bytes: with AVX2, and with
// AVX-512 as well, where wider ones, which take four channels at a time, were slower.
#pragma once

#include <algorithm>

#include "dot_i8.h"
#include "each.h"

#if defined(__AVX2__)
#define PACKED_PAIRS

namespace solm {

// Numbers of 4 + LOW bits. The upper 4 bits and the lower ones are multiplied apart, as numbers below 16, of which 16 products
// fit into 16 bits. Two channels side by side take one instruction to interleave, and the sums of 64 outputs stay in registers.
template <int LOW>
struct PackedPairs {
  static constexpr int HALF = 8;                      // pairs whose products fit into 16 bits
  static constexpr int OF_CHUNK = LOW ? 8 / LOW : 2;  // blocks of outputs that share 64 bytes of lower bits
  using Vector = __m256i;
  using Rows = Vector[2 * HALF][2];  // of all pairs, the lower and upper half of both rows

  // The lower bits of a chunk, by part: as they are, and moved so that the upper half of a byte is the lower one.
  struct Chunk {
    Rows rows[2][2];
  };

  // Lower bits of a block in a part of a chunk, read where they lie in half a byte: too large by a power of two, `shift`.
  struct Field {
    const Vector (*rows)[2];
    Vector mask;
    int shift;

    Field(const Chunk& chunk, int part, int block)
        : rows(chunk.rows[block * LOW / 4][part]), shift(block * LOW % 4) {
      mask = _mm256_set1_epi8(char(((1 << LOW) - 1) << shift));
    }
  };

  // Sums of 16 bits: of either half of the pairs, for the lower and upper halves of bytes, of 16 bytes of a row each.
  struct Sums {
    Vector of[2][2][2];
  };

  const int pairs;
  const uint8_t* const* row;
  int32_t input[2 * HALF];  // two numbers, twice

  // row: of `count` channels; q: their inputs. After an odd number one more row follows, whose input is 0.
  PackedPairs(int count, const uint8_t* const* row, const int8_t* q) : pairs((count + 1) / 2), row(row) {
    for (int i = 0; i < 2 * HALF; i += 8) {
      const Vector two = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 2 * i)));
      _mm256_storeu_si256(reinterpret_cast<Vector*>(input + i), _mm256_or_si256(two, _mm256_slli_epi32(two, 16)));
    }
  }

  // Reads lower bits, `place` bytes from where rows start. fetch() is called for every pair.
  template <typename Fetch>
  void read_chunk(size_t place, Fetch fetch, Chunk& chunk) const {
    for (int i = 0; i < pairs; ++i) {
      for (int part = 0; part < 2; ++part) {
        Vector both[2];
        interleave_pair(place + part * 32, i, both);
        for (int u = 0; u < 2; ++u) {
          chunk.rows[0][part][i][u] = both[u];
          chunk.rows[1][part][i][u] = _mm256_srli_epi16(both[u], 4);
        }
      }
      fetch();
    }
  }

  // Multiplies the lower and upper halves of 32 bytes of every row, `place` bytes from where it starts, and the lower bits
  // `first` and `second` of these numbers. HALVES: 1 for at most HALF pairs. fetch() is called for every pair.
  template <int HALVES, typename Fetch>
  SOLM_INLINE void multiply(size_t place, const Field& first, const Field& second, Fetch fetch, Sums& upper, Sums& lower) const {
    const Vector most = _mm256_set1_epi8(15);
    for (int half = 0; half < HALVES; ++half) {
      Vector high[2][2], low[2][2];
      for (auto* sums : {high, low}) sums[0][0] = sums[0][1] = sums[1][0] = sums[1][1] = _mm256_setzero_si256();
      for (int i = half * HALF; i < std::min(pairs, half * HALF + HALF); ++i) {
        const Vector x = _mm256_set1_epi32(input[i]);
        Vector both[2];
        interleave_pair(place, i, both);
#pragma GCC unroll 2
        for (int u = 0; u < 2; ++u) {
          add(high[0][u], _mm256_and_si256(both[u], most), x);
          add(high[1][u], _mm256_and_si256(_mm256_srli_epi16(both[u], 4), most), x);
          if constexpr (LOW > 0) {
            add(low[0][u], _mm256_and_si256(first.rows[i][u], first.mask), x);
            add(low[1][u], _mm256_and_si256(second.rows[i][u], second.mask), x);
          }
        }
        fetch();
      }
#pragma GCC unroll 2
      for (int which = 0; which < 2; ++which)
        for (int u = 0; u < 2; ++u) upper.of[half][which][u] = high[which][u], lower.of[half][which][u] = low[which][u];
    }
  }

  // The sums of eight numbers of the lower (which 0) or upper halves, those of outputs 16 k + [0, 8), times 2^shift.
  template <int HALVES>
  SOLM_INLINE static Vector total(const Sums& upper, const Sums& lower, int which, int k, int shift) {
    const int by = 1 << (LOW + shift);
    if constexpr (LOW > 0 && HALVES == 1)
      return _mm256_madd_epi16(side_by_side(upper.of[0][which][k / 2], lower.of[0][which][k / 2], k),
                               _mm256_set1_epi32(by | 1 << 16));
    const Vector none = _mm256_setzero_si256();
    auto both = [&](const Sums& sums) {
      return side_by_side(sums.of[0][which][k / 2], HALVES == 2 ? sums.of[1][which][k / 2] : none, k);
    };
    const Vector sums = _mm256_madd_epi16(both(upper), _mm256_set1_epi16(short(by)));
    if constexpr (LOW == 0) return sums;
    else return _mm256_add_epi32(sums, _mm256_madd_epi16(both(lower), _mm256_set1_epi16(1)));
  }

 private:
  SOLM_INLINE void interleave_pair(size_t place, int i, Vector* both) const {
    const auto load = [&](int r) SOLM_INLINE { return _mm256_loadu_si256(reinterpret_cast<const Vector*>(row[r] + place)); };
    const Vector a = load(2 * i), b = load(2 * i + 1);
    both[0] = _mm256_unpacklo_epi8(a, b), both[1] = _mm256_unpackhi_epi8(a, b);
  }

  SOLM_INLINE static void add(Vector& sums, Vector numbers, Vector x) {
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(numbers, x));
  }

  SOLM_INLINE static Vector side_by_side(Vector first, Vector second, int k) {
    return k % 2 ? _mm256_unpackhi_epi16(first, second) : _mm256_unpacklo_epi16(first, second);
  }
};

}  // namespace solm

#endif
