// Attention over pages: how keys and values lie in the cache, and their products with a few query heads at once.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"

// Keys of 16 tokens, and bounds of 16 pages, lie in tiles that one query meets at once: [D, 16] float32, or bfloat16 in
// pairs of channels [D / 2, 16, 2]. Values lie in pairs of tokens, [tokens / 2, D, 2], in bfloat16. Bytes: see bytes.h.
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

// Numbers of type K that a page's keys, or its values, take.
template <typename K>
constexpr size_t page_size(int dim) { return size_t(16) * dim; }

template <typename K>
void put_key(K* page, int token, const float* x, int dim) {
  for (int d = 0; d < dim; ++d) page[tile_at<K>(d, token)] = store<K>(x[d]);
}
template <typename K>
void put_value(K* page, int token, const float* x, int dim) {
  for (int d = 0; d < dim; ++d) page[value_at<K>(token, d, dim)] = store<K>(x[d]);
}
template <typename K>
float key_of(const K* page, int token, int channel, int) { return widen(page[tile_at<K>(channel, token)]); }

// Bring what will be read soon, from where no hardware expects it, into the second-level cache: a line, or many.
inline void fetch_line(const void* from, size_t offset) {
  __builtin_prefetch(static_cast<const char*>(from) + offset, 0, 2);
}
inline void fetch(const void* from, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) fetch_line(from, line);
}

// Places in memory that will be read next, `bytes` from each on; a multiple of four of them.
struct Coming {
  static constexpr int MOST = 32;
  int count = 0, bytes = 0;
  const uint8_t* row[MOST];

  void pad() {
    for (; count % 4; ++count) row[count] = row[0];
  }
};

inline void fetch(const Coming& next) {
  for (int i = 0; i < next.count; ++i) fetch(next.row[i], next.bytes);
}

// A query as tiles of K take it: D numbers, or D / 2 pairs.
template <typename K>
using Query = std::conditional_t<sizeof(K) == 4, float, Both>;

// sum[j] += the sixteen products of query j with a tile, for T queries. Here and below, `coming` is the tile that will be
// read some time after this one: a line of it is fetched for every line that is read, since a processor has room for few
// lines on their way, and stands still when more are asked for at once.
// Sums are taken in two halves, or every product would wait for the one before it.
template <int T>
void meet_tile(const float* tile, const float* query, int dim, Lanes* sum, const void* coming) {
  Lanes half[2][T];
  for (int j = 0; j < T; ++j) half[0][j] = sum[j], half[1][j] = Lanes::zero();
  for (int d = 0; d < dim; d += 2)
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      fetch_line(coming, size_t(64) * (d + odd));
      const Lanes keys = Lanes::load(tile + (d + odd) * 16);
      for (int j = 0; j < T; ++j) half[odd][j].add(Lanes::all(query[j * dim + d + odd]), keys);
    }
  for (int j = 0; j < T; ++j) sum[j] = half[0][j].plus(half[1][j]);
}
template <int T>
void meet_tile(const bf16* tile, const Both* query, int dim, Lanes* sum, const void* coming) {
  const int pairs = dim / 2;
  Lanes half[2][T];
  for (int j = 0; j < T; ++j) half[0][j] = sum[j], half[1][j] = Lanes::zero();
  for (int d = 0; d < pairs; ++d) {
    fetch_line(coming, size_t(64) * d);
    for (int j = 0; j < T; ++j) add_pairs(tile + d * 32, query[j * pairs + d], half[0][j], half[1][j]);
  }
  for (int j = 0; j < T; ++j) sum[j] = half[0][j].plus(half[1][j]);
}

// Sixteen scores for each of T queries.
template <int T, typename K>
void score_tile(const K* tile, const Query<K>* query, int dim, float* const* scores, const void* coming) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::zero();
  meet_tile<T>(tile, query, dim, sum, coming);
  for (int j = 0; j < T; ++j) sum[j].write(scores[j]);
}

// Up to `most` queries of `dim` channels.
template <typename K>
struct Queries {
  const int dim, each;  // numbers of a query in the form of `Query`
  std::vector<Query<K>> form;

  Queries(int most, int dim) : dim(dim), each(sizeof(K) == 4 ? dim : dim / 2), form(size_t(each) * most) {}

  // From x [count, dim], times `scale`.
  void prepare(const float* x, int count, float scale) {
    if constexpr (sizeof(K) == 4)
      for (int d = 0; d < count * dim; ++d) form[d] = x[d] * scale;
    else
      for (int d = 0; d < count * dim; d += 2) form[d / 2] = Both::of(x[d] * scale, x[d + 1] * scale);
  }

  // sum += the products of query j with a tile.
  void meet(int j, const K* tile, Lanes& sum, const K* coming) const {
    meet_tile<1>(tile, form.data() + size_t(j) * each, dim, &sum, coming);
  }

  // Sixteen scores for each of the first `group` queries, which read the tile together.
  void score(const K* tile, int group, float* const* scores, const void* coming) const {
    for (int g = 0; g < group; g += 4, coming = tile) {
      const Query<K>* from = form.data() + size_t(g) * each;
      switch (std::min(4, group - g)) {
        case 4: score_tile<4>(tile, from, dim, scores + g, coming); break;
        case 3: score_tile<3>(tile, from, dim, scores + g, coming); break;
        case 2: score_tile<2>(tile, from, dim, scores + g, coming); break;
        default: score_tile<1>(tile, from, dim, scores + g, coming);
      }
    }
  }
};

// out[j] += sum over a page's tokens of weight[j] * value, for T heads and the 16 channels from d on.
template <int T>
void mix_lanes(const float* page, int tokens, int dim, int d, const float* const* weights, float* const* out,
               const void* coming) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::load(out[j] + d);
  for (int t = 0; t < tokens; ++t) {
    const size_t at = size_t(t) * dim + d;
    fetch_line(coming, at * sizeof *page);
    const Lanes row = Lanes::load(page + at);
    for (int j = 0; j < T; ++j) sum[j].add(Lanes::all(weights[j][t]), row);
  }
  for (int j = 0; j < T; ++j) sum[j].write(out[j] + d);
}
template <int T>
void mix_lanes(const bf16* page, int tokens, int dim, int d, const Both (*weights)[8], float* const* out,
               const void* coming) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::load(out[j] + d);
  for (int t = 0; t < tokens; t += 2) {
    const size_t at = size_t(t) * dim + 2 * d;
    fetch_line(coming, at * sizeof *page);
    for (int j = 0; j < T; ++j) add_pairs(page + at, weights[j][t / 2], sum[j], sum[j]);
  }
  for (int j = 0; j < T; ++j) sum[j].write(out[j] + d);
}

// The same for all channels. Weights of tokens beyond the last are 0.
template <int T>
void mix_tile(const float* page, int tokens, int dim, const float* const* weights, float* const* out, const void* coming) {
  for (int d = 0; d < dim; d += 16) mix_lanes<T>(page, tokens, dim, d, weights, out, coming);
}
template <int T>
void mix_tile(const bf16* page, int tokens, int dim, const float* const* weights, float* const* out, const void* coming) {
  Both pairs[T][8];
  for (int j = 0; j < T; ++j)
    for (int t = 0; t < 16; t += 2) pairs[j][t / 2] = Both::of(weights[j][t], weights[j][t + 1]);
  for (int d = 0; d < dim; d += 16) mix_lanes<T>(page, tokens, dim, d, pairs, out, coming);
}

template <typename K>
void mix_page(const K* page, int tokens, int dim, const float* const* weights, int group, float* const* out,
              const void* coming) {
  for (int g = 0; g < group; g += 4, coming = page)
    switch (std::min(4, group - g)) {
      case 4: mix_tile<4>(page, tokens, dim, weights + g, out + g, coming); break;
      case 3: mix_tile<3>(page, tokens, dim, weights + g, out + g, coming); break;
      case 2: mix_tile<2>(page, tokens, dim, weights + g, out + g, coming); break;
      default: mix_tile<1>(page, tokens, dim, weights + g, out + g, coming);
    }
}
