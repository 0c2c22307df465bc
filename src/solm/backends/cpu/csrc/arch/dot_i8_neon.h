// Dot products of int8 on Arm processors that multiply four bytes of every lane with one instruction; see dot_i8.h.
#pragma once

#include "lanes.h"

#if defined(__ARM_FEATURE_DOTPROD)
#define DOT_I8_NEON

namespace solm {

struct Bytes {
  static constexpr int WIDTH = 32;
  uint8x16_t v[2];
  static Bytes load(const uint8_t* p) { return {{vld1q_u8(p), vld1q_u8(p + 16)}}; }
  Bytes low() const { return {{vandq_u8(v[0], vdupq_n_u8(15)), vandq_u8(v[1], vdupq_n_u8(15))}}; }
  Bytes high() const { return {{vshrq_n_u8(v[0], 4), vshrq_n_u8(v[1], 4)}}; }
  Bytes field(int at, int most) const {
    const int8x16_t by = vdupq_n_s8(int8_t(-at));
    const uint8x16_t mask = vdupq_n_u8(uint8_t(most));
    return {{vandq_u8(vshlq_u8(v[0], by), mask), vandq_u8(vshlq_u8(v[1], by), mask)}};
  }
  static Bytes single(const uint8_t* p, int part) { return part ? load(p).high() : load(p).low(); }
  // With 128 taken off.
  int8x16_t number(int i) const { return vreinterpretq_s8_u8(veorq_u8(v[i], vdupq_n_u8(128))); }
};

inline void interleave(const Bytes* row, Bytes* quad) {
  for (int i = 0; i < 2; ++i) {
    auto pairs = [](uint8x16_t x) { return vreinterpretq_u16_u8(x); };
    auto bytes = [](uint16x8_t x) { return vreinterpretq_u8_u16(x); };
    const uint16x8_t a = pairs(vzip1q_u8(row[0].v[i], row[1].v[i])), b = pairs(vzip2q_u8(row[0].v[i], row[1].v[i]));
    const uint16x8_t c = pairs(vzip1q_u8(row[2].v[i], row[3].v[i])), d = pairs(vzip2q_u8(row[2].v[i], row[3].v[i]));
    quad[0].v[i] = bytes(vzip1q_u16(a, c)), quad[1].v[i] = bytes(vzip2q_u16(a, c));
    quad[2].v[i] = bytes(vzip1q_u16(b, d)), quad[3].v[i] = bytes(vzip2q_u16(b, d));
  }
}

// Bytes below 128 are signed bytes already. Larger ones lose their bias of 128, but where one instruction multiplies unsigned
// bytes with signed ones.
template <int BIAS>
struct DotI8 {
  static constexpr bool SMALL = BIAS < 16;
  static_assert(SMALL || BIAS == 128);
#if defined(__ARM_FEATURE_MATMUL_INT8)
  static constexpr bool UNSIGNED = !SMALL;
#else
  static constexpr bool UNSIGNED = false;
#endif
  int32x4_t sums[4];

  static DotI8 begin(int32_t total) {
    const int32x4_t start = vdupq_n_s32(SMALL || UNSIGNED ? -BIAS * total : 0);
    return {{start, start, start, start}};
  }
  template <typename Part>
  void add(Part, const Bytes& w, int32_t four) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    int32x4_t* to = sums + 2 * Part::value;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
      if constexpr (UNSIGNED) {
        to[i] = vusdotq_s32(to[i], w.v[i], x);
        continue;
      }
#endif
      to[i] = vdotq_s32(to[i], SMALL ? vreinterpretq_s8_u8(w.v[i]) : w.number(i), x);
    }
  }
  Lanes lanes() const { return Lanes::of(sums); }
};

}  // namespace solm

#endif
