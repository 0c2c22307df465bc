// One thread's way through the layers.
#pragma once

#include "attention.h"
#include "decide.h"
#include "products.h"

constexpr float REACH = 8;  // how far below the largest a screened logit is exact

template <typename W, typename K>
struct Walker : Products<W> {
  using Base = Products<W>;
  using Base::all, Base::e, Base::inputs, Base::keep_all, Base::keep_largest, Base::meet, Base::multiply, Base::partial,
      Base::result, Base::sense, Base::thread, Base::threads, Base::turn, Base::warm;
  const int H, I, D, Q, KV;
  Attention<K> attention;
  std::vector<float> streams, normed, heads;  // of all steps
  std::vector<float> values;                  // of one

  Walker(Engine& engine, int t, int rows)
      : Base(engine, t, rows, widest_of(engine.s), std::max({engine.s.hidden, engine.s.intermediate,
                                                             engine.s.heads * engine.s.head_dim})),
        H(engine.s.hidden), I(engine.s.intermediate), D(engine.s.head_dim), Q(engine.s.heads), KV(engine.s.kv_heads),
        attention(engine, t), streams(size_t(rows) * H), normed(size_t(rows) * H), heads(size_t(rows) * Q * D), values(I) {}

  static int widest_of(const Sizes& s) {
    return std::max({2 * s.intermediate, (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden, s.heads * s.head_dim});
  }

  void rotate(float* x, int position) const {
    const float *c = e.cosine + size_t(position) * D, *s = e.sine + size_t(position) * D;
    const int half = D / 2;
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * c[i] - b * s[i];
      x[i + half] = b * c[i + half] + a * s[i + half];
    }
  }

  // to[0 : Q D] from what all threads left at `offset`.
  void gather(size_t offset, float* to) const {
    const int width = D + 2;
    for (int h = 0; h < Q; ++h) {
      float peak = -INFINITY, total = 0;
      for (int t = 0; t < threads; ++t) peak = std::max(peak, partial(t)[offset + size_t(h) * width + D]);
      std::fill_n(to + h * D, D, 0.0f);
      for (int t = 0; t < threads; ++t) {
        const float* part = partial(t) + offset + size_t(h) * width;
        if (part[D + 1] <= 0) continue;
        const float weight = std::exp(part[D] - peak);
        total += weight * part[D + 1];
        for (int d = 0; d < D; ++d) to[h * D + d] += weight * part[d];
      }
      for (int d = 0; d < D; ++d) to[h * D + d] /= total;
    }
  }

  void layer(int number, int start, int rows) {
    const Layer& l = e.layers[number];
    const int wide = (Q + 2 * KV) * D;
    const size_t share = size_t(Q) * (D + 2);
    for (int r = 0; r < rows; ++r)
      rms_norm(&streams[size_t(r) * H], l.attention_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
    keep_all(normed.data(), H, rows);
    multiply(l.qkv, H, wide, rows);
    for (int r = 0; r < rows; ++r) {
      float* queries = result(r);
      if (l.qkv_bias)
        for (int o = 0; o < wide; ++o) queries[o] += l.qkv_bias[o];
      for (int h = 0; h < Q + KV; ++h) {
        float* head = queries + h * D;
        const float* norm = h < Q ? l.q_norm : l.k_norm;
        if (norm) rms_norm(head, norm, D, e.s.epsilon, head);
        rotate(head, e.positions[start + r]);
      }
      const float *key = queries + Q * D, *value = key + KV * D;
      if (thread == 0)
        for (int h = 0; h < KV; ++h)
          attention.append(*e.caches[start + r], number, h, e.positions[start + r], key + h * D, value + h * D);
    }
    meet();
    for (int r = 0; r < rows; ++r)
      attention.attend(*e.caches[start + r], number, e.positions[start + r] + 1, result(r), e.plans[start + r],
                       partial(thread) + r * share);
    warm(l.out, Q * D, H);
    meet();
    for (int r = 0; r < rows; ++r) gather(r * share, &heads[size_t(r) * Q * D]);
    turn = !turn;
    keep_all(heads.data(), Q * D, rows);
    multiply(l.out, Q * D, H, rows, &l.gate_up, H, 2 * I);

    for (int r = 0; r < rows; ++r) {
      float* x = &streams[size_t(r) * H];
      const float* added = result(r);
      for (int i = 0; i < H; ++i) x[i] += added[i];
      rms_norm(x, l.mlp_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
      const Plan& plan = e.plans[start + r];
      keep_largest(&normed[size_t(r) * H], H, plan.inputs, plan, r);
    }
    multiply(l.gate_up, H, 2 * I, rows, &l.down, I, H);
    for (int r = 0; r < rows; ++r) {
      const Plan& plan = e.plans[start + r];
      gated(result(r), result(r) + I, I, values.data());
      keep_largest(values.data(), I, plan.hiddens, plan, r);
    }
    const Matrix* following = number + 1 < e.last ? &e.layers[number + 1].qkv : nullptr;
    multiply(l.down, I, H, rows, following, H, wide);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < H; ++i) streams[size_t(r) * H + i] += result(r)[i];
  }

  // Decide a step from the residual stream x that enters the layer of the turn.
  void take(int step, const float* x) {
    Row& row = e.rows[step / e.count];
    if (!row.decider) return;
    const Decider& d = *row.decider;
    const int kv_length = e.positions[step] + 1;
    const bool counted = controllable(*e.rules, kv_length);
    int level[3];
    double keep[3], whole[3];
    e.actions[step] = decide(d, Realised(d, *e.rules, e.s, kv_length), e.s, x, e.actions[step], counted, row,
                             e.realised + 3 * size_t(step));
    levels_of(d, e.actions[step], level);
    for (int axis = 0; axis < 3; ++axis) keep[axis] = d.levels[axis][level[axis]];
    e.plans[step] = make_plan(*e.rules, e.s, keep, kv_length, whole);
  }

  void run() {
    for (int start = 0; start < e.steps; start += MOST_ROWS) walk(start, std::min(MOST_ROWS, e.steps - start));
    meet();
    e.senses[thread] = sense;
  }

  void walk(int start, int rows) {
    for (int r = 0; r < rows; ++r) {
      float* x = &streams[size_t(r) * H];
      if (e.first > 0) {
        std::copy_n(e.stream + size_t(start + r) * H, H, x);
        continue;
      }
      const W* source = static_cast<const W*>(e.embedding) + size_t(e.tokens[start + r]) * H;
      const float scale = e.embedding_scale ? e.embedding_scale[e.tokens[start + r]] : 1.0f;
      for (int i = 0; i < H; ++i) x[i] = scale * widen(source[i]);
    }
    for (int l = e.first; l < e.last; ++l) {
      if (l == e.turn) {
        if (thread == 0)
          for (int r = 0; r < rows; ++r) take(start + r, &streams[size_t(r) * H]);
        meet();
      }
      layer(l, start, rows);
    }
    meet();  // everyone has read the stream
    if (e.last < e.s.layers) {
      if (thread == 0) std::copy_n(streams.data(), size_t(rows) * H, e.stream + size_t(start) * H);
      return;
    }
    for (int r = 0; r < rows; ++r)
      rms_norm(&streams[size_t(r) * H], e.final_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
    if (thread == 0) std::copy_n(normed.data(), size_t(rows) * H, e.stream + size_t(start) * H);
    if (!e.logits) return;
    if (e.plane) screened_head(start, rows);
    else exact_head(start, rows);
  }

  // Of the vocabulary, this thread's share.
  int head_start(int t) const { return int(int64_t(e.s.vocabulary) * t / threads); }

  // Calls use.operator()<T>(r, x): T rows from r on, at most four at a time, with what the head reads of them.
  template <typename Use>
  void four_by_four(int rows, Use use) const {
    for (int r = 0; r < rows; r += 4) {
      const float* x[4];
      const int here = std::min(4, rows - r);
      for (int k = 0; k < here; ++k) x[k] = &normed[size_t(r + k) * H];
      switch (here) {
        case 4: use.template operator()<4>(r, x); break;
        case 3: use.template operator()<3>(r, x); break;
        case 2: use.template operator()<2>(r, x); break;
        default: use.template operator()<1>(r, x);
      }
    }
  }

  void exact_head(int start, int rows) const {
    const W* weights = static_cast<const W*>(e.head.data);
    for (int v = head_start(thread); v < head_start(thread + 1); ++v) {
      const float scale = e.head.scale ? e.head.scale[v] : 1.0f;
      four_by_four(rows, [&]<int T>(int r, const float* const* x) {
        float score[T];
        dots<T>(weights + size_t(v) * H, x, H, score);
        for (int k = 0; k < T; ++k) logit(start + r + k, v) = score[k] * scale;
      });
    }
  }

  // Logits from the high halves of the head's weights, which are half of the bytes, then exactly those that come within
  // REACH of the largest. What the low halves would have added is as good as random, with a known spread: taking off half
  // its square keeps the sum of the exponentials right on average.
  void screened_head(int start, int rows) {
    const int from = head_start(thread), to = head_start(thread + 1);
    float offset[MOST_ROWS], spread[MOST_ROWS];
    for (int r = 0; r < rows; ++r) {
      const float* x = &normed[size_t(r) * H];
      float sum = 0;
      for (int i = 0; i < H; ++i) sum += x[i];
      offset[r] = (7.5f - 16 * 8) * sum;
      spread[r] = 0.5f * (16.0f * 16 - 1) / 12 * dot(x, x, H);
    }
    float* peak = partial(thread);
    std::fill_n(peak, rows, -INFINITY);
    for (int v = from; v < to; ++v) {
      const float scale = e.head.scale[v];
      four_by_four(rows, [&]<int T>(int r, const float* const* x) {
        float score[T];
        number_dots<T>(e.plane + size_t(v) * (H / 2), x, H, score);
        for (int k = 0; k < T; ++k) {
          const float found = scale * (16 * score[k] + offset[r + k] - scale * spread[r + k]);
          logit(start + r + k, v) = found;
          peak[r + k] = std::max(peak[r + k], found);
        }
      });
    }
    meet();
    const W* weights = static_cast<const W*>(e.head.data);
    for (int r = 0; r < rows; ++r) {
      float least = -INFINITY;
      for (int t = 0; t < threads; ++t) least = std::max(least, partial(t)[r] - REACH);
      float* logits = &logit(start + r, 0);
      for (int v = from; v < to; ++v)
        if (logits[v] >= least) logits[v] = e.head.scale[v] * dot(weights + size_t(v) * H, &normed[size_t(r) * H], H);
    }
    turn = !turn;
  }

  float& logit(int step, int v) const { return e.logits[size_t(step) * e.s.vocabulary + v]; }
};
