// The engine's side of a call: memory and plans before its parts are processed, sums after them.
#pragma once

#include <algorithm>
#include <cmath>

#include "engine.h"
#include "panel.h"
#include "tile_float.h"
#include "workers.h"

namespace solm {

inline Engine::Engine(const Model& model)
    : s(model.sizes), layers(model.layers, model.layers + model.sizes.layers), embedding(model.embedding),
      head(model.head), head_bias(model.head_bias), final_norm(model.final_norm), team(Team::shared(s.threads)) {
  for (int i = 0; i < model.rope_count; ++i) ropes.push_back({model.ropes[i], {}, {}});
  if (s.value_bits) balance_keys();
  for (const Layer& layer : layers)
    for (int m = 0; m < std::max(1, s.experts); ++m)
      for (const Product* p : {&layer.mlps[m].gate_up, &layer.mlps[m].down})
        for (int i = 0; i < p->parts; ++i) nested &= p->part[i].bits > 0;
  const int widest = std::max({2 * s.intermediate, 2 * s.shared_width, s.experts, (s.heads + 2 * s.kv_heads) * s.head_dim,
                               s.hidden, s.heads * (s.head_dim + 2)});
  partial_sums.assign(s.threads, std::vector<float>(size_t(2) * MOST_ROWS * (widest + BLOCK)));
  unit_sums.resize(s.threads);
  level_shares.resize(MOST_ROWS);
  for (int t = 0; t < s.threads; ++t)
    workers.push_back(s.precision == 0   ? make_worker<float, float>(*this, t)
                      : s.precision == 1 ? make_worker<bf16, bf16>(*this, t)
                      : s.value_bits     ? make_worker<int8_t, uint8_t>(*this, t)
                                         : make_worker<int8_t, bf16>(*this, t));
}

// Some models have large biases in a few channels of their keys. In int8 these would set the scale of the whole key, and leave
// few numbers to the other channels. So keys are divided by about the roots of their biases, and queries multiplied: by powers
// of two, which round nothing, the same for two channels that rotary positions mix. Without the root the channels with biases
// would be left too few numbers. Norms of keys come after biases, and undo them.
inline void Engine::balance_keys() {
  const int D = s.head_dim, Q = s.heads, KV = s.kv_heads;
  for (int number = 0; number < s.layers; ++number) {
    const Layer& l = layers[number];
    if (!l.qkv_bias || l.k_norm) continue;
    balance.resize(size_t(s.layers) * (Q + KV) * D, 1.0f);
    float* factors = &balance[size_t(number) * (Q + KV) * D];
    const int middle = l.rope < 0 ? 0 : ropes[l.rope].rotary / 2;
    for (int h = 0; h < KV; ++h)
      for (int d = 0; d < D; ++d) {
        const float* bias = l.qkv_bias + size_t(Q + h) * D;
        const int other = d < middle ? d + middle : d < 2 * middle ? d - middle : d;
        const int power = std::ilogb(std::max({1.0f, std::fabs(bias[d]), std::fabs(bias[other])})) / 2;
        factors[(Q + h) * D + d] = std::ldexp(1.0f, -power);
        for (int q = h * (Q / KV); q < (h + 1) * (Q / KV); ++q) factors[q * D + d] = std::ldexp(1.0f, power);
      }
  }
}

inline void Engine::reserve(const Call& c) {
  int64_t longest = 0;
  int count = 0, width = 0;
  for (int r = 0; r < c.rows; ++r) {
    make_writable(*static_cast<Cache*>(c.caches[r]), c.lengths[r], steps_of(c, r));
    count += steps_of(c, r), longest = std::max(longest, c.lengths[r] + steps_of(c, r));
    if (c.decide && c.states[r].decider) width = std::max(width, c.states[r].decider->width);
  }
  for (RopeTable& rope : ropes) rope.extend(longest);
  // Growth is geometric, so that a row which grows by a token a step seldom allocates.
  auto grow = [](auto& values, size_t wanted) {
    if (wanted > values.size()) values.resize(std::max(wanted, 2 * values.size()));
  };
  grow(steps, count), step_count = count;
  const int pages = int((longest + PAGE - 1) / PAGE);
  if (pages > reserved_pages) {
    const int more = std::max(pages, 2 * reserved_pages);
    for (auto& worker : workers) worker->reserve(more);
    reserved_pages = more;
  }
  unit_width = width;
  in_chunks = count >= (s.precision == 2 ? least_chunk(s.threads) : LEAST_STEPS);
  if (in_chunks) {
    const int tokens = std::min(count, PromptRoom::CHUNK_TOKENS);
    reserve_prompt(tokens);
    grow(prompt.unit_sums, size_t(tokens) * width);
    return;
  }
  span = size_t(longest - 1) / PAGE + 1 + PAGE;
  grow(page_upper_bounds, std::min(count, MOST_ROWS) * s.kv_heads * span);
  for (auto& sums : unit_sums) grow(sums, size_t(MOST_ROWS) * width);
}

inline void Engine::reserve_prompt(int tokens) {
  if (tokens <= prompt.tokens) return;
  size_t rows = rounded_up(tokens, ROW_STEP) + ROW_STEP;  // where the second range of a product begins
  const size_t shared = rows * rounded_up(s.shared_width, GROUP);
  if (s.experts) rows = std::max(rows, ExpertRanges::room(s, tokens)), prompt.routing.resize(tokens);
  const int wide = (s.heads + 2 * s.kv_heads) * s.head_dim, narrow = std::max(s.hidden, s.heads * s.head_dim);
  const size_t inputs = std::max(rows * rounded_up(std::max(narrow, s.intermediate), GROUP), shared);
  prompt.stream.resize(rows * s.hidden), prompt.heads.resize(rows * narrow);
  prompt.results.resize(std::max(rows * std::max({wide, 2 * s.intermediate, s.hidden}), 2 * shared));
  if (s.precision < 2) {
    prompt.dense.resize(inputs);
  } else {
    prompt.number.resize(inputs), prompt.scale.resize(inputs / GROUP), prompt.sum.resize(inputs / GROUP);
    prompt.half_sum.resize(2 * inputs / GROUP);
    prompt.total.resize(inputs / GROUP), prompt.half_total.resize(2 * inputs / GROUP);
  }
  for (auto& worker : workers) worker->reserve_prompt(tokens);
  prompt.tokens = tokens;
}

// Makes it reach all positions below `end`, in float32 as transformers computes them. Throws std::bad_alloc.
inline void RopeTable::extend(int64_t end) {
  const int middle = rotary / 2;
  const int64_t from = int64_t(cosine.size()) / middle;
  if (end <= from) return;
  for (auto* table : {&cosine, &sine})
    if (table->capacity() < size_t(end) * middle) table->reserve(std::max(size_t(end) * middle, 2 * table->capacity()));
  for (int64_t position = from; position < end; ++position)
    for (int i = 0; i < middle; ++i) {
      const float angle = frequencies[i] * float(position);
      cosine.push_back(std::cos(angle) * scale), sine.push_back(std::sin(angle) * scale);
    }
}

inline void Engine::run(const Call& c) {
  call = &c, actions = c.actions, decision_layer = -1;
  plan_steps(c);
  const bool has_lower_bits = s.precision == 2 && head.bits > HIGH_BITS;
  // One row that needs all logits reads the whole head. Then those of the others take less time than screening them.
  const bool whole = c.exact_rows && std::any_of(c.exact_rows, c.exact_rows + c.rows, [](uint8_t exact) { return exact; });
  screening.begin(c.exact_largest && c.last == s.layers && has_lower_bits && !whole && !head_bias, c.adaptive_head);
  team->run(process_part);
  screening.end();
  if (c.rules->thresholds) count_kept(c);
  if (c.last == s.layers) book_steps(c);
}

inline void Engine::plan_steps(const Call& c) {
  for (int r = 0, i = 0; r < c.rows; ++r) {
    RowState& row = c.states[r];
    const Decider* d = c.decide ? row.decider : nullptr;
    const bool inside = d && d->layer < s.layers;  // else a schedule decides for all layers
    if (inside) decision_layer = d->layer;
    Spending so_far;
    std::copy_n(inside ? row.early : row.spent, 3, so_far.spent), std::copy_n(row.counted, 3, so_far.counted);
    for (int q = 0; q < steps_of(c, r); ++q, ++i) {
      const int at = r * c.count + q, position = int(c.lengths[r]) + q, kv_length = position + 1;
      double keep[3] = {1, 1, FULL_BITS};
      c.actions[at] = -1;
      if (d) {
        const LevelShares own = solm::level_shares(*d, *c.rules, s, kv_length);
        if (step_count <= MOST_ROWS) level_shares[i] = own;
        c.actions[at] = scheduled_action(*d, own, *c.rules, kv_length, row.target, !inside && c.rules->thresholds, so_far);
        keep_of(*d, c.actions[at], keep);
      } else if (c.keep) {
        for (int axis = 0; axis < 3; ++axis)
          if (is_controllable(*c.rules, kv_length, axis)) keep[axis] = c.keep[3 * size_t(at) + axis];
      }
      const Plan plan = make_plan(*c.rules, s, keep, kv_length);
      steps[i] = {static_cast<Cache*>(c.caches[r]), &row, inside ? d : nullptr, c.tokens[at], r, at, position, plan, {}, 0};
      double* realised = c.realised + 3 * size_t(at);
      for (int axis = 0; axis < 3; ++axis) {
        const bool counted_later = axis == 1 && c.rules->thresholds;
        const double share =
            counted_later ? 0 : realised_share(*c.rules, s, steps[i].plan, kv_length, axis, c.first, c.last);
        realised[axis] = c.first > 0 ? realised[axis] + share : share;
      }
    }
    if (inside) std::copy_n(so_far.spent, 3, row.early);
    else if (d) row.previous = c.actions[r * c.count + steps_of(c, r) - 1];
  }
}

// Under thresholds: the share of channels that the steps spent. A decider has booked what it expected.
inline void Engine::count_kept(const Call& c) {
  for (int i = 0; i < step_count; ++i) {
    double& realised = c.realised[3 * size_t(steps[i].at) + 1];
    const double share = c.rules->experts ? steps[i].visits / (double(s.experts_used) * s.layers)
                                          : share_of_kept(*c.rules, s, steps[i].kept, s.layers);
    if (steps[i].decider) steps[i].row->spent[1] += share - realised, realised = share;
    else realised += share;
  }
}

// Adds the steps that no decider has added.
inline void Engine::book_steps(const Call& c) {
  for (int i = 0; i < step_count; ++i) {
    if (steps[i].decider) continue;
    RowState& row = *steps[i].row;
    ++row.taken;
    for (int axis = 0; axis < 3; ++axis)
      if (is_controllable(*c.rules, steps[i].position + 1, axis))
        row.spent[axis] += c.realised[3 * size_t(steps[i].at) + axis], ++row.counted[axis];
  }
}

}  // namespace solm
