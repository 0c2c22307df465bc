// One thread's part of a step: the walk through the layers, the decision, the head.
//
// All threads hold the residual stream and do the small work (norms, selection, activations) each for itself, so that they
// wait for one another only where one needs the others' sums. Many steps are a chunk (prompt.h).
#pragma once

#include <optional>

#include "attention.h"
#include "decision.h"
#include "head.h"
#include "products.h"
#include "prompt.h"
#include "workers.h"

namespace solm {

template <typename W, typename K>
struct alignas(64) Worker : WorkerBase, Products<W> {
  static constexpr bool INTEGERS = std::is_same_v<W, int8_t>;
  using Base = Products<W>;
  using Base::all, Base::barrier, Base::e, Base::first_rows, Base::half, Base::inputs, Base::keep_all, Base::keep_channels,
      Base::multiply, Base::partial, Base::result, Base::rounded, Base::thread, Base::threads;
  const int H, I, D, Q, KV;
  Attention<K> attention;
  std::vector<float> streams, normed, heads;  // of all steps; the last are sums of experts, too
  std::vector<float> values;                  // of one step
  std::vector<float> gates;                   // of a layer's experts, visit by visit
  Plan plans[MOST_ROWS];                      // for the layer in progress
  std::optional<HeadSlice> head;              // where weights are integers
  Prompt<W, K> prompt;
  std::vector<int> wanted_steps;              // of a chunk, whose logits are wanted

  struct Visit {
    int expert, row;
    float share;
  };
  std::vector<Visit> visits;  // of all steps to experts

  Worker(Engine& engine, int t)
      : Base(engine, t, widest(engine.s),
             std::max({engine.s.hidden, engine.s.intermediate, engine.s.shared_width, engine.s.heads * engine.s.head_dim})),
        H(engine.s.hidden), I(engine.s.intermediate), D(engine.s.head_dim), Q(engine.s.heads), KV(engine.s.kv_heads),
        attention(engine.s, t, engine.s.threads), streams(size_t(MOST_ROWS) * H), normed(size_t(MOST_ROWS) * H),
        heads(size_t(MOST_ROWS) * std::max(H, Q * D)), values(std::max(I, engine.s.experts)),
        gates(size_t(MOST_ROWS) * std::max(engine.s.experts_used * I, engine.s.shared_width)), prompt(engine, t) {
    visits.reserve(size_t(MOST_ROWS) * engine.s.experts_used);
    if constexpr (std::is_same_v<W, int8_t>) head.emplace(engine, t);
  }

  static int widest(const Sizes& s) {
    return std::max({2 * s.intermediate, 2 * s.shared_width, s.experts, (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden});
  }

  void reserve(int pages) override { attention.reserve(pages), prompt.reserve_pages(pages); }
  void reserve_prompt(int tokens) override { prompt.reserve(tokens), wanted_steps.reserve(tokens); }

  void run() override {
    if (e.in_chunks) read_chunks();
    else
      for (int start = 0; start < e.step_count; start += MOST_ROWS) batch(start, std::min(MOST_ROWS, e.step_count - start));
    if ((e.s.logit_cap > 0 || e.head_bias) && e.call->last == e.s.layers) finish_logits();
  }

 private:
  // Biases and caps this thread's part of all logits.
  void finish_logits() {
    barrier();
    const int64_t V = e.call->outputs, from = V * thread / threads, to = V * (thread + 1) / threads;
    for (int i = 0; i < e.step_count; ++i) {
      float* logits = logits_of(i);
      if (logits && e.head_bias) add_bias(logits + from, e.head_bias + from, int(to - from));
      if (logits && e.s.logit_cap > 0) soft_cap(logits + from, to - from, e.s.logit_cap);
    }
  }

  // Steps [start, start + rows) of the call.
  void batch(int start, int rows) {
    const Call& c = *e.call;
    for (int r = 0; r < rows; ++r) {
      float* x = &streams[size_t(r) * H];
      if (c.first > 0) std::copy_n(stream_of(start + r), H, x);
      else embed(e, e.steps[start + r].token, x);
    }
    for (int l = c.first; l < c.last; ++l) {
      if (l == e.decision_layer) decide_steps(start, rows);
      layer(l, start, rows);
    }
    barrier();  // all threads have read the stream
    if (c.last < e.s.layers) {
      for (int r = 0; thread == 0 && r < rows; ++r) std::copy_n(&streams[size_t(r) * H], H, stream_of(start + r));
      return;
    }
    take_streams(e.final_norm, rows);
    for (int r = 0; thread == 0 && c.stream && r < rows; ++r) std::copy_n(&normed[size_t(r) * H], H, stream_of(start + r));
    multiply_all(normed.data(), rows * H, e.s.logit_scale);
    write_logits(start, rows, normed.data());
  }

  void read_chunks() {
    const Call& c = *e.call;
    const int most = e.prompt.tokens;
    for (int start = 0; start < e.step_count; start += most) {
      const int count = std::min(most, e.step_count - start);
      prompt.read(start, count);
      const bool many = INTEGERS && std::min(e.step_count, c.rows * c.logit_steps) >= PromptRoom::LEAST_LOGITS;
      if (c.last == e.s.layers && many) write_many_logits(start, count);
      for (int i = 0; c.last == e.s.layers && i < count; i += MOST_ROWS)
        write_logits(start + i, std::min(MOST_ROWS, count - i), &e.prompt.heads[size_t(i) * H], many);
      barrier();  // all threads have read the inputs of the head
    }
  }

  float* stream_of(int number) const { return e.call->stream + size_t(e.steps[number].at) * H; }

  // Where the logits of step `number` of the call go; null where nobody wants them.
  float* logits_of(int number) const {
    const Call& c = *e.call;
    const int row = e.steps[number].number, place = e.steps[number].at - row * c.count - (c.count - c.logit_steps);
    return place < 0 ? nullptr : c.logits + (size_t(row) * c.logit_steps + place) * c.outputs;
  }

  // The same for steps whose logits are all exact; null for others.
  float* exact_logits_of(int number) const {
    const Call& c = *e.call;
    return !e.screening.on || (c.exact_rows && c.exact_rows[e.steps[number].number]) ? logits_of(number) : nullptr;
  }

  // The logits that are wanted of steps [start, start + rows), whose inputs of the head are x [rows, H]. many: exact ones are
  // written by write_many_logits.
  void write_logits(int start, int rows, const float* x, bool many = false) {
    const float* inputs[MOST_ROWS];
    float* logits[MOST_ROWS];
    int wanted = 0;
    auto want = [&](int r, float* to) { inputs[wanted] = x + size_t(r) * H, logits[wanted++] = to; };
    for (int r = 0; r < rows && !many; ++r)
      if (float* to = exact_logits_of(start + r)) want(r, to);
    const int exact = wanted;
    for (int r = 0; r < rows; ++r)
      if (float* to = logits_of(start + r); to && !exact_logits_of(start + r)) want(r, to);
    if (!wanted) return;
    if constexpr (INTEGERS) integer_head(inputs, logits, exact, wanted);
    else float_head(inputs, logits, wanted);
  }

  // The exact ones for a chunk, as a product of matrices.
  void write_many_logits(int start, int count) {
    if constexpr (INTEGERS) {
      wanted_steps.clear();
      for (int i = 0; i < count; ++i)
        if (exact_logits_of(start + i)) wanted_steps.push_back(i);
      if (wanted_steps.empty()) return;
      prompt.write_logits(int(wanted_steps.size()), [&](int i) { return &e.prompt.heads[size_t(wanted_steps[i]) * H]; },
                          [&](int i) { return logits_of(start + wanted_steps[i]); });
    }
  }

  void layer(int number, int start, int rows) {
    const SparsityRules& rules = *e.call->rules;
    const Layer& l = e.layers[number];
    const int wide = (Q + 2 * KV) * D;
    Step* steps = &e.steps[start];
    for (int r = 0; r < rows; ++r)
      plans[r] = within_window(layer_plan(rules, e.s, steps[r].plan, number), steps[r].position + 1, l.window);
    take(number, QKV, take_streams(l.attention_norm, rows), steps, rows);
    multiply(l.qkv, H, wide, rows, attention.first_rows(*steps[0].cache, number, steps[0].position + 1, plans[0]));
    for (int r = 0; r < rows; ++r) {
      place_token(e, l, steps[r].position, result(r));
      if (thread == threads - 1) append_token<K>(e, steps[r], number, result(r));  // which reads the last page
    }
    barrier();
    attend(number, steps, rows);
    fetch(first_rows(l.out, Q * D, rows));
    barrier();
    combine_parts(rows * Q, D, threads, l.sinks, Q, [&](int t) { return partial(t); }, heads.data());
    half = !half;
    take(number, OUT, heads.data(), steps, rows);
    multiply(l.out, Q * D, H, rows, l.router ? Prefetch() : first_rows(l.mlps->gate_up, H, rows));

    const float* x = e.s.parallel ? take_streams(l.mlp_norm, rows) : nullptr;
    for (int r = 0; r < rows; ++r) add_result(r, l.attention_output_norm, l.out_bias);
    if (!x) x = take_streams(l.mlp_norm, rows);
    const Prefetch after = number + 1 < e.call->last ? first_rows(e.layers[number + 1].qkv, H, rows) : Prefetch();
    if (l.router) {
      mix_experts(number, x, steps, rows, after);
    } else {
      take(number, INPUT, x, steps, rows);
      multiply(l.mlps->gate_up, H, gate_up_outputs(e.s, I), rows, first_rows(l.mlps->down, I, rows));
      for (int r = 0; r < rows; ++r) {
        activate(e.s, *l.mlps, result(r), I, values.data());
        keep(number, HIDDEN, values.data(), steps[r], r, r);
      }
      multiply(l.mlps->down, I, H, rows, after);
    }
    for (int r = 0; r < rows; ++r) add_result(r, l.mlp_output_norm, l.router ? nullptr : l.mlps->down_bias);
  }

  // result(row) = the sum of what the experts give for x [rows, H] that its step visits. Each multiplies all of its steps at
  // once, in the order of their numbers; the shared one comes last.
  void mix_experts(int number, const float* x, Step* steps, int rows, const Prefetch& after) {
    const Layer& l = e.layers[number];
    const Prefetch last = e.s.shared_width ? first_rows(l.shared.gate_up, H, rows) : after;
    visit_experts(number, x, steps, rows);
    take(number, INPUT, x, steps, rows);
    Inputs kept[MOST_ROWS];
    std::copy_n(inputs, rows, kept);
    each_expert([&](int first, int end, int following) {
      for (int v = first; v < end; ++v) inputs[v - first] = kept[visits[v].row];
      const Mlp& next = l.mlps[visits[following].expert];
      multiply(l.mlps[visits[first].expert].gate_up, H, gate_up_outputs(e.s, I), end - first,
               first_rows(following ? next.gate_up : next.down, following ? H : I, visits_from(following)));
      for (int v = first; v < end; ++v)
        activate(e.s, l.mlps[visits[first].expert], result(v - first), I, &gates[size_t(v) * I]);
    });
    std::fill_n(heads.data(), size_t(rows) * H, 0.0f);
    each_expert([&](int first, int end, int following) {
      for (int v = first; v < end; ++v)
        keep(number, HIDDEN, &gates[size_t(v) * I], steps[visits[v].row], visits[v].row, v - first);
      multiply(l.mlps[visits[first].expert].down, I, H, end - first,
               following ? first_rows(l.mlps[visits[following].expert].down, I, visits_from(following)) : last);
      for (int v = first; v < end; ++v) {
        add_bias(result(v - first), l.mlps[visits[first].expert].down_bias, H);
        add_share(result(v - first), visits[v].share, H, &heads[size_t(visits[v].row) * H]);
      }
    });
    if (e.s.shared_width) add_shared(l, x, rows, after);
    for (int r = 0; r < rows; ++r) std::copy_n(&heads[size_t(r) * H], H, result(r));
  }

  // Adds what the shared expert gives for x [rows, H] to the sums of the others. It is read in full whatever steps keep.
  void add_shared(const Layer& l, const float* x, int rows, const Prefetch& after) {
    const int width = e.s.shared_width;
    keep_all(x, H, rows);
    multiply(l.shared.gate_up, H, gate_up_outputs(e.s, width), rows, first_rows(l.shared.down, width, rows));
    for (int r = 0; r < rows; ++r) activate(e.s, l.shared, result(r), width, &gates[size_t(r) * width]);
    keep_all(gates.data(), width, rows);
    multiply(l.shared.down, width, H, rows, after);
    for (int r = 0; r < rows; ++r)
      add_share(result(r), shared_share(l, x + size_t(r) * H, H), H, &heads[size_t(r) * H]);
  }

  // Lists the visits of steps with inputs x [rows, H], ordered by experts.
  void visit_experts(int number, const float* x, Step* steps, int rows) {
    const Layer& l = e.layers[number];
    const int E = e.s.experts;
    for (int i = E * thread / threads; i < E * (thread + 1) / threads; ++i)
      for (int r = 0; r < rows; ++r) partial(thread)[r * E + i] = dot(l.router + size_t(i) * H, x + size_t(r) * H, H);
    barrier();
    visits.clear();
    for (int r = 0; r < rows; ++r) {
      for (int t = 0; t < threads; ++t)
        std::copy(partial(t) + r * E + E * t / threads, partial(t) + r * E + E * (t + 1) / threads,
                  &values[size_t(E) * t / threads]);
      add_bias(values.data(), l.router_bias, E);
      const Routing found = route(e.s, plans[r], values.data(), thread > 0 ? nullptr : e.histogram_of(number, SITES));
      if (thread == 0) steps[r].visits += found.count;
      for (int k = 0; k < found.count; ++k) visits.push_back({found.expert[k], r, found.share[k]});
    }
    half = !half;
    std::sort(visits.begin(), visits.end(),
              [](const Visit& a, const Visit& b) { return std::pair(a.expert, a.row) < std::pair(b.expert, b.row); });
  }

  // How many visits from `first` on are to the same expert.
  int visits_from(int first) const {
    int end = first + 1;
    while (end < int(visits.size()) && visits[end].expert == visits[first].expert) ++end;
    return end - first;
  }

  // Calls use(first, end, following) for the visits [first, end) of every expert and the first of the next one, 0 after the
  // last.
  template <typename Use>
  void each_expert(Use use) const {
    const int count = int(visits.size());
    for (int first = 0, end; first < count; first = end) {
      end = first + visits_from(first);
      use(first, end, end < count ? end : 0);
    }
  }

  // Takes what steps keep of x [rows, size of the site] as the input of the next product.
  void take(int layer, int site, const float* x, Step* steps, int rows) {
    const int size = site_size(e.s, site);
    if (site >= QKV && !drops(*e.call->rules, site) && !e.call->histogram) return keep_all(x, size, rows);
    for (int r = 0; r < rows; ++r) keep(layer, site, x + size_t(r) * size, steps[r], r, r);
  }

  // What the step of a row keeps of x, as the input in place `input`.
  void keep(int layer, int site, const float* x, Step& step, int row, int input) {
    const int size = site_size(e.s, site);
    const Plan plan = at_site(plans[row], site);
    const int found = keep_channels(x, size, plan.channels[site], plan.limit[site], plan, input);
    if (thread > 0) return;
    step.kept[site] += found * channel_cost(*e.call->rules, plan, site) / booked_parts(e.s, site);
    if (uint32_t* to = e.histogram_of(layer, site)) count_magnitudes(x, size, to);
  }

  // The residual streams of all steps [rows, H], normed if there is a norm.
  const float* take_streams(const Norm& norm, int rows) {
    if (!norm.weight) return streams.data();
    for (int r = 0; r < rows; ++r) norm_stream(e.s, norm, &streams[size_t(r) * H], &normed[size_t(r) * H]);
    return normed.data();
  }

  // This thread's part of the attention of all steps, into its partial sums.
  void attend(int number, const Step* steps, int rows) {
    const SparsityRules& rules = *e.call->rules;
    const size_t queries = size_t(Q / KV) * D, sums = size_t(Q / KV) * (D + 2);  // of a KV head
    auto bounds = [&](int r, int head) { return e.page_upper_bounds.data() + (size_t(r) * KV + head) * e.span; };
    if (std::any_of(plans, plans + rows, [](const Plan& plan) { return plan.sparse && plan.between; })) {
      for (int r = 0; r < rows; ++r)
        for (int h = 0; h < KV; ++h)
          attention.bound_pages(rules, *steps[r].cache, number, h, result(r) + h * queries, plans[r], bounds(r, h));
      barrier();
    }
    for (int r = 0; r < rows; ++r)
      for (int h = 0; h < KV; ++h)
        attention.attend(rules, *steps[r].cache, number, h, steps[r].position + 1, result(r) + h * queries, plans[r],
                         bounds(r, h), partial(thread) + (size_t(r) * KV + h) * sums);
  }

  // Adds a product's result and its bias, if there is one, normed if there is a norm, to a step's residual stream.
  void add_result(int row, const float* norm, const float* bias) {
    float *x = &streams[size_t(row) * H], *added = result(row);
    add_bias(added, bias, H);
    if (norm) rms_norm(added, norm, H, e.s.epsilon, added);
    const float scale = e.s.residual_scale;
#pragma GCC ivdep
    for (int i = 0; i < H; ++i) x[i] += scale * added[i];
  }

  // Mid-pass decision: all threads add up their part of the deciders' hidden layers, and the first one decides.
  void decide_steps(int start, int rows) {
    for (int r = 0; r < rows; ++r) {
      const Decider* d = e.steps[start + r].decider;
      if (!d) continue;
      double shares[3];
      early_shares(e, start + r, shares);
      float* sums = e.unit_sums[thread].data() + size_t(r) * e.unit_width;
      hidden_sums(*d, &streams[size_t(r) * H], H, shares, (H + 3) * thread / threads, (H + 3) * (thread + 1) / threads, sums);
    }
    barrier();
    for (int r = 0; r < rows && thread == 0; ++r) {
      const Decider* d = e.steps[start + r].decider;
      if (!d) continue;
      float* sums = e.unit_sums[0].data() + size_t(r) * e.unit_width;
      for (int t = 1; t < threads; ++t)
        for (int u = 0; u < d->width; ++u) sums[u] += e.unit_sums[t][size_t(r) * e.unit_width + u];
      decide_step(e, start + r, sums);
    }
    barrier();
  }

  void float_head(const float* const* inputs, float* const* logits, int rows) const {
    const W* weights = static_cast<const W*>(e.head.data);
    const int64_t outputs = e.call->outputs;
    for (int v = int(outputs * thread / threads); v < int(outputs * (thread + 1) / threads); ++v)
      for (int r = 0; r < rows; r += 4) {
        const float* const* x = inputs + r;
        float score[4];
        const int here = std::min(4, rows - r);
        up_to_four_dots(weights + size_t(v) * H, x, here, H, score);
        for (int k = 0; k < here; ++k) logits[r + k][v] = score[k];
      }
  }

  // All logits of the first `exact` rows are exact, of the others the largest.
  void integer_head(const float* const* inputs, float* const* logits, int exact, int rows) {
    const int groups = (H + GROUP - 1) / GROUP;
    for (int r = 0; r < rows; ++r) rounded[r].round(all.data(), inputs[r], H, 0, groups, 127);
    if (exact) {
      head->prepare(rounded.data(), exact, e.call->outputs);
      head->exact([&](int r) { return logits[r]; });
    }
    if (exact == rows) return;
    head->prepare(rounded.data() + exact, rows - exact, e.call->outputs);
    auto to = [&](int r) { return logits[exact + r]; };
    const int largest = e.call->exact_largest;
    head->approximate(largest, to, partial(thread));
    barrier();
    const int64_t whole = head->refine(largest, threads, to, [&](int t) { return partial(t); });
    e.screening.add(whole, int64_t(head->last - head->first) * (rows - exact));
    half = !half;
  }
};

template <typename W, typename K>
std::unique_ptr<WorkerBase> make_worker(Engine& e, int thread) {
  return std::make_unique<Worker<W, K>>(e, thread);
}

}  // namespace solm
