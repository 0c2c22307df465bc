// One thread's way through the layers.
#pragma once

#include "model.h"

template <typename W, typename K>
struct Walker {
  Engine& e;
  const int thread, threads, H, I, D, Q, KV;
  bool sense, turn = false;
  std::vector<float> normed, sum, values, picked, heads, mass;
  std::vector<int32_t> index, all, pages;

  Walker(Engine& engine, int t)
      : e(engine), thread(t), threads(engine.s.threads), H(e.s.hidden), I(e.s.intermediate), D(e.s.head_dim),
        Q(e.s.heads), KV(e.s.kv_heads), sense(engine.senses[t]) {
    const int widest = std::max({2 * I, (Q + 2 * KV) * D, H, Q * D});
    normed.resize(widest), sum.resize(widest), values.resize(widest), picked.resize(widest), heads.resize(Q * D);
    index.resize(widest), all.resize(widest);
    for (int i = 0; i < widest; ++i) all[i] = i;
  }

  void meet() { e.barrier->wait(sense); }

  // Where a thread leaves sums for the others. Two places in turn: by the time one is written again, everyone has met
  // once more and is done reading it.
  float* partial(int t) const { return e.shared[t].data() + (turn ? e.shared[t].size() / 2 : 0); }

  // result[0:out] = scale * sum over kept inputs; every thread ends with all of it.
  void multiply(const Matrix& m, int out, const int32_t* kept, const float* x, int count, float* result) {
    float* mine = partial(thread);
    std::fill_n(mine, out, 0.0f);
    // In eights, so that no thread has a ragged block but the last.
    const int eights = (count + 7) / 8, from = std::min(count, eights * thread / threads * 8),
              to = std::min(count, eights * (thread + 1) / threads * 8);
    accumulate(static_cast<const W*>(m.data), out, kept + from, x + from, to - from, mine);
    meet();
    std::copy_n(partial(0), out, result);
    for (int t = 1; t < threads; ++t) {
      const float* other = partial(t);
#pragma GCC ivdep
      for (int o = 0; o < out; ++o) result[o] += other[o];
    }
    if (m.scale) {
#pragma GCC ivdep
      for (int o = 0; o < out; ++o) result[o] *= m.scale[o];
    }
    turn = !turn;
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

  void append(Cache& cache, int layer, int head, int position, const float* key, const float* value) const {
    const int block = position / PAGE, slot = position % PAGE, blocks = e.blocks(cache);
    const size_t place = size_t(layer) * KV + head;
    K* keys = reinterpret_cast<K*>(cache.keys.data()) + (place * blocks + block) * D * PAGE;
    K* row = reinterpret_cast<K*>(cache.values.data()) + (place * cache.capacity + position) * D;
    K* low = reinterpret_cast<K*>(cache.low.data()) + (place * blocks + block) * D;
    K* high = reinterpret_cast<K*>(cache.high.data()) + (place * blocks + block) * D;
    for (int d = 0; d < D; ++d) {
      keys[d * PAGE + slot] = store<K>(key[d]);
      row[d] = store<K>(value[d]);
    }
    if (slot < PAGE - 1) return;
    // Whole: only now can a window of at least a page have left the block behind, and bounds be asked for.
    for (int d = 0; d < D; ++d) {
      low[d] = high[d] = keys[d * PAGE];
      for (int t = 1; t < PAGE; ++t) {
        const K k = keys[d * PAGE + t];
        if (widen(k) < widen(low[d])) low[d] = k;
        if (widen(k) > widen(high[d])) high[d] = k;
      }
    }
  }

  // Blocks that the query heads of one KV head read, ascending.
  void choose(const Cache& cache, int layer, int head, int seen, const float* queries, const Plan& plan) {
    const int count = (seen + PAGE - 1) / PAGE;
    pages.clear();
    const int start = plan.window_start / PAGE, sinks = std::min((plan.sinks + PAGE - 1) / PAGE, start);
    if (!plan.sparse || plan.pages >= start - sinks) {
      for (int b = 0; b < count; ++b) pages.push_back(b);
      return;
    }
    for (int b = 0; b < sinks; ++b) pages.push_back(b);
    if (plan.pages > 0) {
      const int group = Q / KV, blocks = e.blocks(cache);
      float* positive = normed.data();
      float* negative = normed.data() + D;
      for (int d = 0; d < D; ++d) {
        float p = 0, n = 0;
        for (int g = 0; g < group; ++g) {
          const float q = queries[g * D + d];
          p += std::max(q, 0.0f), n += std::min(q, 0.0f);
        }
        positive[d] = p, negative[d] = n;
      }
      const size_t place = (size_t(layer) * KV + head) * blocks;
      const K* low = reinterpret_cast<const K*>(cache.low.data()) + place * D;
      const K* high = reinterpret_cast<const K*>(cache.high.data()) + place * D;
      mass.resize(std::max<size_t>(mass.size(), start));
      for (int b = sinks; b < start; ++b)
        mass[b] = dot(high + size_t(b) * D, positive, D) + dot(low + size_t(b) * D, negative, D);
      pages.resize(sinks + start - sinks);
      for (int b = sinks; b < start; ++b) pages[b] = b;
      std::nth_element(pages.begin() + sinks, pages.begin() + sinks + plan.pages - 1, pages.end(),
                       [&](int a, int b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; });
      pages.resize(sinks + plan.pages);
      std::sort(pages.begin() + sinks, pages.end());
    }
    for (int b = start; b < count; ++b) pages.push_back(b);
  }

  // heads[0 : Q D] from queries; each thread reads its share of the blocks.
  void attend(const Cache& cache, int layer, int seen, const float* queries, const Plan& plan) {
    const int group = Q / KV, blocks = e.blocks(cache), width = D + 2;
    const float scale = 1.0f / std::sqrt(float(D));
    float* mine = partial(thread);  // per query head: D sums, peak, total
    for (int head = 0; head < KV; ++head) {
      choose(cache, layer, head, seen, queries + head * group * D, plan);
      const size_t place = size_t(layer) * KV + head;
      const K* keys = reinterpret_cast<const K*>(cache.keys.data()) + place * blocks * D * PAGE;
      const K* rows = reinterpret_cast<const K*>(cache.values.data()) + place * cache.capacity * D;
      const int count = int(pages.size()), from = count * thread / threads, to = count * (thread + 1) / threads;
      mass.resize(std::max<size_t>(mass.size(), size_t(group) * (to - from) * PAGE));
      for (int g = 0; g < group; ++g) {
        float* out = mine + (head * group + g) * width;
        std::fill_n(out, D, 0.0f);
        out[D] = -INFINITY, out[D + 1] = 0;
      }
      const int n = (to - from) * PAGE;
      float* scores[MOST_QUERIES];
      float* out[MOST_QUERIES];
      for (int p = from; p < to; ++p) {
        for (int g = 0; g < group; ++g) scores[g] = mass.data() + size_t(g) * n + (p - from) * PAGE;
        score_block(keys + size_t(pages[p]) * D * PAGE, queries + head * group * D, group, D, scale, scores);
        for (int t = std::min(PAGE, seen - pages[p] * PAGE); t < PAGE; ++t)
          for (int g = 0; g < group; ++g) scores[g][t] = -INFINITY;
      }
      for (int g = 0; g < group; ++g) {
        out[g] = mine + (head * group + g) * width;
        scores[g] = mass.data() + size_t(g) * n;
        float total;
        out[g][D] = soften(scores[g], n, total);
        out[g][D + 1] = total;
      }
      for (int p = from; p < to; ++p) {
        const float* weights[MOST_QUERIES];
        for (int g = 0; g < group; ++g) weights[g] = scores[g] + (p - from) * PAGE;
        mix_rows(rows + size_t(pages[p]) * PAGE * D, std::min(PAGE, seen - pages[p] * PAGE), D, weights, group, out);
      }
    }
    meet();
    for (int h = 0; h < Q; ++h) {
      float peak = -INFINITY, total = 0;
      for (int t = 0; t < threads; ++t) peak = std::max(peak, partial(t)[size_t(h) * width + D]);
      std::fill_n(heads.data() + h * D, D, 0.0f);
      for (int t = 0; t < threads; ++t) {
        const float* part = partial(t) + size_t(h) * width;
        if (part[D + 1] <= 0) continue;
        const float weight = std::exp(part[D] - peak);
        total += weight * part[D + 1];
        for (int d = 0; d < D; ++d) heads[h * D + d] += weight * part[d];
      }
      for (int d = 0; d < D; ++d) heads[h * D + d] /= total;
    }
    turn = !turn;
  }

  void layer(int number, float* x, Cache& cache, int position, const Plan& plan) {
    const Layer& l = e.layers[number];
    const int wide = (Q + 2 * KV) * D;
    rms_norm(x, l.attention_norm, H, e.s.epsilon, normed.data());
    multiply(l.qkv, wide, all.data(), normed.data(), H, sum.data());
    if (l.qkv_bias)
      for (int o = 0; o < wide; ++o) sum[o] += l.qkv_bias[o];
    float *queries = sum.data(), *key = queries + Q * D, *value = key + KV * D;
    for (int h = 0; h < Q + KV; ++h) {
      float* head = queries + h * D;
      const float* norm = h < Q ? l.q_norm : l.k_norm;
      if (norm) rms_norm(head, norm, D, e.s.epsilon, head);
      rotate(head, position);
    }
    if (thread == 0)
      for (int h = 0; h < KV; ++h) append(cache, number, h, position, key + h * D, value + h * D);
    meet();
    attend(cache, number, position + 1, queries, plan);
    multiply(l.out, H, all.data(), heads.data(), Q * D, sum.data());
    for (int i = 0; i < H; ++i) x[i] += sum[i];

    rms_norm(x, l.mlp_norm, H, e.s.epsilon, normed.data());
    int kept = select(normed.data(), H, plan.inputs, index.data(), picked.data());
    quantise(index.data(), picked.data(), kept, plan.bits, plan.group ? plan.group : H);
    multiply(l.gate_up, 2 * I, index.data(), picked.data(), kept, sum.data());
    gated(sum.data(), sum.data() + I, I, values.data());
    kept = select(values.data(), I, plan.hiddens, index.data(), picked.data());
    quantise(index.data(), picked.data(), kept, plan.bits, plan.group ? plan.group : I);
    multiply(l.down, H, index.data(), picked.data(), kept, sum.data());
    for (int i = 0; i < H; ++i) x[i] += sum[i];
  }

  void run() {
    std::vector<float> x(H);
    for (int step = 0; step < e.steps; ++step) {
      float* stream = e.stream + size_t(step) * H;
      if (e.first == 0) {
        const W* source = static_cast<const W*>(e.embedding) + size_t(e.tokens[step]) * H;
        const float scale = e.embedding_scale ? e.embedding_scale[e.tokens[step]] : 1.0f;
        for (int i = 0; i < H; ++i) x[i] = scale * widen(source[i]);
      } else {
        std::copy_n(stream, H, x.data());
      }
      for (int l = e.first; l < e.last; ++l) layer(l, x.data(), *e.caches[step], e.positions[step], e.plans[step]);
      meet();  // everyone has read the stream
      if (e.last < e.s.layers) {
        if (thread == 0) std::copy_n(x.data(), H, stream);
        continue;
      }
      rms_norm(x.data(), e.final_norm, H, e.s.epsilon, normed.data());
      if (thread == 0) std::copy_n(normed.data(), H, stream);
      if (!e.logits) continue;
      const int V = e.s.vocabulary;
      const int from = int(int64_t(V) * thread / threads), to = int(int64_t(V) * (thread + 1) / threads);
      float* out = e.logits + size_t(step) * V;
      const W* weights = static_cast<const W*>(e.head.data);
      for (int v = from; v < to; ++v) {
        const float score = dot(weights + size_t(v) * H, normed.data(), H);
        out[v] = e.head.scale ? score * e.head.scale[v] : score;
      }
    }
    meet();
    e.senses[thread] = sense;
  }
};
