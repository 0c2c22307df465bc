// Integer weights unpacked for the products of many tokens: 64 outputs of a matrix, or of the head, and some input channels.
#pragma once

#include <algorithm>

#include "arch/gemm_i8.h"
#include "dot_packed.h"
#include "tile_float.h"

namespace solm {

// Weights of 64 outputs for some groups of channels, as TileDot reads them, with steps per group. A weight is
// step * (number + added), and where there are lowest values (`with_least`), this plus least.
struct Tile {
  static constexpr int ROOM = 16384, MOST_GROUPS = 16;
  alignas(64) uint8_t numbers[ROOM];
  float step[MOST_GROUPS][BLOCK], least[MOST_GROUPS][BLOCK];
  int32_t added = 0;
  bool with_least = false;
  int8_t panel[ROW_STEP * 512];  // inputs of a few tokens in another form

  // Sixteen steps and lowest values of a group, of outputs 16 j on. Weights are (step * factor) * number + lowest + step * more.
  void set_grid(int group, int j, Lanes of_step, Lanes lowest, float factor, float more) {
    Lanes scaled = Lanes::zero();
    scaled.add(of_step, Lanes::all(factor)), lowest.add(of_step, Lanes::all(more));
    scaled.write(step[group] + 16 * j), lowest.write(least[group] + 16 * j);
  }
};

// Floats of a block, for some channels.
struct FloatTile {
  static constexpr int CHANNELS = 64;
  alignas(64) float numbers[CHANNELS * BLOCK];
};

// What has been taken off numbers of BITS bits in a tile.
template <int BITS>
constexpr int TAKEN_OFF = TileDot<BITS>::SIGNED ? 128 : 0;

// Numbers of upper bits and LOW lower ones.
template <int LOW>
SOLM_INLINE inline Bytes joined_bits(Bytes upper, const Bytes& lower) {
  using Numbers = uint8_t __attribute__((vector_size(sizeof(Bytes))));
  Numbers h, l;
  std::memcpy(&h, &upper, sizeof h), std::memcpy(&l, &lower, sizeof l);
  h = (h << LOW) | l;
  std::memcpy(&upper, &h, sizeof h);
  return upper;
}

// What is left to unpack of a tile's numbers. Some quads (four channels of 64 outputs) are placed between multiplications with
// another tile, so that the processor does both at once. A tile has, for every sixteen outputs, those of all quads, one after
// another.
struct Unpacking {
  void (*place)(Unpacking& of, int quads) = nullptr;  // places the next ones
  int left = 0, at_once = 0;                          // quads
  uint8_t* to = nullptr;                              // the next quad's first sixteen outputs
  size_t sixteen = 0;                                 // bytes from there to its next sixteen
  // Of a matrix: the block in the next quad's first row; bytes from there to the next row, and to the block's lower bits; rows
  // that are left; where a byte has these lower bits.
  const uint8_t* row = nullptr;
  size_t stride = 0, lower = 0;
  int rows = 0, shift = 0;
  // Of the head: two strips; the next quad, and the last one that there is.
  const uint8_t *high[2] = {}, *low[2] = {};
  int quad = 0, last = 0;

  void some() { take(at_once); }
  void rest() { take(left); }

 private:
  void take(int quads) {
    quads = std::min(quads, left);
    if (quads > 0) left -= quads, place(*this, quads);
  }
};

// How a row has a block's upper bits: in the low or the high halves of 64 bytes, in both halves of 32, or as whole bytes.
enum class Stored { LOW_HALVES, HIGH_HALVES, BOTH_HALVES, BYTES };

template <Stored STORED>
SOLM_INLINE inline Bytes upper_bits(const uint8_t* row, int part) {
  if constexpr (STORED == Stored::BOTH_HALVES) return Bytes::single(row, part);
  else if constexpr (STORED == Stored::LOW_HALVES) return Bytes::load(row + part * Bytes::WIDTH).low();
  else if constexpr (STORED == Stored::HIGH_HALVES) return Bytes::load(row + part * Bytes::WIDTH).high();
  else return Bytes::load(row + part * Bytes::WIDTH);
}

// Places quads of a matrix of numbers of BITS bits each, or of their upper 4. Behind the last row an earlier one is repeated.
template <int BITS, Stored STORED>
void place_rows(Unpacking& of, int quads) {
  using Dot = TileDot<BITS>;
  constexpr int LOW = STORED == Stored::BYTES ? 0 : BITS - 4;
  [[maybe_unused]] constexpr int MOST = (1 << LOW) - 1;
  const size_t stride = of.stride, sixteen = of.sixteen;
  [[maybe_unused]] const size_t lower = of.lower;
  [[maybe_unused]] const int shift = of.shift;
  const uint8_t* from = of.row;
  uint8_t* to = of.to;
  int rows = of.rows;
  for (int i = 0; i < quads; ++i, from += rows > 4 ? 4 * stride : 0, rows -= 4, to += Dot::BYTES) {
    size_t at[4] = {0, stride, 2 * stride, 3 * stride};
    if (rows < 4)
      for (int k = 0; k < 4; ++k) at[k] = std::clamp(k, 0, std::max(rows - 1, 0)) * stride;
    each_part([&](auto part) {
      Bytes row[4], quad[4];
      for (int k = 0; k < 4; ++k) {
        const uint8_t* here = from + at[k];
        row[k] = upper_bits<STORED>(here, part.value);
        if constexpr (LOW > 0)
          row[k] = joined_bits<LOW>(row[k], Bytes::load(here + lower + part.value * Bytes::WIDTH).field(shift, MOST));
      }
      interleave(row, quad);
      for (int j = 0; j < 4; ++j) Dot::place(quad[j], part.value, to + j * sixteen);
    });
  }
  of.row = from, of.to = to, of.rows = rows;
}

// The same for a block of the head.
template <int BITS>
void place_strips(Unpacking& of, int quads) {
  using Dot = TileDot<BITS>;
  constexpr int LOW = BITS - 4;
  const uint8_t* const high[2] = {of.high[0], of.high[1]};
  [[maybe_unused]] const uint8_t* const low[2] = {of.low[0], of.low[1]};
  const size_t sixteen = of.sixteen;
  const int first = of.quad, last = of.last;
  uint8_t* to = of.to;
  for (int i = 0; i < quads; ++i, to += Dot::BYTES) {
    const int quad = std::min(first + i, last);
    for (int k = 0; k < 2; ++k)
      each_part([&](auto part) {
        const Bytes both = Bytes::load(high[k] + quad * 64 + part.value * Bytes::WIDTH);
        Bytes upper[2] = {both.low(), both.high()};
        if constexpr (LOW > 0) {
          constexpr int FIELDS = 4 / LOW, MOST = (1 << LOW) - 1;
          const Bytes lower = Bytes::load(low[k] + quad / FIELDS * 64 + part.value * Bytes::WIDTH);
          const int at = quad % FIELDS * 2 * LOW;
          upper[0] = joined_bits<LOW>(upper[0], lower.field(at, MOST));
          upper[1] = joined_bits<LOW>(upper[1], lower.field(at + LOW, MOST));
        }
        for (int j = 0; j < 2; ++j) Dot::place(upper[j], part.value, to + (2 * k + j) * sixteen);
      });
  }
  of.quad = first + quads, of.to = to;
}

// Sets the grids of groups [first, first + groups) of a block of a matrix of `channels` inputs, and begins to unpack their
// numbers. What is behind the last channel is multiplied with zeros. BITS: 4 where the lower bits are not read.
template <int BITS, int QUADS_OF_GROUP, bool GRID>
Unpacking unpack_matrix(Tile& tile, const Matrix& m, bool high_only, int channels, int block, int first, int groups) {
  constexpr int LOW = GRID ? BITS - 4 : 0, OF_CHUNK = LOW ? 8 / LOW : 1;
  const Packing packing(m, high_only);
  const int channel = first * 4 * QUADS_OF_GROUP;
  const size_t upper = size_t(GRID ? block / 2 : block) * BLOCK;
  Unpacking numbers;
  numbers.left = groups * QUADS_OF_GROUP, numbers.to = tile.numbers;
  numbers.sixteen = size_t(numbers.left) * TileDot<BITS>::BYTES;
  numbers.stride = GRID ? packing.stride() : size_t(rounded_up(m.outputs, BLOCK));
  numbers.row = static_cast<const uint8_t*>(m.data) + channel * numbers.stride + upper;
  numbers.rows = channels - channel;
  if constexpr (GRID) {
    numbers.lower = packing.high_bytes() + size_t(block / OF_CHUNK) * 64 - upper, numbers.shift = block % OF_CHUNK * LOW;
    if (block % 2) numbers.place = place_rows<BITS, Stored::HIGH_HALVES>;
    else if ((block + 1) * BLOCK == packing.out) numbers.place = place_rows<BITS, Stored::BOTH_HALVES>;
    else numbers.place = place_rows<BITS, Stored::LOW_HALVES>;
  } else {
    numbers.place = place_rows<BITS, Stored::BYTES>;
  }
  tile.with_least = GRID && (high_only || m.centre < 0);
  tile.added = TAKEN_OFF<BITS> - (!GRID ? 128 : tile.with_least ? 0 : m.centre);
  for (int g = 0; GRID && g < groups; ++g) {
    const Grid grid(m, first + g);
    for (int j = 0; j < 4; ++j) {
      const int at = block * BLOCK + 16 * j;
      if (!tile.with_least) Lanes::load_half(grid.step + at).write(tile.step[g] + 16 * j);
      else
        tile.set_grid(g, j, Lanes::load_half(grid.step + at),
                      grid.lowest ? Lanes::load_half(grid.lowest + at) : Lanes::zero(), high_only ? packing.factor() : 1,
                      packing.middle() - packing.centre);
    }
  }
  return numbers;
}

// The same for a block of the head, of which two strips make one; see head.h. Behind the last strip the last one is repeated.
template <int BITS, int QUADS_OF_GROUP, bool GRID>
Unpacking unpack_head(Tile& tile, const Head& head, int channels, int vocabulary, int block, int first, int groups) {
  constexpr int LOW = BITS - 4;
  const int all_quads = (channels + 3) / 4, last = (vocabulary - 1) / STRIP;
  const int all_groups = (all_quads + QUADS_OF_GROUP - 1) / QUADS_OF_GROUP;
  const bool lowest = head.centre < 0;
  Unpacking numbers;
  numbers.place = place_strips<BITS>, numbers.left = groups * QUADS_OF_GROUP, numbers.to = tile.numbers;
  numbers.sixteen = size_t(numbers.left) * TileDot<BITS>::BYTES;
  numbers.quad = first * QUADS_OF_GROUP, numbers.last = all_quads - 1;
  tile.with_least = GRID && lowest;
  tile.added = TAKEN_OFF<BITS> - (!GRID ? 128 : tile.with_least ? 0 : head.centre);
  for (int k = 0; k < 2; ++k) {
    const size_t strip = std::min(2 * block + k, last);
    numbers.high[k] = static_cast<const uint8_t*>(head.data) + strip * all_quads * 64;
    if constexpr (LOW > 0) {
      constexpr int FIELDS = 4 / LOW;
      numbers.low[k] = static_cast<const uint8_t*>(head.low) + strip * ((all_quads + FIELDS - 1) / FIELDS) * 64;
    }
    for (int g = 0; GRID && g < groups; ++g) {
      const uint16_t* grid = head.grid + (strip * all_groups + first + g) * (lowest ? 2 : 1) * STRIP;
      for (int j = 0; j < 2; ++j) {
        const int at = 16 * (2 * k + j);
        Lanes::load_half(grid + 16 * j).write(tile.step[g] + at);
        if (lowest) Lanes::load_half(grid + STRIP + 16 * j).write(tile.least[g] + at);
      }
    }
  }
  return numbers;
}

}  // namespace solm
