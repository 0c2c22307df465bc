// One thread's way through the layers.
#pragma once

#include "attention.h"
#include "head.h"
#include "products.h"

template <typename W, typename K>
struct Walker : Products<W> {
  using Base = Products<W>;
  using Base::all, Base::beginning, Base::e, Base::inputs, Base::keep_all, Base::keep_largest, Base::meet, Base::multiply,
      Base::partial, Base::result, Base::rounded, Base::sense, Base::thread, Base::threads, Base::turn;
  const int H, I, D, Q, KV;
  Attention<K> attention;
  std::vector<float> streams, normed, heads;  // of all steps
  std::vector<float> values;                  // of one
  std::vector<Plan> plans;                    // of all steps, for the layer in progress

  Walker(Engine& engine, int t, int rows)
      : Base(engine, t, rows, widest_of(engine.s), std::max({engine.s.hidden, engine.s.intermediate,
                                                             engine.s.heads * engine.s.head_dim})),
        H(engine.s.hidden), I(engine.s.intermediate), D(engine.s.head_dim), Q(engine.s.heads), KV(engine.s.kv_heads),
        attention(engine, t), streams(size_t(rows) * H), normed(size_t(rows) * H), heads(size_t(rows) * Q * D), values(I),
        plans(rows) {}

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
    for (int r = 0; r < rows; ++r) plans[r] = plan_at(*e.rules, e.s, e.plans[start + r], number);
    for (int r = 0; r < rows && !e.s.norms_after; ++r)
      rms_norm(&streams[size_t(r) * H], l.attention_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
    keep_all(e.s.norms_after ? streams.data() : normed.data(), H, rows);
    multiply(l.qkv, H, wide, rows, attention.beginning(*e.caches[start], number, e.positions[start] + 1, plans[0]));
    for (int r = 0; r < rows; ++r) {
      float* queries = result(r);
      if (l.qkv_bias)
        for (int o = 0; o < wide; ++o) queries[o] += l.qkv_bias[o];
      if (e.s.whole_norms) {
        rms_norm(queries, l.q_norm, Q * D, e.s.epsilon, queries);
        rms_norm(queries + Q * D, l.k_norm, KV * D, e.s.epsilon, queries + Q * D);
      }
      for (int h = 0; h < Q + KV; ++h) {
        float* head = queries + h * D;
        const float* norm = h < Q ? l.q_norm : l.k_norm;
        if (norm && !e.s.whole_norms) rms_norm(head, norm, D, e.s.epsilon, head);
        rotate(head, e.positions[start + r]);
      }
      const float *key = queries + Q * D, *value = key + KV * D;
      if (thread == threads - 1)  // which reads the last page
        for (int h = 0; h < KV; ++h)
          attention.append(*e.caches[start + r], number, h, e.positions[start + r], key + h * D, value + h * D);
    }
    meet();
    auto mass = [&](int r) { return e.mass.data() + size_t(r) * KV * e.span; };
    if (std::any_of(plans.begin(), plans.begin() + rows, [](const Plan& plan) { return plan.sparse && plan.between; })) {
      for (int r = 0; r < rows; ++r)
        attention.weigh(*e.rules, *e.caches[start + r], number, result(r), plans[r], mass(r), e.span);
      meet();
    }
    for (int r = 0; r < rows; ++r)
      attention.attend(*e.rules, *e.caches[start + r], number, e.positions[start + r] + 1, result(r), plans[r], mass(r),
                       e.span, partial(thread) + r * share);
    fetch(beginning(l.out, Q * D, H));
    meet();
    for (int r = 0; r < rows; ++r) gather(r * share, &heads[size_t(r) * Q * D]);
    turn = !turn;
    keep_all(heads.data(), Q * D, rows);
    multiply(l.out, Q * D, H, rows, beginning(l.gate_up, H, 2 * I));

    for (int r = 0; r < rows; ++r) {
      float* x = &streams[size_t(r) * H];
      add(r, l.attention_norm);
      if (!e.s.norms_after) rms_norm(x, l.mlp_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
      keep_largest(e.s.norms_after ? x : &normed[size_t(r) * H], H, plans[r].inputs, plans[r], r);
    }
    multiply(l.gate_up, H, 2 * I, rows, beginning(l.down, I, H));
    for (int r = 0; r < rows; ++r) {
      gated(result(r), result(r) + I, I, values.data());
      keep_largest(values.data(), I, plans[r].hiddens, plans[r], r);
    }
    multiply(l.down, I, H, rows, number + 1 < e.last ? beginning(e.layers[number + 1].qkv, H, wide) : Coming());
    for (int r = 0; r < rows; ++r) add(r, l.mlp_norm);
  }

  // A product's result to a row's residual stream.
  void add(int row, const float* norm) {
    float *x = &streams[size_t(row) * H], *added = result(row);
    if (e.s.norms_after) rms_norm(added, norm, H, e.s.epsilon, added);
#pragma GCC ivdep
    for (int i = 0; i < H; ++i) x[i] += added[i];
  }

  // Decide the walk's steps from the residual streams that enter the layer of the turn: every thread adds up its share of
  // what networks read, and the first one decides.
  void decide_all(int start, int rows) {
    auto decider = [&](int r) { return e.rows[(start + r) / e.count].decider; };
    for (int r = 0; r < rows; ++r) {
      const Decider* d = decider(r);
      if (!d) continue;
      double shares[3];
      shares_of(*d, e.actions[start + r], shares);
      float* unit = e.units[thread].data() + size_t(r) * e.width;
      sum_units(*d, &streams[size_t(r) * H], H, shares, (H + 3) * thread / threads, (H + 3) * (thread + 1) / threads, unit);
    }
    meet();
    for (int r = 0; r < rows && thread == 0; ++r) {
      const Decider* d = decider(r);
      if (!d) continue;
      float* unit = e.units[0].data() + size_t(r) * e.width;
      for (int t = 1; t < threads; ++t)
        for (int u = 0; u < d->width; ++u) unit[u] += e.units[t][size_t(r) * e.width + u];
      take(*d, start + r, unit);
    }
    meet();
  }

  void take(const Decider& d, int step, float* unit) {
    const int kv_length = e.positions[step] + 1;
    const bool counted = controllable(*e.rules, kv_length);
    int level[3];
    double keep[3];
    const Realised own = e.levels.empty() ? realised_by(d, *e.rules, e.s, kv_length) : e.levels[step];
    e.actions[step] = decide(d, own, e.s, unit, e.actions[step], counted, e.rows[step / e.count],
                             e.realised + 3 * size_t(step));
    levels_of(d, e.actions[step], level);
    for (int axis = 0; axis < 3; ++axis) keep[axis] = d.levels[axis][level[axis]];
    e.plans[step] = make_plan(*e.rules, e.s, keep, kv_length);
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
      const size_t from = size_t(e.tokens[start + r]) * H;
      for (int i = 0; i < H; ++i)
        x[i] = e.s.embedding == 0   ? static_cast<const float*>(e.embedding)[from + i]
               : e.s.embedding == 1 ? widen(static_cast<const bf16*>(e.embedding)[from + i])
                                    : widen_half(static_cast<const uint16_t*>(e.embedding)[from + i]);
    }
    for (int l = e.first; l < e.last; ++l) {
      if (l == e.turn) decide_all(start, rows);
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
    if constexpr (std::is_same_v<W, int8_t>) integer_head(start, rows);
    else float_head(start, rows);
  }

  void float_head(int start, int rows) const {
    const W* weights = static_cast<const W*>(e.head.data);
    const int64_t vocabulary = e.s.vocabulary;
    for (int v = int(vocabulary * thread / threads); v < int(vocabulary * (thread + 1) / threads); ++v)
      for (int r = 0; r < rows; r += 4) {
        const float* x[4];
        float score[4];
        const int here = std::min(4, rows - r);
        for (int k = 0; k < here; ++k) x[k] = &normed[size_t(r + k) * H];
        switch (here) {
          case 4: dots<4>(weights + size_t(v) * H, x, H, score); break;
          case 3: dots<3>(weights + size_t(v) * H, x, H, score); break;
          case 2: dots<2>(weights + size_t(v) * H, x, H, score); break;
          default: dots<1>(weights + size_t(v) * H, x, H, score);
        }
        for (int k = 0; k < here; ++k) logits(start + r + k)[v] = score[k];
      }
  }

  void integer_head(int start, int rows) {
    const int groups = (H + GROUP - 1) / GROUP;
    for (int r = 0; r < rows; ++r) rounded[r].round(all.data(), &normed[size_t(r) * H], H, 0, groups, 127);
    Strips strips(e, thread, rounded.data(), rows);
    auto to = [&](int r) { return logits(start + r); };
    if (e.head.grid) return strips.packed(to);
    strips.screened(to, partial(thread));
    if (e.shortlist) meet();
    for (int r = 0; r < rows; ++r) {
      float peak = -INFINITY;
      for (int t = 0; t < threads; ++t) peak = std::max(peak, partial(t)[r]);
      strips.settle(r, e.shortlist ? peak - REACH : -INFINITY, logits(start + r));
    }
    turn = !turn;
  }

  float* logits(int step) const { return e.logits + size_t(step) * e.s.vocabulary; }
};
