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

// Writes `quads` times four of `rows` rows of 64 outputs, `stride` bytes apart, to a tile: for every sixteen outputs those of
// all quads, one after another. load(row, part) reads a part of a row. Behind the last row it is repeated.
template <int BITS, typename Load>
void place_quads(uint8_t* tile, int quads, const uint8_t* from, int rows, size_t stride, Load load) {
  constexpr int BYTES = TileDot<BITS>::BYTES;
  const size_t sixteen = size_t(quads) * BYTES;
  for (int i = 0; i < quads; ++i, from += rows > 4 ? 4 * stride : 0, rows -= 4, tile += BYTES) {
    size_t at[4] = {0, stride, 2 * stride, 3 * stride};
    if (rows < 4)
      for (int k = 0; k < 4; ++k) at[k] = std::clamp(k, 0, std::max(rows - 1, 0)) * stride;
    each_part([&](auto part) {
      Bytes row[4], quad[4];
      for (int k = 0; k < 4; ++k) row[k] = load(from + at[k], part);
      interleave(row, quad);
      for (int j = 0; j < 4; ++j) TileDot<BITS>::place(quad[j], part.value, tile + j * sixteen);
    });
  }
}

// Calls use(load) with a load(row, part) of block `block` in rows of packed numbers, of BITS bits each or their upper 4: see
// structs.h.
template <int BITS, typename Use>
SOLM_INLINE inline void with_packed_block(const Packing& packing, int block, Use use) {
  constexpr int LOW = BITS - 4, OF_CHUNK = LOW ? 8 / LOW : 1, MOST = (1 << LOW) - 1;
  const size_t upper = size_t(block) / 2 * BLOCK, lower = packing.high_bytes() + size_t(block / OF_CHUNK) * 64;
  const int shift = block % OF_CHUNK * LOW;
  auto joined = [lower, shift](const Bytes& high, const uint8_t* row, auto part) SOLM_INLINE {
    if constexpr (!LOW) return high;
    else return joined_bits<LOW>(high, Bytes::load(row + lower + part.value * Bytes::WIDTH).field(shift, MOST));
  };
  auto both = [upper](const uint8_t* row, auto part) SOLM_INLINE { return Bytes::load(row + upper + part.value * Bytes::WIDTH); };
  if (block % 2)
    use([=](const uint8_t* row, auto part) SOLM_INLINE { return joined(both(row, part).high(), row, part); });
  else if ((block + 1) * BLOCK == packing.out)
    use([=](const uint8_t* row, auto part) SOLM_INLINE { return joined(Bytes::single(row + upper, part.value), row, part); });
  else
    use([=](const uint8_t* row, auto part) SOLM_INLINE { return joined(both(row, part).low(), row, part); });
}

// Unpacks groups [first, first + groups) of a block of a matrix of `channels` inputs. What is behind the last channel is
// multiplied with zeros. BITS: 4 where the lower bits are not read.
template <int BITS, int QUADS_OF_GROUP, bool GRID>
void unpack_matrix(Tile& tile, const Matrix& m, bool high_only, int channels, int block, int first, int groups) {
  const Packing packing(m, high_only);
  const size_t stride = GRID ? packing.stride() : size_t(rounded_up(m.outputs, BLOCK));
  const int channel = first * 4 * QUADS_OF_GROUP;
  const uint8_t* from = static_cast<const uint8_t*>(m.data) + channel * stride;
  auto place = [&](auto load) {
    place_quads<BITS>(tile.numbers, groups * QUADS_OF_GROUP, from, channels - channel, stride, load);
  };
  if constexpr (GRID) with_packed_block<BITS>(packing, block, place);
  else place([at = size_t(block) * BLOCK](const uint8_t* row, auto part) SOLM_INLINE {
    return Bytes::load(row + at + part.value * Bytes::WIDTH);
  });
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
}

// The same for a block of the head, of which two strips make one; see head.h. Behind the last strip the last one is repeated.
// BITS: 4 where lower bits are not read, but taken to be the middle of their range.
template <int BITS, int QUADS_OF_GROUP, bool GRID>
void unpack_head(Tile& tile, const Head& head, int channels, int vocabulary, int block, int first, int groups) {
  constexpr int LOW = BITS - 4, BYTES = TileDot<BITS>::BYTES, FIELDS = LOW ? 4 / LOW : 1;
  const int all_quads = (channels + 3) / 4, quads = groups * QUADS_OF_GROUP, last = (vocabulary - 1) / STRIP;
  const int all_groups = (all_quads + QUADS_OF_GROUP - 1) / QUADS_OF_GROUP;
  const float factor = GRID ? float(1 << (head.bits - BITS)) : 1, middle = (factor - 1) / 2;
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
    tile.with_least = GRID && (lowest || BITS < head.bits);
    tile.added = TAKEN_OFF<BITS> - (!GRID ? 128 : tile.with_least ? 0 : head.centre);
    for (int g = 0; GRID && g < groups; ++g) {
      const uint16_t* grid = head.grid + (strip * all_groups + first + g) * (lowest ? 2 : 1) * STRIP;
      for (int j = 0; j < 2; ++j)
        if (!tile.with_least) Lanes::load_half(grid + 16 * j).write(tile.step[g] + 16 * (2 * k + j));
        else tile.set_grid(g, 2 * k + j, Lanes::load_half(grid + 16 * j),
                      lowest ? Lanes::load_half(grid + STRIP + 16 * j) : Lanes::zero(), factor,
                      middle - (lowest ? 0 : float(head.centre)));
    }
  }
}

}  // namespace solm
