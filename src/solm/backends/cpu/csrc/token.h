// What belongs to one token of a call: its embedding, and its queries, keys and values at its position.
#pragma once

#include "engine.h"
#include "layer_math.h"
#include "repack.h"

namespace solm {

inline void embed(const Engine& e, int64_t token, float* x) {
  const RawTensor rows{e.s.embedding, static_cast<const uint8_t*>(e.embedding), e.s.vocabulary, e.s.hidden, nullptr};
  const float scale = e.s.embedding_scale;
  for (int g = 0; g < rows.groups(); ++g) {
    float values[GROUP];
    const int count = read_group(rows, rows.row(int(token)), g, values);
    for (int i = 0; i < count; ++i) x[g * GROUP + i] = scale * values[i];
  }
}

inline void rotate(const RopeTable& rope, float* x, int position) {
  const int middle = rope.rotary / 2;
  const float *c = &rope.cosine[size_t(position) * middle], *s = &rope.sine[size_t(position) * middle];
  for (int i = 0; i < middle; ++i) {
    const float a = x[i], b = x[i + middle];
    x[i] = multiply_add(-b, s[i], a * c[i]);
    x[i + middle] = multiply_add(a, s[i], b * c[i]);
  }
}

// Biases, norms and rotates queries, keys and values [(heads + 2 kv_heads) D] in place.
inline void place_token(const Engine& e, const Layer& l, int position, float* queries) {
  const int D = e.s.head_dim, Q = e.s.heads, KV = e.s.kv_heads;
  if (l.qkv_bias)
    for (int o = 0; o < (Q + 2 * KV) * D; ++o) queries[o] += l.qkv_bias[o];
  if (e.s.whole_norms) {
    rms_norm(queries, l.q_norm, Q * D, e.s.epsilon, queries);
    rms_norm(queries + Q * D, l.k_norm, KV * D, e.s.epsilon, queries + Q * D);
  }
  for (int h = 0; h < Q + KV; ++h) {
    float* head = queries + h * D;
    const float* norm = h < Q ? l.q_norm : l.k_norm;
    if (norm && !e.s.whole_norms) rms_norm(head, norm, D, e.s.epsilon, head);
    if (l.rope >= 0) rotate(e.ropes[l.rope], head, position);
  }
}

// Writes the keys and values among these to the cache.
template <typename K>
void append_token(const Engine& e, const Step& step, int layer, const float* queries) {
  const int D = e.s.head_dim, KV = e.s.kv_heads;
  const float *key = queries + e.s.heads * D, *value = key + KV * D;
  for (int h = 0; h < KV; ++h) append<K>(*step.cache, e.s, layer, h, step.position, key + h * D, value + h * D);
}

}  // namespace solm
