// Moving the selected ones of some values together.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace solm {

#if defined(__AVX2__)

// For every byte of bits, the positions of those that are set, in the order of `all`, a byte each; then 0x80, which shuffles
// to zero.
constexpr std::array<uint64_t, 256> positions_of_bits(std::array<int, 8> all) {
  std::array<uint64_t, 256> table{};
  for (int bits = 0; bits < 256; ++bits) {
    int count = 0;
    for (int i : all)
      if (bits >> i & 1) table[bits] |= uint64_t(i) << (8 * count++);
    for (; count < 8; ++count) table[bits] |= uint64_t(0x80) << (8 * count);
  }
  return table;
}
inline constexpr auto POSITIONS_OF_BITS = positions_of_bits({0, 1, 2, 3, 4, 5, 6, 7});

// Neither the distance from one to the next, nor from one to the next but one, is the same twice in a row.
inline constexpr auto MIXED_POSITIONS_OF_BITS = positions_of_bits({0, 4, 2, 6, 1, 5, 3, 7});

#endif

// Writes the bytes of `from` [32] whose bit is set next to one another, then zeros up to 32. The rows of weights that belong to
// them are read in this order, a line of each in turn. In rising order most are equally far apart, and processors (AMD Zen 4)
// then also fetch what would come next at that distance. Where rows are skipped, this is for nothing: with two thirds of the
// rows weights arrived a fifth more slowly. So bytes are in a mixed order.
inline void compress_bytes(uint32_t bits, const int8_t* from, int8_t* to) {
#if defined(__AVX2__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_setzero_si256());
  for (int eight = 0; eight < 4; ++eight, bits >>= 8) {
    const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&MIXED_POSITIONS_OF_BITS[bits & 255]));
    const __m128i all = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * eight));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(all, order));
    to += __builtin_popcount(bits & 255);
  }
#else
  std::memset(to, 0, 32);
  for (int i = 0; bits; bits &= bits - 1) to[i++] = from[__builtin_ctz(bits)];
#endif
}

}  // namespace solm
