// One thread's part of reading prompts: dense steps of many known tokens, layer by layer for a chunk of them at a time.
#pragma once

#include "gemm.h"
#include "prompt_attention.h"
#include "token.h"

namespace solm {

template <typename W, typename K>
struct Prompt {
  Engine& e;
  const int thread, threads, H, I, D, Q, KV;
  bool& sense;        // of the barrier
  int phase = 0;      // which counter of tasks is in use
  struct Part {
    int first, count;
  };
  std::vector<Part> page_parts, query_parts;  // of a chunk
  std::vector<float> normed;                  // of a token
  TileProducts<W> products;
  PromptAttention<K> attention;

  Prompt(Engine& engine, int t, bool& sense)
      : e(engine), thread(t), threads(engine.s.threads), H(engine.s.hidden), I(engine.s.intermediate), D(engine.s.head_dim),
        Q(engine.s.heads), KV(engine.s.kv_heads), sense(sense), attention(engine.s) {}

  void reserve(int tokens) {
    products.reserve(tokens), attention.reserve();
    page_parts.reserve(tokens), query_parts.reserve(tokens), normed.resize(std::max(H, Q * D));
  }

  // Steps [start, start + count) of the call through all layers: leaves the inputs of the head in e.prompt.heads [count, H].
  void read(int start, int count) {
    const Step* steps = &e.steps[start];
    split(steps, count);
    each_token(count, [&](int t) { embed(e, steps[t].token, stream(t)); });
    for (int l = 0; l < e.s.layers; ++l) layer(l, steps, count);
    each_token(count, [&](int t) {
      float* normed = &e.prompt.heads[size_t(t) * H];
      rms_norm(stream(t), e.final_norm, H, e.s.epsilon, normed);
      if (e.call->stream) std::copy_n(normed, H, e.call->stream + size_t(start + t) * H);
      multiply_all(normed, H, e.s.logit_scale);
    });
  }

 private:
  float* stream(int token) const { return &e.prompt.stream[size_t(token) * H]; }
  float* result(int token, int width) const { return &e.prompt.results[size_t(token) * width]; }

  ChunkInput input_of(int channels) const {
    PromptRoom& room = e.prompt;
    const int stride = rounded_up(channels, GROUP);
    return {channels, stride, stride / GROUP, room.dense.data(), room.scale.data(), room.sum.data(), room.half_sum.data(), room.number.data()};
  }

  // Calls use(i) for all i below count, each in the thread that comes first, and waits for all of them.
  template <typename Use>
  void each_task(int count, Use use) {
    std::atomic<int>& next = e.prompt.next[phase];
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) use(i);
    e.barrier.wait(sense);
    if (thread == 0) next.store(0, std::memory_order_relaxed);  // before the next barrier, behind which it is used again
    phase = 1 - phase;
  }

  template <typename Use>
  void each_token(int count, Use use) {
    constexpr int AT_ONCE = 8;
    each_task((count + AT_ONCE - 1) / AT_ONCE, [&](int i) {
      for (int t = i * AT_ONCE; t < std::min((i + 1) * AT_ONCE, count); ++t) use(t);
    });
  }

  void layer(int number, const Step* steps, int count) {
    const Layer& l = e.layers[number];
    const int wide = (Q + 2 * KV) * D;
    ChunkInput input = input_of(H);
    each_token(count, [&](int t) { take(input, t, stream(t), l.attention_norm); });
    multiply(l.qkv, input, wide, count, [&](int t, int o, int n, const float* y) { std::copy_n(y, n, result(t, wide) + o); });
    append_keys_and_values(number, steps);
    attend(number, steps);
    input = input_of(Q * D);
    each_token(count, [&](int t) { take(input, t, &e.prompt.heads[size_t(t) * Q * D], nullptr); });
    add_product(l.out, input, l.attention_output_norm, count);
    input = input_of(H);
    each_token(count, [&](int t) { take(input, t, stream(t), l.mlp_norm); });
    multiply(l.gate_up, input, 2 * I, count, [&](int t, int o, int n, const float* y) { std::copy_n(y, n, result(t, 2 * I) + o); });
    input = input_of(I);
    each_token(count, [&](int t) {
      float* gate = result(t, 2 * I);
      activate(e.s.activation, gate, gate + I, I, gate);
      take(input, t, gate, nullptr);
    });
    add_product(l.down, input, l.mlp_output_norm, count);
  }

  // Makes x, normed if there is a norm, an input of the next product.
  void take(const ChunkInput& input, int token, const float* x, const float* norm) {
    constexpr bool integers = std::is_same_v<W, int8_t>;
    float* to = integers ? normed.data() : input.dense + size_t(token) * input.stride;
    if (norm) rms_norm(x, norm, input.channels, e.s.epsilon, to);
    else if (!integers) std::copy_n(x, input.channels, to);
    if constexpr (integers) input.round(token, norm ? to : x);
  }

  // Calls done(token, first output, their number, y) for the products of all tokens of the chunk with all outputs.
  template <typename Done>
  void multiply(const Product& p, const ChunkInput& x, int out, int count, Done done) {
    constexpr int TASKS_PER_THREAD = 8, LEAST = 3 * ROW_STEP;  // tokens of a task
    const int blocks = (out + BLOCK - 1) / BLOCK, wanted = (TASKS_PER_THREAD * threads + blocks - 1) / blocks;
    const int tokens = std::max(LEAST, rounded_up((count + wanted - 1) / wanted, ROW_STEP));
    const int parts = (count + tokens - 1) / tokens;
    each_task(blocks * parts, [&](int i) {
      const int first = i / parts * BLOCK, from = i % parts * tokens, to = std::min(from + tokens, count);
      const Matrix* m = p.part;
      int begin = 0;  // of the outputs of m
      while (first >= begin + m->outputs) begin += m++->outputs;
      const int within = first - begin, n = std::min(BLOCK, out - first);
      const float* y = products.multiply(*m, x, within / BLOCK, from, to);
      for (int t = from; t < to; ++t, y += BLOCK) {
        float scaled[BLOCK];
        for (int o = 0; m->scale && o < n; ++o) scaled[o] = y[o] * m->scale[within + o];
        done(t, first, n, m->scale ? scaled : y);
      }
    });
  }

  // Adds a product, normed if there is a norm, to the residual stream.
  void add_product(const Product& p, const ChunkInput& x, const float* norm, int count) {
    const float scale = e.s.residual_scale;
    multiply(p, x, H, count, [&](int t, int o, int n, const float* y) {
      float* to = (norm ? result(t, H) : stream(t)) + o;
      for (int i = 0; i < n; ++i) to[i] = norm ? y[i] : to[i] + scale * y[i];
    });
    if (!norm) return;
    each_token(count, [&](int t) {
      float *added = result(t, H), *x = stream(t);
      rms_norm(added, norm, H, e.s.epsilon, added);
      for (int i = 0; i < H; ++i) x[i] += scale * added[i];
    });
  }

  // Places queries and keys, and writes keys and values to the cache: page by page, since a page is one thread's to write.
  void append_keys_and_values(int number, const Step* steps) {
    each_task(int(page_parts.size()), [&](int i) {
      const Part& part = page_parts[i];
      for (int t = part.first; t < part.first + part.count; ++t) {
        float* queries = result(t, (Q + 2 * KV) * D);
        place_token(e, e.layers[number], steps[t].position, queries);
        append_token<K>(e, steps[t], number, queries);
      }
    });
  }

  void attend(int number, const Step* steps) {
    const size_t wide = size_t(Q + 2 * KV) * D, group = size_t(Q / KV) * D;
    const int parts = int(query_parts.size());
    each_task(parts * KV, [&](int i) {
      const Part& part = query_parts[parts - 1 - i / KV];  // the longest ones first
      const Step& step = steps[part.first];
      const int head = i % KV;
      attention.attend(*step.cache, number, head, step.position, part.count, e.layers[number].window,
                       result(part.first, wide) + head * group, wide,
                       &e.prompt.heads[size_t(part.first) * Q * D + head * group], size_t(Q) * D);
    });
  }

  // Splits a chunk into neighbours of one row: those of a page, and those whose queries make a block.
  void split(const Step* steps, int count) {
    const int most = std::clamp(count * KV / (4 * threads), 1, PromptAttention<K>::tokens(e.s));
    page_parts.clear(), query_parts.clear();
    for (int t = 0; t < count; ++t) {
      const bool next = t > 0 && steps[t].cache == steps[t - 1].cache;
      if (!next || steps[t].position % PAGE == 0) page_parts.push_back({t, 0});
      if (!next || query_parts.back().count == most) query_parts.push_back({t, 0});
      ++page_parts.back().count, ++query_parts.back().count;
    }
  }
};

}  // namespace solm
