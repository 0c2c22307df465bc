// Matrix products of many tokens with weights that are unpacked tile by tile: 64 outputs and some input channels at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "arch/gemm_i8.h"
#include "dot_packed.h"
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
// row_of(i) is where row i starts; load(row, part) reads a part of its bytes.
template <int BITS, typename RowOf, typename Load>
void place_quads(uint8_t* tile, int quads, RowOf row_of, Load load) {
  constexpr int BYTES = TileDot<BITS>::BYTES;
  for (int i = 0; i < quads; ++i) {
    const uint8_t* from[4] = {row_of(4 * i), row_of(4 * i + 1), row_of(4 * i + 2), row_of(4 * i + 3)};
    each_part([&](auto part) {
      Bytes row[4], quad[4];
      for (int k = 0; k < 4; ++k) row[k] = load(from[k], part.value);
      interleave(row, quad);
      for (int j = 0; j < 4; ++j) TileDot<BITS>::place(quad[j], part.value, tile + (size_t(j) * quads + i) * BYTES);
    });
  }
}

// Block `block` of a row of packed numbers of BITS bits: see structs.h.
template <int BITS>
SOLM_INLINE inline Bytes packed_block(const Packing& packing, const uint8_t* row, int block, int part) {
  using Numbers = uint8_t __attribute__((vector_size(sizeof(Bytes))));
  constexpr int LOW = BITS - 4;
  const uint8_t* from = row + block / 2 * BLOCK;
  Bytes upper;
  if ((block + 1) * BLOCK == packing.out && block % 2 == 0) {
    upper = Bytes::single(from, part);
  } else {
    const Bytes both = Bytes::load(from + part * Bytes::WIDTH);
    upper = block % 2 ? both.high() : both.low();
  }
  if constexpr (LOW > 0) {
    constexpr int OF_CHUNK = 8 / LOW;
    const uint8_t* chunk = row + packing.high_bytes() + size_t(block / OF_CHUNK) * 64;
    const Bytes lower = Bytes::load(chunk + part * Bytes::WIDTH).field(block % OF_CHUNK * LOW, (1 << LOW) - 1);
    Numbers h, l;
    std::memcpy(&h, &upper, sizeof h), std::memcpy(&l, &lower, sizeof l);
    h = (h << LOW) | l;
    std::memcpy(&upper, &h, sizeof h);
  }
  return upper;
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
// [from, to) times the outputs [64 block, 64 block + 64) of a matrix, without their scales.
template <typename W>
struct TileProducts {
  std::vector<float> sums;  // of a chunk with one block

  void reserve(int tokens) { sums.resize(size_t(rounded_up(tokens, ROW_STEP)) * BLOCK), tile = std::make_unique<Tile>(); }

  const float* multiply(const Matrix& m, const ChunkInput& x, int block, int from, int to) {
    if constexpr (std::is_same_v<W, int8_t>) {
      switch (m.bits) {
        case 4: packed<4>(m, x, block, from, to); break;
        case 5: packed<5>(m, x, block, from, to); break;
        case 6: packed<6>(m, x, block, from, to); break;
        case 8: packed<8>(m, x, block, from, to); break;
        default: integers<8, QUADS, false>(m, x, block, from, to);
      }
    } else {
      floats(static_cast<const W*>(m.data), x, m.outputs, block, from, to);
    }
    return sums.data();
  }

 private:
  std::unique_ptr<Tile> tile;

  template <int BITS>
  void packed(const Matrix& m, const ChunkInput& x, int block, int from, int to) {
    if (m.group == GROUP) integers<BITS, QUADS, true>(m, x, block, from, to);
    else integers<BITS, QUADS / 2, true>(m, x, block, from, to);
  }

  template <int BITS, int QUADS_OF_GROUP, bool GRID>
  void integers(const Matrix& m, const ChunkInput& x, int block, int from, int to) {
    constexpr int SIZE = 4 * QUADS_OF_GROUP, AT_ONCE = Tile::ROOM / (4 * QUADS_OF_GROUP * TileDot<BITS>::BYTES);  // groups
    static_assert(AT_ONCE <= Tile::MOST_GROUPS);
    const int all = (x.channels + SIZE - 1) / SIZE;
    for (int first = 0; first < all; first += AT_ONCE) {
      const int groups = std::min(AT_ONCE, all - first);
      unpack<BITS, QUADS_OF_GROUP, GRID>(m, x.channels, block, first, groups);
      fetch_rows<GRID ? BITS - 4 : 0, GRID>(m, block, (first + groups) * SIZE, std::min((first + groups + AT_ONCE) * SIZE, x.channels));
      multiply_groups<BITS, QUADS_OF_GROUP, GRID>(*tile, x, first, groups, from, to, first > 0, sums.data());
    }
  }

  // Fetches a block of rows [from, to), whose distance the hardware does not guess, while there is something to multiply.
  template <int LOW_BITS, bool GRID>
  void fetch_rows(const Matrix& m, int block, int from, int to) const {
    const Packing packing(m, false);
    const size_t stride = GRID ? packing.stride() : size_t(rounded_up(m.outputs, BLOCK));
    const auto* row = static_cast<const uint8_t*>(m.data) + from * stride;
    for (int i = from; i < to; ++i, row += stride) {
      fetch_line(row, size_t(GRID ? block / 2 : block) * BLOCK);
      if constexpr (LOW_BITS > 0) fetch_line(row, packing.high_bytes() + size_t(block / (8 / LOW_BITS)) * 64);
    }
  }

  // Unpacks groups [first, first + groups) of a block. Rows behind the last channel are multiplied with zeros.
  template <int BITS, int QUADS_OF_GROUP, bool GRID>
  void unpack(const Matrix& m, int channels, int block, int first, int groups) {
    const Packing packing(m, false);
    const size_t stride = GRID ? packing.stride() : size_t(rounded_up(m.outputs, BLOCK));
    const auto* data = static_cast<const uint8_t*>(m.data);
    auto row_of = [&](int i) { return data + size_t(std::min(first * 4 * QUADS_OF_GROUP + i, channels - 1)) * stride; };
    place_quads<BITS>(tile->numbers, groups * QUADS_OF_GROUP, row_of, [&](const uint8_t* row, int part) {
      if constexpr (GRID) return packed_block<BITS>(packing, row, block, part);
      else return Bytes::load(row + block * BLOCK + part * Bytes::WIDTH);
    });
    for (int g = 0; GRID && g < groups; ++g) {
      const Grid grid(m, first + g);
      for (int o = 0; o < BLOCK; o += 16) {
        const Lanes step = Lanes::load_half(grid.step + block * BLOCK + o);
        Lanes least = grid.lowest ? Lanes::load_half(grid.lowest + block * BLOCK + o) : Lanes::zero();
        least.add(Lanes::all((TileDot<BITS>::SIGNED ? 128 : 0) - packing.centre), step);
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
