// One thread's way through the layers.
#pragma once

#include <utility>

#include "decide.h"

// What one step puts into a matrix: values of the input channels that it keeps, ascending.
struct Inputs {
  const int32_t* index;
  const float* x;
  int count;
  int most = 127;  // whole number that the largest of a group becomes, where weights are integers
};

constexpr int AHEAD = 2;        // pages fetched before they are read
constexpr float REACH = 8;  // how far below the largest a screened logit is exact

template <typename W, typename K>
struct Walker {
  Engine& e;
  const int thread, threads, H, I, D, Q, KV, widest, each;  // each: numbers of a query in the form of `Query`
  bool sense, turn = false;
  // Of all steps: residual streams, what was multiplied, kept channels and their values.
  std::vector<float> streams, normed, sums, picked, heads;
  std::vector<int32_t> index, all;
  // Scratch of one step at a time, and of one matrix.
  std::vector<float> values, signs, mass, mixed;
  std::vector<Query<K>> query;
  std::vector<int32_t> pages, merged;
  Inputs inputs[MOST_ROWS];
  std::vector<Rounded> rounded;

  Walker(Engine& engine, int t, int rows)
      : e(engine), thread(t), threads(engine.s.threads), H(e.s.hidden), I(e.s.intermediate), D(e.s.head_dim),
        Q(e.s.heads), KV(e.s.kv_heads), widest(std::max({2 * I, (Q + 2 * KV) * D, H, Q * D})),
        each(sizeof(K) == 4 ? D : D / 2), sense(engine.senses[t]) {
    streams.resize(size_t(rows) * H), normed.resize(size_t(rows) * H), heads.resize(size_t(rows) * Q * D);
    sums.resize(size_t(rows) * widest), picked.resize(size_t(rows) * widest), index.resize(size_t(rows) * widest);
    values.resize(I), signs.resize(2 * D), all.resize(widest);
    query.resize(size_t(each) * std::max(2, Q / KV));
    for (int i = 0; i < widest; ++i) all[i] = i;
    if (std::is_same_v<W, int8_t>) {
      rounded.resize(rows);
      for (Rounded& row : rounded) row.resize(std::max({H, I, Q * D}));
    }
    if (rows > 1) mixed.resize(size_t(rows) * widest), merged.resize(widest);
  }

  void meet() { e.barrier->wait(sense); }

  // Where a thread leaves sums for the others. Two places in turn: by the time one is written again, everyone has met
  // once more and is done reading it.
  float* partial(int t) const { return e.shared[t].data() + (turn ? e.shared[t].size() / 2 : 0); }

  float* result(int row) { return sums.data() + size_t(row) * widest; }

  // result(row)[0:out] = scale * sum over kept inputs, for every row; every thread ends with all of it. A thread adds up
  // the same channels whatever a row keeps and whatever rows go with it.
  // next [next_in, next_out]: the matrix that comes after it, if that is known.
  void multiply(const Matrix& m, int in, int out, int rows, const Matrix* next = nullptr, int next_in = 0,
                int next_out = 0) {
    constexpr bool integers = std::is_same_v<W, int8_t>;
    float* mine = partial(thread);
    const int stride = integers ? (out + BLOCK - 1) / BLOCK * BLOCK : out;
    std::fill_n(mine, size_t(rows) * stride, 0.0f);
    if constexpr (integers) multiply_integers(m, in, stride, rows, mine);
    else multiply_floats(static_cast<const W*>(m.data), in, out, rows, mine);
    if (next) warm(*next, next_in, next_out);
    meet();
    for (int r = 0; r < rows; ++r) {
      float* to = result(r);
      std::copy_n(partial(0) + size_t(r) * stride, out, to);
      for (int t = 1; t < threads; ++t) {
        const float* other = partial(t) + size_t(r) * stride;
#pragma GCC ivdep
        for (int o = 0; o < out; ++o) to[o] += other[o];
      }
      if (m.scale) {
#pragma GCC ivdep
        for (int o = 0; o < out; ++o) to[o] *= m.scale[o];
      }
    }
    turn = !turn;
  }

  // Fetch what this thread will read of a matrix first, while memory has nothing else to do.
  void warm(const Matrix& m, int in, int out) const {
    if constexpr (std::is_same_v<W, int8_t>) {
      const size_t stride = (out + BLOCK - 1) / BLOCK * BLOCK, bytes = m.grid ? stride / 2 : stride;
      const int groups = (in + GROUP - 1) / GROUP, from = groups * thread / threads;
      fetch(static_cast<const uint8_t*>(m.data) + size_t(from) * GROUP * bytes, std::min(GROUP, in) * bytes);
    }
  }

  void multiply_floats(const W* weights, int in, int out, int rows, float* mine) {
    const int low = in * thread / threads, high = in * (thread + 1) / threads;
    auto within = [&](const Inputs& row) {
      const int32_t* end = row.index + row.count;
      return std::pair(int(std::lower_bound(row.index, end, low) - row.index),
                       int(std::lower_bound(row.index, end, high) - row.index));
    };
    if (rows == 1) {
      const auto [from, to] = within(inputs[0]);
      accumulate(weights, out, inputs[0].index + from, inputs[0].x + from, to - from, mine);
    } else {
      const int count = merge(low, high, rows, within);
      accumulate_many(weights, out, merged.data(), mixed.data(), count, rows, mine);
    }
  }

  void multiply_integers(const Matrix& m, int in, int out, int rows, float* mine) {
    const int groups = (in + GROUP - 1) / GROUP;
    const int from = groups * thread / threads, to = groups * (thread + 1) / threads;
    if (from == to) return;
    const uint8_t* weights = static_cast<const uint8_t*>(m.data);
    const size_t bytes = m.grid ? out / 2 : out;
    for (int r = 0; r < rows; ++r)
      rounded[r].round(inputs[r].index, inputs[r].x, inputs[r].count, from, to, inputs[r].most);
    Group two[2];
    two[from % 2].gather(from, rounded.data(), rows, weights, bytes);
    for (int g = from; g < to; ++g) {
      const Group& now = two[g % 2];
      Group& next = two[(g + 1) % 2];
      next.count = 0;
      if (g + 1 < to) next.gather(g + 1, rounded.data(), rows, weights, bytes);
      const uint16_t* grid = m.grid + size_t(2) * g * out;
      if (now.count && m.grid)
        add_packed_group(now, next, rows, grid, g + 1 < to ? grid + size_t(2) * out : grid, out, mine);
      else if (now.count)
        add_group(now, next, rows, out, mine);
    }
  }

  // Channels from low to high that any row keeps, in `merged`, and every row's values of them in `mixed`, 0 where it
  // skips one. Returns how many.
  template <typename Within>
  int merge(int low, int high, int rows, Within within) {
    int32_t* used = merged.data();
    std::fill_n(used, high - low, 0);
    std::fill_n(mixed.data(), size_t(high - low) * rows, 0.0f);
    for (int r = 0; r < rows; ++r) {
      const Inputs& row = inputs[r];
      const auto [from, to] = within(row);
      for (int i = from; i < to; ++i) {
        const int c = row.index[i] - low;
        mixed[size_t(c) * rows + r] = row.x[i];
        used[c] = 1;
      }
    }
    int count = 0;
    for (int c = 0; c < high - low; ++c) {
      if (!used[c]) continue;
      if (count < c) std::copy_n(&mixed[size_t(c) * rows], rows, &mixed[size_t(count) * rows]);
      merged[count++] = low + c;
    }
    return count;
  }

  // All channels of x [rows, n] as inputs.
  void keep_all(const float* x, int n, int rows) {
    for (int r = 0; r < rows; ++r) inputs[r] = {all.data(), x + size_t(r) * n, n};
  }

  // The `count` channels of largest magnitude of x [n], rounded to the plan's bits, as the input of `row`.
  void keep_largest(const float* x, int n, int count, const Plan& plan, int row) {
    int32_t* kept = index.data() + size_t(row) * widest;
    float* rounded = picked.data() + size_t(row) * widest;
    const int found = select(x, n, count, kept, rounded);
    quantise(kept, rounded, found, plan.bits, plan.group ? plan.group : n);
    // What lies on a grid of so few bits already goes on as it is.
    const bool exact = plan.bits <= 8 && plan.group == GROUP;
    inputs[row] = {kept, rounded, found, exact ? (1 << (plan.bits - 1)) - 1 : 127};
  }

  void rotate(float* x, int position) const {
    const float *c = e.cosine + size_t(position) * D, *s = e.sine + size_t(position) * D;
    const int half = D / 2;
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * c[i] - b * s[i];
      x[i + half] = b * c[i + half] + a * s[i + half];
    }
  }

  void append(Cache& cache, int layer, int head, int position, const float* key, const float* value) const {
    const int block = position / PAGE, slot = position % PAGE;
    K* keys = cache.tile<K>(cache.keys, e.s, layer, head, block);
    K* values = cache.tile<K>(cache.values, e.s, layer, head, block);
    for (int d = 0; d < D; ++d) {
      keys[tile_at<K>(d, slot)] = store<K>(key[d]);
      values[value_at<K>(slot, d, D)] = store<K>(value[d]);
    }
    if (slot < PAGE - 1) return;
    // Whole: only now can a window of at least a page have left the block behind, and bounds be asked for.
    K* low = cache.bounds<K>(cache.low, e.s, layer, head, block);
    K* high = cache.bounds<K>(cache.high, e.s, layer, head, block);
    for (int d = 0; d < D; ++d) {
      K least = keys[tile_at<K>(d, 0)], most = least;
      for (int t = 1; t < PAGE; ++t) {
        const K k = keys[tile_at<K>(d, t)];
        if (widen(k) < widen(least)) least = k;
        if (widen(k) > widen(most)) most = k;
      }
      low[tile_at<K>(d, block % PAGE)] = least, high[tile_at<K>(d, block % PAGE)] = most;
    }
  }

  // Blocks that the query heads of one KV head read, ascending.
  void choose(const Cache& cache, int layer, int head, int seen, const float* queries, const Plan& plan) {
    const int count = (seen + PAGE - 1) / PAGE;
    pages.clear();
    const int start = plan.window_start / PAGE, sinks = std::min((plan.sinks + PAGE - 1) / PAGE, start);
    if (!plan.sparse || plan.pages >= start - sinks) {
      for (int b = 0; b < count; ++b) pages.push_back(b);
      return;
    }
    for (int b = 0; b < sinks; ++b) pages.push_back(b);
    if (plan.pages > 0) {
      for (int d = 0; d < D; ++d) {
        float p = 0, n = 0;
        for (int g = 0; g < Q / KV; ++g) {
          const float q = queries[g * D + d];
          p += std::max(q, 0.0f), n += std::min(q, 0.0f);
        }
        signs[d] = p, signs[D + d] = n;
      }
      prepare(signs.data(), 2 * D, 1, query.data());
      mass.resize(std::max<size_t>(mass.size(), start + PAGE));
      for (int b = sinks / PAGE * PAGE; b < start; b += PAGE) {
        Lanes sum = Lanes::zero();
        meet_tile<1>(cache.bounds<K>(cache.high, e.s, layer, head, b), query.data(), D, &sum);
        meet_tile<1>(cache.bounds<K>(cache.low, e.s, layer, head, b), query.data() + each, D, &sum);
        sum.write(mass.data() + b);
      }
      pages.resize(sinks + plan.pages + 1);
      int kept = sinks;
      largest(mass.data() + sinks, start - sinks, plan.pages, 32, order, [&](int b, bool keep) {
        pages[kept] = sinks + b;
        kept += keep;
      });
      pages.resize(kept);
    }
    for (int b = start; b < count; ++b) pages.push_back(b);
  }

  // A thread's share of one step's attention, left for the others at `mine`: per query head D sums, peak, total.
  void attend(const Cache& cache, int layer, int seen, const float* queries, const Plan& plan, float* mine) {
    const int group = Q / KV, width = D + 2;
    const float scale = 1.0f / std::sqrt(float(D));
    for (int head = 0; head < KV; ++head) {
      choose(cache, layer, head, seen, queries + head * group * D, plan);
      const int count = int(pages.size()), from = count * thread / threads, to = count * (thread + 1) / threads;
      const int n = (to - from) * PAGE;
      mass.resize(std::max<size_t>(mass.size(), size_t(group) * n));
      float* scores[MOST_QUERIES];
      float* out[MOST_QUERIES];
      for (int g = 0; g < group; ++g) {
        out[g] = mine + (head * group + g) * width;
        std::fill_n(out[g], D, 0.0f);
      }
      prepare(queries + head * group * D, group * D, scale, query.data());
      const K* keys = cache.tile<K>(cache.keys, e.s, layer, head, 0);
      const K* values = cache.tile<K>(cache.values, e.s, layer, head, 0);
      const size_t size = size_t(PAGE) * D;
      for (int p = from; p < to; ++p) {
        for (int g = 0; g < group; ++g) scores[g] = mass.data() + size_t(g) * n + (p - from) * PAGE;
        if (p + AHEAD < to) fetch(keys + pages[p + AHEAD] * size, size * sizeof(K));
        score_block(keys + pages[p] * size, query.data(), group, D, scores);
        for (int t = std::min(PAGE, seen - pages[p] * PAGE); t < PAGE; ++t)
          for (int g = 0; g < group; ++g) scores[g][t] = -INFINITY;
      }
      for (int g = 0; g < group; ++g) {
        scores[g] = mass.data() + size_t(g) * n;
        float total;
        out[g][D] = soften(scores[g], n, total);
        out[g][D + 1] = total;
      }
      for (int p = from; p < to; ++p) {
        const float* weights[MOST_QUERIES];
        for (int g = 0; g < group; ++g) weights[g] = scores[g] + (p - from) * PAGE;
        if (p + AHEAD < to) fetch(values + pages[p + AHEAD] * size, size * sizeof(K));
        mix_page(values + pages[p] * size, std::min(PAGE, seen - pages[p] * PAGE), D, weights, group, out);
      }
    }
  }

  // to[0 : Q D] from what all threads left at `offset`.
  void gather(size_t offset, float* to) const {
    const int width = D + 2;
    for (int h = 0; h < Q; ++h) {
      float peak = -INFINITY, total = 0;
      for (int t = 0; t < threads; ++t) peak = std::max(peak, partial(t)[offset + size_t(h) * width + D]);
      std::fill_n(to + h * D, D, 0.0f);
      for (int t = 0; t < threads; ++t) {
        const float* part = partial(t) + offset + size_t(h) * width;
        if (part[D + 1] <= 0) continue;
        const float weight = std::exp(part[D] - peak);
        total += weight * part[D + 1];
        for (int d = 0; d < D; ++d) to[h * D + d] += weight * part[d];
      }
      for (int d = 0; d < D; ++d) to[h * D + d] /= total;
    }
  }

  void layer(int number, int start, int rows) {
    const Layer& l = e.layers[number];
    const int wide = (Q + 2 * KV) * D;
    const size_t share = size_t(Q) * (D + 2);
    for (int r = 0; r < rows; ++r)
      rms_norm(&streams[size_t(r) * H], l.attention_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
    keep_all(normed.data(), H, rows);
    multiply(l.qkv, H, wide, rows);
    for (int r = 0; r < rows; ++r) {
      float* queries = result(r);
      if (l.qkv_bias)
        for (int o = 0; o < wide; ++o) queries[o] += l.qkv_bias[o];
      for (int h = 0; h < Q + KV; ++h) {
        float* head = queries + h * D;
        const float* norm = h < Q ? l.q_norm : l.k_norm;
        if (norm) rms_norm(head, norm, D, e.s.epsilon, head);
        rotate(head, e.positions[start + r]);
      }
      const float *key = queries + Q * D, *value = key + KV * D;
      if (thread == 0)
        for (int h = 0; h < KV; ++h)
          append(*e.caches[start + r], number, h, e.positions[start + r], key + h * D, value + h * D);
    }
    meet();
    for (int r = 0; r < rows; ++r)
      attend(*e.caches[start + r], number, e.positions[start + r] + 1, result(r), e.plans[start + r],
             partial(thread) + r * share);
    warm(l.out, Q * D, H);
    meet();
    for (int r = 0; r < rows; ++r) gather(r * share, &heads[size_t(r) * Q * D]);
    turn = !turn;
    keep_all(heads.data(), Q * D, rows);
    multiply(l.out, Q * D, H, rows, &l.gate_up, H, 2 * I);

    for (int r = 0; r < rows; ++r) {
      float* x = &streams[size_t(r) * H];
      const float* added = result(r);
      for (int i = 0; i < H; ++i) x[i] += added[i];
      rms_norm(x, l.mlp_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
      const Plan& plan = e.plans[start + r];
      keep_largest(&normed[size_t(r) * H], H, plan.inputs, plan, r);
    }
    multiply(l.gate_up, H, 2 * I, rows, &l.down, I, H);
    for (int r = 0; r < rows; ++r) {
      const Plan& plan = e.plans[start + r];
      gated(result(r), result(r) + I, I, values.data());
      keep_largest(values.data(), I, plan.hiddens, plan, r);
    }
    const Matrix* following = number + 1 < e.last ? &e.layers[number + 1].qkv : nullptr;
    multiply(l.down, I, H, rows, following, H, wide);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < H; ++i) streams[size_t(r) * H + i] += result(r)[i];
  }

  // Decide a step from the residual stream x that enters the layer of the turn.
  void take(int step, const float* x) {
    Row& row = e.rows[step / e.count];
    if (!row.decider) return;
    const Decider& d = *row.decider;
    const int kv_length = e.positions[step] + 1;
    const bool counted = controllable(*e.rules, kv_length);
    int level[3];
    double keep[3], whole[3];
    e.actions[step] = decide(d, Realised(d, *e.rules, e.s, kv_length), e.s, x, e.actions[step], counted, row,
                             e.realised + 3 * size_t(step));
    levels_of(d, e.actions[step], level);
    for (int axis = 0; axis < 3; ++axis) keep[axis] = d.levels[axis][level[axis]];
    e.plans[step] = make_plan(*e.rules, e.s, keep, kv_length, whole);
  }

  void run() {
    for (int start = 0; start < e.steps; start += MOST_ROWS) walk(start, std::min(MOST_ROWS, e.steps - start));
    meet();
    e.senses[thread] = sense;
  }

  void walk(int start, int rows) {
    for (int r = 0; r < rows; ++r) {
      float* x = &streams[size_t(r) * H];
      if (e.first > 0) {
        std::copy_n(e.stream + size_t(start + r) * H, H, x);
        continue;
      }
      const W* source = static_cast<const W*>(e.embedding) + size_t(e.tokens[start + r]) * H;
      const float scale = e.embedding_scale ? e.embedding_scale[e.tokens[start + r]] : 1.0f;
      for (int i = 0; i < H; ++i) x[i] = scale * widen(source[i]);
    }
    for (int l = e.first; l < e.last; ++l) {
      if (l == e.turn) {
        if (thread == 0)
          for (int r = 0; r < rows; ++r) take(start + r, &streams[size_t(r) * H]);
        meet();
      }
      layer(l, start, rows);
    }
    meet();  // everyone has read the stream
    if (e.last < e.s.layers) {
      if (thread == 0) std::copy_n(streams.data(), size_t(rows) * H, e.stream + size_t(start) * H);
      return;
    }
    for (int r = 0; r < rows; ++r)
      rms_norm(&streams[size_t(r) * H], e.final_norm, H, e.s.epsilon, &normed[size_t(r) * H]);
    if (thread == 0) std::copy_n(normed.data(), size_t(rows) * H, e.stream + size_t(start) * H);
    if (!e.logits) return;
    if (e.plane) screened_head(start, rows);
    else exact_head(start, rows);
  }

  // Of the vocabulary, this thread's share.
  int head_start(int t) const { return int(int64_t(e.s.vocabulary) * t / threads); }

  // Calls use.operator()<T>(r, x): T rows from r on, at most four at a time, with what the head reads of them.
  template <typename Use>
  void four_by_four(int rows, Use use) const {
    for (int r = 0; r < rows; r += 4) {
      const float* x[4];
      const int here = std::min(4, rows - r);
      for (int k = 0; k < here; ++k) x[k] = &normed[size_t(r + k) * H];
      switch (here) {
        case 4: use.template operator()<4>(r, x); break;
        case 3: use.template operator()<3>(r, x); break;
        case 2: use.template operator()<2>(r, x); break;
        default: use.template operator()<1>(r, x);
      }
    }
  }

  void exact_head(int start, int rows) const {
    const W* weights = static_cast<const W*>(e.head.data);
    for (int v = head_start(thread); v < head_start(thread + 1); ++v) {
      const float scale = e.head.scale ? e.head.scale[v] : 1.0f;
      four_by_four(rows, [&]<int T>(int r, const float* const* x) {
        float score[T];
        dots<T>(weights + size_t(v) * H, x, H, score);
        for (int k = 0; k < T; ++k) logit(start + r + k, v) = score[k] * scale;
      });
    }
  }

  // Logits from the high halves of the head's weights, which are half of the bytes, then exactly those that come within
  // REACH of the largest. What the low halves would have added is as good as random, with a known spread: taking off half
  // its square keeps the sum of the exponentials right on average.
  void screened_head(int start, int rows) {
    const int from = head_start(thread), to = head_start(thread + 1);
    float offset[MOST_ROWS], spread[MOST_ROWS];
    for (int r = 0; r < rows; ++r) {
      const float* x = &normed[size_t(r) * H];
      float sum = 0;
      for (int i = 0; i < H; ++i) sum += x[i];
      offset[r] = (7.5f - 16 * 8) * sum;
      spread[r] = 0.5f * (16.0f * 16 - 1) / 12 * dot(x, x, H);
    }
    float* peak = partial(thread);
    std::fill_n(peak, rows, -INFINITY);
    for (int v = from; v < to; ++v) {
      const float scale = e.head.scale[v];
      four_by_four(rows, [&]<int T>(int r, const float* const* x) {
        float score[T];
        number_dots<T>(e.plane + size_t(v) * (H / 2), x, H, score);
        for (int k = 0; k < T; ++k) {
          const float found = scale * (16 * score[k] + offset[r + k] - scale * spread[r + k]);
          logit(start + r + k, v) = found;
          peak[r + k] = std::max(peak[r + k], found);
        }
      });
    }
    meet();
    const W* weights = static_cast<const W*>(e.head.data);
    for (int r = 0; r < rows; ++r) {
      float least = -INFINITY;
      for (int t = 0; t < threads; ++t) least = std::max(least, partial(t)[r] - REACH);
      float* logits = &logit(start + r, 0);
      for (int v = from; v < to; ++v)
        if (logits[v] >= least) logits[v] = e.head.scale[v] * dot(weights + size_t(v) * H, &normed[size_t(r) * H], H);
    }
    turn = !turn;
  }

  float& logit(int step, int v) const { return e.logits[size_t(step) * e.s.vocabulary + v]; }
};
