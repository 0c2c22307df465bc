// Conversions between float32 and the two 16-bit float formats, one number at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace solm {

using bf16 = uint16_t;

// a * b + c, rounded once where the processor can. Compilers fuse such sums by themselves; of a difference of two products
// they may fuse either one, and then processors disagree.
inline float multiply_add(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest, ties to even.
inline bf16 narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// From IEEE float16.
inline float widen_half(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = x & 0x7fff;
  uint32_t bits = magnitude << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  value *= 0x1p112f;  // from float16's exponents to float's, its subnormal numbers included
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

// To IEEE float16, to nearest, ties to even.
inline uint16_t narrow_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits >= 0x47800000) return uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (bits < 0x38800000) {  // subnormal: next to 0.5, float32 has the same steps
    float value;
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return uint16_t(sign | (bits - 0x38000000) >> 13);
}

template <typename T>
T store(float x);
template <>
inline float store<float>(float x) { return x; }
template <>
inline bf16 store<bf16>(float x) { return narrow(x); }

}  // namespace solm
