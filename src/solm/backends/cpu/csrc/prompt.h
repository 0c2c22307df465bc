// One thread's part of a call of many steps: known tokens of a row, one token of many rows, or both. A chunk of them goes
// through the layers at a time, every step with its own plan, and the weights are multiplied with all of them at once.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "decision.h"
#include "engine.h"
#include "experts.h"
#include "gemm.h"
#include "prompt_attention.h"
#include "repack.h"
#include "select.h"
#include "tile_float.h"

namespace solm {

inline void embed(const Engine& e, int64_t token, float* x) {
  const RawTensor rows{e.s.embedding, static_cast<const uint8_t*>(e.embedding), e.s.vocabulary, e.s.hidden, nullptr};
  const float scale = e.s.embedding_scale;
  for (int g = 0; g < rows.groups(); ++g) {
    float values[GROUP];
    const int count = read_group(rows, rows.row(int(token)), g, values);
    for (int i = 0; i < count; ++i) x[g * GROUP + i] = scale * values[i];
  }
}

inline void rotate(const RopeTable& rope, float* x, int position) {
  const int middle = rope.rotary / 2;
  const float *c = &rope.cosine[size_t(position) * middle], *s = &rope.sine[size_t(position) * middle];
  for (int i = 0; i < middle; ++i) {
    const float a = x[i], b = x[i + middle];
    x[i] = multiply_add(-b, s[i], a * c[i]);
    x[i + middle] = multiply_add(a, s[i], b * c[i]);
  }
}

// Biases, norms and rotates queries, keys and values [(heads + 2 kv_heads) D] in place.
inline void place_token(const Engine& e, const Layer& l, int position, float* queries) {
  const int D = e.s.head_dim, Q = e.s.heads, KV = e.s.kv_heads;
  add_bias(queries, l.qkv_bias, (Q + 2 * KV) * D);
  if (e.s.whole_norms) {
    rms_norm(queries, l.q_norm, Q * D, e.s.epsilon, queries);
    rms_norm(queries + Q * D, l.k_norm, KV * D, e.s.epsilon, queries + Q * D);
  }
  for (int h = 0; h < Q + KV; ++h) {
    float* head = queries + h * D;
    const float* norm = h < Q ? l.q_norm : l.k_norm;
    if (norm && !e.s.whole_norms) rms_norm(head, norm, D, e.s.epsilon, head);
    if (!e.balance.empty()) multiply_each(head, &e.balance[(size_t(&l - e.layers.data()) * (Q + KV) + h) * D], D);
    if (l.rope >= 0) rotate(e.ropes[l.rope], head, position);
  }
}

// Writes the keys and values among these to the cache.
template <typename K>
void append_token(const Engine& e, const Step& step, int layer, const float* queries) {
  const int D = e.s.head_dim, KV = e.s.kv_heads;
  const float *key = queries + e.s.heads * D, *value = key + KV * D;
  for (int h = 0; h < KV; ++h) append<K>(*step.cache, e.s, layer, h, step.position, key + h * D, value + h * D);
}

struct ChunkOrder {
  // Neighbours of one row. alone: a step of a call without blocks, or that selects pages of its own.
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
      const bool alone = !call.blocks || !reads_all_pages(*call.rules, steps[t].plan);
      if (!next || steps[t].position % PAGE == 0) page_parts.push_back({t, 0, false});
      if (!next || alone || query_parts.back().alone || query_parts.back().count == most) query_parts.push_back({t, 0, alone});
      ++page_parts.back().count, ++query_parts.back().count;
    }
  }

  // Places the steps for the weights that one site of a layer's MLP reads.
  void arrange_bits(const SparsityRules& rules, const Step* steps, int count, int layer, int site) {
    const auto reads_all_bits = [&](const Step& step) { return !reads_high_only(rules, step.plan, layer, site); };
    const int whole = int(std::count_if(steps, steps + count, reads_all_bits)), second = rounded_up(whole, ROW_STEP);
    full = {0, whole, false}, high = {second, second + count - whole, true};
    for (int t = 0, next[2] = {second, 0}; t < count; ++t) {
      place[t] = next[reads_all_bits(steps[t])]++;
      at_place[place[t]] = t;
    }
  }
};

template <typename W, typename K>
struct Prompt {
  static constexpr bool INTEGERS = std::is_same_v<W, int8_t>;
  Engine& e;
  const int thread, threads, H, I, D, Q, KV;
  int phase = 0;  // which counter of tasks is in use
  using Range = ChunkOrder::Range;
  ChunkOrder order;
  // Of a step: input of a product; with zeros where it skips channels; values kept; of pages; see Attention.
  std::vector<float> normed, kept, picked, bounds, sums;
  std::vector<int32_t> index;  // of the channels kept
  TileProducts<W> products;
  PromptAttention<K> attention;
  Attention<K> alone;
  ChunkExperts<W, K> experts{*this};

  Prompt(Engine& engine, int t)
      : e(engine), thread(t), threads(engine.s.threads), H(engine.s.hidden), I(engine.s.intermediate), D(engine.s.head_dim),
        Q(engine.s.heads), KV(engine.s.kv_heads), products(threads), attention(engine.s), alone(engine.s, 0, engine.s.threads) {}

  void reserve(int tokens) {
    const int widest = std::max({H, I, Q * D});
    order.reserve(tokens), products.reserve(tokens), attention.reserve(), experts.reserve(tokens);
    normed.resize(widest), kept.resize(widest), picked.resize(widest + SPARE), index.resize(widest + SPARE);
    sums.resize(size_t(threads) * (Q / KV) * (D + 2));
  }
  void reserve_pages(int pages) { alone.reserve(pages), bounds.resize(pages + 2 * PAGE); }

  // Takes steps [start, start + count) of the call through its layers; after the last one of the model, leaves the inputs of
  // the head in e.prompt.heads [count, H].
  void read(int start, int count) {
    const Call& c = *e.call;
    Step* steps = &e.steps[start];
    arrange(steps, count);
    each_step(count, [&](int t) {
      if (c.first > 0) std::copy_n(c.stream + size_t(steps[t].at) * H, H, stream(t));
      else embed(e, steps[t].token, stream(t));
    });
    for (int l = c.first; l < c.last; ++l) {
      if (l == e.decision_layer) decide_steps(start, count);
      layer(l, steps, count);
    }
    each_step(count, [&](int t) {
      const float* result = stream(t);
      if (c.last == e.s.layers) {
        float* normed = &e.prompt.heads[size_t(t) * H];
        norm_stream(e.s, e.final_norm, stream(t), normed);
        result = normed;
      }
      if (c.stream) std::copy_n(result, H, c.stream + size_t(steps[t].at) * H);
      if (c.last == e.s.layers) multiply_all(&e.prompt.heads[size_t(t) * H], H, e.s.logit_scale);
    });
  }

  // The logits of the head, integers, for inputs x(i) [H] of `count` steps, which go to to(i).
  template <typename Input, typename To>
  void write_logits(int count, Input x, To to) {
    const ChunkInput input = input_of(H);
    each_step(count, [&](int i) { input.round(i, x(i)); });
    multiply_blocks(e.call->outputs, {0, count, false}, [&](int block, int from, int end, int n) {
      const float* y = products.multiply(e.head, e.call->outputs, input, block, from, end);
      for (int i = from; i < end; ++i, y += BLOCK) {
        float* logits = to(i) + size_t(block) * BLOCK;
        for (int o = 0; o < n; ++o) logits[o] = e.head.group ? y[o] : y[o] * e.head.scale[block * BLOCK + o];
      }
    });
  }

 private:
  friend ChunkExperts<W, K>;
  float* stream(int step) const { return &e.prompt.stream[size_t(step) * H]; }
  float* result(int step, int width) const { return &e.prompt.results[size_t(step) * width]; }

  ChunkInput input_of(int channels) const {
    PromptRoom& room = e.prompt;
    const int stride = rounded_up(channels, GROUP);
    return {channels, stride, stride / GROUP, room.dense.data(), room.scale.data(), room.sum.data(), room.half_sum.data(),
            room.total.data(), room.half_total.data(), room.number.data()};
  }

  // Calls use(i) for all i below count, each in the thread that comes first, and waits for all of them.
  template <typename Use>
  void each_task(int count, Use use) {
    std::atomic<int>& next = e.prompt.next[phase];
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) use(i);
    e.team->wait();
    if (thread == 0) next.store(0, std::memory_order_relaxed);  // before the next barrier, behind which it is used again
    phase = 1 - phase;
  }

  template <typename Use>
  void each_step(int count, Use use) {
    const int at_once = std::clamp(count / (4 * threads), 1, 8);
    each_task((count + at_once - 1) / at_once, [&](int i) {
      for (int t = i * at_once; t < std::min((i + 1) * at_once, count); ++t) use(t);
    });
  }

  void layer(int number, Step* steps, int count) {
    const Layer& l = e.layers[number];
    const int wide = (Q + 2 * KV) * D, outputs = gate_up_outputs(e.s, I);
    const Range every = {0, count, false};
    ChunkInput input = input_of(H);
    each_step(count, [&](int t) { take_projected(number, QKV, input, t, norm(l.attention_norm, stream(t)), steps[t]); });
    multiply(l.qkv, input, wide, every, [&](int t, int o, int n, const float* y) { std::copy_n(y, n, result(t, wide) + o); });
    append_keys_and_values(number, steps);
    attend(number, steps);
    input = input_of(Q * D);
    each_step(count, [&](int t) { take_projected(number, OUT, input, t, &e.prompt.heads[size_t(t) * Q * D], steps[t]); });
    const auto beside = [&](int t) { return &e.prompt.heads[size_t(t) * H]; };  // inputs of an MLP beside attention
    if (e.s.parallel) each_step(count, [&](int t) { norm_stream(e.s, l.mlp_norm, stream(t), beside(t)); });
    add_product(l.out, l.out_bias, input, l.attention_output_norm, count, {every});
    if (e.s.experts) return experts.mix(number, steps, count);

    input = input_of(H);
    order.arrange_bits(*e.call->rules, steps, count, number, INPUT);
    each_step(count, [&](int t) {
      take_kept(number, INPUT, input, order.place[t], e.s.parallel ? beside(t) : norm(l.mlp_norm, stream(t)), steps[t]);
    });
    for (const Range& range : {order.full, order.high})
      multiply(l.mlps->gate_up, input, outputs, range, [&](int i, int o, int n, const float* y) {
        std::copy_n(y, n, result(order.at_place[i], outputs) + o);
      });
    input = input_of(I);
    order.arrange_bits(*e.call->rules, steps, count, number, HIDDEN);
    each_step(count, [&](int t) {
      float* gate = result(t, outputs);
      activate(e.s, *l.mlps, gate, I, gate);
      take_kept(number, HIDDEN, input, order.place[t], gate, steps[t]);
    });
    add_product(l.mlps->down, l.mlps->down_bias, input, l.mlp_output_norm, count, {order.full, order.high});
  }

  // A stream x [H], normed if there is a norm.
  const float* norm(const Norm& norm, const float* x) {
    if (!norm.weight) return x;
    norm_stream(e.s, norm, x, normed.data());
    return normed.data();
  }

  // Makes x an input of the next product.
  void take(const ChunkInput& input, int place, const float* x, int most = 127) {
    if constexpr (INTEGERS) input.round(place, x, most);
    else std::copy_n(x, input.channels, input.dense + size_t(place) * input.stride);
  }

  void count_inputs(int layer, int site, const float* x, int n) const {
    if (uint32_t* to = e.histogram_of(layer, site)) count_magnitudes(x, n, to);
  }

  // The channels of x [n] that a step keeps at a site, rounded to the plan's bits, with zeros for the others, and what the
  // largest of a group becomes as an integer.
  std::pair<const float*, int> kept_of(int layer, int site, int n, const float* x, Step& step) {
    const Plan plan = at_site(layer_plan(*e.call->rules, e.s, step.plan, layer), site);
    const int count = plan.channels[site];
    const float limit = plan.limit[site];
    const auto add = [&](int kept) {
      step.kept[site] += kept * channel_cost(*e.call->rules, plan, site) / booked_parts(e.s, site);
    };
    count_inputs(layer, site, x, n);
    if (limit < 0 && count >= n && plan.bits >= FULL_BITS) return add(n), std::pair(x, 127);
    if (limit >= 0 && plan.bits >= FULL_BITS) {
      add(zero_below(x, n, limit, kept.data()));
      return {kept.data(), 127};
    }
    const int found = limit < 0 ? select(x, n, count, index.data(), picked.data())
                                : select_from(x, n, limit, index.data(), picked.data());
    add(found);
    round_to_grid(index.data(), picked.data(), found, plan.bits, plan.group ? plan.group : n);
    std::fill_n(kept.data(), n, 0.0f);
    for (int i = 0; i < found; ++i) kept[index[i]] = picked[i];
    return {kept.data(), largest_integer(plan)};
  }

  void take_kept(int layer, int site, const ChunkInput& input, int place, const float* x, Step& step) {
    const auto [found, most] = kept_of(layer, site, input.channels, x, step);
    take(input, place, found, most);
  }

  // The same for an input of a projection of attention.
  void take_projected(int layer, int site, const ChunkInput& input, int place, const float* x, Step& step) {
    if (drops(*e.call->rules, site)) return take_kept(layer, site, input, place, x, step);
    count_inputs(layer, site, x, input.channels);
    take(input, place, x);
  }

  // Calls use(block, from, to, n) for blocks of `out` outputs, n of them in the block, and for parts of a range of steps.
  template <typename Use>
  void multiply_blocks(int out, const Range& range, Use use) {
    constexpr int TASKS_PER_THREAD = 8, LEAST = 3 * ROW_STEP;  // steps of a task
    const int count = range.end - range.first, blocks = (out + BLOCK - 1) / BLOCK;
    if (!count) return;
    const int wanted = (TASKS_PER_THREAD * threads + blocks - 1) / blocks;
    const int steps = std::max(LEAST, rounded_up((count + wanted - 1) / wanted, ROW_STEP)), parts = (count + steps - 1) / steps;
    each_task(blocks * parts, [&](int i) {
      const int block = i / parts, from = range.first + i % parts * steps;
      use(block, from, std::min(from + steps, range.end), std::min(BLOCK, out - block * BLOCK));
    });
  }

  // Calls done(place, first output, their number, y) for the products of a range of steps with all outputs.
  template <typename Done>
  void multiply(const Product& p, const ChunkInput& x, int out, const Range& range, Done done) {
    multiply_blocks(out, range, [&](int block, int from, int to, int) {
      multiply_block(p, range.high_only, x, block, from, to, out, done);
    });
  }

  // The same for places [from, to) with one block of `out` outputs.
  template <typename Done>
  void multiply_block(const Product& p, bool high_only, const ChunkInput& x, int block, int from, int to, int out, Done done) {
    const Matrix* m = p.part;
    const int first = block * BLOCK, n = std::min(BLOCK, out - first);
    int begin = 0;  // of the outputs of m
    while (first >= begin + m->outputs) begin += m++->outputs;
    const int within = first - begin;
    const float* y = products.multiply(*m, high_only, x, within / BLOCK, from, to);
    for (int t = from; t < to; ++t, y += BLOCK) {
      float scaled[BLOCK];
      for (int o = 0; m->scale && o < n; ++o) scaled[o] = y[o] * m->scale[within + o];
      done(t, first, n, m->scale ? scaled : y);
    }
  }

  // Adds a product and its bias, if there is one, normed if there is a norm, to the residual stream.
  void add_product(const Product& p, const float* bias, const ChunkInput& x, const float* norm, int count,
                   std::initializer_list<Range> ranges) {
    const bool in_order = ranges.size() == 1;
    const float scale = e.s.residual_scale;
    for (const Range& range : ranges)
      multiply(p, x, H, range, [&](int i, int o, int n, const float* y) {
        const int t = in_order ? i : order.at_place[i];
        float* to = (norm ? result(t, H) : stream(t)) + o;
        for (int k = 0; k < n; ++k) {
          const float found = y[k] + (bias ? bias[o + k] : 0);
          to[k] = norm ? found : to[k] + scale * found;
        }
      });
    if (norm) each_step(count, [&](int t) { add_normed(result(t, H), norm, t); });
  }

  // Adds a step's results, normed in place if there is a norm, to its residual stream.
  void add_normed(float* added, const float* norm, int step) {
    float* x = stream(step);
    const float scale = e.s.residual_scale;
    if (norm) rms_norm(added, norm, H, e.s.epsilon, added);
    for (int i = 0; i < H; ++i) x[i] += scale * added[i];
  }

  // Places queries and keys, and writes keys and values to the cache: page by page, since a page is one thread's to write.
  void append_keys_and_values(int number, const Step* steps) {
    each_task(int(order.page_parts.size()), [&](int i) {
      const ChunkOrder::Part& part = order.page_parts[i];
      for (int t = part.first; t < part.first + part.count; ++t) {
        float* queries = result(t, (Q + 2 * KV) * D);
        place_token(e, e.layers[number], steps[t].position, queries);
        append_token<K>(e, steps[t], number, queries);
      }
    });
  }

  void attend(int number, const Step* steps) {
    const size_t wide = size_t(Q + 2 * KV) * D, group = size_t(Q / KV) * D;
    const int parts = int(order.query_parts.size());
    each_task(parts * KV, [&](int i) {
      const ChunkOrder::Part& part = order.query_parts[parts - 1 - i / KV];  // the longest ones first
      const Step& step = steps[part.first];
      const int head = i % KV;
      const float* queries = result(part.first, wide) + head * group;
      float* to = &e.prompt.heads[size_t(part.first) * Q * D + head * group];
      if (part.alone) attend_alone(number, head, step, queries, to);
      else
        attention.attend(*step.cache, e.layers[number], number, head, step.position, part.count, queries, wide, to,
                         size_t(Q) * D);
    });
  }

  // The attention of one step's query heads of a KV head, which writes their outputs [Q / KV, D].
  void attend_alone(int layer, int head, const Step& step, const float* queries, float* to) {
    const SparsityRules& rules = *e.call->rules;
    const int seen = step.position + 1;
    const Plan plan = within_window(step.plan, seen, e.layers[layer].window);
    const auto part = [&](int t) { return &sums[size_t(t) * (Q / KV) * (D + 2)]; };
    const auto each_part = [&](auto use) {
      for (alone.thread = 0; alone.thread < threads; ++alone.thread) use();
    };
    each_part([&] { alone.bound_pages(rules, *step.cache, layer, head, queries, plan, bounds.data()); });
    each_part([&] {
      alone.attend(rules, *step.cache, layer, head, seen, queries, plan, bounds.data(), part(alone.thread));
    });
    const float* sinks = e.layers[layer].sinks;
    combine_parts(Q / KV, D, threads, sinks ? sinks + head * (Q / KV) : nullptr, Q / KV, part, to);
  }

  // Mid-pass decision: the hidden layers of the deciders step by step in all threads, and then the decisions, in order.
  void decide_steps(int start, int count) {
    auto unit_sums = [&](int t) { return &e.prompt.unit_sums[size_t(t) * e.unit_width]; };
    each_step(count, [&](int t) {
      const Decider* d = e.steps[start + t].decider;
      if (!d) return;
      double shares[3];
      early_shares(e, start + t, shares);
      hidden_sums(*d, stream(t), H, shares, 0, H + 3, unit_sums(t));
    });
    for (int t = 0; t < count && thread == 0; ++t)
      if (e.steps[start + t].decider) decide_step(e, start + t, unit_sums(t));
    e.team->wait();
    arrange(&e.steps[start], count);
  }

  void arrange(const Step* steps, int count) {
    order.arrange(*e.call, steps, count, std::clamp(count * KV / (4 * threads), 1, PromptAttention<K>::tokens(e.s)));
  }
};

}  // namespace solm
