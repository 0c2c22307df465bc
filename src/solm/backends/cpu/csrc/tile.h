// Integer weights unpacked for the products of many tokens: 64 outputs of a matrix, or of the head, and some input channels.
#pragma once

#include <algorithm>

#include "arch/gemm_i8.h"
#include "dot_packed.h"
#include "tile_float.h"

namespace solm {

// Weights of 64 outputs for some groups of channels, as TileDot reads them, and per group their steps and lowest values.
struct Tile {
  static constexpr int ROOM = 16384, MOST_GROUPS = 16;
  alignas(64) uint8_t numbers[ROOM];
  float step[MOST_GROUPS][BLOCK], least[MOST_GROUPS][BLOCK];
  int8_t panel[ROW_STEP * 512];  // inputs of a few tokens in another form

  // Sixteen steps and lowest values of a group, of outputs 16 j on. Weights are (step * factor) * number + lowest + step * added.
  void set_grid(int group, int j, Lanes of_step, Lanes lowest, float factor, float added) {
    Lanes scaled = Lanes::zero();
    scaled.add(of_step, Lanes::all(factor)), lowest.add(of_step, Lanes::all(added));
    scaled.write(step[group] + 16 * j), lowest.write(least[group] + 16 * j);
  }
};

// What has been taken off numbers of BITS bits in a tile.
template <int BITS>
constexpr float TAKEN_OFF = TileDot<BITS>::SIGNED ? 128 : 0;

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

// Block `block` of a row of packed numbers, of BITS bits each or their upper 4: see structs.h.
template <int BITS>
SOLM_INLINE inline Bytes packed_block(const Packing& packing, const uint8_t* row, int block, int part) {
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
    upper = joined_bits<LOW>(upper, lower);
  }
  return upper;
}

// Unpacks groups [first, first + groups) of a block of a matrix of `channels` inputs. Rows behind the last channel are
// multiplied with zeros. BITS: 4 where the lower bits are not read.
template <int BITS, int QUADS_OF_GROUP, bool GRID>
void unpack_matrix(Tile& tile, const Matrix& m, bool high_only, int channels, int block, int first, int groups) {
  const Packing packing(m, high_only);
  const size_t stride = GRID ? packing.stride() : size_t(rounded_up(m.outputs, BLOCK));
  const auto* data = static_cast<const uint8_t*>(m.data);
  auto row_of = [&](int i) { return data + size_t(std::min(first * 4 * QUADS_OF_GROUP + i, channels - 1)) * stride; };
  place_quads<BITS>(tile.numbers, groups * QUADS_OF_GROUP, row_of, [&](const uint8_t* row, int part) {
    if constexpr (GRID) return packed_block<BITS>(packing, row, block, part);
    else return Bytes::load(row + block * BLOCK + part * Bytes::WIDTH);
  });
  for (int g = 0; GRID && g < groups; ++g) {
    const Grid grid(m, first + g);
    for (int j = 0; j < 4; ++j) {
      const int at = block * BLOCK + 16 * j;
      tile.set_grid(g, j, Lanes::load_half(grid.step + at), grid.lowest ? Lanes::load_half(grid.lowest + at) : Lanes::zero(),
                    high_only ? packing.factor() : 1, TAKEN_OFF<BITS> + packing.middle() - packing.centre);
    }
  }
}

// The same for a block of the head, of which two strips make one; see head.h. Behind the last strip the last one is repeated.
template <int BITS, int QUADS_OF_GROUP, bool GRID>
void unpack_head(Tile& tile, const Head& head, int channels, int vocabulary, int block, int first, int groups) {
  constexpr int LOW = BITS - 4, BYTES = TileDot<BITS>::BYTES, FIELDS = LOW ? 4 / LOW : 1;
  const int all_quads = (channels + 3) / 4, quads = groups * QUADS_OF_GROUP, last = (vocabulary - 1) / STRIP;
  const int all_groups = (all_quads + QUADS_OF_GROUP - 1) / QUADS_OF_GROUP;
  for (int k = 0; k < 2; ++k) {
    const size_t strip = std::min(2 * block + k, last);
    const uint8_t* high = static_cast<const uint8_t*>(head.data) + strip * all_quads * 64;
    const uint8_t* low = static_cast<const uint8_t*>(head.low) + strip * ((all_quads + FIELDS - 1) / FIELDS) * 64;
    for (int i = 0; i < quads; ++i) {
      const int quad = std::min(first * QUADS_OF_GROUP + i, all_quads - 1);
      each_part([&](auto part) {
        const Bytes both = Bytes::load(high + quad * 64 + part.value * Bytes::WIDTH);
        Bytes upper[2] = {both.low(), both.high()};
        if constexpr (LOW > 0) {
          const Bytes lower = Bytes::load(low + quad / FIELDS * 64 + part.value * Bytes::WIDTH);
          const int at = quad % FIELDS * 2 * LOW, most = (1 << LOW) - 1;
          upper[0] = joined_bits<LOW>(upper[0], lower.field(at, most));
          upper[1] = joined_bits<LOW>(upper[1], lower.field(at + LOW, most));
        }
        for (int j = 0; j < 2; ++j)
          TileDot<BITS>::place(upper[j], part.value, tile.numbers + (size_t(2 * k + j) * quads + i) * BYTES);
      });
    }
    const bool lowest = head.centre < 0;
    for (int g = 0; GRID && g < groups; ++g) {
      const uint16_t* grid = head.grid + (strip * all_groups + first + g) * (lowest ? 2 : 1) * STRIP;
      for (int j = 0; j < 2; ++j)
        tile.set_grid(g, 2 * k + j, Lanes::load_half(grid + 16 * j),
                      lowest ? Lanes::load_half(grid + STRIP + 16 * j) : Lanes::zero(), 1,
                      TAKEN_OFF<BITS> - (lowest ? 0 : float(head.centre)));
    }
  }
}

}  // namespace solm
