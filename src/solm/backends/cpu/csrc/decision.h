// Mid-pass decisions of the steps of a call.
#pragma once

#include "engine.h"

namespace solm {

// What the layers before a decision take step `number` to spend: shares [3], inputs of the decider's network.
inline void early_shares(const Engine& e, int number, double* shares) {
  keep_of(*e.steps[number].decider, e.actions[e.steps[number].at], shares);
  shares[2] /= FULL_BITS;
}

// Decides for step `number`, whose decider's hidden layer has the sums [width], and makes its plan for the layers from here on.
// The steps of a row must decide one after another.
inline void decide_step(Engine& e, int number, float* sums) {
  const SparsityRules& rules = *e.call->rules;
  Step& step = e.steps[number];
  const Decider& d = *step.decider;
  const int kv_length = step.position + 1;
  // With more steps than level_shares has room for, they are computed again.
  const LevelShares own = e.step_count > MOST_ROWS ? level_shares(d, rules, e.s, kv_length) : e.level_shares[number];
  int64_t& action = e.actions[step.at];
  action = decide(d, own, rules, e.s, kv_length, sums, action, *step.row, e.call->realised + 3 * size_t(step.at));
  double keep[3];
  keep_of(d, action, keep);
  step.plan = make_plan(rules, e.s, keep, kv_length);
}

}  // namespace solm
