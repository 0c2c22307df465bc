// Products of int8 and 4-bit weights with activations that are rounded to int8, a group of 32 channels at a time, for all
// rows of a walk at once.
#pragma once

#include <vector>

#include "fours.h"
#include "kernels.h"
#include "tiles.h"

// Weights are stored as unsigned bytes, int8 ones plus 128, in blocks of 64 outputs whose order makes `interleave` put 16
// neighbours into one vector: byte 16 L + 4 k + m of a block belongs to output 16 k + 4 L + m. Two blocks of 4-bit numbers
// share their bytes, the first in the low halves; a last single block fills 32 bytes, its first half in the low halves.
constexpr int BLOCK = 64, QUADS = GROUP / 4;
static_assert(Coming::MOST >= GROUP);

// One row's input of a matrix, rounded: whole numbers of all channels, 0 for skipped ones, and per group the channels that
// it keeps (a bit each), their scale and the sum of their numbers.
struct Rounded {
  std::vector<int8_t> number;
  std::vector<uint32_t> kept;
  std::vector<float> scale;
  std::vector<int32_t> total;
  std::vector<float> spread;  // the input with zeros where it skips

  void resize(int most_channels) {
    const int groups = (most_channels + GROUP - 1) / GROUP;
    number.resize(size_t(groups) * GROUP), spread.resize(size_t(groups) * GROUP);
    kept.resize(groups), scale.resize(groups), total.resize(groups);
  }

  // Groups from to to (not included); most: the whole number that a group's largest becomes.
  void round(const int32_t* index, const float* x, int count, int from, int to, int most) {
    int at = int(std::lower_bound(index, index + count, from * GROUP) - index);
    std::fill(kept.begin() + from, kept.begin() + to, 0);
    std::fill(spread.begin() + size_t(from) * GROUP, spread.begin() + size_t(to) * GROUP, 0.0f);
    for (; at < count && index[at] < to * GROUP; ++at) {
      spread[index[at]] = x[at];
      kept[index[at] / GROUP] |= 1u << (index[at] % GROUP);
    }
    for (int g = from; g < to; ++g) {
      const float* in = spread.data() + size_t(g) * GROUP;
      int8_t* out = number.data() + size_t(g) * GROUP;
      float peak = 0;
#pragma omp simd reduction(max : peak)
      for (int i = 0; i < GROUP; ++i) peak = std::max(peak, std::fabs(in[i]));
      scale[g] = peak / float(most);
      const float inverse = float(most) / std::max(peak, 1.17549435e-36f);
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < GROUP; ++i) {
        const int32_t value = int32_t(std::nearbyint(in[i] * inverse));
        out[i] = int8_t(value);
        sum += value;
      }
      total[g] = sum;
    }
  }
};

// What the rows of a walk keep of one group of channels: the weights' rows that any of them needs, a multiple of four of
// them, and per row of the walk its numbers (0 where it skips one), their scale and their sum.
struct Group : Coming {
  int8_t q[MOST_ROWS][GROUP];
  float scale[MOST_ROWS];
  int32_t total[MOST_ROWS];

  // takes(r): whether row r needs these weights.
  template <typename Takes>
  void gather(int number, const Rounded* rounded, int rows, const uint8_t* weights, size_t width, Takes takes) {
    uint32_t used = 0;
    for (int r = 0; r < rows; ++r) used |= takes(r) ? rounded[r].kept[number] : 0;
    const int found = __builtin_popcount(used);
    int8_t channel[GROUP], all[GROUP];
    for (int i = 0; i < GROUP; ++i) all[i] = int8_t(i);
    pick(used, all, channel);
    count = found, bytes = int(width);
    const uint8_t* from = weights + size_t(number) * GROUP * width;
    for (int i = 0; i < GROUP; ++i) row[i] = from + size_t(channel[i]) * width;
    pad();
    for (int r = 0; r < rows; ++r) {
      pick(used, rounded[r].number.data() + size_t(number) * GROUP, q[r]);
      scale[r] = takes(r) ? rounded[r].scale[number] : 0, total[r] = rounded[r].total[number];
    }
  }

  // Of 32 bytes those whose bit is set, and zeros.
  static void pick(uint32_t bits, const int8_t* from, int8_t* to) {
#if defined(__AVX512VBMI2__) && defined(__AVX512VL__)
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_compress_epi8(bits, all));
#else
    std::memset(to, 0, GROUP);
    for (int i = 0; bits; bits &= bits - 1) to[i++] = from[__builtin_ctz(bits)];
#endif
  }
};

// Fetches what comes after the group at hand, four lines at a time between multiplications: one of every row in turn, so
// that what is needed first comes first.
struct Ahead {
  const Coming& next;
  int row = 0, at = 0;

  bool left() const { return row < next.count && at < next.bytes; }
  void fetch() {
    if (!left()) return;
    for (int k = 0; k < 4; ++k) fetch_line(next.row[row + k], at);
    row += 4;
    if (row == next.count) row = 0, at += 64;
  }
};

// Sums of a group for T rows from r on and N times 16 outputs, whose bytes of four channels from i on `quads(i, part, room)`
// gives, interleaved, in that room or where they are known: for j of N, done(j)(row, 16 sums).
template <int BIAS, int N, int T, typename Quads, typename Done>
void integer_tile(const Group& g, int r, Quads quads, Done done) {
  Integers<BIAS> sum[T][N];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[t][j] = Integers<BIAS>::begin(g.total[r + t]);
  auto meet = [&](auto part, int i) {
    Bytes room[N];
    const Bytes* quad = quads(i, part.value, room);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      int32_t four;
      std::memcpy(&four, &g.q[r + t][i], 4);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sum[t][j].add(part, quad[j], four);
    }
  };
  // One row has room for the sums of all parts.
  if constexpr (T == 1)
    for (int i = 0; i < g.count; i += 4) each_part([&](auto part) { meet(part, i); });
  else
    each_part([&](auto part) {
      for (int i = 0; i < g.count; i += 4) meet(part, i);
    });
#pragma GCC unroll 4
  for (int j = 0; j < N; ++j) {
    const auto take = done(j);  // what all rows meet is read once
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) take(r + t, sum[t][j].lanes());
  }
}

// Rows that are summed up at once, as many as there are registers for.
template <int N>
constexpr int ROWS_AT_ONCE = PARTS == 1 ? 4 : 8 / N;

template <int BIAS, int N, typename Quads, typename Done, int T = ROWS_AT_ONCE<N>>
void integer_tiles(const Group& g, int rows, Quads quads, Done done, int r = 0) {
  for (; r + T <= rows; r += T) integer_tile<BIAS, N, T>(g, r, quads, done);
  if constexpr (T > 1) integer_tiles<BIAS, N, Quads, Done, T - 1>(g, rows, quads, done, r);
}

// One block of outputs for all rows; load(row, part) reads the block's bytes of a row of weights.
template <int BIAS, typename Load, typename Done>
void integer_block(const Group& g, int rows, Ahead& ahead, Load load, Done done) {
  auto fresh = [&](int i, int part, Bytes* quad) {
    Bytes row[4];
    for (int k = 0; k < 4; ++k) row[k] = load(g.row[i + k], part);
    interleave(row, quad);
    if (!part) ahead.fetch();
    return quad;
  };
  if (rows <= ROWS_AT_ONCE<4>) return integer_tiles<BIAS, 4>(g, rows, fresh, done);
  Bytes known[PARTS][QUADS][4];
  for (int part = 0; part < PARTS; ++part)
    for (int i = 0; i < g.count; i += 4) fresh(i, part, known[part][i / 4]);
  integer_tiles<BIAS, 4>(g, rows, [&](int i, int part, Bytes*) { return known[part][i / 4]; }, done);
}

// y[rows, out] += what the group adds for int8 weights, but for their outputs' scales.
inline void add_group(const Group& g, Ahead& ahead, int rows, int out, float* y) {
  for (int o = 0; o < out; o += BLOCK)
    integer_block<128>(g, rows, ahead, [&](const uint8_t* row, int part) { return Bytes::load(row + o + part * Bytes::WIDTH); },
                  [&](int j) {
                    return [&g, to = y + o + 16 * j, out](int r, Lanes sum) {
                      Lanes result = Lanes::load(to + size_t(r) * out);
                      result.add(Lanes::all(g.scale[r]), sum);
                      result.write(to + size_t(r) * out);
                    };
                  });
}

// The same for packed weights, whose groups have a step and a lowest value for every output, grid [2, out]; LOW: for the low
// halves of nested ones.
template <bool LOW>
void add_packed_group(const Group& g, Ahead& ahead, int rows, const uint16_t* grid, const uint16_t* grid_next,
                             int out, float* y) {
  auto settle = [&](int o) {
    return [&g, grid, to = y + o, out, o](int j) {
      const Lanes step = Lanes::load_half(grid + o + 16 * j), least = Lanes::load_half(grid + out + o + 16 * j);
      return [&g, step, least, to = to + 16 * j, out](int r, Lanes sum) {
        Lanes steps = Lanes::zero(), result = Lanes::load(to + size_t(r) * out);
        if constexpr (LOW) {
          Lanes rest = Lanes::all(-0.5f * float(g.total[r]));
          rest.add(Lanes::all(1.0f / 15), sum);
          steps.add(step, rest);
        } else {
          steps.add(step, sum);
          steps.add(least, Lanes::all(float(g.total[r])));
        }
        result.add(Lanes::all(g.scale[r]), steps);
        result.write(to + size_t(r) * out);
      };
    };
  };
  int o = 0;
  for (; o + 2 * BLOCK <= out; o += 2 * BLOCK) {
    for (int line = 0; line < 2 * BLOCK; line += 32) {
      __builtin_prefetch(grid_next + o + line, 0, 2);
      __builtin_prefetch(grid_next + out + o + line, 0, 2);
    }
#if defined(FOURS_VNNI)
    if (rows == 1) {
      Integers<0> low[4], both[4];
      for (int j = 0; j < 4; ++j) low[j] = both[j] = Integers<0>::begin(0);
      for (int i = 0; i < g.count; i += 4) {
        Bytes row[4], quad[4];
        for (int k = 0; k < 4; ++k) row[k] = Bytes::load(g.row[i + k] + o / 2);
        interleave(row, quad);
        ahead.fetch();
        int32_t four;
        std::memcpy(&four, &g.q[0][i], 4);
        for (int j = 0; j < 4; ++j) low[j].add(0, quad[j].low(), four), both[j].add(0, quad[j], four);
      }
      // A byte is its low half and 16 times its high one.
      for (int j = 0; j < 4; ++j) {
        settle(o)(j)(0, low[j].lanes());
        settle(o + BLOCK)(j)(0, both[j].sixteenth(low[j]).lanes());
      }
      continue;
    }
#endif
    // The two blocks' bytes are interleaved before they are taken apart.
    Bytes both[PARTS][QUADS][4];
    for (int i = 0; i < g.count; i += 4) {
      each_part([&](auto part) {
        Bytes row[4];
        for (int k = 0; k < 4; ++k) row[k] = Bytes::load(g.row[i + k] + o / 2 + part * Bytes::WIDTH);
        interleave(row, both[part][i / 4]);
      });
      ahead.fetch();
    }
    auto half_of = [&](auto half) {
      return [&both, half](int i, int part, Bytes* room) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) room[k] = half(both[part][i / 4][k]);
        return room;
      };
    };
    integer_tiles<0, 4>(g, rows, half_of([](const Bytes& bytes) { return bytes.low(); }), settle(o));
    integer_tiles<0, 4>(g, rows, half_of([](const Bytes& bytes) { return bytes.high(); }), settle(o + BLOCK));
  }
  if (o < out) integer_block<0>(g, rows, ahead, [&](const uint8_t* row, int part) { return Bytes::single(row + o / 2, part); }, settle(o));
}
