// Products of integer weights with a few tokens on Arm; see gemm_i8.h.
#pragma once

#include "dot_i8.h"
#include "each.h"

#if defined(DOT_I8_NEON)

namespace solm {

// How weights lie in a tile: as signed bytes, those of 8 bits with 128 taken off.
template <int BITS>
struct NeonTile {
  static constexpr int TOKENS = 4, STRIPS = 1, BYTES = 64, INPUT = 1;
  static constexpr bool SIGNED = BITS == 8;
  static void place(const Bytes& quad, int part, uint8_t* to) {
    for (int i = 0; i < 2; ++i)
      vst1q_s8(reinterpret_cast<int8_t*>(to) + 32 * part + 16 * i, SIGNED ? quad.number(i) : vreinterpretq_s8_u8(quad.v[i]));
  }
  template <int T>
  static const int8_t* panel(const int8_t* x, size_t&, int, int8_t*) { return x; }
  static int8x16_t weights(const uint8_t* tile, int sixteen) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(tile) + 16 * sixteen);
  }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)

// One instruction multiplies eight channels of two outputs with those of two tokens.
template <int BITS>
struct TileDot : NeonTile<BITS> {
  using NeonTile<BITS>::BYTES;

  template <int QUADS, int T, typename Start, typename Use>
  static SOLM_INLINE void multiply(const uint8_t* tile, size_t, const int8_t* x, size_t stride, Start start, Use use) {
    static_assert(QUADS % 2 == 0 && T == NeonTile<BITS>::TOKENS);
    int32x4_t sum[T / 2][8];  // of two outputs and two tokens
    for (auto& pair : sum)
      for (auto& four : pair) four = vdupq_n_s32(0);
    for (int i = 0; i < QUADS; i += 2) {
      int8x16_t input[T / 2];
      for (int t = 0; t < T / 2; ++t)
        input[t] = vcombine_s8(vld1_s8(x + 2 * t * stride + 4 * i), vld1_s8(x + (2 * t + 1) * stride + 4 * i));
#pragma GCC unroll 4
      for (int o = 0; o < 4; ++o) {
        const int32x4_t first = vreinterpretq_s32_s8(NeonTile<BITS>::weights(tile + i * BYTES, o));
        const int32x4_t second = vreinterpretq_s32_s8(NeonTile<BITS>::weights(tile + (i + 1) * BYTES, o));
        const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
#pragma GCC unroll 2
        for (int t = 0; t < T / 2; ++t) {
          sum[t][2 * o] = vmmlaq_s32(sum[t][2 * o], low, input[t]);
          sum[t][2 * o + 1] = vmmlaq_s32(sum[t][2 * o + 1], high, input[t]);
        }
      }
    }
    each<T>([&](auto t) SOLM_INLINE {
      int32x4_t of_token[4];
      for (int o = 0; o < 4; ++o) {
        const int32x4_t low = sum[t / 2][2 * o], high = sum[t / 2][2 * o + 1];
        of_token[o] = vaddq_s32(t % 2 ? vuzp2q_s32(low, high) : vuzp1q_s32(low, high), vdupq_n_s32(start(t)));
      }
      use(FIRST_STRIP, t, Lanes::of(of_token));
    });
  }
};

#else

template <int BITS>
struct TileDot : NeonTile<BITS> {
  using NeonTile<BITS>::BYTES;

  template <int QUADS, int T, typename Start, typename Use>
  static SOLM_INLINE void multiply(const uint8_t* tile, size_t, const int8_t* x, size_t stride, Start start, Use use) {
    static_assert(QUADS % 4 == 0 && T == NeonTile<BITS>::TOKENS);
    int32x4_t sum[T][4];
    each<T>([&](auto t) SOLM_INLINE {
      for (auto& four : sum[t]) four = vdupq_n_s32(start(t));
    });
    for (int i = 0; i < QUADS; i += 4) {
      int8x16_t input[T];
      for (int t = 0; t < T; ++t) input[t] = vld1q_s8(x + t * stride + 4 * i);
      each<4>([&](auto quad) SOLM_INLINE {
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) {
          const int8x16_t w = NeonTile<BITS>::weights(tile + (i + quad) * BYTES, o);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) sum[t][o] = vdotq_laneq_s32(sum[t][o], w, input[t], decltype(quad)::value);
        }
      });
    }
    each<T>([&](auto t) SOLM_INLINE { use(FIRST_STRIP, t, Lanes::of(sum[t])); });
  }
};

#endif

}  // namespace solm

#endif
