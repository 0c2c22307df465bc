// How the steps of a chunk are put together: with neighbours whose keys or queries belong together, and by the bits of weights
// that they read.
#pragma once

#include <algorithm>
#include <vector>

#include "engine.h"
#include "tile_float.h"

namespace solm {

struct ChunkOrder {
  // Neighbours of one row. alone: a step whose queries have no neighbours, or that selects pages of its own.
  struct Part {
    int first, count;
    bool alone;
  };
  // Places [first, end) of a product. high_only: with the upper 4 bits of nested weights alone.
  struct Range {
    int first, end;
    bool high_only;
  };
  std::vector<Part> page_parts, query_parts;  // of one page; whose queries make a block
  // The places of steps in the product of an MLP's site: first of those that read all bits, then of the others.
  Range full, high;
  std::vector<int32_t> place, at_place;  // of every step, and which one is there

  void reserve(int steps) {
    page_parts.reserve(steps), query_parts.reserve(steps), place.resize(steps), at_place.resize(steps + ROW_STEP);
  }

  // most: steps whose queries make a block at most.
  void arrange(const Call& call, const Step* steps, int count, int most) {
    page_parts.clear(), query_parts.clear();
    for (int t = 0; t < count; ++t) {
      const bool next = t > 0 && steps[t].cache == steps[t - 1].cache;
      const bool alone = call.count == 1 || !reads_all_pages(*call.rules, steps[t].plan);
      if (!next || steps[t].position % PAGE == 0) page_parts.push_back({t, 0, false});
      if (!next || alone || query_parts.back().alone || query_parts.back().count == most) query_parts.push_back({t, 0, alone});
      ++page_parts.back().count, ++query_parts.back().count;
    }
  }

  // Places the steps for the weights that one site of a layer's MLP reads.
  void arrange_bits(const SparsityRules& rules, const Step* steps, int count, int layer, int site) {
    const auto reads_all_bits = [&](const Step& step) {
      return !step.plan.high_halves_only && !reads_upper_only(rules, layer, site, step.plan.channel_share);
    };
    const int whole = int(std::count_if(steps, steps + count, reads_all_bits)), second = rounded_up(whole, ROW_STEP);
    full = {0, whole, false}, high = {second, second + count - whole, true};
    for (int t = 0, next[2] = {second, 0}; t < count; ++t) {
      place[t] = next[reads_all_bits(steps[t])]++;
      at_place[place[t]] = t;
    }
  }
};

}  // namespace solm
