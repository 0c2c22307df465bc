// The experts of a chunk of steps: what prompt.h calls in place of one MLP.
#pragma once

#include "engine.h"
#include "gemm.h"

namespace solm {

template <typename W, typename K>
struct Prompt;

template <typename W, typename K>
struct ChunkExperts {
  Prompt<W, K>& p;
  const Sizes& s;
  ExpertRanges ranges[2];       // of gate and up, and of down, see Site
  std::vector<float> products;  // of a router with one step

  explicit ChunkExperts(Prompt<W, K>& prompt) : p(prompt), s(prompt.e.s), products(s.experts) {}

  void reserve(int tokens) {
    for (ExpertRanges& site : ranges) site.reserve(s, tokens);
  }

  // Adds what a layer's experts give of `count` steps to their residual streams. Each multiplies all of its steps at once;
  // the results of a step are added up in the order of the experts' numbers, as step.h does.
  void mix(int number, Step* steps, int count) {
    const Layer& l = p.e.layers[number];
    const int H = p.H, I = p.I;
    const std::vector<Routing>& routing = p.e.prompt.routing;
    const auto of = [&](int t) { return &p.e.prompt.heads[size_t(t) * H]; };  // normed inputs, and later the results
    p.each_step(count, [&](int t) {
      std::copy_n(p.norm(l.mlp_norm, p.stream(t)), H, of(t));
      for (int i = 0; i < s.experts; ++i) products[i] = dot(l.router + size_t(i) * H, of(t), H);
      add_bias(products.data(), l.router_bias, s.experts);
      p.e.prompt.routing[t] = route(s, layer_plan(*p.e.call->rules, s, steps[t].plan, number), products.data(),
                                    p.e.histogram_of(number, SITES));
      steps[t].visits += routing[t].count;
    });
    for (int site : {INPUT, HIDDEN})
      ranges[site].arrange(s, routing.data(), count, [&](int t) {
        return reads_high_only(*p.e.call->rules, steps[t].plan, number, site);
      });

    ChunkInput input = p.input_of(H);
    p.each_step(count, [&](int t) {
      const auto [x, most] = p.kept_of(number, INPUT, H, of(t), steps[t]);
      for (int k = 0; k < routing[t].count; ++k) p.take(input, place(INPUT, t, k), x, most);
    });
    multiply(l, INPUT, input, gate_up_outputs(s, I));
    input = p.input_of(I);
    p.each_step(count, [&](int t) {
      for (int k = 0; k < routing[t].count; ++k) {
        float* gate = p.result(place(INPUT, t, k), gate_up_outputs(s, I));
        activate(s, l.mlps[routing[t].expert[k]], gate, I, gate);
        p.take_kept(number, HIDDEN, input, place(HIDDEN, t, k), gate, steps[t]);
      }
    });
    multiply(l, HIDDEN, input, H);
    p.each_step(count, [&](int t) {
      std::fill_n(of(t), H, 0.0f);
      for (int k = 0; k < routing[t].count; ++k) {
        float* found = p.result(place(HIDDEN, t, k), H);
        add_bias(found, l.mlps[routing[t].expert[k]].down_bias, H);
        add_share(found, routing[t].share[k], H, of(t));
      }
    });
    if (s.shared_width) add_shared(l, count);
    p.each_step(count, [&](int t) { p.add_normed(of(t), l.mlp_output_norm, t); });
  }

 private:
  // The same of the shared expert, which is read in full whatever steps keep.
  void add_shared(const Layer& l, int count) {
    const int H = p.H, width = s.shared_width, outputs = gate_up_outputs(s, width);
    const typename Prompt<W, K>::Range every = {0, count, false};
    ChunkInput input = p.input_of(H);
    p.each_step(count, [&](int t) { p.take(input, t, p.norm(l.mlp_norm, p.stream(t))); });
    p.multiply(l.shared.gate_up, input, outputs, every,
               [&](int t, int o, int n, const float* y) { std::copy_n(y, n, p.result(t, outputs) + o); });
    input = p.input_of(width);
    p.each_step(count, [&](int t) {
      float* gate = p.result(t, outputs);
      activate(s, l.shared, gate, width, gate);
      p.take(input, t, gate);
    });
    p.multiply(l.shared.down, input, H, every,
               [&](int t, int o, int n, const float* y) { std::copy_n(y, n, p.result(t, H) + o); });
    p.each_step(count, [&](int t) {
      const float share = shared_share(l, p.norm(l.mlp_norm, p.stream(t)), H);
      add_share(p.result(t, H), share, H, &p.e.prompt.heads[size_t(t) * H]);
    });
  }

  int place(int site, int step, int k) const { return ranges[site].place[step * s.experts_used + k]; }

  // The products of all ranges with their experts.
  void multiply(const Layer& l, int site, const ChunkInput& x, int out) {
    const int blocks = (out + BLOCK - 1) / BLOCK;
    p.each_task(int(ranges[site].ranges.size()) * blocks, [&](int i) {
      const ExpertRanges::Range& range = ranges[site].ranges[i / blocks];
      const Mlp& mlp = l.mlps[range.expert];
      p.multiply_block(site == INPUT ? mlp.gate_up : mlp.down, range.high_only, x, i % blocks, range.first, range.end, out,
                       [&](int t, int o, int n, const float* y) { std::copy_n(y, n, p.result(t, out) + o); });
    });
  }
};

}  // namespace solm
