// The tensor types of GGUF files: how long their blocks are, and what 32 neighbouring weights of a row are.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "arch/convert.h"
#include "structs.h"

namespace solm {

inline bool is_finite_half(uint16_t x) { return (x & 0x7c00) != 0x7c00; }

// GGUF's own numbers.
enum GgufType : int32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
  IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39,
};

// values: of a block, which takes `bytes`. bits: of a number as the engine keeps it, 0 for floats. group: values that share a
// step. centre: the number that means zero, or -1 where groups have lowest values of their own.
struct TypeInfo {
  int32_t values, bytes, bits, group, centre;
};

// All zeros for a type that is not supported.
inline TypeInfo type_info(int32_t type) {
  switch (type) {
    case F32: return {1, 4, 0, 0, 0};
    case F16: case BF16: return {1, 2, 0, 0, 0};
    case Q4_0: return {32, 18, 4, 32, 8};
    case Q4_1: return {32, 20, 4, 32, -1};
    case Q5_0: return {32, 22, 5, 32, 16};
    case Q5_1: return {32, 24, 5, 32, -1};
    case Q8_0: return {32, 34, 8, 32, 128};
    case Q2_K: return {256, 84, 4, 16, -1};
    case Q3_K: return {256, 110, 4, 16, 4};
    case Q4_K: return {256, 144, 4, 32, -1};
    case Q5_K: return {256, 176, 5, 32, -1};
    case Q6_K: return {256, 210, 6, 16, 32};
    case IQ4_NL: return {32, 18, 8, 32, 128};
    case IQ4_XS: return {256, 136, 8, 32, 128};
    case MXFP4: return {32, 17, 5, 32, 12};
    default: return {0, 0, 0, 0, 0};
  }
}

namespace blocks {

// A float16 of a file, which may be infinite or no number.
inline float half_at(const uint8_t* place) {
  uint16_t half;
  std::memcpy(&half, place, 2);
  return (half & 0x7c00) == 0x7c00 ? std::numeric_limits<float>::quiet_NaN() : widen_half(half);
}

// Numbers 0 to 15 are in the low halves of 16 bytes, the others in the high halves.
inline void split(const uint8_t* bytes, uint8_t* numbers) {
  for (int i = 0; i < 16; ++i) numbers[i] = bytes[i] & 15, numbers[16 + i] = bytes[i] >> 4;
}

// The values that 4 bits stand for in the types with a codebook, above the least number that `centre` leaves room for.
constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
inline void look_up(const int8_t* values, int centre, uint8_t* numbers) {
  for (int i = 0; i < GROUP; ++i) numbers[i] = uint8_t(values[numbers[i]] + centre);
}

// Half of 2 to the power of a byte less 127: the values above are doubled.
inline float half_power(uint8_t exponent) {
  const uint32_t bits = exponent < 2 ? 0x00200000u << exponent : uint32_t(exponent - 1) << 23;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Adds the fifth bits.
inline void fifth(const uint8_t* bits, uint8_t* numbers) {
  uint32_t all;
  std::memcpy(&all, bits, 4);
  for (int i = 0; i < 32; ++i) numbers[i] |= uint8_t((all >> i & 1) << 4);
}

// The scale and the minimum, of 6 bits each, of group i of 8.
inline void scale_and_minimum(const uint8_t* packed, int i, int& scale, int& minimum) {
  if (i < 4) {
    scale = packed[i] & 63, minimum = packed[i + 4] & 63;
  } else {
    scale = (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
    minimum = packed[i + 4] >> 4 | packed[i] >> 6 << 4;
  }
}

}  // namespace blocks

// Weights 32 group to 32 group + 31 of a row whose blocks begin at `row`, for any type with bits > 0: unsigned numbers, and a
// step and a lowest value for the first and the second 16 of them. A weight is step * number + lowest.
inline void decode_block(int32_t type, const uint8_t* row, int group, uint8_t numbers[GROUP], float step[2], float lowest[2]) {
  using namespace blocks;
  const TypeInfo info = type_info(type);
  const int groups = info.values / GROUP, part = group % groups;  // of a block
  const uint8_t* block = row + size_t(group / groups) * info.bytes;
  switch (type) {
    case Q4_0: split(block + 2, numbers); break;
    case Q4_1: split(block + 4, numbers); break;
    case Q5_0: split(block + 6, numbers), fifth(block + 2, numbers); break;
    case Q5_1: split(block + 8, numbers), fifth(block + 4, numbers); break;
    case Q8_0:
      for (int i = 0; i < GROUP; ++i) numbers[i] = uint8_t(block[2 + i] + 128);
      break;
    case IQ4_NL: split(block + 2, numbers), look_up(IQ4_VALUES, info.centre, numbers); break;
    case IQ4_XS: {
      uint16_t high;
      std::memcpy(&high, block + 2, 2);
      const int scale = ((block[4 + part / 2] >> part % 2 * 4 & 15) | (high >> 2 * part & 3) << 4) - 32;
      split(block + 8 + 16 * part, numbers), look_up(IQ4_VALUES, info.centre, numbers);
      step[0] = step[1] = half_at(block) * float(scale);
      lowest[0] = lowest[1] = -float(info.centre) * step[0];
      return;
    }
    case MXFP4:
      split(block + 1, numbers), look_up(MXFP4_VALUES, info.centre, numbers);
      step[0] = step[1] = half_power(block[0]);
      lowest[0] = lowest[1] = -float(info.centre) * step[0];
      return;
    case Q2_K: case Q3_K: {
      const uint8_t* low = block + (type == Q2_K ? 16 : 32) + part / 4 * 32;
      for (int i = 0; i < GROUP; ++i) numbers[i] = low[i] >> part % 4 * 2 & 3;
      if (type == Q3_K)
        for (int i = 0; i < GROUP; ++i) numbers[i] |= uint8_t((block[i] >> part & 1) << 2);
      for (int i = 0; i < 2; ++i) {
        const int half = 2 * part + i;
        if (type == Q2_K) {
          step[i] = half_at(block + 80) * float(block[half] & 15), lowest[i] = -half_at(block + 82) * float(block[half] >> 4);
        } else {
          const int scale = (block[96 + half % 8] >> half / 8 * 4 & 15) | (block[104 + half % 4] >> half / 4 * 2 & 3) << 4;
          step[i] = half_at(block + 108) * float(scale - 32), lowest[i] = -float(info.centre) * step[i];
        }
      }
      return;
    }
    case Q4_K: case Q5_K: {
      const uint8_t* high = block + 16;
      const uint8_t* low = block + (type == Q4_K ? 16 : 48) + part / 2 * 32;
      for (int i = 0; i < GROUP; ++i) numbers[i] = part % 2 ? low[i] >> 4 : low[i] & 15;
      if (type == Q5_K)
        for (int i = 0; i < GROUP; ++i) numbers[i] |= uint8_t((high[i] >> part & 1) << 4);
      int scale, minimum;
      scale_and_minimum(block + 4, part, scale, minimum);
      step[0] = step[1] = half_at(block) * float(scale);
      lowest[0] = lowest[1] = -half_at(block + 2) * float(minimum);
      return;
    }
    case Q6_K: {
      const uint8_t* low = block + part / 4 * 64 + part % 2 * 32;
      const uint8_t* high = block + 128 + part / 4 * 32;
      const int quarter = part % 4;
      for (int i = 0; i < GROUP; ++i)
        numbers[i] = uint8_t((quarter < 2 ? low[i] & 15 : low[i] >> 4) | (high[i] >> 2 * quarter & 3) << 4);
      for (int i = 0; i < 2; ++i) {
        step[i] = half_at(block + 208) * float(int8_t(block[192 + 2 * part + i]));
        lowest[i] = -float(info.centre) * step[i];
      }
      return;
    }
  }
  step[0] = step[1] = half_at(block);
  lowest[0] = lowest[1] = info.centre < 0 ? half_at(block + 2) : -float(info.centre) * step[0];
}

}  // namespace solm
