// Dot products of int8: every one of sixteen lanes adds up four products of an unsigned byte with a signed one. One
// instruction with AVX-512 VNNI, a few with AVX2, two or four on Arm (dot_i8_neon.h), plain C++ elsewhere.
#pragma once

#include <type_traits>

#include "dot_i8_neon.h"
#include "each.h"
#include "lanes.h"

namespace solm {

// 64 bytes hold four for each lane. They are processed in parts as wide as the processor's vectors.

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define DOT_I8_VNNI
#elif defined(__AVX2__)
#define DOT_I8_AVX2
#endif

#if defined(DOT_I8_VNNI)

// sums += the products of unsigned numbers with signed ones. In assembly: from the intrinsic GCC copies sums between registers
// and memory.
SOLM_INLINE inline void add_products(__m512i& sums, const __m512i& numbers, const __m512i& x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(numbers), "v"(x));
}

struct Bytes {
  static constexpr int WIDTH = 64;
  __m512i v;
  static Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  Bytes low() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
  Bytes high() const { return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15))}; }
  // Of every byte the bits from `at` on, as many as `most` has.
  Bytes field(int at, int most) const {
    return {_mm512_and_si512(_mm512_srl_epi16(v, _mm_cvtsi32_si128(at)), _mm512_set1_epi8(char(most)))};
  }
  // A part of 64 numbers of 4 bits in 32 bytes: the first 32 numbers are the low halves.
  static Bytes single(const uint8_t* p, int) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), most = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(raw, most), high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), most);
    return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
  }
};

// Transposes a part of four rows of 64 outputs into four vectors of 16 outputs, each output with its four bytes together.
inline void interleave(const Bytes* row, Bytes* quad) {
  const __m512i a = _mm512_unpacklo_epi8(row[0].v, row[1].v), b = _mm512_unpackhi_epi8(row[0].v, row[1].v);
  const __m512i c = _mm512_unpacklo_epi8(row[2].v, row[3].v), d = _mm512_unpackhi_epi8(row[2].v, row[3].v);
  quad[0].v = _mm512_unpacklo_epi16(a, c), quad[1].v = _mm512_unpackhi_epi16(a, c);
  quad[2].v = _mm512_unpacklo_epi16(b, d), quad[3].v = _mm512_unpackhi_epi16(b, d);
}

// Sixteen sums of products of bytes that are stored with BIAS added.
template <int BIAS>
struct DotI8 {
  __m512i v;
  // total: the sum of all signed numbers that will be multiplied, to take off what BIAS adds.
  static DotI8 begin(int32_t total) { return {_mm512_set1_epi32(-BIAS * total)}; }
  template <typename Part>
  SOLM_INLINE void add(Part, const Bytes& w, int32_t four) { add_products(v, w.v, _mm512_set1_epi32(four)); }
  Lanes lanes() const { return {_mm512_cvtepi32_ps(v)}; }
};

#elif defined(DOT_I8_AVX2)

struct Bytes {
  static constexpr int WIDTH = 32;
  __m256i v;
  static Bytes load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  Bytes low() const { return {_mm256_and_si256(v, _mm256_set1_epi8(15))}; }
  Bytes high() const { return {_mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15))}; }
  Bytes field(int at, int most) const {
    return {_mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128(at)), _mm256_set1_epi8(char(most)))};
  }
  static Bytes single(const uint8_t* p, int part) { return part ? load(p).high() : load(p).low(); }
};

inline void interleave(const Bytes* row, Bytes* quad) {
  const __m256i a = _mm256_unpacklo_epi8(row[0].v, row[1].v), b = _mm256_unpackhi_epi8(row[0].v, row[1].v);
  const __m256i c = _mm256_unpacklo_epi8(row[2].v, row[3].v), d = _mm256_unpackhi_epi8(row[2].v, row[3].v);
  quad[0].v = _mm256_unpacklo_epi16(a, c), quad[1].v = _mm256_unpackhi_epi16(a, c);
  quad[2].v = _mm256_unpacklo_epi16(b, d), quad[3].v = _mm256_unpackhi_epi16(b, d);
}

// AVX2 adds two products of an unsigned byte with a signed one in 16 bits. With bytes below 16, eight such sums fit, as many
// as a group of 32 channels has. Larger bytes lose their bias first and pass their sign on to the other factor, which must
// not be -128.
template <int BIAS>
struct DotI8 {
  static constexpr bool SMALL = BIAS < 16;
  static_assert(SMALL || BIAS == 128);
  __m256i first, second;
  int32_t start;

  static DotI8 begin(int32_t total) {
    return {_mm256_setzero_si256(), _mm256_setzero_si256(), SMALL ? -BIAS * total : 0};
  }
  static __m256i sum_pairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
  template <typename Part>
  void add(Part, const Bytes& w, __m256i x) {
    __m256i& sums = Part::value ? second : first;
    if constexpr (SMALL) {
      sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w.v, x));
    } else {
      const __m256i number = _mm256_xor_si256(w.v, _mm256_set1_epi8(-128));
      sums = _mm256_add_epi32(sums, sum_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(number), _mm256_sign_epi8(x, number))));
    }
  }
  template <typename Part>
  void add(Part part, const Bytes& w, int32_t four) { add(part, w, _mm256_set1_epi32(four)); }
  Lanes lanes() const {
    auto floats = [&](__m256i sums) {
      if constexpr (SMALL) sums = _mm256_add_epi32(sum_pairs(sums), _mm256_set1_epi32(start));
      return _mm256_cvtepi32_ps(sums);
    };
    return Lanes::of(floats(first), floats(second));
  }
};

#elif !defined(DOT_I8_NEON)

struct Bytes {
  static constexpr int WIDTH = 64;
  uint8_t v[64];
  static Bytes load(const uint8_t* p) {
    Bytes r;
    std::memcpy(r.v, p, 64);
    return r;
  }
  Bytes low() const {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = v[i] & 15;
    return r;
  }
  Bytes high() const {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = v[i] >> 4;
    return r;
  }
  Bytes field(int at, int most) const {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = uint8_t((v[i] >> at) & most);
    return r;
  }
  static Bytes single(const uint8_t* p, int) {
    Bytes r;
    for (int i = 0; i < 32; ++i) r.v[i] = p[i] & 15, r.v[32 + i] = p[i] >> 4;
    return r;
  }
};

inline void interleave(const Bytes* row, Bytes* quad) {
  for (int k = 0; k < 4; ++k)
    for (int lane = 0; lane < 16; ++lane)
      for (int r = 0; r < 4; ++r) quad[k].v[4 * lane + r] = row[r].v[16 * (lane / 4) + 4 * k + lane % 4];
}

template <int BIAS>
struct DotI8 {
  int32_t v[16];
  static DotI8 begin(int32_t total) {
    DotI8 r;
    for (int i = 0; i < 16; ++i) r.v[i] = -BIAS * total;
    return r;
  }
  template <typename Part>
  void add(Part, const Bytes& w, int32_t four) {
    int8_t q[4];
    std::memcpy(q, &four, 4);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 4; ++k) v[i] += int32_t(w.v[4 * i + k]) * q[k];
  }
  Lanes lanes() const {
    float x[16];
    for (int i = 0; i < 16; ++i) x[i] = float(v[i]);
    return Lanes::load(x);
  }
};

#endif

constexpr int PARTS = 64 / Bytes::WIDTH;

// Calls use(part) for every part, with the part's number as a compile-time constant.
template <typename Use>
SOLM_INLINE inline void each_part(Use use) {
  use(std::integral_constant<int, 0>());
  if constexpr (PARTS == 2) use(std::integral_constant<int, 1>());
}

}  // namespace solm
