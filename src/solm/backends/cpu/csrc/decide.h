// A value policy's decision in the middle of a pass: the rules of solm.policies, in microseconds.
#pragma once

#include "dot_float.h"
#include "plan.h"

namespace solm {

// The shares that every level of every axis realises at a step, and the part of them in the layers before the decider's.
struct LevelShares {
  double share[3][MOST_LEVELS], early[3][MOST_LEVELS];
};

inline LevelShares level_shares(const Decider& d, const SparsityRules& rules, const Sizes& s, int kv_length) {
  LevelShares found;
  for (int axis = 0; axis < 3; ++axis)
    for (int l = 0; l < d.sizes[axis]; ++l) {
      double keep[3] = {1, 1, FULL_BITS};
      keep[axis] = d.levels[axis][l];
      const Plan plan = make_plan(rules, s, keep, kv_length);
      found.early[axis][l] = realised_share(rules, s, plan, kv_length, axis, 0, d.layer);
      found.share[axis][l] = found.early[axis][l] + realised_share(rules, s, plan, kv_length, axis, d.layer, s.layers);
    }
  return found;
}

// The value at x of a piecewise linear function with ascending points; constant beyond its ends.
inline double interpolate(double x, const double* from, const double* to, int points) {
  if (x <= from[0]) return to[0];
  if (x >= from[points - 1]) return to[points - 1];
  const int upper = int(std::upper_bound(from, from + points, x) - from);
  const double part = (x - from[upper - 1]) / (from[upper] - from[upper - 1]);
  return to[upper - 1] + part * (to[upper] - to[upper - 1]);
}

// The nominal share at which a step realises `wanted`, where levels of nominal shares realise `realised`, ascending, possibly
// with equal ones.
inline double nominal_share(double wanted, const double* realised, const double* nominal, int size) {
  constexpr double SAME = 1e-9;  // as in solm.policies.priced
  int below = -1;
  for (int l = 0; l < size; ++l) below += realised[l] <= wanted + SAME;
  below = std::clamp(below, 0, size - 2);
  const double gap = std::max(realised[below + 1] - realised[below], SAME);
  const double part = std::clamp((wanted - realised[below]) / gap, 0.0, 1.0);
  return nominal[below] + part * (nominal[below + 1] - nominal[below]);
}

// Inputs [from, to) of the network for one residual stream x: their part of the hidden layer's sums [width]. The inputs are x,
// layer-normed, and the shares that the layers before spend.
inline void hidden_sums(const Decider& d, const float* x, int hidden, const double* shares, int from, int to, float* sums) {
  const float mean = sum_of(x, hidden) / float(hidden);
  Lanes squares = Lanes::zero();
  int at = 0;
  for (; at + 16 <= hidden; at += 16) {
    const Lanes off = Lanes::load(x + at).plus(Lanes::all(-mean));
    squares.add(off, off);
  }
  float square = squares.sum();
  for (; at < hidden; ++at) square += (x[at] - mean) * (x[at] - mean);
  const float scale = 1.0f / std::sqrt(square / float(hidden) + 1e-5f);
  std::fill_n(sums, d.width, 0.0f);
  for (int i = from; i < to; ++i) {
    const float v = i < hidden ? (x[i] - mean) * scale : float(shares[i - hidden]);
    const float* row = d.read + size_t(i) * d.width;
#pragma GCC ivdep
    for (int u = 0; u < d.width; ++u) sums[u] += v * row[u];
  }
}

// The predicted sensitivities [3] of a token, 1 on average, from the hidden layer's sums, which this overwrites.
inline void sensitivities(const Decider& d, float* sums, double* found) {
  for (int u = 0; u < d.width; ++u) sums[u] += d.read_bias[u];
  for (int u = 0; u < d.width; ++u) sums[u] *= 0.5f * (1.0f + std::erf(sums[u] * 0.70710678f));
  for (int axis = 0; axis < 3; ++axis) {
    const float raw = d.head_bias[axis] + dot(d.head + size_t(axis) * d.width, sums, d.width);
    const float soft = raw > 20 ? raw : std::log1p(std::exp(raw));
    found[axis] = 1 + d.trust[axis] * (soft / d.scale[axis] - 1);
  }
}

// An action as a level per axis, and back. The last axis is innermost.
inline void levels_of(const Decider& d, int64_t action, int* level) {
  int rest = int(action);
  for (int axis = 2; axis >= 0; --axis) level[axis] = rest % d.sizes[axis], rest /= d.sizes[axis];
}
inline int action_of(const Decider& d, const int* level) {
  return (level[0] * d.sizes[1] + level[1]) * d.sizes[2] + level[2];
}

// An action as the numbers of `keep` [3].
inline void keep_of(const Decider& d, int64_t action, double* keep) {
  int level[3];
  levels_of(d, action, level);
  for (int axis = 0; axis < 3; ++axis) keep[axis] = d.levels[axis][level[axis]];
}

// Per axis, what the counted steps of a row spent, and their number, while the steps of a call are planned.
struct Spending {
  double spent[3];
  int64_t counted[3];
};

// The action of a schedule for a step that sees kv_length keys, which it adds to `so_far`: per axis, of the two levels around
// the share that is due, the one that comes closest. paced: the share that is due is the one that meets the target within a few
// steps, as in solm.policies.schedules.Paced; else as in Static there.
inline int scheduled_action(const Decider& d, const LevelShares& own, const SparsityRules& rules, int kv_length,
                            const double* target, bool paced, Spending& so_far) {
  int level[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double *share = own.share[axis], spent = so_far.spent[axis], counted = double(so_far.counted[axis]);
    const int size = d.sizes[axis];
    const double due = (target[axis] * (counted + SHORTEST_HORIZON) - spent) / SHORTEST_HORIZON;
    const double aim = paced ? std::clamp(due, 0.0, 1.0) : target[axis];
    const double goal = paced ? aim : target[axis] * (counted + 1) - spent;
    int below = -1;
    for (int l = 0; l < size; ++l) below += share[l] <= aim + 1e-12;
    below = std::clamp(below, 0, std::max(0, size - 2));
    const int above = std::min(below + 1, size - 1);
    level[axis] = std::fabs(share[above] - goal) < std::fabs(share[below] - goal) ? above : below;
    if (is_controllable(rules, kv_length, axis)) so_far.spent[axis] += share[level[axis]], ++so_far.counted[axis];
    else level[axis] = size - 1;
  }
  return action_of(d, level);
}

// The action of the lowest level cost plus price that the budget allows, for a step that sees kv_length keys, whose early
// layers took `early_action` and whose hidden layer has the sums [width]. Adds what it realises to the budget, and writes it to
// realised [3].
inline int decide(const Decider& d, const LevelShares& own, const SparsityRules& rules, const Sizes& s, int kv_length,
                  float* sums, int64_t early_action, RowState& row, double* realised) {
  int early_level[3], level[3];
  levels_of(d, early_action, early_level);
  double sensitivity[3];
  sensitivities(d, sums, sensitivity);
  const int64_t left = std::max<int64_t>(row.horizon - row.taken, 1);
  const double remaining = double(left), horizon = std::max(remaining, double(SHORTEST_HORIZON));
  const double early_part = double(d.layer) / s.layers;
  for (int axis = 0; axis < 3; ++axis) {
    const int size = d.sizes[axis];
    const bool controllable = is_controllable(rules, kv_length, axis);
    const double *share = own.share[axis], *early = own.early[axis], target = row.target[axis];
    // What a level realises after the early layers; how much more the early layers spend than their number suggests; by how
    // much the budget would be missed after the level.
    double here[MOST_LEVELS], more[MOST_LEVELS], miss[MOST_LEVELS], least = INFINITY, lowest = INFINITY;
    for (int l = 0; l < size; ++l) here[l] = early[early_level[axis]] + (share[l] - early[l]);
    for (int l = 0; l < size; ++l) more[l] = early[l] - early_part * share[l];
    level[axis] = size - 1;
    double expected = here[size - 1];  // the share that the price is set for
    if (controllable && size > 1) {
      const double goal = target * double(row.counted[axis] + left);
      const double later_early = early_part * target + interpolate(target, share, more, size);
      const double low = later_early + (share[0] - early[0]), high = later_early + (share[size - 1] - early[size - 1]);
      for (int l = 0; l < size; ++l) {
        const double spent = row.spent[axis] + here[l], later = remaining - 1;
        miss[l] = std::max(spent + later * low - goal, 0.0) + std::max(goal - spent - later * high, 0.0);
        least = std::min(least, miss[l]);
      }
      const double due = (target * (double(row.counted[axis]) + horizon) - row.spent[axis]) / horizon;
      // As `without_bias` in solm.policies.levels.
      const double bias = (row.spent[axis] - row.expected[axis]) / double(row.counted[axis] + UNBIASED_STEPS);
      expected = std::min(std::max(due - bias, here[0]), here[size - 1]);
      const double* nominal = d.shares[axis];
      const double price = interpolate(nominal_share(expected, here, nominal, size), d.curve[axis], d.prices, d.points);
      for (int l = 0; l < size; ++l) {
        const double cost = d.fixed_cost[axis][l] + sensitivity[axis] * d.own_cost[axis][l] + price * nominal[l];
        if (miss[l] > least + 1e-9 || cost >= lowest) continue;
        lowest = cost, level[axis] = l;
      }
    }
    realised[axis] = here[level[axis]];
    if (controllable) row.spent[axis] += realised[axis], row.expected[axis] += expected, ++row.counted[axis];
  }
  ++row.taken;
  row.previous = action_of(d, level);
  return int(row.previous);
}

}  // namespace solm
