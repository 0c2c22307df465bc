// Matrix products of many tokens with weights that are unpacked tile by tile: 64 outputs and some input channels at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include "rounding.h"
#include "structs.h"
#include "tile.h"

namespace solm {

// Inputs of a matrix for all tokens of a chunk, `stride` channels for each. For float weights `dense`. For integer weights int8
// numbers, 0 behind the last channel, with a scale per group of 32 channels; and the sum of a group's numbers, and of those of
// its halves, which some weights have grids for: `total` as it is, `sum` times the scale.
struct ChunkInput {
  int channels, stride, groups;
  float *dense, *scale, *sum, *half_sum;
  int32_t *total, *half_total;
  int8_t* number;

  // Rounds x [channels] as steps do. most: the integer that the largest value of a group becomes.
  void round(int token, const float* x, int most = 127) const {
    const int whole = channels / GROUP;
    for (int g = 0; g < whole; ++g) round_group(token, g, x + g * GROUP, float(most));
    if (whole == groups) return;
    float last[GROUP] = {};
    std::copy_n(x + whole * GROUP, channels - whole * GROUP, last);
    round_group(token, whole, last, float(most));
  }

 private:
  void round_group(int token, int group, const float* x, float most) const {
    constexpr int HALF = GROUP / 2;
    int8_t* to = number + size_t(token) * stride + group * GROUP;
    float peak = 0;
#pragma omp simd reduction(max : peak)
    for (int i = 0; i < GROUP; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
    const auto [step, inverse] = Rounding(peak, most);
    int32_t rounded[GROUP], first = 0, second = 0;
    for (int i = 0; i < GROUP; ++i) rounded[i] = int32_t(std::nearbyint(x[i] * inverse));
    for (int i = 0; i < GROUP; ++i) to[i] = int8_t(rounded[i]);
    for (int i = 0; i < HALF; ++i) first += rounded[i], second += rounded[HALF + i];
    const size_t at = size_t(token) * groups + group;
    scale[at] = step, sum[at] = step * float(first + second);
    half_sum[2 * at] = step * float(first), half_sum[2 * at + 1] = step * float(second);
    total[at] = first + second, half_total[2 * at] = first, half_total[2 * at + 1] = second;
  }
};

// Rows of a block that are unpacked next. The hardware does not guess how far apart they are, and stalls when many lines are
// requested at once, so that a few of them are fetched between multiplications. second: where another line of every row is,
// of lower bits or of the neighbouring strip; 0 for none.
struct RowFetch {
  const uint8_t* row = nullptr;
  size_t stride = 0, second = 0;
  int rows = 0, at_once = 0;

  void some() {
    for (int i = 0; i < at_once && rows > 0; ++i, --rows, row += stride) {
      fetch_line(row, 0);
      if (second) fetch_line(row, second);
    }
  }
};

using TilePair = std::array<Tile, 2>;

// The upper bits of `groups` groups from `first` on of a block of the head, of which two strips make one.
template <int QUADS_OF_GROUP>
RowFetch upper_bits_of(const Head& head, int channels, int vocabulary, int block, int first, int groups) {
  const int quads = (channels + 3) / 4;
  const size_t strip = size_t(quads) * 64;
  RowFetch next;
  if (2 * block + 1 > (vocabulary - 1) / STRIP) return next;
  next.row = static_cast<const uint8_t*>(head.data) + 2 * block * strip + size_t(first) * QUADS_OF_GROUP * 64;
  next.stride = 64, next.second = strip;
  next.rows = std::min(groups * QUADS_OF_GROUP, quads - first * QUADS_OF_GROUP);
  return next;
}

// y [T, 64], or with `add` y plus this, = the inputs of T tokens from t on times the groups [first, first + groups) of a tile,
// of QUADS times four channels each. GRID: with steps. LEAST: with lowest values. next, ahead: what is fetched and what is
// unpacked meanwhile.
template <int BITS, int QUADS, bool GRID, bool LEAST, int T>
void multiply_tokens(Tile& tile, const ChunkInput& x, int first, int groups, int t, bool add, float* y, RowFetch& next,
                     Unpacking& ahead) {
  using Dot = TileDot<BITS>;
  constexpr int CHANNELS = 4 * QUADS, PARTS_OF_GROUP = GROUP / CHANNELS;
  const float* sums = PARTS_OF_GROUP == 1 ? x.sum : x.half_sum;
  const int32_t* totals = PARTS_OF_GROUP == 1 ? x.total : x.half_total;
  const size_t parts = size_t(PARTS_OF_GROUP) * x.groups;  // of a token
  size_t stride = x.stride;
  const int8_t* numbers = x.number + size_t(t) * stride + first * CHANNELS;
  numbers = Dot::template panel<T>(numbers, stride, groups * CHANNELS, tile.panel);
  const int32_t added = LEAST ? TAKEN_OFF<BITS> : tile.added;
  const size_t strip = size_t(groups) * QUADS * Dot::BYTES;
  const auto each_sum = [](auto use) SOLM_INLINE {
    each<T>([&](auto k) SOLM_INLINE { each<Dot::STRIPS>([&](auto s) SOLM_INLINE { use(s, k); }); });
  };
  for (int j = 0; j < 4; j += Dot::STRIPS) {
    ahead.some();  // here, where no sums are in registers that a call would have to save
    float* to_y = y + 16 * j;
    Lanes sum[Dot::STRIPS][T];
    each_sum([&](auto s, auto k) SOLM_INLINE { sum[s][k] = add ? Lanes::load(to_y + 16 * s + k * BLOCK) : Lanes::zero(); });
    for (int g = 0; g < groups; ++g) {
      next.some();
      const float* scale = x.scale + size_t(t) * x.groups + (first + g) / PARTS_OF_GROUP;
      const size_t part = size_t(t) * parts + first + g;
      Dot::template multiply<QUADS, T>(
          tile.numbers + j * strip + size_t(g) * QUADS * Dot::BYTES, strip, numbers + g * CHANNELS * Dot::INPUT, stride,
          [&](auto k) SOLM_INLINE { return added * totals[part + size_t(k) * parts]; },
          [&](auto s, auto k, Lanes products) SOLM_INLINE {
            const Lanes by = Lanes::all(scale[size_t(k) * x.groups]);
            if constexpr (GRID) {
              Lanes scaled = Lanes::zero();
              scaled.add(by, products);
              sum[s][k].add(Lanes::load(tile.step[g] + 16 * (j + s)), scaled);
              if constexpr (LEAST)
                sum[s][k].add(Lanes::load(tile.least[g] + 16 * (j + s)), Lanes::all(sums[part + size_t(k) * parts]));
            } else {
              sum[s][k].add(by, products);
            }
          });
    }
    each_sum([&](auto s, auto k) SOLM_INLINE { sum[s][k].write(to_y + 16 * s + k * BLOCK); });
  }
}

// The same for tokens [from, to). When it returns, all that was to be unpacked is.
template <int BITS, int QUADS, bool GRID>
void multiply_groups(Tile& tile, const ChunkInput& x, int first, int groups, int from, int to, bool add, float* y,
                     RowFetch next, Unpacking ahead) {
  constexpr int MOST = TileDot<BITS>::TOKENS;
  const int parts = (to - from + MOST - 1) / MOST * (4 / TileDot<BITS>::STRIPS), times = parts * groups;
  next.at_once = (next.rows + times - 1) / times;
  ahead.at_once = (ahead.left + parts - 1) / parts;
  for (int t = from, count; t < to; t += count, y += size_t(count) * BLOCK) {
    count = at_once(to - t, MOST);
    const auto multiply = [&]<int T>(std::integral_constant<int, T>) {
      if (GRID && tile.with_least)
        multiply_tokens<BITS, QUADS, GRID, GRID, T>(tile, x, first, groups, t, add, y, next, ahead);
      else multiply_tokens<BITS, QUADS, GRID, false, T>(tile, x, first, groups, t, add, y, next, ahead);
    };
    if (count == MOST) multiply(std::integral_constant<int, MOST>());
    else if (count == 4) multiply(std::integral_constant<int, 4>());
    else multiply(std::integral_constant<int, std::min(MOST, 8)>());
  }
  ahead.rest();
}

// The tiles of a block: which groups of input channels are unpacked together. Steps that are not in chunks add up the groups
// of every thread apart (see Products::range_of). So do these, `parts` of them, to give the same result to the last bit.
struct TileRanges {
  int all, at_once, parts, each;  // groups; of a tile at most; of 32 channels

  int start(int part) const {
    const int whole = (all + each - 1) / each;
    return std::min(all, int(int64_t(whole) * part / parts) * each);
  }
  // Where the part that holds a group ends.
  int end_of_part(int group) const {
    int part = 1;
    while (start(part) <= group) ++part;
    return start(part);
  }
  int count(int first) const { return std::min(at_once, end_of_part(first) - first); }
  // What follows a tile, in this block (first) or, after its last, in another one (second: 1).
  std::pair<int, int> after(int first, int tiles) const {
    int on = 0;
    for (; tiles > 0; --tiles)
      if (first += count(first); first == all) first = 0, on = 1;
    return {first, on};
  }
};

// y [to - from, 64] = the inputs of tokens [from, to) times all groups of a block of outputs, a tile of them at a time, those
// of `parts` threads apart, in room of the same size. unpack(tile, first, count) begins to unpack groups [first, first +
// count). fetch(on, first, count): where these are in this block (on 0) or in the one that is probably next (on 1).
template <int BITS, int QUADS_OF_GROUP, bool GRID, typename Unpack, typename Fetch>
void multiply_block(TilePair& tiles, const ChunkInput& x, int from, int to, int parts, float* y, float* room, Unpack unpack,
                    Fetch fetch) {
  constexpr int SIZE = 4 * QUADS_OF_GROUP, MOST = Tile::ROOM / (SIZE * TileDot<BITS>::BYTES), FEW = 16;
  static_assert(MOST <= Tile::MOST_GROUPS);
  // With few tokens unpacking takes a good part of the time. The next tile is then unpacked meanwhile, and what is fetched is
  // two tiles ahead. Two halves fit into the first-level cache as one whole tile does.
  const bool overlaps = to - from <= FEW;
  const int all = (x.channels + SIZE - 1) / SIZE;
  const TileRanges ranges{all, overlaps ? MOST / 2 : MOST, parts, GROUP / SIZE};
  [[maybe_unused]] const TileSetup<QUADS_OF_GROUP> setup{};
  int first = 0;
  if (overlaps) unpack(tiles[0], 0, ranges.count(0)).rest();
  for (int i = 0, part = 0; first < all; ++i) {
    const int count = ranges.count(first), second = first + count;
    Tile &now = tiles[overlaps ? i % 2 : 0], &other = tiles[1 - i % 2];
    if (!overlaps) unpack(now, first, count).rest();
    const Unpacking ahead = overlaps && second < all ? unpack(other, second, ranges.count(second)) : Unpacking();
    const auto [later, on] = ranges.after(first, overlaps ? 2 : 1);
    float* sums = part == 0 ? y : room;
    multiply_groups<BITS, QUADS_OF_GROUP, GRID>(now, x, first, count, from, to, first > part, sums,
                                                fetch(on, later, ranges.count(later)), ahead);
    if (second == ranges.end_of_part(first)) {
      for (int k = 0; sums == room && k < (to - from) * BLOCK; k += 16)
        Lanes::load(y + k).plus(Lanes::load(room + k)).write(y + k);
      part = second;
    }
    first = second;
  }
}

// One thread's products. `multiply` gives y [to - from, 64], up to a multiple of ROW_STEP rows: the inputs of tokens
// [from, to) times the outputs [64 block, 64 block + 64) of a matrix or of the head, without their scales.
template <typename W>
struct TileProducts {
  const int threads;
  std::vector<float> sums, part_sums;  // of a chunk with one block; those of one thread's groups

  explicit TileProducts(int threads) : threads(threads) {}

  void reserve(int tokens) {
    sums.resize(size_t(rounded_up(tokens, ROW_STEP)) * BLOCK), part_sums.resize(sums.size());
    room = std::make_unique<Room>();
  }

  // high_only: with the upper 4 bits of nested weights alone.
  const float* multiply(const Matrix& m, bool high_only, const ChunkInput& x, int block, int from, int to) {
    if constexpr (std::is_same_v<W, int8_t>) {
      with_form(high_only && m.bits ? 4 : m.bits, m.group, [&]<int BITS, int QUADS_OF_GROUP, bool GRID>() {
        multiply_block<BITS, QUADS_OF_GROUP, GRID>(
            *room, x, from, to, threads, sums.data(), part_sums.data(),
            [&](Tile& tile, int first, int count) {
              return unpack_matrix<BITS, QUADS_OF_GROUP, GRID>(tile, m, high_only, x.channels, block, first, count);
            },
            [&](int on, int first, int count) {
              constexpr int SIZE = 4 * QUADS_OF_GROUP;
              // Threads take blocks in turn, so that this is probably the next one.
              const int there = std::min(block + on * threads, (m.outputs - 1) / BLOCK);
              for (int g = first; GRID && g < first + count; ++g) Grid(m, g).fetch(there * BLOCK, BLOCK);
              return rows_of<GRID ? BITS - 4 : 0, GRID>(m, there, first * SIZE, std::min((first + count) * SIZE, x.channels));
            });
      });
    } else {
      floats(static_cast<const W*>(m.data), x, m.outputs, block, from, to);
    }
    return sums.data();
  }

  const float* multiply(const Head& head, int vocabulary, const ChunkInput& x, int block, int from, int to) {
    static_assert(std::is_same_v<W, int8_t>);
    with_form(head.group ? head.bits : 0, head.group, [&]<int BITS, int QUADS_OF_GROUP, bool GRID>() {
      multiply_block<BITS, QUADS_OF_GROUP, GRID>(
          *room, x, from, to, 1, sums.data(), nullptr,
          [&](Tile& tile, int first, int count) {
            return unpack_head<BITS, QUADS_OF_GROUP, GRID>(tile, head, x.channels, vocabulary, block, first, count);
          },
          [&](int on, int first, int count) {
            return upper_bits_of<QUADS_OF_GROUP>(head, x.channels, vocabulary, block + on, first, count);
          });
    });
    return sums.data();
  }

 private:
  using Room = std::conditional_t<std::is_same_v<W, int8_t>, TilePair, FloatTile>;
  std::unique_ptr<Room> room;

  // Calls use<BITS, QUADS_OF_GROUP, GRID>() for weights of `bits` bits with a grid per `group` channels, or bytes (bits 0).
  template <typename Use>
  static void with_form(int bits, int group, Use use) {
    auto packed = [&]<int BITS>() {
      if (group == GROUP) use.template operator()<BITS, QUADS, true>();
      else use.template operator()<BITS, QUADS / 2, true>();
    };
    switch (bits) {
      case 4: return packed.template operator()<4>();
      case 5: return packed.template operator()<5>();
      case 6: return packed.template operator()<6>();
      case 8: return packed.template operator()<8>();
      default: return use.template operator()<8, QUADS, false>();
    }
  }

  // A block of rows [from, to).
  template <int LOW_BITS, bool GRID>
  static RowFetch rows_of(const Matrix& m, int block, int from, int to) {
    const Packing packing(m, false);
    const size_t upper = size_t(GRID ? block / 2 : block) * BLOCK;
    RowFetch next;
    next.stride = GRID ? packing.stride() : size_t(rounded_up(m.outputs, BLOCK));
    next.row = static_cast<const uint8_t*>(m.data) + from * next.stride + upper;
    next.rows = std::max(to - from, 0);
    if constexpr (LOW_BITS > 0) next.second = packing.high_bytes() + size_t(block / (8 / LOW_BITS)) * 64 - upper;
    return next;
  }

  void floats(const W* weights, const ChunkInput& x, int out, int block, int from, int to) {
    constexpr int AT_ONCE = FloatTile::CHANNELS;
    float* numbers = room->numbers;
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
        multiply_strips<true>(x.dense + size_t(t) * x.stride + first, x.stride, numbers, BLOCK, 16, BLOCK / 16, count,
                              sums.data() + size_t(t - from) * BLOCK, BLOCK);
    }
  }
};

}  // namespace solm
