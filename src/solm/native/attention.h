// Attention of one thread: its share of the pages that a step reads.
#pragma once

#include "model.h"

constexpr int AHEAD = 4;  // pages fetched before they are read

template <typename K>
struct Attention {
  const Sizes& s;
  const int thread, threads, D, Q, KV;
  const int each;  // numbers of a query in the form of `Query`
  std::vector<float> signs, mass;
  std::vector<Query<K>> query;
  std::vector<int32_t> pages;

  Attention(const Engine& engine, int t)
      : s(engine.s), thread(t), threads(s.threads), D(s.head_dim), Q(s.heads), KV(s.kv_heads),
        each(sizeof(K) == 4 ? D : D / 2), signs(2 * D), query(size_t(each) * std::max(2, Q / KV)) {}

  void append(Cache& cache, int layer, int head, int position, const float* key, const float* value) const {
    const int block = position / PAGE, slot = position % PAGE;
    K* keys = cache.tile<K>(cache.keys, s, layer, head, block);
    K* values = cache.tile<K>(cache.values, s, layer, head, block);
    for (int d = 0; d < D; ++d) {
      keys[tile_at<K>(d, slot)] = store<K>(key[d]);
      values[value_at<K>(slot, d, D)] = store<K>(value[d]);
    }
    if (slot < PAGE - 1) return;
    // Whole: only now can a window of at least a page have left the block behind, and bounds be asked for.
    K* low = cache.bounds<K>(cache.low, s, layer, head, block);
    K* high = cache.bounds<K>(cache.high, s, layer, head, block);
    for (int d = 0; d < D; ++d) {
      K least = keys[tile_at<K>(d, 0)], most = least;
      for (int t = 1; t < PAGE; ++t) {
        const K k = keys[tile_at<K>(d, t)];
        if (widen(k) < widen(least)) least = k;
        if (widen(k) > widen(most)) most = k;
      }
      low[tile_at<K>(d, block % PAGE)] = least, high[tile_at<K>(d, block % PAGE)] = most;
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
      for (int d = 0; d < D; ++d) {
        float p = 0, n = 0;
        for (int g = 0; g < Q / KV; ++g) {
          const float q = queries[g * D + d];
          p += std::max(q, 0.0f), n += std::min(q, 0.0f);
        }
        signs[d] = p, signs[D + d] = n;
      }
      prepare(signs.data(), 2 * D, 1, query.data());
      mass.resize(std::max<size_t>(mass.size(), start + PAGE));
      for (int b = sinks / PAGE * PAGE; b < start; b += PAGE) {
        Lanes sum = Lanes::zero();
        meet_tile<1>(cache.bounds<K>(cache.high, s, layer, head, b), query.data(), D, &sum);
        meet_tile<1>(cache.bounds<K>(cache.low, s, layer, head, b), query.data() + each, D, &sum);
        sum.write(mass.data() + b);
      }
      pages.resize(sinks + plan.pages + 1);
      int kept = sinks;
      largest(mass.data() + sinks, start - sinks, plan.pages, 32, order, [&](int b, bool keep) {
        pages[kept] = sinks + b;
        kept += keep;
      });
      pages.resize(kept);
    }
    for (int b = start; b < count; ++b) pages.push_back(b);
  }

  // A thread's share of one step's attention, left for the others at `mine`: per query head D sums, peak, total.
  void attend(const Cache& cache, int layer, int seen, const float* queries, const Plan& plan, float* mine) {
    const int group = Q / KV, width = D + 2;
    const float scale = 1.0f / std::sqrt(float(D));
    for (int head = 0; head < KV; ++head) {
      choose(cache, layer, head, seen, queries + head * group * D, plan);
      const int count = int(pages.size()), from = count * thread / threads, to = count * (thread + 1) / threads;
      const int n = (to - from) * PAGE;
      mass.resize(std::max<size_t>(mass.size(), size_t(group) * n));
      float* scores[MOST_QUERIES];
      float* out[MOST_QUERIES];
      for (int g = 0; g < group; ++g) {
        out[g] = mine + (head * group + g) * width;
        std::fill_n(out[g], D, 0.0f);
      }
      prepare(queries + head * group * D, group * D, scale, query.data());
      const K* keys = cache.tile<K>(cache.keys, s, layer, head, 0);
      const K* values = cache.tile<K>(cache.values, s, layer, head, 0);
      const size_t size = size_t(PAGE) * D;
      for (int p = from; p < to; ++p) {
        for (int g = 0; g < group; ++g) scores[g] = mass.data() + size_t(g) * n + (p - from) * PAGE;
        if (p + AHEAD < to) fetch(keys + pages[p + AHEAD] * size, size * sizeof(K));
        score_block(keys + pages[p] * size, query.data(), group, D, scores);
        for (int t = std::min(PAGE, seen - pages[p] * PAGE); t < PAGE; ++t)
          for (int g = 0; g < group; ++g) scores[g][t] = -INFINITY;
      }
      for (int g = 0; g < group; ++g) {
        scores[g] = mass.data() + size_t(g) * n;
        float total;
        out[g][D] = soften(scores[g], n, total);
        out[g][D + 1] = total;
      }
      for (int p = from; p < to; ++p) {
        const float* weights[MOST_QUERIES];
        for (int g = 0; g < group; ++g) weights[g] = scores[g] + (p - from) * PAGE;
        if (p + AHEAD < to) fetch(values + pages[p + AHEAD] * size, size * sizeof(K));
        mix_page(values + pages[p] * size, std::min(PAGE, seen - pages[p] * PAGE), D, weights, group, out);
      }
    }
  }
};
