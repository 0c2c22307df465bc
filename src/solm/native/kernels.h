// What a layer is made of, for one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "lanes.h"

constexpr int MOST_ROWS = 16;  // steps that walk through the weights together

// y[0:out] += sum over kept inputs of x * row. Eight rows at a time, so that y is read and written an eighth as often.
// Rows about 24 KiB ahead are prefetched into the second-level cache: which they are no hardware can guess, and into the
// first they would not fit (16 GB/s without, 17 into the first level, 29 into the second, of 29 that plain reading gets).
template <typename W>
void accumulate(const W* weights, int out, const int32_t* index, const float* x, int count, float* y) {
  const int ahead = std::clamp(24576 / int(out * sizeof(W)), 8, 64);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const W* row[8];
    const W* next[8];
    Lanes v[8];
    for (int k = 0; k < 8; ++k) {
      row[k] = weights + size_t(index[i + k]) * out;
      next[k] = weights + size_t(index[std::min(i + ahead + k, count - 1)]) * out;
      v[k] = Lanes::all(x[i + k]);
    }
    int o = 0;
    for (; o + 64 <= out; o += 64) {
      Lanes sum[4];
      for (int j = 0; j < 4; ++j) sum[j] = Lanes::load(y + o + 16 * j);
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) {
        for (size_t line = 0; line < 64 * sizeof(W); line += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(next[k] + o) + line, 0, 2);
        for (int j = 0; j < 4; ++j) sum[j].add(v[k], Lanes::load(row[k] + o + 16 * j));
      }
      for (int j = 0; j < 4; ++j) sum[j].write(y + o + 16 * j);
    }
    for (; o < out; ++o)
      for (int k = 0; k < 8; ++k) y[o] += x[i + k] * widen(row[k][o]);
  }
  for (; i < count; ++i) {
    const W* row = weights + size_t(index[i]) * out;
    const float v = x[i];
    for (int o = 0; o < out; ++o) y[o] += v * widen(row[o]);
  }
}

// The same for `T` of `rows` rows at once, `block` inputs: x [block, rows] and y [rows, out] start at the first of them.
template <int T, typename W>
void accumulate_tile(const W* const* row, int block, int o, const float* x, int rows, float* y, int out) {
  Lanes sum[T][4];
  for (int r = 0; r < T; ++r)
    for (int j = 0; j < 4; ++j) sum[r][j] = Lanes::load(y + size_t(r) * out + o + 16 * j);
  for (int k = 0; k < block; ++k) {
    Lanes w[4];
    for (int j = 0; j < 4; ++j) w[j] = Lanes::load(row[k] + o + 16 * j);
    for (int r = 0; r < T; ++r) {
      const Lanes v = Lanes::all(x[k * rows + r]);
      for (int j = 0; j < 4; ++j) sum[r][j].add(v, w[j]);
    }
  }
  for (int r = 0; r < T; ++r)
    for (int j = 0; j < 4; ++j) sum[r][j].write(y + size_t(r) * out + o + 16 * j);
}

// y[rows, out] += x[count, rows]^T times the rows of weights that index names: weights are read once for all.
template <typename W>
void accumulate_many(const W* weights, int out, const int32_t* index, const float* x, int count, int rows, float* y) {
  constexpr int BLOCK = 16;
  const int ahead = std::clamp(24576 / int(out * sizeof(W)), BLOCK, 64);
  for (int i = 0; i < count; i += BLOCK) {
    const int block = std::min(BLOCK, count - i);
    const W* row[BLOCK];
    const W* next[BLOCK];
    for (int k = 0; k < block; ++k) {
      row[k] = weights + size_t(index[i + k]) * out;
      next[k] = weights + size_t(index[std::min(i + ahead + k, count - 1)]) * out;
    }
    const float* from = x + size_t(i) * rows;
    int o = 0;
    for (; o + 64 <= out; o += 64) {
      for (int k = 0; k < block; ++k)
        for (size_t line = 0; line < 64 * sizeof(W); line += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(next[k] + o) + line, 0, 2);
      for (int r = 0; r < rows; r += 4) {
        float* to = y + size_t(r) * out;
        switch (std::min(4, rows - r)) {
          case 4: accumulate_tile<4>(row, block, o, from + r, rows, to, out); break;
          case 3: accumulate_tile<3>(row, block, o, from + r, rows, to, out); break;
          case 2: accumulate_tile<2>(row, block, o, from + r, rows, to, out); break;
          default: accumulate_tile<1>(row, block, o, from + r, rows, to, out);
        }
      }
    }
    for (; o < out; ++o)
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < block; ++k) y[size_t(r) * out + o] += from[size_t(k) * rows + r] * widen(row[k][o]);
  }
}

constexpr int GROUP = 32;  // input channels that share a scale, or a step and a lowest value

// Products of w [n] with T vectors.
template <int T, typename W>
void dots(const W* w, const float* const* x, int n, float* out) {
  Lanes sum[T][4];
  for (int r = 0; r < T; ++r)
    for (int j = 0; j < 4; ++j) sum[r][j] = Lanes::zero();
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; ++j) {
      const Lanes v = Lanes::load(w + i + 16 * j);
      for (int r = 0; r < T; ++r) sum[r][j].add(v, Lanes::load(x[r] + i + 16 * j));
    }
  for (; i + 16 <= n; i += 16) {
    const Lanes v = Lanes::load(w + i);
    for (int r = 0; r < T; ++r) sum[r][0].add(v, Lanes::load(x[r] + i));
  }
  for (int r = 0; r < T; ++r) {
    float total = sum[r][0].sum() + sum[r][1].sum() + sum[r][2].sum() + sum[r][3].sum();
    for (int rest = i; rest < n; ++rest) total += widen(w[rest]) * x[r][rest];
    out[r] = total;
  }
}

// The same for numbers of 4 bits w [n / 2], n a multiple of 64, as `Numbers` reads them.
template <int T>
void number_dots(const uint8_t* w, const float* const* x, int n, float* out) {
  Lanes sum[T][2];
  for (int r = 0; r < T; ++r) sum[r][0] = sum[r][1] = Lanes::zero();
  int i = 0;
  auto add = [&]<int parts>(const Numbers& numbers) {
    [&]<size_t... j>(std::index_sequence<j...>) {
      (
          [&] {
            const Lanes v = numbers.part<int(j)>();
            for (int r = 0; r < T; ++r) sum[r][j % 2].add(v, Lanes::load(x[r] + i + 16 * j));
          }(),
          ...);
    }(std::make_index_sequence<parts>());
  };
  for (; i + 128 <= n; i += 128) add.template operator()<8>(Numbers::load128(w + i / 2));
  if (i < n) add.template operator()<4>(Numbers::load64(w + i / 2));
  for (int r = 0; r < T; ++r) out[r] = sum[r][0].sum() + sum[r][1].sum();
}

template <typename W>
float dot(const W* w, const float* x, int n) {
  float total;
  dots<1>(w, &x, n, &total);
  return total;
}

// e^x to a few units in the last place, in a form that compilers vectorise: 2^n times a polynomial on |f| < ln 2 / 2.
inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::nearbyint(x * 1.44269504f);
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.0f / 5040;
  y = y * f + 1.0f / 720;
  y = y * f + 1.0f / 120;
  y = y * f + 1.0f / 24;
  y = y * f + 1.0f / 6;
  y = y * f + 0.5f;
  y = y * f + 1.0f;
  y = y * f + 1.0f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return y * scale;
}

// silu(gate) * up
inline void gated(const float* gate, const float* up, int n, float* out) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

// Turns scores into e^(score - their peak); returns the peak, and their sum in `total`.
inline float soften(float* scores, int n, float& total) {
  float peak = -INFINITY, sum = 0;
#pragma omp simd reduction(max : peak)
  for (int t = 0; t < n; ++t) peak = std::max(peak, scores[t]);
  if (n)
#pragma omp simd reduction(+ : sum)
    for (int t = 0; t < n; ++t) {
      scores[t] = scores[t] > -1e30f ? exponential(scores[t] - peak) : 0.0f;
      sum += scores[t];
    }
  total = sum;
  return peak;
}

inline uint32_t magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7fffffffu;
}

// The integers that order as floats do.
inline uint32_t order(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The count-th largest key(x[i]), a number of `width` bits.
template <typename Key>
uint32_t kth_largest(const float* x, int n, int count, int width, Key key) {
  uint32_t threshold = 0;
  for (int bit = width - 1; bit >= 0; --bit) {
    const uint32_t guess = threshold | (1u << bit);
    int above = 0;
#pragma omp simd reduction(+ : above)
    for (int i = 0; i < n; ++i) above += key(x[i]) >= guess;
    if (above >= count) threshold = guess;
  }
  return threshold;
}

// Calls keep(i) for the `count` of n elements with the largest key, ascending; of equal ones those of lower index.
template <typename Key, typename Keep>
void largest(const float* x, int n, int count, int width, Key key, Keep keep) {
  const uint32_t threshold = kth_largest(x, n, count, width, key);
  int above = 0;
#pragma omp simd reduction(+ : above)
  for (int i = 0; i < n; ++i) above += key(x[i]) > threshold;
  int ties = count - above;
  for (int i = 0; i < n; ++i) {
    const uint32_t k = key(x[i]);
    const bool tie = k == threshold && ties > 0;
    ties -= tie;
    keep(i, k > threshold || tie);
  }
}

// Indices and values of the count channels of largest |x|; of equal ones those of lower index. Returns count.
inline int select(const float* x, int n, int count, int32_t* index, float* values) {
  if (count >= n) {
    for (int i = 0; i < n; ++i) index[i] = i, values[i] = x[i];
    return n;
  }
  if (count <= 0) return 0;
  int kept = 0;
  largest(x, n, count, 31, magnitude, [&](int i, bool keep) {
    index[kept] = i, values[kept] = x[i];  // written always, kept or overwritten: no branch to guess wrong
    kept += keep;
  });
  return kept;
}

// Round kept values to a grid of `bits` bits with one scale per `group` channels of the whole vector.
inline void quantise(const int32_t* index, float* values, int count, int bits, int group) {
  if (bits >= 16) return;
  const float most = float((1 << (bits - 1)) - 1);
  for (int start = 0; start < count;) {
    const int block = index[start] / group;
    int end = start;
    float peak = 0;
    for (; end < count && index[end] / group == block; ++end) peak = std::max(peak, std::fabs(values[end]));
    const float scale = peak / most, divisor = std::max(scale, 1.17549435e-38f);
    for (; start < end; ++start) values[start] = std::nearbyint(values[start] / divisor) * scale;
  }
}

inline void rms_norm(const float* x, const float* weight, int n, float epsilon, float* out) {
  const float scale = 1.0f / std::sqrt(dot(x, x, n) / float(n) + epsilon);
  for (int i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

// Keys of 16 tokens, and bounds of 16 pages, lie in tiles that one query meets at once: [D, 16] float32, or bfloat16 in
// pairs of channels [D / 2, 16, 2]. Values lie in pairs of tokens, [tokens / 2, D, 2], in bfloat16.
template <typename K>
constexpr size_t tile_at(int channel, int column) {
  if constexpr (sizeof(K) == 4) return size_t(channel) * 16 + column;
  else return size_t(channel / 2) * 32 + column * 2 + channel % 2;
}
template <typename K>
constexpr size_t value_at(int token, int channel, int dim) {
  if constexpr (sizeof(K) == 4) return size_t(token) * dim + channel;
  else return size_t(token / 2) * 2 * dim + channel * 2 + token % 2;
}

// Bring bytes that will be read soon, from where no hardware expects it, into the second-level cache.
inline void fetch(const void* from, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(from) + line, 0, 2);
}

// A query as tiles of K take it: D numbers, or D / 2 pairs.
template <typename K>
using Query = std::conditional_t<sizeof(K) == 4, float, Both>;

inline void prepare(const float* x, int dim, float scale, float* to) {
  for (int d = 0; d < dim; ++d) to[d] = x[d] * scale;
}
inline void prepare(const float* x, int dim, float scale, Both* to) {
  for (int d = 0; d < dim; d += 2) to[d / 2] = Both::of(x[d] * scale, x[d + 1] * scale);
}

// sum[j] += the sixteen products of query j with a tile, for T queries.
template <int T>
void meet_tile(const float* tile, const float* query, int dim, Lanes* sum) {
  for (int d = 0; d < dim; ++d) {
    const Lanes keys = Lanes::load(tile + d * 16);
    for (int j = 0; j < T; ++j) sum[j].add(Lanes::all(query[j * dim + d]), keys);
  }
}
template <int T>
void meet_tile(const bf16* tile, const Both* query, int dim, Lanes* sum) {
  const int pairs = dim / 2;
  for (int d = 0; d < pairs; ++d)
    for (int j = 0; j < T; ++j) sum[j].add_pairs(tile + d * 32, query[j * pairs + d]);
}

// Sixteen scores for each of T queries.
template <int T, typename K>
void score_tile(const K* tile, const Query<K>* query, int dim, float* const* scores) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::zero();
  meet_tile<T>(tile, query, dim, sum);
  for (int j = 0; j < T; ++j) sum[j].write(scores[j]);
}

// ... of `group` queries, which read the tile together.
template <typename K>
void score_block(const K* tile, const Query<K>* queries, int group, int dim, float* const* scores) {
  const int each = sizeof(K) == 4 ? dim : dim / 2;
  for (int g = 0; g < group; g += 4) {
    const Query<K>* from = queries + size_t(g) * each;
    switch (std::min(4, group - g)) {
      case 4: score_tile<4>(tile, from, dim, scores + g); break;
      case 3: score_tile<3>(tile, from, dim, scores + g); break;
      case 2: score_tile<2>(tile, from, dim, scores + g); break;
      default: score_tile<1>(tile, from, dim, scores + g);
    }
  }
}

// out[j] += sum over a page's tokens of weight[j] * value, for T heads and the 16 channels from d on.
template <int T>
void mix_lanes(const float* page, int tokens, int dim, int d, const float* const* weights, float* const* out) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::load(out[j] + d);
  for (int t = 0; t < tokens; ++t) {
    const Lanes row = Lanes::load(page + size_t(t) * dim + d);
    for (int j = 0; j < T; ++j) sum[j].add(Lanes::all(weights[j][t]), row);
  }
  for (int j = 0; j < T; ++j) sum[j].write(out[j] + d);
}
template <int T>
void mix_lanes(const bf16* page, int tokens, int dim, int d, const Both (*weights)[8], float* const* out) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::load(out[j] + d);
  for (int t = 0; t < tokens; t += 2)
    for (int j = 0; j < T; ++j) sum[j].add_pairs(page + size_t(t) * dim + 2 * d, weights[j][t / 2]);
  for (int j = 0; j < T; ++j) sum[j].write(out[j] + d);
}

// The same for all channels. Weights of tokens beyond the last are 0.
template <int T>
void mix_tile(const float* page, int tokens, int dim, const float* const* weights, float* const* out) {
  for (int d = 0; d < dim; d += 16) mix_lanes<T>(page, tokens, dim, d, weights, out);
}
template <int T>
void mix_tile(const bf16* page, int tokens, int dim, const float* const* weights, float* const* out) {
  Both pairs[T][8];
  for (int j = 0; j < T; ++j)
    for (int t = 0; t < 16; t += 2) pairs[j][t / 2] = Both::of(weights[j][t], weights[j][t + 1]);
  for (int d = 0; d < dim; d += 16) mix_lanes<T>(page, tokens, dim, d, pairs, out);
}

template <typename K>
void mix_page(const K* page, int tokens, int dim, const float* const* weights, int group, float* const* out) {
  for (int g = 0; g < group; g += 4)
    switch (std::min(4, group - g)) {
      case 4: mix_tile<4>(page, tokens, dim, weights + g, out + g); break;
      case 3: mix_tile<3>(page, tokens, dim, weights + g, out + g); break;
      case 2: mix_tile<2>(page, tokens, dim, weights + g, out + g); break;
      default: mix_tile<1>(page, tokens, dim, weights + g, out + g);
    }
}
