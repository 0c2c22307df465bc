// Moving the selected ones of 32 bytes together.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace solm {

  // Writes the bytes of `from` [32] whose bit is set next to one another, then zeros up to 32.
  inline void compress_bytes(uint32_t bits, const int8_t* from, int8_t* to) {
#if defined(__AVX512VBMI2__) && defined(__AVX512VL__)
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_compress_epi8(bits, all));
#else
    std::memset(to, 0, 32);
    for (int i = 0; bits; bits &= bits - 1) to[i++] = from[__builtin_ctz(bits)];
#endif
  }

}  // namespace solm
