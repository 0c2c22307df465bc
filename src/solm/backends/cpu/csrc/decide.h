// What a step may spend, and a value policy's word on it: the rules of solm.backends.torch.plan, solm.policies and
// solm.backends.midpass in the engine, so that a decision costs microseconds.
#pragma once

#include "integers.h"
#include "model.h"

inline int64_t ceil_share(double share, int64_t total) { return int64_t(std::ceil(share * double(total) - 1e-9)); }

// The plan of a step that sees kv_length keys under keep = (attention, MLP, bits), without a profile.
inline Plan make_plan(const Rules& rules, const Sizes& s, const double* keep, int kv_length) {
  const int sinks = (rules.sinks + PAGE - 1) / PAGE;
  const int start = std::max(kv_length - rules.window - 1, 0) / PAGE * PAGE;
  const int between = std::max(start / PAGE - sinks, 0);
  const int always = std::min(start, sinks * PAGE) + kv_length - start;
  const int budget = int(ceil_share(keep[0], kv_length));
  const int pages = std::min((std::max(budget - always, 0) + PAGE - 1) / PAGE, between);
  const double share = (keep[0] * kv_length - always) / std::max(between * PAGE, 1);
  const double hidden_keep = rules.hidden_power == 2 ? keep[1] * keep[1] : keep[1];
  return {rules.input_site ? int(ceil_share(keep[1], s.hidden)) : s.hidden,
          rules.hidden_site ? int(ceil_share(hidden_keep, s.intermediate)) : s.intermediate,
          rules.weight_bits ? int32_t(FULL_BITS) : int32_t(keep[2]), rules.weight_bits && keep[2] <= HIGH_BITS, rules.group, keep[0] < 1, rules.sinks, start, pages, between, always,
          std::clamp(share, 0.0, 1.0), keep[1]};
}

// The point of a profile's curve number `unit` where the average one is at `share`.
inline double deal(const Rules& rules, int unit, double share) {
  const double place = share * (KNOTS - 1);
  const int below = std::clamp(int(place), 0, KNOTS - 2);
  const double* curve = rules.profile + size_t(unit) * KNOTS + below;
  return curve[0] + (place - below) * (curve[1] - curve[0]);
}

// The pages that a KV head reads of a step's plan.
inline int pages_of(const Rules& rules, const Plan& plan, int layer, int head) {
  if (!rules.profile) return plan.pages;
  const int unit = layer * rules.heads + (rules.heads > 1 ? head : 0);
  return int(ceil_share(deal(rules, unit, plan.share), plan.between));
}

// What a layer follows of a step's plan, but for its pages.
inline Plan plan_at(const Rules& rules, const Sizes& s, Plan plan, int layer) {
  if (!rules.profile) return plan;
  plan.keep = deal(rules, s.layers * rules.heads + layer, plan.keep);
  if (rules.input_site) plan.inputs = int(ceil_share(plan.keep, s.hidden));
  if (rules.hidden_site)
    plan.hiddens = int(ceil_share(rules.hidden_power == 2 ? plan.keep * plan.keep : plan.keep, s.intermediate));
  return plan;
}

// What a layer realises on the axis of attention or of the MLP, under a step's plan.
inline double layer_share(const Rules& rules, const Sizes& s, const Plan& whole, int kv_length, int axis, int layer) {
  if (axis == 0) {
    int pages = 0;
    for (int head = 0; head < rules.heads; ++head) pages += pages_of(rules, whole, layer, head);
    return (whole.always + double(pages * PAGE) / rules.heads) / kv_length;
  }
  const Plan plan = plan_at(rules, s, whole, layer);
  const double inputs = double(plan.inputs) / s.hidden, hiddens = double(plan.hiddens) / s.intermediate;
  return rules.input_site && rules.hidden_site ? (inputs + hiddens) / 2 : rules.input_site ? inputs : hiddens;
}

// What layers first to last (not included) contribute to the share of an axis that a step of kv_length keys realises.
inline double realise(const Rules& rules, const Sizes& s, const Plan& plan, int kv_length, int axis, int first, int last) {
  const double part = double(last - first) / s.layers;
  if (axis == 2) return (plan.halved ? HIGH_BITS : plan.bits) / FULL_BITS * part;
  if (!rules.profile) return layer_share(rules, s, plan, kv_length, axis, 0) * part;
  double sum = 0;
  for (int l = first; l < last; ++l) sum += layer_share(rules, s, plan, kv_length, axis, l);
  return sum / s.layers;
}

inline bool controllable(const Rules& rules, int kv_length) { return kv_length > rules.sinks + rules.window + 1; }

// The point of a table, both ascending, at x; its ends beyond them.
inline double interpolate(double x, const double* from, const double* to, int points) {
  if (x <= from[0]) return to[0];
  if (x >= from[points - 1]) return to[points - 1];
  const int upper = int(std::upper_bound(from, from + points, x) - from);
  const double part = (x - from[upper - 1]) / (from[upper] - from[upper - 1]);
  return to[upper - 1] + part * (to[upper] - to[upper - 1]);
}

// The nominal share at which a step realises `wanted`, where levels of nominal shares realise `realised`, rising, some
// perhaps the same.
inline double nominal_share(double wanted, const double* realised, const double* nominal, int size) {
  constexpr double SAME = 1e-9;  // as in solm.policies.priced
  int below = -1;
  for (int l = 0; l < size; ++l) below += realised[l] <= wanted + SAME;
  below = std::clamp(below, 0, size - 2);
  const double gap = std::max(realised[below + 1] - realised[below], SAME);
  const double part = std::clamp((wanted - realised[below]) / gap, 0.0, 1.0);
  return nominal[below] + part * (nominal[below + 1] - nominal[below]);
}

// Inputs [from, to) of the network for a token of residual stream x, its share of the hidden layer's sums [width].
inline void sum_units(const Decider& d, const float* x, int hidden, const double* shares, int from, int to, float* unit) {
  float mean = 0, square = 0;
#pragma omp simd reduction(+ : mean)
  for (int i = 0; i < hidden; ++i) mean += x[i];
  mean /= float(hidden);
#pragma omp simd reduction(+ : square)
  for (int i = 0; i < hidden; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(square / float(hidden) + 1e-5f);
  std::fill_n(unit, d.width, 0.0f);
  for (int i = from; i < to; ++i) {
    const float v = i < hidden ? (x[i] - mean) * scale : float(shares[i - hidden]);
    const float* row = d.read + size_t(i) * d.width;
#pragma GCC ivdep
    for (int u = 0; u < d.width; ++u) unit[u] += v * row[u];
  }
}

// How much a token suffers from every axis: sensitivities [3], 1 on average, from the hidden layer's sums, which this
// overwrites.
inline void sensitivities(const Decider& d, float* unit, double* found) {
  for (int u = 0; u < d.width; ++u) unit[u] += d.read_bias[u];
  for (int u = 0; u < d.width; ++u) unit[u] *= 0.5f * (1.0f + std::erf(unit[u] * 0.70710678f));
  for (int axis = 0; axis < 3; ++axis) {
    const float raw = d.head_bias[axis] + dot(d.head + size_t(axis) * d.width, unit, d.width);
    const float soft = raw > 20 ? raw : std::log1p(std::exp(raw));
    found[axis] = 1 + d.trust[axis] * (soft / d.scale[axis] - 1);
  }
}

// An action as a level per axis, and back; the last axis is innermost.
inline void levels_of(const Decider& d, int action, int* level) {
  for (int axis = 2; axis >= 0; --axis) level[axis] = action % d.sizes[axis], action /= d.sizes[axis];
}
inline int action_of(const Decider& d, const int* level) {
  return (level[0] * d.sizes[1] + level[1]) * d.sizes[2] + level[2];
}

// The shares that an action asks for.
inline void shares_of(const Decider& d, int action, double* shares) {
  int level[3];
  levels_of(d, action, level);
  for (int axis = 0; axis < 3; ++axis) shares[axis] = d.levels[axis][level[axis]] / (axis == 2 ? FULL_BITS : 1);
}

inline Realised realised_by(const Decider& d, const Rules& rules, const Sizes& s, int kv_length) {
  Realised found;
  for (int axis = 0; axis < 3; ++axis)
    for (int l = 0; l < d.sizes[axis]; ++l) {
      double keep[3] = {1, 1, FULL_BITS};
      keep[axis] = d.levels[axis][l];
      const Plan plan = make_plan(rules, s, keep, kv_length);
      found.begun[axis][l] = realise(rules, s, plan, kv_length, axis, 0, d.layer);
      found.share[axis][l] = found.begun[axis][l] + realise(rules, s, plan, kv_length, axis, d.layer, s.layers);
    }
  return found;
}

// The static schedule of the row's budget, which the layers before the policy's follow: the action of the step after
// `booked` ones.
inline int static_action(const Decider& d, const Realised& own, Row& row, int64_t booked, bool counted) {
  int level[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double* share = own.share[axis];
    const int size = d.sizes[axis];
    int below = -1;
    for (int l = 0; l < size; ++l) below += share[l] <= row.target[axis] + 1e-12;
    below = std::clamp(below, 0, std::max(0, size - 2));
    const int above = std::min(below + 1, size - 1);
    const double goal = row.target[axis] * double(booked + 1) - row.early[axis];
    level[axis] = std::fabs(share[above] - goal) < std::fabs(share[below] - goal) ? above : below;
    if (!counted) level[axis] = size - 1;
    else row.early[axis] += share[level[axis]];
  }
  return action_of(d, level);
}

constexpr int SHORTEST_HORIZON = 8;  // as in solm.policies.priced

// The action of the highest gain less price that the budget still allows, for a step whose layers before the policy's
// took `before` and whose hidden layer adds up to `unit`; books what it realises in `row` and tells it.
inline int decide(const Decider& d, const Realised& own, const Sizes& s, float* unit, int before, bool counted, Row& row,
                  double* realised) {
  int early[3], level[3];
  levels_of(d, before, early);
  double suffers[3];
  if (counted) sensitivities(d, unit, suffers);
  const double remaining = double(std::max<int64_t>(row.left, 1)), horizon = std::max(remaining, double(SHORTEST_HORIZON));
  const double first = double(d.layer) / s.layers;
  for (int axis = 0; axis < 3; ++axis) {
    const int size = d.sizes[axis];
    const double *share = own.share[axis], *begun = own.begun[axis], target = row.target[axis];
    double mixed[MOST_LEVELS], more[MOST_LEVELS], miss[MOST_LEVELS], least = INFINITY, best = -INFINITY;
    for (int l = 0; l < size; ++l) mixed[l] = begun[early[axis]] + (share[l] - begun[l]);
    for (int l = 0; l < size; ++l) more[l] = begun[l] - first * share[l];  // than the number of those layers says
    level[axis] = size - 1;
    if (counted && size > 1) {
      const double goal = target * double(row.booked + std::max<int64_t>(row.left, 1));
      const double ahead = first * target + interpolate(target, share, more, size);
      const double low = ahead + (share[0] - begun[0]), high = ahead + (share[size - 1] - begun[size - 1]);
      for (int l = 0; l < size; ++l) {
        const double spent = row.spent[axis] + mixed[l], left = remaining - 1;
        miss[l] = std::max(spent + left * low - goal, 0.0) + std::max(goal - spent - left * high, 0.0);
        least = std::min(least, miss[l]);
      }
      const double due = (target * (double(row.booked) + horizon) - row.spent[axis]) / horizon;
      const double* nominal = d.shares[axis];
      const double price = interpolate(nominal_share(due, mixed, nominal, size), d.spent[axis], d.prices, d.points);
      for (int l = 0; l < size; ++l) {
        const double score = d.rest[axis][l] + suffers[axis] * d.own[axis][l] - price * nominal[l];
        if ((d.clamp && miss[l] > least + 1e-9) || score <= best) continue;
        best = score, level[axis] = l;
      }
    }
    realised[axis] = mixed[level[axis]];
    if (counted) row.spent[axis] += realised[axis];
  }
  row.booked += counted, --row.left;
  return action_of(d, level);
}
