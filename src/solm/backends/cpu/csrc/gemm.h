// Matrix products of many tokens with weights that are unpacked tile by tile: 64 outputs and some input channels at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "arch/gemm_i8.h"
#include "dot_integer.h"
#include "tile_float.h"

namespace solm {

// The inputs of a matrix for the tokens of a chunk, `stride` channels each. For float weights `dense`. For integer weights
// int8 numbers, 0 behind the last channel, with a scale per group of 32 channels; and the scale times the sum of a group's
// numbers, and of those of its halves, which some weights have grids for.
struct ChunkInput {
  int channels, stride, groups;
  float *dense, *scale, *sum, *half_sum;
  int8_t* number;

  // Rounds x [channels] as steps do.
  void round(int token, const float* x) const {
    const int whole = channels / GROUP;
    for (int g = 0; g < whole; ++g) round_group(token, g, x + g * GROUP);
    if (whole == groups) return;
    float last[GROUP] = {};
    std::copy_n(x + whole * GROUP, channels - whole * GROUP, last);
    round_group(token, whole, last);
  }

 private:
  void round_group(int token, int group, const float* x) const {
    constexpr int HALF = GROUP / 2;
    int8_t* to = number + size_t(token) * stride + group * GROUP;
    float peak = 0;
#pragma omp simd reduction(max : peak)
    for (int i = 0; i < GROUP; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
    const float inverse = 127 / std::max(peak, 1.17549435e-36f), step = peak / 127;
    int32_t rounded[GROUP], first = 0, second = 0;
    for (int i = 0; i < GROUP; ++i) rounded[i] = int32_t(std::nearbyint(x[i] * inverse));
    for (int i = 0; i < GROUP; ++i) to[i] = int8_t(rounded[i]);
    for (int i = 0; i < HALF; ++i) first += rounded[i], second += rounded[HALF + i];
    const size_t at = size_t(token) * groups + group;
    scale[at] = step, sum[at] = step * float(first + second);
    half_sum[2 * at] = step * float(first), half_sum[2 * at + 1] = step * float(second);
  }
};

// Weights of 64 outputs for some groups of channels, as TileDot reads them, and per group their steps and lowest values.
struct Tile {
  static constexpr int ROOM = 16384, MOST_GROUPS = 16;
  alignas(64) uint8_t numbers[ROOM];
  float step[MOST_GROUPS][BLOCK], least[MOST_GROUPS][BLOCK];
  int8_t panel[ROW_STEP * 512];  // inputs of a few tokens in another form
};

// Writes `quads` times four rows of 64 outputs to a tile: for every sixteen outputs those of all quads, one after another.
// load(row, part) reads a part of one row's bytes.
template <int BITS, typename Load>
void place_quads(uint8_t* tile, int quads, Load load) {
  constexpr int BYTES = TileDot<BITS>::BYTES;
  for (int i = 0; i < quads; ++i)
    each_part([&](auto part) {
      Bytes row[4], quad[4];
      for (int k = 0; k < 4; ++k) row[k] = load(4 * i + k, part.value);
      interleave(row, quad);
      for (int j = 0; j < 4; ++j) TileDot<BITS>::place(quad[j], part.value, tile + (size_t(j) * quads + i) * BYTES);
    });
}

// Block `block` of a row of 4-bit numbers, of `blocks`: see dot_integer.h.
inline Bytes packed_block(const uint8_t* row, int block, int blocks, int part) {
  const uint8_t* from = row + block / 2 * BLOCK;
  if (block == blocks - 1 && block % 2 == 0) return Bytes::single(from, part);
  const Bytes both = Bytes::load(from + part * Bytes::WIDTH);
  return block % 2 ? both.high() : both.low();
}

// 15 times the high halves plus the low halves of nested weights: their numbers in fifteenths of a step.
inline Bytes joined(const Bytes& high, const Bytes& low) {
  using Numbers = uint8_t __attribute__((vector_size(sizeof(Bytes))));
  Numbers h, l;
  std::memcpy(&h, &high, sizeof h), std::memcpy(&l, &low, sizeof l);
  h = (h << 4) - h + l;
  Bytes both;
  std::memcpy(&both, &h, sizeof h);
  return both;
}

// y [tokens, 64], or with `add` y plus this, = the inputs of tokens [from, to) times the groups [first, first + groups) of a
// tile, of QUADS times four channels each. GRID: with steps and lowest values.
template <int BITS, int QUADS, bool GRID>
void multiply_groups(Tile& tile, const ChunkInput& x, int first, int groups, int from, int to, bool add, float* y) {
  using Dot = TileDot<BITS>;
  constexpr int CHANNELS = 4 * QUADS, PARTS_OF_GROUP = GROUP / CHANNELS;
  const float* sums = PARTS_OF_GROUP == 1 ? x.sum : x.half_sum;
  const size_t parts = size_t(PARTS_OF_GROUP) * x.groups;  // of a token
  for (int t = from; t < to; t += Dot::TOKENS) {
    size_t stride = x.stride;
    const int8_t* numbers = x.number + size_t(t) * stride + first * CHANNELS;
    numbers = Dot::panel(numbers, stride, groups * CHANNELS, tile.panel);
    for (int j = 0; j < 4; ++j) {
      float* to_y = y + size_t(t - from) * BLOCK + 16 * j;
      Lanes sum[Dot::TOKENS];
      each<Dot::TOKENS>([&](auto k) SOLM_INLINE { sum[k] = add ? Lanes::load(to_y + k * BLOCK) : Lanes::zero(); });
      for (int g = 0; g < groups; ++g) {
        const float* scale = x.scale + size_t(t) * x.groups + (first + g) / PARTS_OF_GROUP;
        const float* total = sums + size_t(t) * parts + first + g;
        [[maybe_unused]] const Lanes step = Lanes::load(tile.step[g] + 16 * j), least = Lanes::load(tile.least[g] + 16 * j);
        Dot::template multiply<QUADS>(
            tile.numbers + (size_t(j) * groups + g) * QUADS * Dot::BYTES, numbers + g * CHANNELS * Dot::INPUT, stride,
            [&](auto k, Lanes products) SOLM_INLINE {
              const Lanes by = Lanes::all(scale[size_t(k) * x.groups]);
              if constexpr (GRID) {
                Lanes scaled = Lanes::zero();
                scaled.add(by, products);
                sum[k].add(step, scaled);
                sum[k].add(least, Lanes::all(total[size_t(k) * parts]));
              } else {
                sum[k].add(by, products);
                if constexpr (!Dot::SIGNED)
                  sum[k].add(Lanes::all(-128), Lanes::all(total[size_t(k) * parts]));
              }
            });
      }
      each<Dot::TOKENS>([&](auto k) SOLM_INLINE { sum[k].write(to_y + k * BLOCK); });
    }
  }
}

// One thread's products. multiply gives y [to - from, 64], up to a multiple of ROW_STEP rows: the inputs of tokens
// [from, to) times the outputs [64 block, 64 block + 64) of a matrix with `out` outputs, without their scales.
template <typename W>
struct TileProducts {
  std::vector<float> sums;  // of a chunk with one block

  void reserve(int tokens) { sums.resize(size_t(rounded_up(tokens, ROW_STEP)) * BLOCK), tile = std::make_unique<Tile>(); }

  const float* multiply(const Matrix& m, const ChunkInput& x, int out, int block, int from, int to) {
    if constexpr (std::is_same_v<W, int8_t>) {
      if (!m.grid) integers<8, false>(m, x, out, block, from, to);
      else if (m.low) integers<8, true>(m, x, out, block, from, to);
      else integers<4, true>(m, x, out, block, from, to);
    } else {
      floats(static_cast<const W*>(m.data), x, out, block, from, to);
    }
    return sums.data();
  }

 private:
  std::unique_ptr<Tile> tile;

  template <int BITS, bool GRID>
  void integers(const Matrix& m, const ChunkInput& x, int out, int block, int from, int to) {
    constexpr int AT_ONCE = Tile::ROOM / (4 * QUADS * TileDot<BITS>::BYTES);  // groups
    static_assert(AT_ONCE <= Tile::MOST_GROUPS);
    for (int first = 0; first < x.groups; first += AT_ONCE) {
      const int groups = std::min(AT_ONCE, x.groups - first);
      unpack<BITS, GRID>(m, x.channels, out, block, first, groups);
      multiply_groups<BITS, QUADS, GRID>(*tile, x, first, groups, from, to, first > 0, sums.data());
    }
  }

  // Unpacks groups [first, first + groups) of a block. Rows behind the last channel are multiplied with zeros.
  template <int BITS, bool GRID>
  void unpack(const Matrix& m, int channels, int out, int block, int first, int groups) {
    const int blocks = (out + BLOCK - 1) / BLOCK;
    const size_t bytes = GRID ? size_t(blocks) * BLOCK / 2 : size_t(blocks) * BLOCK;
    auto row = [&](const void* data, int i) {
      return static_cast<const uint8_t*>(data) + size_t(std::min(first * GROUP + i, channels - 1)) * bytes;
    };
    place_quads<BITS>(tile->numbers, groups * QUADS, [&](int i, int part) {
      if constexpr (!GRID) return Bytes::load(row(m.data, i) + block * BLOCK + part * Bytes::WIDTH);
      else if constexpr (BITS == 8)
        return joined(packed_block(row(m.data, i), block, blocks, part), packed_block(row(m.low, i), block, blocks, part));
      else return packed_block(row(m.data, i), block, blocks, part);
    });
    for (int g = 0; GRID && g < groups; ++g) {
      const uint16_t* grid = m.grid + (size_t(2) * (first + g) * blocks + block) * BLOCK;
      for (int o = 0; o < BLOCK; o += 16) {
        Lanes step = Lanes::load_half(grid + o), least = Lanes::load_half(grid + size_t(blocks) * BLOCK + o);
        if constexpr (BITS == 8) {  // nested: fifteenths of a step, from minus half a step on
          least.add(Lanes::all(-0.5f), step);
          Lanes part = Lanes::zero();
          part.add(Lanes::all(1.0f / 15), step);
          step = part;
        }
        if constexpr (TileDot<BITS>::SIGNED) least.add(Lanes::all(128), step);
        step.write(tile->step[g] + o), least.write(tile->least[g] + o);
      }
    }
  }

  void floats(const W* weights, const ChunkInput& x, int out, int block, int from, int to) {
    constexpr int AT_ONCE = Tile::ROOM / (BLOCK * sizeof(float));  // channels
    auto* numbers = reinterpret_cast<float*>(tile->numbers);
    const int first_output = block * BLOCK, outputs = std::min(BLOCK, out - first_output);
    std::fill_n(sums.data(), size_t(rounded_up(to - from, ROW_STEP)) * BLOCK, 0.0f);
    for (int first = 0; first < x.channels; first += AT_ONCE) {
      const int count = std::min(AT_ONCE, x.channels - first);
      for (int i = 0; i < count; ++i) {
        const W* row = weights + size_t(first + i) * out + first_output;
        for (int o = 0; o < outputs; ++o) numbers[i * BLOCK + o] = widen(row[o]);
        std::fill(numbers + i * BLOCK + outputs, numbers + (i + 1) * BLOCK, 0.0f);
      }
      for (int t = from; t < to; t += FLOAT_ROWS)
        for (int o = 0; o < BLOCK; o += 16)
          multiply_tile<true>(x.dense + size_t(t) * x.stride + first, x.stride, numbers + o, BLOCK, count,
                              sums.data() + size_t(t - from) * BLOCK + o, BLOCK);
    }
  }
};

}  // namespace solm
