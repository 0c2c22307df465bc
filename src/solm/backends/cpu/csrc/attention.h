// Attention of one step: all of it, or one thread's part of the pages that it reads.
#pragma once

#include <numeric>

#include "engine.h"
#include "layer_math.h"
#include "separator.h"

namespace solm {

constexpr size_t PREFETCHED = 16384;  // bytes of pages that are fetched before they are read

// The outputs [heads, dim] of some heads from all threads' parts: part(t) has, per head, what Attention::attend leaves. sinks:
// null, or scores of their own that every `of_sinks` heads have.
template <typename Part>
void combine_parts(int heads, int dim, int threads, const float* sinks, int of_sinks, Part part, float* to) {
  for (int h = 0; h < heads; ++h, to += dim) {
    const size_t at = size_t(h) * (dim + 2);
    const float sink = sinks ? sinks[h % of_sinks] : -INFINITY;
    float peak = sink;
    for (int t = 0; t < threads; ++t) peak = std::max(peak, part(t)[at + dim]);
    float total = sinks ? std::exp(sink - peak) : 0;
    std::fill_n(to, dim, 0.0f);
    for (int t = 0; t < threads; ++t) {
      const float* own = part(t) + at;
      if (own[dim + 1] <= 0) continue;
      const float weight = std::exp(own[dim] - peak);
      total += weight * own[dim + 1];
      for (int d = 0; d < dim; ++d) to[d] += weight * own[d];
    }
    for (int d = 0; d < dim; ++d) to[d] /= total;
  }
}

template <typename K>
struct Attention {
  using Bound = BoundOf<K>;
  const Sizes& s;
  int thread;  // whose part is computed
  const int threads, D, Q, KV;
  std::vector<float> signs, scores_room;  // of queries; of attention scores
  Queries<Bound> corners;                 // the queries' positive and negative parts
  Queries<K> query;
  std::vector<int32_t> pages;  // that are read

  // Of part `thread` of `threads`.
  Attention(const Sizes& sizes, int thread, int threads)
      : s(sizes), thread(thread), threads(threads), D(s.head_dim), Q(s.heads), KV(s.kv_heads), signs(2 * D), corners(2, D),
        query(Q / KV, D) {}

  void reserve(int most_pages) {
    const size_t each = size_t(most_pages + threads - 1) / threads * PAGE;
    scores_room.resize(std::max(scores_room.size(), Q / KV * each));
    pages.reserve(most_pages);
  }

  // bits: of values, where they are in integers.
  int pages_ahead(int bits = 8) const { return std::max(1, int(PREFETCHED / (page_size<K>(D, bits) * sizeof(K)))); }

  // The pages between sinks and window, [first, end).
  static std::pair<int, int> between(const Plan& plan) {
    const int end = plan.window_start / PAGE;
    return {std::min((plan.sinks + PAGE - 1) / PAGE, end), end};
  }
  // Whether a head that may read `budget` of those has to select.
  static bool selects(const Plan& plan, int budget) {
    const auto [first, end] = between(plan);
    return plan.sparse && budget < end - first;
  }

  // The tiles of bounds, [first, end), that this thread reads.
  std::pair<int, int> tiles_of(const Plan& plan) const {
    const auto [first, end] = between(plan);
    const int from = first / PAGE, count = (end + PAGE - 1) / PAGE - from;
    return {from + count * thread / threads, from + count * (thread + 1) / threads};
  }

  // Upper bounds of what the queries of a KV head [Q / KV, D] score in a page (Quest, ICML 2024): this thread's part of
  // page_upper_bounds [span], where the head has to select.
  void bound_pages(const SparsityRules& rules, const Cache& cache, int layer, int head, const float* queries, const Plan& plan,
                   float* page_upper_bounds) {
    const int budget = pages_read(rules, plan, layer, head);
    if (budget == 0 || !selects(plan, budget)) return;
    std::fill(signs.begin(), signs.end(), 0.0f);
    for (int g = 0; g < Q / KV; ++g)
#pragma GCC ivdep
      for (int d = 0; d < D; ++d) {
        const float q = queries[g * D + d];
        signs[d] += q > 0 ? q : 0, signs[D + d] += q < 0 ? q : 0;
      }
    corners.prepare(signs.data(), 2, 1);
    const PageRange<Bound> bounds[2] = {cache.high<K>(s, layer, head), cache.low<K>(s, layer, head)};
    const auto [first, end] = tiles_of(plan);
    for (int tile = first; tile < end; ++tile) {
      Lanes sum = Lanes::zero();
      for (int j = 0; j < 2; ++j) corners.dot_tile(j, bounds[j][tile], sum, bounds[j][std::min(tile + 2, end - 1)]);
      sum.write(page_upper_bounds + tile * PAGE);
    }
  }

  // Lists the pages that a KV head reads, ascending: of those between sinks and window the `budget` of largest bound.
  void select_pages(int seen, const Plan& plan, int budget, const float* page_upper_bounds) {
    const int count = (seen + PAGE - 1) / PAGE, oldest = plan.oldest / PAGE;
    const auto [first, end] = between(plan);
    pages.resize(count - oldest);
    std::iota(pages.begin(), pages.end(), oldest);
    if (!selects(plan, budget)) return;
    int kept = first;
    if (budget > 0)
      // A copy of `first`, which clang below 16 cannot capture itself.
      largest(page_upper_bounds + first, end - first, budget, 32, order, [&, start = first](int b, bool keep) {
        pages[kept] = start + b;
        kept += keep;
      });
    for (int b = end; b < count; ++b) pages[kept++] = b;
    pages.resize(kept);
  }

  // What this thread reads first: bounds of pages, or the first pages.
  Prefetch first_rows(const Cache& cache, int layer, int seen, const Plan& plan) const {
    Prefetch next;
    next.slices[0].bytes = page_size<K>(D) * sizeof(K);
    auto add = [&](const void* place) {
      if (next.count < Prefetch::MOST) next.row[next.count++] = static_cast<const uint8_t*>(place);
    };
    const int oldest = plan.oldest / PAGE, count = (seen + PAGE - 1) / PAGE - oldest;
    const int from = oldest + count * thread / threads;
    const int to = std::min(from + pages_ahead(), oldest + count * (thread + 1) / threads);
    if (plan.sparse && plan.pages > 0) {
      next.slices[0].bytes = PAGE * D * sizeof(Bound);
      const auto [first, end] = tiles_of(plan);
      for (int tile = first; tile < end; ++tile)
        for (const auto& bounds : {cache.high<K>(s, layer, 0), cache.low<K>(s, layer, 0)}) add(bounds[tile]);
    } else if (!plan.sparse) {
      for (int head = 0; head < KV; ++head)
        for (const auto& range : {cache.keys<K>(s, layer, head), cache.values<K>(s, layer, head)})
          for (int b = from; b < to; ++b) add(range[b]);
    }
    next.pad();
    return next;
  }

  // This thread's part of the attention of a KV head: in `sums`, per query head, D weighted sums of values, the largest score
  // and the sum of the weights. page_upper_bounds: of `bound_pages`, complete.
  void attend(const SparsityRules& rules, const Cache& cache, int layer, int head, int seen, const float* queries,
              const Plan& plan, const float* page_upper_bounds, float* sums) {
    const int group = Q / KV, width = D + 2;
    select_pages(seen, plan, pages_read(rules, plan, layer, head), page_upper_bounds);
    const int count = int(pages.size()), from = count * thread / threads, to = count * (thread + 1) / threads;
    const int n = (to - from) * PAGE;
    float* scores[MOST_QUERIES];
    float* out[MOST_QUERIES];
    for (int g = 0; g < group; ++g) {
      out[g] = sums + g * width;
      std::fill_n(out[g], D, 0.0f);
    }
    query.prepare(queries, group, s.softmax_scale);
    const PageRange<K> keys = cache.keys<K>(s, layer, head);
    const PageRange<K> values = cache.values<K>(s, layer, head);
    const int ahead = std::min(pages_ahead(), to - from);
    for (int p = from; p < to; ++p) {
      for (int g = 0; g < group; ++g) scores[g] = scores_room.data() + size_t(g) * n + (p - from) * PAGE;
      // After the last page of keys come the first pages of values.
      const int next = p + ahead;
      query.score(keys[pages[p]], group, scores, next < to ? keys[pages[next]] : values[pages[from + next - to]]);
      const int first = pages[p] * PAGE;
      for (int g = 0; g < group; ++g) {
        if (s.attention_cap > 0) soft_cap(scores[g], PAGE, s.attention_cap);
        for (int t = 0; t < plan.oldest - first; ++t) scores[g][t] = -INFINITY;
        for (int t = std::min(PAGE, seen - first); t < PAGE; ++t) scores[g][t] = -INFINITY;
      }
    }
    for (int g = 0; g < group; ++g) {
      scores[g] = scores_room.data() + size_t(g) * n;
      float total;
      out[g][D] = softmax_terms(scores[g], n, total);
      out[g][D + 1] = total;
    }
    mix(values, from, to, seen, scores, out);
  }

 private:
  // Adds the values of pages [from, to), weighted, [tokens] weights per query.
  void mix(const PageRange<K>& values, int from, int to, int seen, float* const* weights, float* const* out) const {
    const int group = Q / KV;
    if constexpr (sizeof(K) == 1) {
      auto page = [&](int p) { return values[pages[from + p]]; };
      const int ahead = pages_ahead(s.value_bits);
      if (s.value_bits == 8) mix_int8_all<8>(page, to - from, D, ahead, group, weights, out);
      else mix_int8_all<4>(page, to - from, D, ahead, group, weights, out);
    } else {
      for (int p = from; p < to; ++p) {
        const float* here[MOST_QUERIES];
        for (int g = 0; g < group; ++g) here[g] = weights[g] + (p - from) * PAGE;
        mix_page(values[pages[p]], std::min(PAGE, seen - pages[p] * PAGE), D, here, group, out,
                 values[pages[std::min(p + pages_ahead(), to - 1)]]);
      }
    }
  }
};

}  // namespace solm
