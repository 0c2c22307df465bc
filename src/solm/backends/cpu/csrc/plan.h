// What an action makes a step read and compute, and the shares of compute that this realises: the rules of
// solm.backends.torch.plan.
#pragma once

#include <algorithm>
#include <cmath>

#include "structs.h"

namespace solm {

// What one step spends in a layer. channels: those that every site keeps; bits, group: rounding of activations; high_halves_only:
// the low halves of nested weights are not read, whatever the layer; upper_only: the same at a site of this layer, by its
// allocation. sparse: pages are selected; `pages` of those `between` sinks and window, whose
// first page starts at window_start, while `always` tokens are read in any case.
//
// Under an allocation, pages and channels are those of the average layer until `layer_plan` and `pages_read` apply it to
// `page_share` and `channel_share`. limit: under thresholds, the least |x| of a channel that a site keeps, as `layer_plan` finds
// it; below 0 the numbers of channels hold. experts: the most that the step visits in a layer that has some. expert_limit: under
// thresholds, the least that `held` gives for one of them, below 0: any. oldest: the first token that a layer's attention sees.
struct Plan {
  int32_t channels[SITES], upper_only[SITES];
  int32_t bits, high_halves_only, group, sparse, sinks, window_start, pages, between, always, oldest, experts;
  double page_share, channel_share;
  float limit[SITES], expert_limit;
};

// Channels of a site, and whether steps drop any there.
inline int site_size(const Sizes& s, int site) {
  return site == HIDDEN ? s.intermediate : site == OUT ? s.heads * s.head_dim : s.hidden;
}
inline bool drops(const SparsityRules& rules, int site) {
  return site == INPUT ? rules.input_site : site == HIDDEN ? rules.hidden_site : rules.projections;
}

inline int64_t ceil_share(double share, int64_t total) { return int64_t(std::ceil(share * double(total) - 1e-9)); }

// Whether an axis of a step can be controlled: attention once there is more than what is always read.
inline bool is_controllable(const SparsityRules& rules, int kv_length, int axis) {
  return axis != 0 || kv_length > rules.sinks + rules.window + 1;
}

// The plan of a step that sees kv_length keys under keep = (attention, MLP, bits), without an allocation.
inline Plan make_plan(const SparsityRules& rules, const Sizes& s, const double* keep, int kv_length) {
  const int sinks = (rules.sinks + PAGE - 1) / PAGE;
  const int start = std::max(kv_length - rules.window - 1, 0) / PAGE * PAGE;
  const int between = std::max(start / PAGE - sinks, 0);
  const int always = std::min(start, sinks * PAGE) + kv_length - start;
  const int budget = int(ceil_share(keep[0], kv_length));
  const double hidden_keep = rules.hidden_power == 2 ? keep[1] * keep[1] : keep[1];
  Plan plan;
  for (int site = 0; site < SITES; ++site) {
    const int size = site_size(s, site);
    plan.channels[site] = drops(rules, site) ? int(ceil_share(site == HIDDEN ? hidden_keep : keep[1], size)) : size;
    plan.upper_only[site] = 0, plan.limit[site] = -1;
  }
  plan.bits = rules.weight_bits ? int32_t(FULL_BITS) : int32_t(keep[2]);
  plan.high_halves_only = rules.weight_bits && keep[2] <= HIGH_BITS;
  plan.group = rules.group, plan.sparse = keep[0] < 1, plan.sinks = rules.sinks, plan.window_start = start;
  plan.pages = std::min((std::max(budget - always, 0) + PAGE - 1) / PAGE, between);
  plan.between = between, plan.always = always, plan.oldest = 0;
  plan.page_share = std::clamp((keep[0] * kv_length - always) / std::max(between * PAGE, 1), 0.0, 1.0);
  plan.channel_share = keep[1], plan.expert_limit = -1;
  plan.experts = rules.experts ? int(ceil_share(keep[1], s.experts_used)) : s.experts_used;
  return plan;
}

// The share that an allocation's curve gives where the average layer or head keeps `share`.
inline double allocated_share(const SparsityRules& rules, int curve, double share) {
  const double place = share * (KNOTS - 1);
  const int below = std::clamp(int(place), 0, KNOTS - 2);
  const double* knot = rules.allocation + size_t(curve) * KNOTS + below;
  return knot[0] + (place - below) * (knot[1] - knot[0]);
}

// The pages between sinks and window that a KV head reads.
inline int pages_read(const SparsityRules& rules, const Plan& plan, int layer, int head) {
  if (!rules.allocation) return plan.pages;
  const int curve = layer * rules.heads + (rules.heads > 1 ? head : 0);
  return int(ceil_share(allocated_share(rules, curve, plan.page_share), plan.between));
}

// The sites that thresholds are of.
inline int threshold_sites(const SparsityRules& rules) { return rules.experts ? 1 : rules.projections ? SITES : 2; }

// The least |x| at which a channel of a site is kept whose share is `share`: a line between the limits of two percentages.
inline float limit_at(const SparsityRules& rules, int layer, int site, double share) {
  const double place = share * (PERCENTAGES - 1);
  const int below = std::clamp(int(place), 0, PERCENTAGES - 2);
  const float* limit = rules.thresholds + (size_t(layer) * threshold_sites(rules) + site) * PERCENTAGES + below;
  return limit[0] + float(place - below) * (limit[1] - limit[0]);
}

// Whether an allocation has a step read only the upper bits of an MLP's weights, where the average layer keeps `share`.
inline bool reads_upper_only(const SparsityRules& rules, int layer, int site, double share) {
  if (!rules.bit_curves || site > HIDDEN) return false;
  return allocated_share(rules, rules.layers * (rules.heads + 1 + rules.own_sites + site) + layer, share) < 0.5;
}

// Whether a step reads only the upper bits of an MLP's weights at a site, by its bits or by an allocation.
inline bool reads_high_only(const SparsityRules& rules, const Plan& plan, int layer, int site) {
  return plan.high_halves_only || reads_upper_only(rules, layer, site, plan.channel_share);
}

// The parts of a layer's share of a site that a step books one after another: with several experts those of each.
inline int booked_parts(const Sizes& s, int site) { return site == HIDDEN && s.experts ? s.experts_used : 1; }

// The plan of one layer, apart from its pages. Under thresholds its numbers of channels are those to expect.
inline Plan layer_plan(const SparsityRules& rules, const Sizes& s, Plan plan, int layer) {
  if (!rules.allocation && !rules.thresholds) return plan;
  const double average = plan.channel_share;
  const double share = rules.allocation ? allocated_share(rules, s.layers * rules.heads + layer, average) : average;
  plan.channel_share = share;
  if (rules.experts) {
    plan.experts = rules.thresholds ? s.experts_used : int(ceil_share(share, s.experts_used));
    if (rules.thresholds && share < 1) plan.expert_limit = limit_at(rules, layer, INPUT, share);
    return plan;
  }
  for (int site = 0; site < SITES; ++site) {
    if (!drops(rules, site)) continue;
    double kept = site == HIDDEN && rules.hidden_power == 2 ? share * share : share;
    if (site > INPUT && site <= rules.own_sites) kept = allocated_share(rules, s.layers * (rules.heads + site) + layer, average);
    plan.channels[site] = int(ceil_share(kept, site_size(s, site)));
    plan.upper_only[site] = reads_upper_only(rules, layer, site, average);
    if (rules.thresholds) plan.limit[site] = kept < 1 ? limit_at(rules, layer, site, kept) : -1;
  }
  return plan;
}

// A layer's plan at a site: bits are those of the MLP.
inline Plan at_site(Plan plan, int site) {
  if (site >= QKV) plan.bits = int32_t(FULL_BITS), plan.high_halves_only = 0;
  plan.high_halves_only |= plan.upper_only[site];
  return plan;
}

// What a channel counts of its site's share.
inline double channel_cost(const SparsityRules& rules, const Plan& plan, int site) {
  return plan.upper_only[site] ? rules.upper_bits_part : 1;
}

// The share of channels of `layers` layers that keep so many of their sites' altogether, each counted at its cost.
inline double share_of_kept(const SparsityRules& rules, const Sizes& s, const double* kept, int layers) {
  double of[SITES];
  for (int site = 0; site < SITES; ++site) of[site] = kept[site] / site_size(s, site);
  if (!rules.input_site || !rules.hidden_site) return of[rules.input_site ? INPUT : HIDDEN] / layers;
  const double mlp = rules.input_part * of[INPUT] + (1 - rules.input_part) * of[HIDDEN];
  if (!rules.projections) return mlp / layers;
  const double qkv = double(s.heads + 2 * s.kv_heads) / (2 * (s.heads + s.kv_heads));  // of the projections' weights
  const double projected = qkv * of[QKV] + (1 - qkv) * of[OUT];
  return ((1 - rules.projection_part) * mlp + rules.projection_part * projected) / layers;
}

// Whether every head reads all pages.
inline bool reads_all_pages(const SparsityRules& rules, const Plan& plan) {
  return !plan.sparse || (!rules.allocation && plan.pages == plan.between) || plan.between == 0;
}

// The integer that the largest value of a group of an MLP's inputs becomes. Values on a grid of few bits in such groups are
// integers already and are not rounded again.
inline int largest_integer(const Plan& plan) {
  return plan.bits <= 8 && plan.group == GROUP ? (1 << (plan.bits - 1)) - 1 : 127;
}

// The plan of a layer that sees `window` tokens at most, 0: all. One with a window reads those, whatever the action says.
inline Plan within_window(Plan plan, int kv_length, int window) {
  if (window) plan.sparse = 0, plan.oldest = std::max(0, kv_length - window);
  return plan;
}

// The share of attention (axis 0) or of channels (axis 1) that a layer realises.
inline double layer_share(const SparsityRules& rules, const Sizes& s, const Plan& whole, int kv_length, int axis, int layer) {
  if (axis == 0) {
    int pages = 0;
    for (int head = 0; head < rules.heads; ++head) pages += pages_read(rules, whole, layer, head);
    return (whole.always + double(pages * PAGE) / rules.heads) / kv_length;
  }
  const Plan plan = layer_plan(rules, s, whole, layer);
  if (rules.experts) {
    const double visits = rules.thresholds ? std::max(1.0, plan.channel_share * s.experts_used) : plan.experts;
    return visits / s.experts_used;
  }
  double kept[SITES];
  for (int site = 0; site < SITES; ++site) kept[site] = plan.channels[site] * channel_cost(rules, plan, site);
  return share_of_kept(rules, s, kept, 1);
}

// What layers [first, last) contribute to the share that a step realises on an axis.
inline double realised_share(const SparsityRules& rules, const Sizes& s, const Plan& plan, int kv_length, int axis, int first,
                             int last) {
  const double part = double(last - first) / s.layers;
  if (axis == 2) return (plan.high_halves_only ? HIGH_BITS : plan.bits) / FULL_BITS * part;
  if (!rules.allocation) return layer_share(rules, s, plan, kv_length, axis, 0) * part;
  double sum = 0;
  for (int l = first; l < last; ++l) sum += layer_share(rules, s, plan, kv_length, axis, l);
  return sum / s.layers;
}

}  // namespace solm
