// Matrix products of int8 and 4-bit weights with activations rounded to int8, one group of 32 input channels at a time, for
// all steps of a batch together.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "arch/compress.h"
#include "arch/dot_i8.h"
#include "prefetch.h"
#include "rounding.h"
#include "structs.h"

namespace solm {

// Weights are unsigned bytes (int8 plus 128) in blocks of 64 outputs, in an order that makes `interleave` put 16 neighbours
// into one vector: byte 16 L + 4 k + m of a block belongs to output 16 k + 4 L + m. Of 4-bit numbers two blocks share their
// bytes, the first one in the low halves. A last single block fills 32 bytes, its first half in the low halves.
constexpr int QUADS = GROUP / 4;
static_assert(Prefetch::MOST >= GROUP);

// One step's input of a matrix, rounded to int8 with a scale per group: the numbers of all channels, 0 where skipped, and per
// group a bit for every kept channel, the scale and the sums of the numbers of its halves.
struct RoundedInput {
  std::vector<int8_t> number;
  std::vector<uint32_t> kept;
  std::vector<float> scale;
  std::vector<int32_t> total;  // of every half group
  std::vector<float> dense;  // the input in float32, 0 where channels are skipped

  void resize(int most_channels) {
    const int groups = (most_channels + GROUP - 1) / GROUP;
    number.resize(size_t(groups) * GROUP), dense.resize(size_t(groups) * GROUP);
    kept.resize(groups), scale.resize(groups), total.resize(2 * groups);
  }

  // Rounds groups [from, to) of x [count], whose channels are `index`. most: the integer that a group's largest value becomes.
  void round(const int32_t* index, const float* x, int count, int from, int to, int most) {
    if (count > 0 && index[count - 1] == count - 1 && to * GROUP <= count) {  // all channels
      std::fill(kept.begin() + from, kept.begin() + to, ~0u);
      for (int g = from; g < to; ++g) round_group(x + size_t(g) * GROUP, g, most);
      return;
    }
    int at = int(std::lower_bound(index, index + count, from * GROUP) - index);
    std::fill(kept.begin() + from, kept.begin() + to, 0);
    std::fill(dense.begin() + size_t(from) * GROUP, dense.begin() + size_t(to) * GROUP, 0.0f);
    for (; at < count && index[at] < to * GROUP; ++at) {
      dense[index[at]] = x[at];
      kept[index[at] / GROUP] |= 1u << (index[at] % GROUP);
    }
    for (int g = from; g < to; ++g) round_group(dense.data() + size_t(g) * GROUP, g, most);
  }

 private:
  void round_group(const float* in, int g, int most) {
    int8_t* out = number.data() + size_t(g) * GROUP;
    float peak = 0;
#pragma omp simd reduction(max : peak)
    for (int i = 0; i < GROUP; ++i) peak = std::max(peak, std::fabs(in[i]));
    const Rounding rounding(peak, float(most));
    scale[g] = rounding.step;
    for (int half = 0; half < 2; ++half) {
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int i = half * GROUP / 2; i < (half + 1) * GROUP / 2; ++i) {
        const int32_t value = int32_t(std::nearbyint(in[i] * rounding.inverse));
        out[i] = int8_t(value);
        sum += value;
      }
      total[2 * g + half] = sum;
    }
  }
};

// One group of input channels for all steps of a batch: the rows of weights that any step needs, some of them again up
// to a multiple of four, and per step its numbers (0 where it skips a channel), their scale and their sum.
struct Group : Prefetch {
  int8_t q[MOST_ROWS][GROUP];
  float scale[MOST_ROWS];
  int32_t total[MOST_ROWS];

  // Takes group `number` of `size` (16 or 32) channels, whose rows of weights are `stride` bytes apart. takes(r): whether step
  // r needs these weights.
  template <typename Takes>
  void gather(int number, int size, const RoundedInput* rounded, int rows, const uint8_t* weights, size_t stride,
              Takes takes) {
    const int whole = number * size / GROUP, offset = number * size % GROUP;
    uint32_t used = 0;
    for (int r = 0; r < rows; ++r) used |= takes(r) ? rounded[r].kept[whole] : 0;
    if (size < GROUP) used &= 0xffffu << offset;
    count = __builtin_popcount(used);
    const uint8_t* from = weights + size_t(whole) * GROUP * stride;
    take_rows(used, from, stride);
    pad();
    for (int r = 0; r < rows; ++r) {
      const int32_t* half = &rounded[r].total[2 * whole];
      const int8_t* number = rounded[r].number.data() + size_t(whole) * GROUP;
      if (~used) compress_bytes(used, number, q[r]);
      else std::copy_n(number, GROUP, q[r]);
      scale[r] = takes(r) ? rounded[r].scale[whole] : 0;
      total[r] = size < GROUP ? half[offset != 0] : half[0] + half[1];
    }
  }

 private:
  // The rows of the channels whose bit is set.
  void take_rows(uint32_t used, const uint8_t* from, size_t stride) {
#if defined(__AVX2__)  // a loop over bits would often be mispredicted
    alignas(32) static constexpr int8_t ALL[GROUP] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    int8_t channel[GROUP];
    if (~used) compress_bytes(used, ALL, channel);  // as the numbers
    else std::copy_n(ALL, GROUP, channel);
    for (int i = 0; i < GROUP; ++i) row[i] = from + size_t(channel[i]) * stride;
#else
    int i = 0;
    for (uint32_t left = used; left; left &= left - 1) row[i++] = from + size_t(__builtin_ctz(left)) * stride;
#endif
  }
};

// Products of a group for T steps from r on with N times 16 outputs. quads(i, part, room) gives the interleaved bytes of four
// channels from i on, in `room` or where they are already. For every j of N, done(j)(step, 16 sums) takes the results.
template <int BIAS, int N, int T, typename Quads, typename Done>
SOLM_INLINE inline void dot_rows(const Group& g, int r, Quads quads, Done done) {
  DotI8<BIAS> sum[T][N];
  each<T>([&](auto t) SOLM_INLINE {
    each<N>([&](auto j) SOLM_INLINE { sum[t][j] = DotI8<BIAS>::begin(g.total[r + t]); });
  });
  auto multiply_add = [&](auto part, int i) SOLM_INLINE {
    Bytes room[N];
    const Bytes* quad = quads(i, part.value, room);
    each<T>([&](auto t) SOLM_INLINE {
      int32_t four;
      std::memcpy(&four, &g.q[r + t][i], 4);
      each<N>([&](auto j) SOLM_INLINE { sum[t][j].add(part, quad[j], four); });
    });
  };
  // The sums of all parts fit in the registers for one step only.
  if constexpr (T == 1)
    for (int i = 0; i < g.count; i += 4) each_part([&](auto part) SOLM_INLINE { multiply_add(part, i); });
  else
    each_part([&](auto part) SOLM_INLINE {
      for (int i = 0; i < g.count; i += 4) multiply_add(part, i);
    });
  each<N>([&](auto j) SOLM_INLINE {
    const auto take = done(j);  // reads what all steps share once
    each<T>([&](auto t) SOLM_INLINE { take(r + t, sum[t][j].lanes()); });
  });
}

// Steps whose sums fit in the registers together.
template <int N>
constexpr int ROWS_AT_ONCE = PARTS == 1 ? 4 : 8 / N;

template <int BIAS, int N, typename Quads, typename Done, int T = ROWS_AT_ONCE<N>>
void dot_all_rows(const Group& g, int rows, Quads quads, Done done, int r = 0) {
  for (; r + T <= rows; r += T) dot_rows<BIAS, N, T>(g, r, quads, done);
  if constexpr (T > 1) dot_all_rows<BIAS, N, Quads, Done, T - 1>(g, rows, quads, done, r);
}

// One block of outputs for all steps; load(row, part) reads a row's bytes of the block.
template <int BIAS, typename Load, typename Done>
void dot_block(const Group& g, int rows, PrefetchCursor& cursor, Load load, Done done) {
  auto interleaved = [&](int i, int part, Bytes* quad) {
    Bytes row[4];
    for (int k = 0; k < 4; ++k) row[k] = load(g.row[i + k], part);
    interleave(row, quad);
    if (!part) cursor.fetch();
    return quad;
  };
  if (rows <= ROWS_AT_ONCE<4>) return dot_all_rows<BIAS, 4>(g, rows, interleaved, done);
  Bytes known[PARTS][QUADS][4];
  for (int part = 0; part < PARTS; ++part)
    for (int i = 0; i < g.count; i += 4) interleaved(i, part, known[part][i / 4]);
  dot_all_rows<BIAS, 4>(g, rows, [&](int i, int part, Bytes*) { return known[part][i / 4]; }, done);
}

// y[row * stride + o] += the group's products with int8 weights of `out` outputs, without the scales of the outputs.
inline void add_group(const Group& g, PrefetchCursor& cursor, int rows, int out, size_t stride, float* y) {
  for (int o = 0; o < out; o += BLOCK)
    dot_block<128>(g, rows, cursor, [&](const uint8_t* row, int part) { return Bytes::load(row + o + part * Bytes::WIDTH); },
                  [&](int j) {
                    return [&g, to = y + o + 16 * j, stride](int r, Lanes sum) {
                      Lanes result = Lanes::load(to + size_t(r) * stride);
                      result.add(Lanes::all(g.scale[r]), sum);
                      result.write(to + size_t(r) * stride);
                    };
                  });
}

}  // namespace solm
