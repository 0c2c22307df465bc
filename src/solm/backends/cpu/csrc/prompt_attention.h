// Causal attention of neighbouring tokens of a row to all tokens up to them: in blocks of keys, with a running maximum and sum.
#pragma once

#include "cache.h"
#include "layer_math.h"
#include "tile_float.h"

namespace solm {

// A page's keys as floats [D, 16], and its values as floats [16, D].
inline void widen_keys(const float* page, int dim, float* to) { std::copy_n(page, size_t(PAGE) * dim, to); }
inline void widen_values(const float* page, int dim, int, float* to) { std::copy_n(page, size_t(PAGE) * dim, to); }

// The first and the second numbers of `count` pairs.
inline void widen_pairs(const bf16* pairs, int count, float* first, float* second) {
  for (int i = 0; i < count; ++i) first[i] = widen(pairs[2 * i]), second[i] = widen(pairs[2 * i + 1]);
}
inline void widen_keys(const bf16* page, int dim, float* to) {
  for (int d = 0; d < dim; d += 2) widen_pairs(page + PAGE * d, PAGE, to + PAGE * d, to + PAGE * (d + 1));
}
inline void widen_values(const bf16* page, int dim, int, float* to) {
  for (int t = 0; t < PAGE; t += 2) widen_pairs(page + t * dim, dim, to + t * dim, to + (t + 1) * dim);
}

inline float number_of(uint8_t byte) { return float(int(byte) - 128); }
inline void widen_keys(const uint8_t* page, int dim, float* to) {
  const float* scale = scales(page, dim);
  for (int d = 0; d < dim; d += 4)
    for (int k = 0; k < 4; ++k)
      for (int t = 0; t < PAGE; ++t) to[(d + k) * PAGE + t] = scale[t] * number_of(page[d * PAGE + 4 * t + k]);
}
inline void widen_values(const uint8_t* page, int dim, int bits, float* to) {
  const float* scale = scales(page, dim, bits);
  for (int t = 0; t < PAGE; ++t, to += dim)
    if (bits == 8) {
      for (int d = 0; d < dim; ++d) to[d] = scale[t] * number_of(page[value_byte(t, d, dim)]);
    } else {
      const int shift = is_upper(t) ? 4 : 0;
      for (int d = 0; d < dim; ++d) to[d] = scale[t] * float((page[half_byte(t, d, dim)] >> shift & 15) - 8);
    }
}

// One thread's part. Blocks of keys start at the same positions whatever the tokens are, so that a token's result does not
// depend on which others are read with it.
template <typename K>
struct PromptAttention {
  static constexpr int KEYS = 64;                                    // of a block
  static constexpr int ROWS = rounded_up(4 * MOST_QUERIES, ROW_STEP);  // queries of a block
  const Sizes& s;
  const int D, group;
  std::vector<float> queries, out, scores, keys, values, peak, total;

  explicit PromptAttention(const Sizes& sizes) : s(sizes), D(sizes.head_dim), group(sizes.heads / sizes.kv_heads) {}

  void reserve() {
    queries.resize(size_t(ROWS) * D), out.resize(size_t(ROWS) * D), scores.resize(size_t(ROWS) * KEYS);
    keys.resize(size_t(KEYS) * D), values.resize(size_t(KEYS) * D), peak.resize(ROWS), total.resize(ROWS);
  }

  // Tokens whose queries of one KV head make a block.
  static int tokens(const Sizes& s) { return 4 * MOST_QUERIES / (s.heads / s.kv_heads); }

  // The outputs of the query heads of a KV head for `count` tokens, the first of them at `position`, each of which sees the
  // layer's window. from: those heads' queries of the first token; to: where their outputs go. Both are `*_stride` floats apart
  // from token to token.
  void attend(const Cache& cache, const Layer& l, int layer, int head, int position, int count, const float* from,
              size_t from_stride, float* to, size_t to_stride) {
    const int rows = count * group, width = group * D, window = l.window;
    const float scale = s.softmax_scale;
    auto oldest = [&](int row) { return window ? std::max(0, position + row / group - window + 1) : 0; };
    for (int t = 0; t < count; ++t)
      for (int i = 0; i < width; ++i) queries[size_t(t) * width + i] = scale * from[t * from_stride + i];
    std::fill(out.begin(), out.end(), 0.0f);
    std::fill(peak.begin(), peak.end(), -INFINITY), std::fill(total.begin(), total.end(), l.sinks ? 1.0f : 0.0f);
    for (int r = 0; l.sinks && r < rows; ++r) peak[r] = l.sinks[head * group + r % group];
    const PageRange<K> key_pages = cache.keys<K>(s, layer, head);
    const PageRange<K> value_pages = cache.values<K>(s, layer, head);
    const int seen = position + count;
    for (int first = oldest(0) / KEYS * KEYS; first < seen; first += KEYS) {
      const int here = std::min(KEYS, seen - first), begin = std::max(0, oldest(0) - first) / PAGE * PAGE;
      for (int t = begin; t < here; t += PAGE) {
        widen_keys(key_pages[(first + t) / PAGE], D, &keys[size_t(t) * D]);
        widen_values(value_pages[(first + t) / PAGE], D, s.value_bits, &values[size_t(t) * D]);
      }
      for (int r = 0; r < rows; r += FLOAT_ROWS) {
        const int last = position + std::min(r + FLOAT_ROWS - 1, rows - 1) / group;  // the last position of these rows
        if (last < first || oldest(r) >= first + here) continue;
        const int strips = (std::min(here, last - first + 1) - begin + PAGE - 1) / PAGE;
        multiply_strips<false>(&queries[size_t(r) * D], D, &keys[size_t(begin) * D], PAGE, size_t(PAGE) * D, strips, D,
                               &scores[size_t(r) * KEYS + begin], KEYS);
        for (int i = r; i < std::min(r + FLOAT_ROWS, rows); ++i)
          weigh(i, std::max(0, oldest(i) - first), std::min(here, position + i / group - first + 1), here);
        multiply_strips<true>(&scores[size_t(r) * KEYS + begin], KEYS, &values[size_t(begin) * D], D, 16, D / 16, here - begin,
                              &out[size_t(r) * D], D);
      }
    }
    for (int r = 0; r < rows; ++r) {
      float* result = to + r / group * to_stride + r % group * D;
      const float inverse = 1.0f / total[r];
      for (int d = 0; d < D; ++d) result[d] = out[size_t(r) * D + d] * inverse;
    }
  }

 private:
  // Makes weights of a row's scores [from, to) of a block, zeros of the others up to `here`, and scales what it has summed up
  // to the new maximum.
  void weigh(int row, int from, int to, int here) {
    float* own = &scores[size_t(row) * KEYS];
    std::fill(own, own + std::min(from, here), 0.0f);
    std::fill(own + std::max(to, 0), own + here, 0.0f);
    if (from >= to) return;
    if (s.attention_cap > 0) soft_cap(own + from, to - from, s.attention_cap);
    float added;
    const float before = peak[row];
    peak[row] = softmax_terms(own + from, to - from, added, before);
    if (peak[row] > before) {
      const float fall = before - peak[row], weight = fall > -87.0f ? exponential(fall) : 0.0f;
      total[row] *= weight;
      for (int d = 0; d < D; ++d) out[size_t(row) * D + d] *= weight;
    }
    total[row] += added;
  }
};

}  // namespace solm
