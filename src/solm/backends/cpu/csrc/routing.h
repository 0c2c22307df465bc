// Which experts a token visits, and the order in which a chunk of tokens is multiplied with them.
#pragma once

#include <algorithm>
#include <vector>

#include "layer_math.h"
#include "plan.h"
#include "select.h"
#include "tile_float.h"

namespace solm {

// The `count` experts that a token visits, ascending, and the shares of their results in that of the MLP.
struct Routing {
  int32_t count;
  int32_t expert[MOST_USED];
  float share[MOST_USED];
};

// Of `count` experts, the likeliest first, the part of their probability x that each and all after it hold: it falls from 1.
inline void held(const float* x, const int32_t* expert, int count, float* part) {
  float all = 0;
  for (int k = count; k-- > 0;) part[k] = all += x[expert[k]];
  for (int k = 0; k < count; ++k) part[k] /= all;
}

// The experts of a plan, from the products x [experts] of a router, which are overwritten: those of the largest, among equal ones
// of lower number; under a limit those whose part of `held` reaches it, and always the first. histogram: null, or of the layer's
// experts. One function for steps and chunks, never inlined, so that both get the same bits.
[[gnu::noinline]] inline Routing route(const Sizes& s, const Plan& plan, float* x, uint32_t* histogram) {
  Routing found;
  int count = plan.experts;
  bool chosen[MOST_EXPERTS] = {};
  for (int k = 0; k < count; ++k) {
    int best = -1;
    for (int i = 0; i < s.experts; ++i)
      if (!chosen[i] && (best < 0 || x[i] > x[best])) best = i;
    chosen[best] = true, found.expert[k] = best;
  }
  float total, of_chosen = 0;
  softmax_terms(x, s.experts, total);
  if (plan.expert_limit >= 0 || histogram) {
    float part[MOST_USED];
    held(x, found.expert, count, part);
    if (histogram) count_magnitudes(part, count, histogram);
    while (count > 1 && part[count - 1] < plan.expert_limit) --count;
  }
  found.count = count;
  std::sort(found.expert, found.expert + count);
  for (int k = 0; k < count; ++k) of_chosen += x[found.expert[k]];
  for (int k = 0; k < count; ++k) found.share[k] = x[found.expert[k]] / (s.shares_normed ? of_chosen : total);
  return found;
}

// The share of a shared expert's result for x [n] in that of the MLP.
inline float shared_share(const Layer& l, const float* x, int n) { return 1.0f / one_plus_power(dot(l.shared_router, x, n)); }

// Adds an expert's result y [n] to the sum of them.
inline void add_share(const float* y, float share, int n, float* sum) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) sum[i] += share * y[i];
}

// The places of a chunk's visits in the inputs and results of a product: those of one expert, and of its steps that read
// weights alike, side by side.
struct ExpertRanges {
  struct Range {
    int first, end, expert;
    bool high_only;
  };
  std::vector<Range> ranges;
  std::vector<int32_t> place;  // [steps, experts_used]

  // Places that visits of `steps` steps may need: ranges begin at multiples of ROW_STEP.
  static size_t room(const Sizes& s, int steps) {
    const size_t visits = size_t(steps) * s.experts_used;
    return visits + (std::min(visits, size_t(2) * s.experts) + 1) * ROW_STEP;
  }

  void reserve(const Sizes& s, int steps) {
    ranges.resize(size_t(2) * s.experts), place.resize(size_t(steps) * s.experts_used);
  }

  // high_only(t): whether step t reads the upper 4 bits of nested weights alone.
  template <typename HighOnly>
  void arrange(const Sizes& s, const Routing* routing, int count, HighOnly high_only) {
    ranges.resize(size_t(2) * s.experts);
    for (int i = 0; i < 2 * s.experts; ++i) ranges[i] = {0, 0, i / 2, i % 2 > 0};
    const auto each_visit = [&](auto use) {
      for (int t = 0; t < count; ++t)
        for (int k = 0; k < routing[t].count; ++k)
          use(t * s.experts_used + k, ranges[2 * routing[t].expert[k] + high_only(t)]);
    };
    each_visit([](int, Range& range) { ++range.end; });
    int first = 0;
    for (Range& range : ranges) {
      const int visits = range.end;
      range.first = range.end = first, first += rounded_up(visits, ROW_STEP);
    }
    each_visit([&](int visit, Range& range) { place[visit] = range.end++; });
    std::erase_if(ranges, [](const Range& range) { return range.first == range.end; });
  }
};

}  // namespace solm
