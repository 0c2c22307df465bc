// The layout of keys and values in the cache, and their products with a few query heads at once.
#pragma once

#include <algorithm>
#include <vector>

#include "arch/bf16.h"
#include "prefetch.h"
#include "structs.h"

namespace solm {

// A tile holds the keys of 16 tokens, or bounds of the keys of 16 pages: [D, 16] in float32, [D / 2, 16, 2] (pairs of channels)
// in bfloat16. Values are [tokens, D] in float32, [tokens / 2, D, 2] (pairs of tokens) in bfloat16. int8: see kv_int8.h.
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

// Numbers of type K in the keys of a page, or in its values. bits: of a number, where that is not what K has.
template <typename K>
constexpr size_t page_size(int dim, int = 8) { return size_t(16) * dim; }

template <typename K>
void store_key(K* page, int token, const float* x, int dim) {
  for (int d = 0; d < dim; ++d) page[tile_at<K>(d, token)] = store<K>(x[d]);
}
template <typename K>
void store_value(K* page, int token, const float* x, int dim, int) {
  for (int d = 0; d < dim; ++d) page[value_at<K>(token, d, dim)] = store<K>(x[d]);
}
template <typename K>
float key_of(const K* page, int token, int channel, int) { return widen(page[tile_at<K>(channel, token)]); }

// sum[j] += the sixteen products of query j with a tile, for T queries. Here and below, `fetched` is the tile that will be
// read some time after this one. A line of it is fetched for every line that is read, because a processor can wait for few
// lines at once and stalls when more are requested. Two partial sums shorten the chain of dependent additions.
template <int T>
void dot_tile(const float* tile, const float* query, int dim, Lanes* sum, const void* fetched) {
  Lanes half[2][T];
  for (int j = 0; j < T; ++j) half[0][j] = sum[j], half[1][j] = Lanes::zero();
  for (int d = 0; d < dim; d += 2)
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      fetch_line(fetched, size_t(64) * (d + odd));
      const Lanes keys = Lanes::load(tile + (d + odd) * 16);
      for (int j = 0; j < T; ++j) half[odd][j].add(Lanes::all(query[j * dim + d + odd]), keys);
    }
  for (int j = 0; j < T; ++j) sum[j] = half[0][j].plus(half[1][j]);
}
template <int T>
void dot_tile(const bf16* tile, const float* query, int dim, Lanes* sum, const void* fetched) {
  Lanes half[2][T];
  for (int j = 0; j < T; ++j) half[0][j] = sum[j], half[1][j] = Lanes::zero();
  for (int d = 0; d < dim; d += 2) {
    fetch_line(fetched, size_t(32) * d);
    for (int j = 0; j < T; ++j) add_pairs(tile + d * 16, query + j * dim + d, half[0][j], half[1][j]);
  }
  for (int j = 0; j < T; ++j) sum[j] = half[0][j].plus(half[1][j]);
}

// Sixteen scores for each of T queries.
template <int T, typename K>
void score_tile(const K* tile, const float* query, int dim, float* const* scores, const void* fetched) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::zero();
  dot_tile<T>(tile, query, dim, sum, fetched);
  for (int j = 0; j < T; ++j) sum[j].write(scores[j]);
}

// Up to `most` queries of `dim` channels.
template <typename K>
struct Queries {
  const int dim;
  std::vector<float> form;

  Queries(int most, int dim) : dim(dim), form(size_t(dim) * most) {}

  // Takes x [count, dim], multiplied with `scale`.
  void prepare(const float* x, int count, float scale) {
    for (int d = 0; d < count * dim; ++d) form[d] = x[d] * scale;
  }

  // sum += the products of query j with a tile.
  void dot_tile(int j, const K* tile, Lanes& sum, const K* fetched) const {
    solm::dot_tile<1>(tile, form.data() + size_t(j) * dim, dim, &sum, fetched);
  }

  // Sixteen scores for each of the first `group` queries.
  void score(const K* tile, int group, float* const* scores, const void* fetched) const {
    for (int g = 0; g < group; g += 4, fetched = tile) {
      const float* from = form.data() + size_t(g) * dim;
      switch (std::min(4, group - g)) {
        case 4: score_tile<4>(tile, from, dim, scores + g, fetched); break;
        case 3: score_tile<3>(tile, from, dim, scores + g, fetched); break;
        case 2: score_tile<2>(tile, from, dim, scores + g, fetched); break;
        default: score_tile<1>(tile, from, dim, scores + g, fetched);
      }
    }
  }
};

// out[j] += sum over a page's tokens of weights[j] * value, for T query heads and the 16 channels from d on.
template <int T>
void mix_lanes(const float* page, int tokens, int dim, int d, const float* const* weights, float* const* out,
               const void* fetched) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::load(out[j] + d);
  for (int t = 0; t < tokens; ++t) {
    const size_t at = size_t(t) * dim + d;
    fetch_line(fetched, at * sizeof *page);
    const Lanes row = Lanes::load(page + at);
    for (int j = 0; j < T; ++j) sum[j].add(Lanes::all(weights[j][t]), row);
  }
  for (int j = 0; j < T; ++j) sum[j].write(out[j] + d);
}
template <int T>
void mix_lanes(const bf16* page, int tokens, int dim, int d, const float* const* weights, float* const* out,
               const void* fetched) {
  Lanes sum[T];
  for (int j = 0; j < T; ++j) sum[j] = Lanes::load(out[j] + d);
  for (int t = 0; t < tokens; t += 2) {
    const size_t at = size_t(t) * dim + 2 * d;
    fetch_line(fetched, at * sizeof *page);
    for (int j = 0; j < T; ++j) add_pairs(page + at, weights[j] + t, sum[j], sum[j]);
  }
  for (int j = 0; j < T; ++j) sum[j].write(out[j] + d);
}

// The same for all channels. Weights of tokens beyond the last, up to 16, must be 0.
template <int T, typename K>
void mix_tile(const K* page, int tokens, int dim, const float* const* weights, float* const* out, const void* fetched) {
  for (int d = 0; d < dim; d += 16) mix_lanes<T>(page, tokens, dim, d, weights, out, fetched);
}

template <typename K>
void mix_page(const K* page, int tokens, int dim, const float* const* weights, int group, float* const* out,
              const void* fetched) {
  for (int g = 0; g < group; g += 4, fetched = page)
    switch (std::min(4, group - g)) {
      case 4: mix_tile<4>(page, tokens, dim, weights + g, out + g, fetched); break;
      case 3: mix_tile<3>(page, tokens, dim, weights + g, out + g, fetched); break;
      case 2: mix_tile<2>(page, tokens, dim, weights + g, out + g, fetched); break;
      default: mix_tile<1>(page, tokens, dim, weights + g, out + g, fetched);
    }
}

}  // namespace solm
