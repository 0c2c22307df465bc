// Products of integer weights with a few tokens: what a processor multiplies many rows with. Another instruction set needs
// its own `TileDot` and nothing else.
#pragma once

#include <algorithm>

#include "dot_i8.h"
#include "each.h"
#include "gemm_i8_amx.h"
#include "gemm_i8_neon.h"

namespace solm {

// TileDot<BITS>: sums of products of unsigned weights of BITS bits (4, 5, 6 or 8) with signed bytes that are not -128.
//   TOKENS, STRIPS: sums of so many tokens with STRIPS times sixteen outputs fit in the registers together. T below: so many
//     tokens, or fewer, as `at_once` gives.
//   SIGNED: whether weights have 128 taken off when they are placed in a tile (BITS = 8).
//   BYTES: of a tile for four channels and sixteen outputs; a tile starts at a multiple of 64 bytes.
//   place(quad, part, to): writes a part of interleaved bytes (see `interleave`) to those.
//   INPUT: bytes of one number of a token in the form that `panel` gives.
//   panel<T>(x, stride, count, room): `count` (a multiple of 16) numbers of T tokens in that form, `stride` bytes apart in x;
//     in room [T, count], 2 bytes each, or where they are already. Sets `stride` to the new distance.
//   multiply<QUADS, T>(tile, next, x, stride, start, use): for every token t and strip s, whose weights are next * s bytes
//     behind the first one's, use(s, t, 16 sums) with start(t), an integer, plus the products of 4 QUADS channels; s and t as
//     compile-time constants. In its thread a TileSetup<QUADS> must live meanwhile.

// How many of `left` tokens are multiplied next, 4, 8 or `most` (4, 6, 8 or 12), or 4 or 6 where that is 6: for the last ones as
// few as will do, but not 4 alone where 8 twice are as many.
inline int at_once(int left, int most) {
  if (most == 6) return left <= 4 || left == 7 || left == 8 ? 4 : 6;
  if (left > 16 || most == 4) return most;
  return left <= 4 ? 4 : left <= 8 || left > 12 ? 8 : most;
}

#if !defined(GEMM_I8_AMX)

template <int QUADS>
struct TileSetup {};

#endif

#if defined(DOT_I8_VNNI) && !defined(GEMM_I8_AMX)

// Loads are the limit: processors that multiply two vectors per cycle load two. With two strips an input that was loaded is
// used twice.
template <int BITS>
struct TileDot {
  static constexpr int TOKENS = 6, STRIPS = 2, BYTES = 64, INPUT = 1;
  static constexpr bool SIGNED = false;
  static void place(const Bytes& quad, int, uint8_t* to) { _mm512_store_si512(to, quad.v); }
  template <int T>
  static const int8_t* panel(const int8_t* x, size_t&, int, int8_t*) { return x; }

  template <int QUADS, int T, typename Start, typename Use>
  static SOLM_INLINE void multiply(const uint8_t* tile, size_t next, const int8_t* x, size_t stride, Start start, Use use) {
    __m512i sum[STRIPS][T];
    each<T>([&](auto t) SOLM_INLINE {
      const __m512i from = _mm512_set1_epi32(start(t));
      each<STRIPS>([&](auto s) SOLM_INLINE { sum[s][t] = from; });
    });
    for (int i = 0; i < QUADS; ++i) {
      __m512i w[STRIPS];
      each<STRIPS>([&](auto s) SOLM_INLINE { w[s] = _mm512_load_si512(tile + s * next + i * BYTES); });
      each<T>([&](auto t) SOLM_INLINE {
        int32_t four;
        std::memcpy(&four, x + t * stride + 4 * i, 4);
        const __m512i input = _mm512_set1_epi32(four);
        each<STRIPS>([&](auto s) SOLM_INLINE { add_products(sum[s][t], w[s], input); });
      });
    }
    each<T>([&](auto t) SOLM_INLINE {
      each<STRIPS>([&](auto s) SOLM_INLINE { use(s, t, Lanes{_mm512_cvtepi32_ps(sum[s][t])}); });
    });
  }
};

#elif defined(DOT_I8_AVX2)

// The sums of four tokens with 16 outputs, in assembly: from intrinsics compilers make code that takes half as long again,
// because they load weights again for every product or keep sums in memory.
struct FourTokens {
  __m256i a0, a1, b0, b1, c0, c1, d0, d1;
};

#define SOLM_TOKEN(multiply, address, low, high)                          \
  "vpbroadcastd " address ", %[four]\n\t"                                 \
  multiply " %[four], %[w0], %[" low "]\n\t" multiply " %[four], %[w1], %[" high "]\n\t"
#define SOLM_TOKEN_ADD(multiply, add, address, low, high)                 \
  "vpbroadcastd " address ", %[four]\n\t"                                 \
  multiply " %[four], %[w0], %[products]\n\t" add " %[products], %[" low "], %[" low "]\n\t" \
  multiply " %[four], %[w1], %[products]\n\t" add " %[products], %[" high "], %[" high "]\n\t"
#define SOLM_WEIGHTS "vmovdqa %c[at](%[tile]), %[w0]\n\tvmovdqa %c[at]+32(%[tile]), %[w1]\n\t"
#define SOLM_INPUTS                                                                                                 \
  [tile] "r"(tile), [x] "r"(x), [s] "r"(stride), [last] "r"(x + 3 * stride), [at] "i"(64 * I), [i] "i"(4 * I),       \
      "m"(*reinterpret_cast<const uint8_t(*)[]>(tile)), "m"(*reinterpret_cast<const int8_t(*)[]>(x))
// A function that adds, or with I = FIRST writes, the products of the I-th 4 bytes of four tokens with the I-th 64 bytes.
#define SOLM_PRODUCTS(name, multiply, add)                                                                           \
  template <int I, bool FIRST>                                                                                       \
  SOLM_INLINE inline void name(const uint8_t* tile, const int8_t* x, size_t stride, FourTokens& sum) {               \
    __m256i w0, w1, four, products;                                                                                  \
    if constexpr (FIRST)                                                                                             \
      asm(SOLM_WEIGHTS SOLM_TOKEN(multiply, "%c[i](%[x])", "a0", "a1")                                               \
          SOLM_TOKEN(multiply, "%c[i](%[x],%[s])", "b0", "b1") SOLM_TOKEN(multiply, "%c[i](%[x],%[s],2)", "c0", "c1") \
          SOLM_TOKEN(multiply, "%c[i](%[last])", "d0", "d1")                                                         \
          : [a0] "=&x"(sum.a0), [a1] "=&x"(sum.a1), [b0] "=&x"(sum.b0), [b1] "=&x"(sum.b1), [c0] "=&x"(sum.c0),      \
            [c1] "=&x"(sum.c1), [d0] "=&x"(sum.d0), [d1] "=&x"(sum.d1), [w0] "=&x"(w0), [w1] "=&x"(w1),              \
            [four] "=&x"(four)                                                                                       \
          : SOLM_INPUTS);                                                                                            \
    else                                                                                                             \
      asm(SOLM_WEIGHTS SOLM_TOKEN_ADD(multiply, add, "%c[i](%[x])", "a0", "a1")                                      \
          SOLM_TOKEN_ADD(multiply, add, "%c[i](%[x],%[s])", "b0", "b1")                                              \
          SOLM_TOKEN_ADD(multiply, add, "%c[i](%[x],%[s],2)", "c0", "c1")                                            \
          SOLM_TOKEN_ADD(multiply, add, "%c[i](%[last])", "d0", "d1")                                                \
          : [a0] "+x"(sum.a0), [a1] "+x"(sum.a1), [b0] "+x"(sum.b0), [b1] "+x"(sum.b1), [c0] "+x"(sum.c0),           \
            [c1] "+x"(sum.c1), [d0] "+x"(sum.d0), [d1] "+x"(sum.d1), [w0] "=&x"(w0), [w1] "=&x"(w1),                 \
            [four] "=&x"(four), [products] "=&x"(products)                                                           \
          : SOLM_INPUTS);                                                                                            \
  }
SOLM_PRODUCTS(add_byte_products, "vpmaddubsw", "vpaddw")
SOLM_PRODUCTS(add_short_products, "vpmaddwd", "vpaddd")
#undef SOLM_PRODUCTS
#undef SOLM_INPUTS
#undef SOLM_WEIGHTS
#undef SOLM_TOKEN_ADD
#undef SOLM_TOKEN

// Sums of pairs of products stay in 16 bits as long as they fit: for eight instructions with weights below 16, for four with
// those below 32, for two with those below 64.
template <int BITS>
struct TileDot {
  static constexpr int TOKENS = 4, STRIPS = 1, BYTES = 64, INPUT = 1;
  static constexpr bool SIGNED = false;
  static void place(const Bytes& quad, int part, uint8_t* to) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to) + part, quad.v);
  }
  template <int T>
  static const int8_t* panel(const int8_t* x, size_t&, int, int8_t*) { return x; }

  template <int QUADS, int T, typename Start, typename Use>
  static SOLM_INLINE void multiply(const uint8_t* tile, size_t, const int8_t* x, size_t stride, Start start, Use use) {
    constexpr int CHAIN = std::min(QUADS, 128 >> BITS);
    static_assert(QUADS % CHAIN == 0 && T == TOKENS);
    FourTokens sum;
    add_chain<0, CHAIN>(tile, x, stride, sum);
    add_rest<CHAIN, CHAIN, QUADS>(tile, x, stride, sum);
    write(sum, start, use);
  }

  template <typename Start, typename Use>
  static SOLM_INLINE void write(const FourTokens& sum, Start start, Use use) {
    const auto token = [&](auto t, __m256i low, __m256i high) SOLM_INLINE {
      const __m256i from = _mm256_set1_epi32(start(t));
      use(FIRST_STRIP, t,
          Lanes::of(_mm256_cvtepi32_ps(_mm256_add_epi32(low, from)), _mm256_cvtepi32_ps(_mm256_add_epi32(high, from))));
    };
    token(std::integral_constant<int, 0>(), sum.a0, sum.a1);
    token(std::integral_constant<int, 1>(), sum.b0, sum.b1);
    token(std::integral_constant<int, 2>(), sum.c0, sum.c1);
    token(std::integral_constant<int, 3>(), sum.d0, sum.d1);
  }

 private:
  // sum = the products of quads [FROM, FROM + CHAIN), in 32 bits.
  template <int FROM, int CHAIN>
  static SOLM_INLINE void add_chain(const uint8_t* tile, const int8_t* x, size_t stride, FourTokens& sum) {
    add_from<FROM, FROM, FROM + CHAIN>(tile, x, stride, sum);
    const __m256i ones = _mm256_set1_epi16(1);
    sum.a0 = _mm256_madd_epi16(sum.a0, ones), sum.a1 = _mm256_madd_epi16(sum.a1, ones);
    sum.b0 = _mm256_madd_epi16(sum.b0, ones), sum.b1 = _mm256_madd_epi16(sum.b1, ones);
    sum.c0 = _mm256_madd_epi16(sum.c0, ones), sum.c1 = _mm256_madd_epi16(sum.c1, ones);
    sum.d0 = _mm256_madd_epi16(sum.d0, ones), sum.d1 = _mm256_madd_epi16(sum.d1, ones);
  }
  template <int I, int FROM, int END>
  static SOLM_INLINE void add_from(const uint8_t* tile, const int8_t* x, size_t stride, FourTokens& sum) {
    add_byte_products<I, I == FROM>(tile, x, stride, sum);
    if constexpr (I + 1 < END) add_from<I + 1, FROM, END>(tile, x, stride, sum);
  }
  // sum += the products of quads [FROM, QUADS).
  template <int FROM, int CHAIN, int QUADS>
  static SOLM_INLINE void add_rest(const uint8_t* tile, const int8_t* x, size_t stride, FourTokens& sum) {
    if constexpr (FROM < QUADS) {
      FourTokens more;
      add_chain<FROM, CHAIN>(tile, x, stride, more);
      sum.a0 = _mm256_add_epi32(sum.a0, more.a0), sum.a1 = _mm256_add_epi32(sum.a1, more.a1);
      sum.b0 = _mm256_add_epi32(sum.b0, more.b0), sum.b1 = _mm256_add_epi32(sum.b1, more.b1);
      sum.c0 = _mm256_add_epi32(sum.c0, more.c0), sum.c1 = _mm256_add_epi32(sum.c1, more.c1);
      sum.d0 = _mm256_add_epi32(sum.d0, more.d0), sum.d1 = _mm256_add_epi32(sum.d1, more.d1);
      add_rest<FROM + CHAIN, CHAIN, QUADS>(tile, x, stride, sum);
    }
  }
};

// Two products with weights of 8 bits do not fit in 16 bits, so both factors are widened before.
template <>
struct TileDot<8> {
  static constexpr int TOKENS = 4, STRIPS = 1, BYTES = 128, INPUT = 2;
  static constexpr bool SIGNED = true;

  // Neighbouring channels make pairs: first those of channels 0 and 1 of all outputs, then those of 2 and 3.
  static void place(const Bytes& quad, int part, uint8_t* to) {
    const __m256i byte = _mm256_set1_epi32(255), high = _mm256_set1_epi32(255 << 16), most = _mm256_set1_epi16(128);
    const __m256i q = quad.v;
    const __m256i first = _mm256_or_si256(_mm256_and_si256(q, byte), _mm256_and_si256(_mm256_slli_epi32(q, 8), high));
    const __m256i second = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(q, 16), byte),
                                           _mm256_and_si256(_mm256_srli_epi32(q, 8), high));
    auto* pairs = reinterpret_cast<__m256i*>(to) + part;
    _mm256_store_si256(pairs, _mm256_sub_epi16(first, most));
    _mm256_store_si256(pairs + 2, _mm256_sub_epi16(second, most));
  }
  template <int T>
  static const int8_t* panel(const int8_t* x, size_t& stride, int count, int8_t* room) {
    for (int t = 0; t < T; ++t)
      for (int i = 0; i < count; i += 16)
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(room + 2 * (size_t(t) * count + i)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + t * stride + i))));
    stride = 2 * size_t(count);
    return room;
  }

  template <int QUADS, int T, typename Start, typename Use>
  static SOLM_INLINE void multiply(const uint8_t* tile, size_t, const int8_t* x, size_t stride, Start start, Use use) {
    static_assert(T == TOKENS);
    FourTokens sum;
    add_from<0, 2 * QUADS>(tile, x, stride, sum);
    TileDot<4>::write(sum, start, use);
  }

 private:
  template <int I, int END>
  static SOLM_INLINE void add_from(const uint8_t* tile, const int8_t* x, size_t stride, FourTokens& sum) {
    add_short_products<I, I == 0>(tile, x, stride, sum);
    if constexpr (I + 1 < END) add_from<I + 1, END>(tile, x, stride, sum);
  }
};

#elif !defined(DOT_I8_NEON) && !defined(GEMM_I8_AMX)

template <int BITS>
struct TileDot {
  static constexpr int TOKENS = 6, STRIPS = 2, BYTES = 64, INPUT = 1;  // so many as with VNNI, for its tests
  static constexpr bool SIGNED = false;
  static void place(const Bytes& quad, int, uint8_t* to) { std::memcpy(to, quad.v, 64); }
  template <int T>
  static const int8_t* panel(const int8_t* x, size_t&, int, int8_t*) { return x; }

  template <int QUADS, int T, typename Start, typename Use>
  static void multiply(const uint8_t* tile, size_t next, const int8_t* x, size_t stride, Start start, Use use) {
    float sum[16];
    for (int s = 0; s < STRIPS; ++s)
      for (int t = 0; t < T; ++t) {
        for (int o = 0; o < 16; ++o) {
          int32_t total = start(t);
          for (int i = 0; i < QUADS; ++i)
            for (int k = 0; k < 4; ++k) total += int32_t(tile[s * next + i * BYTES + 4 * o + k]) * x[t * stride + 4 * i + k];
          sum[o] = float(total);
        }
        use(s, t, Lanes::load(sum));
      }
  }
};

#endif

}  // namespace solm
