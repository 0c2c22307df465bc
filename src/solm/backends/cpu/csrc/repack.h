// Tensors of files in the engine's layout: rows of blocks [outputs, inputs] become rows of input channels, at an output offset
// of a matrix that several tensors may share. The memory must hold zeros before the first of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "gguf_types.h"
#include "parallel.h"

namespace solm {

// OWN: at the file's own bits, packed. NESTED: 8 bits in two halves, packed, with steps and lowest values of groups of 32.
// INT4: 4 bits, packed, with steps of groups of 32.
enum Target : int32_t { OWN = 0, INT8 = 1, BFLOAT16 = 2, FLOAT32 = 3, NESTED = 4, INT4 = 5 };

constexpr TypeInfo INT4_INFO{GROUP, 0, 4, GROUP, 8};

// A tensor as a file has it. order: null, or which row of the file each output is.
struct RawTensor {
  int32_t type;
  const uint8_t* blocks;
  int32_t outputs, inputs;
  const int32_t* order;

  size_t row_bytes() const {
    const TypeInfo info = type_info(type);
    return size_t(inputs) / size_t(info.values) * size_t(info.bytes);
  }
  const uint8_t* row(int output) const { return blocks + size_t(order ? order[output] : output) * row_bytes(); }
  int groups() const { return (inputs + GROUP - 1) / GROUP; }
};

// Where it goes: outputs [first, first + outputs) of `total`. scale [total] with INT8. grid with the packed ones: float16
// [inputs / group, 2 or 1, total].
struct PackedPlace {
  int32_t target, first, total;
  void* data;
  float* scale;
  uint16_t* grid;
  int32_t threads;
};

// The values of group `group` of a row, of any type; as many as the row has.
inline int read_group(const RawTensor& tensor, const uint8_t* row, int group, float values[GROUP]) {
  const int count = std::min(GROUP, tensor.inputs - group * GROUP);
  const uint8_t* from = row + size_t(group) * GROUP * (tensor.type == F32 ? 4 : 2);
  uint16_t half;
  switch (tensor.type) {
    case F32: std::memcpy(values, from, 4 * size_t(count)); break;
    case F16:
      for (int i = 0; i < count; ++i) values[i] = blocks::half_at(from + 2 * i);
      break;
    case BF16:
      for (int i = 0; i < count; ++i) std::memcpy(&half, from + 2 * i, 2), values[i] = widen(half);
      break;
    default: {
      uint8_t numbers[GROUP];
      float step[2], lowest[2];
      decode_block(tensor.type, row, group, numbers, step, lowest);
      // With one rounding on every processor, because all of them use the file that one of them made.
      for (int i = 0; i < GROUP; ++i) values[i] = std::fma(step[i / 16], float(numbers[i]), lowest[i / 16]);
    }
  }
  return count;
}

// The byte of output `o` of 64 in the order of dot_integer.h.
inline int byte_of(int o) { return o % 16 / 4 * 16 + o / 16 * 4 + o % 4; }

// Rows of a packed matrix: the high 4 bits of all outputs, two blocks of 64 outputs to 64 bytes, then the low bits of all,
// 8 / low blocks to 64 bytes.
struct PackedRows {
  uint8_t* data;
  const int total, low, fields;  // low: bits below the high 4; fields: of a byte of low bits
  const size_t high_bytes, bytes;

  PackedRows(void* data, int total, int bits)
      : data(static_cast<uint8_t*>(data)), total(total), low(bits - 4), fields(low ? 8 / low : 1),
        high_bytes(size_t(total) / 2),
        bytes(high_bytes + (low ? size_t((total / BLOCK + fields - 1) / fields) * BLOCK : 0)) {}

  // Adds the numbers [128] of two blocks from output `o` on, both in the order of bytes, to the row of a channel.
  void add(int channel, int o, const uint8_t* numbers) const {
    uint8_t* row = data + size_t(channel) * bytes;
    const bool whole = o + 2 * BLOCK <= total;
    const int half = whole ? BLOCK : BLOCK / 2;  // a last single block shares its bytes with itself
    for (int i = 0; i < half; ++i) row[o / 2 + i] |= uint8_t(numbers[i] >> low | numbers[half + i] >> low << 4);
    if (!low) return;
    const uint8_t mask = uint8_t((1 << low) - 1);
    for (int b = 0; b < (whole ? 2 : 1); ++b) {
      const int block = o / BLOCK + b, shift = block % fields * low;
      uint8_t* to = row + high_bytes + size_t(block / fields) * BLOCK;
      for (int i = 0; i < BLOCK; ++i) to[i] |= uint8_t((numbers[b * BLOCK + i] & mask) << shift);
    }
  }
};

// decode(row, group, numbers, step, lowest) gives the numbers of a group, as `decode_block` does. False where a step or a
// lowest value is not finite in float16; `bad` is then a row of the file that has one.
template <typename Decode>
bool repack_numbers(const RawTensor& tensor, const PackedPlace& to, const TypeInfo& info, Decode decode,
                    std::atomic<int>& bad) {
  const PackedRows rows(to.data, to.total, info.bits);
  const int steps = GROUP / info.group, kinds = info.centre < 0 ? 2 : 1, end = to.first + tensor.outputs;
  in_parallel(to.threads, tensor.groups(), [&](int from, int until) {
    uint8_t by_channel[GROUP][2 * BLOCK], numbers[GROUP];
    float step[2], lowest[2];
    for (int g = from; g < until; ++g)
      for (int two = to.first / (2 * BLOCK) * 2 * BLOCK; two < end; two += 2 * BLOCK) {
        const int first = std::max(two, to.first), last = std::min(two + 2 * BLOCK, end);
        if (last - first < 2 * BLOCK) std::memset(by_channel, 0, sizeof by_channel);
        for (int o = first; o < last; ++o) {
          decode(tensor.row(o - to.first), g, numbers, step, lowest);
          const int place = (o - two) / BLOCK * BLOCK + byte_of(o % BLOCK);
          for (int i = 0; i < GROUP; ++i) by_channel[i][place] = numbers[i];
          for (int s = 0; s < steps; ++s) {
            uint16_t* grid = to.grid + size_t(g * steps + s) * kinds * to.total + o;
            grid[0] = narrow_half(step[s]);
            if (kinds == 2) grid[to.total] = narrow_half(lowest[s]);
            if (!is_finite_half(grid[0]) || (kinds == 2 && !is_finite_half(grid[to.total])))
              bad = tensor.order ? tensor.order[o - to.first] : o - to.first;
          }
        }
        for (int i = 0; i < GROUP; ++i) rows.add(g * GROUP + i, two, by_channel[i]);
      }
  });
  return bad < 0;
}

// Numbers of 8 bits whose upper halves alone are a grid of 16 values from the lowest to the highest of a group, as in
// solm.core.nested.
inline void nest(const float values[GROUP], uint8_t numbers[GROUP], float step[2], float lowest[2]) {
  float least = values[0], most = values[0];
  for (int i = 1; i < GROUP; ++i) least = std::min(least, values[i]), most = std::max(most, values[i]);
  for (int i = 0; i < GROUP; ++i)
    if (!std::isfinite(values[i])) most = NAN;  // so that the step is refused
  step[0] = step[1] = widen_half(narrow_half((most - least) / (15 * 16)));
  lowest[0] = lowest[1] = widen_half(narrow_half(std::fma(-7.5f, step[0], least)));
  const float divisor = std::max(step[0], 0x1p-24f);
  for (int i = 0; i < GROUP; ++i)
    numbers[i] = uint8_t(std::min(std::max(std::nearbyint((values[i] - lowest[0]) / divisor), 0.0f), 255.0f));
}

// Numbers of 4 bits, rounded to nearest: the value of largest magnitude becomes 0, which stands for -8 steps.
inline void round_to_int4(const float values[GROUP], uint8_t numbers[GROUP], float step[2]) {
  float peak = 0;
  for (int i = 0; i < GROUP; ++i)
    if (!(std::fabs(values[i]) <= std::fabs(peak))) peak = values[i];  // also NaN, so that the step is refused
  step[0] = step[1] = widen_half(narrow_half(peak / -8));
  for (int i = 0; i < GROUP; ++i)
    numbers[i] = uint8_t(std::min(std::max(std::nearbyint(step[0] ? values[i] / step[0] : 0) + 8, 0.0f), 15.0f));
}

// Bytes with a scale per output. A thread works on 64 outputs at a time.
inline bool repack_int8(const RawTensor& tensor, const PackedPlace& to, std::atomic<int>& bad) {
  const int first = to.first / BLOCK, blocks = (to.first + tensor.outputs + BLOCK - 1) / BLOCK - first;
  const int end = to.first + tensor.outputs, threads = std::max(1, std::min(to.threads, blocks));
  const size_t wide = size_t(tensor.groups()) * GROUP, stride = size_t(to.total + BLOCK - 1) / BLOCK * BLOCK;
  std::vector<float> floats(threads * wide);
  std::vector<uint8_t> bytes(threads * wide * BLOCK);
  std::atomic<int> next{0};
  in_parallel(threads, threads, [&](int thread, int) {
    float* values = floats.data() + thread * wide;
    uint8_t* rounded = bytes.data() + thread * wide * BLOCK;
    for (int block; (block = next++) < blocks;) {
      const int o0 = (first + block) * BLOCK, from = std::max(o0, to.first), until = std::min(o0 + BLOCK, end);
      for (int o = from; o < until; ++o) {
        const uint8_t* row = tensor.row(o - to.first);
        for (int g = 0; g < tensor.groups(); ++g) read_group(tensor, row, g, values + g * GROUP);
        float peak = 0;
        bool finite = true;
        for (int c = 0; c < tensor.inputs; ++c) peak = std::max(peak, std::fabs(values[c])), finite &= std::isfinite(values[c]);
        if (!finite) bad = tensor.order ? tensor.order[o - to.first] : o - to.first;
        const float scale = to.scale[o] = std::max(peak, 1e-12f) / 127;
        for (int c = 0; c < tensor.inputs && finite; ++c)
          rounded[size_t(o - o0) * wide + c] = uint8_t(int(std::nearbyint(values[c] / scale)) + 128);
      }
      for (int c = 0; c < tensor.inputs; ++c) {
        uint8_t* row = static_cast<uint8_t*>(to.data) + c * stride + o0;
        for (int o = from; o < until; ++o) row[byte_of(o - o0)] = rounded[size_t(o - o0) * wide + c];
      }
    }
  });
  return bad < 0;
}

template <typename T>
bool repack_floats(const RawTensor& tensor, const PackedPlace& to, std::atomic<int>& bad) {
  in_parallel(to.threads, tensor.groups(), [&](int from, int until) {
    float values[GROUP];
    for (int g = from; g < until; ++g)
      for (int o = 0; o < tensor.outputs; ++o) {
        const int count = read_group(tensor, tensor.row(o), g, values);
        T* column = static_cast<T*>(to.data) + size_t(g) * GROUP * to.total + to.first + o;
        bool finite = true;
        for (int i = 0; i < count; ++i) column[size_t(i) * to.total] = store<T>(values[i]), finite &= std::isfinite(values[i]);
        if (!finite) bad = tensor.order ? tensor.order[o] : o;
      }
  });
  return bad < 0;
}

// False where a row of the file, then `bad`, has values that are not finite.
inline bool repack(const RawTensor& tensor, const PackedPlace& to, std::atomic<int>& bad) {
  switch (to.target) {
    case OWN:
      return repack_numbers(tensor, to, type_info(tensor.type), [&](const uint8_t* row, int g, auto... found) {
        decode_block(tensor.type, row, g, found...);
      }, bad);
    case NESTED:
      return repack_numbers(tensor, to, TypeInfo{32, 0, 8, 32, -1}, [&](const uint8_t* row, int g, auto... found) {
        float values[GROUP];
        read_group(tensor, row, g, values);
        nest(values, found...);
      }, bad);
    case INT4:
      return repack_numbers(tensor, to, INT4_INFO, [&](const uint8_t* row, int g, uint8_t* numbers, float* step, float*) {
        float values[GROUP] = {};
        read_group(tensor, row, g, values);
        round_to_int4(values, numbers, step);
      }, bad);
    case INT8: return repack_int8(tensor, to, bad);
    case BFLOAT16: return repack_floats<bf16>(tensor, to, bad);
    default: return repack_floats<float>(tensor, to, bad);
  }
}

}  // namespace solm
