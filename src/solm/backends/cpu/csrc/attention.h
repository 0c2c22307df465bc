// Attention of one thread: its share of the pages that a step reads.
#pragma once

#include <numeric>

#include "bytes.h"
#include "decide.h"

constexpr size_t AHEAD = 16384;  // bytes of pages that are fetched before they are read

template <typename K>
struct Attention {
  using Bound = std::conditional_t<sizeof(K) == 1, bf16, K>;
  const Sizes& s;
  const int thread, threads, D, Q, KV;
  std::vector<float> signs, room;  // of queries; of scores
  Queries<Bound> corners;  // the queries' positive and negative parts
  Queries<K> query;
  std::vector<int32_t> pages;

  int ahead() const { return std::max(1, int(AHEAD / (page_size<K>(D) * sizeof(K)))); }  // in pages

  Attention(const Engine& engine, int t)
      : s(engine.s), thread(t), threads(s.threads), D(s.head_dim), Q(s.heads), KV(s.kv_heads),
        signs(2 * D), corners(2, D), query(Q / KV, D) {}

  // The page of `position` must be the cache's own.
  void append(Cache& cache, int layer, int head, int position, const float* key, const float* value) const {
    const int block = position / PAGE, slot = position % PAGE;
    K* keys = cache.stretch<K>(&Pages::keys, s, layer, head).mine(block);
    put_key(keys, slot, key, D);
    put_value(cache.stretch<K>(&Pages::values, s, layer, head).mine(block), slot, value, D);
    if (slot < PAGE - 1) return;
    // Whole: only now can a window of at least a page have left the block behind, and bounds be asked for.
    Bound* low = cache.bounds<Bound>(&Pages::low, s, layer, head).mine(block / PAGE);
    Bound* high = cache.bounds<Bound>(&Pages::high, s, layer, head).mine(block / PAGE);
    for (int d = 0; d < D; ++d) {
      float least = INFINITY, most = -INFINITY;
      for (int t = 0; t < PAGE; ++t) {
        const float k = key_of(keys, t, d, D);
        least = std::min(least, k), most = std::max(most, k);
      }
      const size_t at = tile_at<Bound>(d, block % PAGE);
      low[at] = store<Bound>(least), high[at] = store<Bound>(most);
    }
  }

  // The pages between sinks and window, [first, end), all of which may be read or `budget` of them.
  static std::pair<int, int> between(const Plan& plan) {
    const int end = plan.window_start / PAGE;
    return {std::min((plan.sinks + PAGE - 1) / PAGE, end), end};
  }
  static bool chooses(const Plan& plan, int budget) {
    const auto [first, end] = between(plan);
    return plan.sparse && budget < end - first;
  }

  // The tiles of bounds, [first, end), that this thread meets.
  std::pair<int, int> tiles_of(const Plan& plan) const {
    const auto [first, end] = between(plan);
    const int from = first / PAGE, count = (end + PAGE - 1) / PAGE - from;
    return {from + count * thread / threads, from + count * (thread + 1) / threads};
  }

  // Most that a query of one KV head may find in a page: this thread's share of `mass` [pages], of heads that choose.
  void weigh(const Rules& rules, const Cache& cache, int layer, const float* queries, const Plan& plan, float* mass,
             size_t span) {
    for (int head = 0; head < KV; ++head, queries += Q / KV * D, mass += span) {
      const int budget = pages_of(rules, plan, layer, head);
      if (budget == 0 || !chooses(plan, budget)) continue;
      std::fill(signs.begin(), signs.end(), 0.0f);
      for (int g = 0; g < Q / KV; ++g)
#pragma GCC ivdep
        for (int d = 0; d < D; ++d) {
          const float q = queries[g * D + d];
          signs[d] += q > 0 ? q : 0, signs[D + d] += q < 0 ? q : 0;
        }
      corners.prepare(signs.data(), 2, 1);
      const Stretch<Bound> bounds[2] = {cache.bounds<Bound>(&Pages::high, s, layer, head),
                                        cache.bounds<Bound>(&Pages::low, s, layer, head)};
      const auto [first, end] = tiles_of(plan);
      for (int tile = first; tile < end; ++tile) {
        Lanes sum = Lanes::zero();
        for (int j = 0; j < 2; ++j) corners.meet(j, bounds[j][tile], sum, bounds[j][std::min(tile + 2, end - 1)]);
        sum.write(mass + tile * PAGE);
      }
    }
  }

  // Blocks that the query heads of one KV head read, ascending: of those between sinks and window the `budget` of largest
  // `mass`.
  void choose(int seen, const Plan& plan, int budget, const float* mass) {
    const int count = (seen + PAGE - 1) / PAGE;
    const auto [first, end] = between(plan);
    pages.resize(count);
    std::iota(pages.begin(), pages.end(), 0);
    if (!chooses(plan, budget)) return;
    int kept = first;
    if (budget > 0)
      largest(mass + first, end - first, budget, 32, order, [&](int b, bool keep) {
        pages[kept] = first + b;
        kept += keep;
      });
    for (int b = end; b < count; ++b) pages[kept++] = b;
    pages.resize(kept);
  }

  // What this thread will read first: bounds of pages, or the first pages.
  Coming beginning(const Cache& cache, int layer, int seen, const Plan& plan) const {
    Coming next;
    next.bytes = int(page_size<K>(D) * sizeof(K));
    auto add = [&](const void* place) {
      if (next.count < Coming::MOST) next.row[next.count++] = static_cast<const uint8_t*>(place);
    };
    const int count = (seen + PAGE - 1) / PAGE;
    const int from = count * thread / threads, to = std::min(from + ahead(), count * (thread + 1) / threads);
    if (plan.sparse && plan.pages > 0) {
      next.bytes = int(PAGE * D * sizeof(Bound));
      const auto [first, end] = tiles_of(plan);
      for (int tile = first; tile < end; ++tile)
        for (auto part : {&Pages::high, &Pages::low}) add(cache.bounds<Bound>(part, s, layer, 0)[tile]);
    } else if (!plan.sparse) {
      for (int head = 0; head < KV; ++head)
        for (auto part : {&Pages::keys, &Pages::values}) {
          const Stretch<K> stretch = cache.stretch<K>(part, s, layer, head);
          for (int b = from; b < to; ++b) add(stretch[b]);
        }
    }
    next.pad();
    return next;
  }

  // A thread's share of one step's attention, left for the others at `mine`: per query head D sums, peak, total. found: what
  // `weigh` found, [KV heads, span].
  void attend(const Rules& rules, const Cache& cache, int layer, int seen, const float* queries, const Plan& plan,
              const float* found, size_t span, float* mine) {
    const int group = Q / KV, width = D + 2;
    const float scale = 1.0f / std::sqrt(float(D));
    for (int head = 0; head < KV; ++head) {
      choose(seen, plan, pages_of(rules, plan, layer, head), found + head * span);
      const int count = int(pages.size()), from = count * thread / threads, to = count * (thread + 1) / threads;
      const int n = (to - from) * PAGE;
      room.resize(std::max(room.size(), size_t(group) * n));
      float* scores[MOST_QUERIES];
      float* out[MOST_QUERIES];
      for (int g = 0; g < group; ++g) {
        out[g] = mine + (head * group + g) * width;
        std::fill_n(out[g], D, 0.0f);
      }
      query.prepare(queries + head * group * D, group, scale);
      const Stretch<K> keys = cache.stretch<K>(&Pages::keys, s, layer, head);
      const Stretch<K> values = cache.stretch<K>(&Pages::values, s, layer, head);
      const int ahead = std::min(this->ahead(), to - from);
      for (int p = from; p < to; ++p) {
        for (int g = 0; g < group; ++g) scores[g] = room.data() + size_t(g) * n + (p - from) * PAGE;
        // Behind the last page of keys come the first ones of values.
        const int next = p + ahead;
        query.score(keys[pages[p]], group, scores, next < to ? keys[pages[next]] : values[pages[from + next - to]]);
        for (int t = std::min(PAGE, seen - pages[p] * PAGE); t < PAGE; ++t)
          for (int g = 0; g < group; ++g) scores[g][t] = -INFINITY;
      }
      for (int g = 0; g < group; ++g) {
        scores[g] = room.data() + size_t(g) * n;
        float total;
        out[g][D] = soften(scores[g], n, total);
        out[g][D + 1] = total;
      }
      mix(values, from, to, seen, scores, out);
    }
  }

 private:
  // Adds what weights, [tokens] per query, make of the values of pages from to to (not included).
  void mix(const Stretch<K>& values, int from, int to, int seen, float* const* weights, float* const* out) const {
    const int group = Q / KV;
    if constexpr (sizeof(K) == 1) {
      auto page = [&](int p) { return values[pages[from + p]]; };
      for (int g = 0; g < group; g += 4)
        switch (std::min(4, group - g)) {
          case 4: mix_bytes<4>(page, to - from, D, ahead(), weights + g, out + g); break;
          case 3: mix_bytes<3>(page, to - from, D, ahead(), weights + g, out + g); break;
          case 2: mix_bytes<2>(page, to - from, D, ahead(), weights + g, out + g); break;
          default: mix_bytes<1>(page, to - from, D, ahead(), weights + g, out + g);
        }
    } else {
      for (int p = from; p < to; ++p) {
        const float* here[MOST_QUERIES];
        for (int g = 0; g < group; ++g) here[g] = weights[g] + (p - from) * PAGE;
        mix_page(values[pages[p]], std::min(PAGE, seen - pages[p] * PAGE), D, here, group, out,
                 values[pages[std::min(p + ahead(), to - 1)]]);
      }
    }
  }
};
