// Matrix products of one thread, whose sums all threads share.
#pragma once

#include "dot_float.h"
#include "dot_integer.h"
#include "engine.h"
#include "select.h"

namespace solm {

// One step's input of a matrix: the values x of the channels that it keeps, ascending. With integer weights, most is the
// integer that the largest value of a group becomes; high_halves_only: the low halves of nested weights are not used.
struct Inputs {
  const int32_t* index;
  const float* x;
  int count;
  int most = 127;
  bool high_halves_only = false;
};

template <typename W>
struct Products {
  Engine& e;
  const int thread, threads, widest;
  bool sense = false;  // of the barrier
  bool half = false;   // which half of the partial sums is in use
  Inputs inputs[MOST_ROWS];
  std::vector<float> sums, picked, mixed;  // results; kept values of all steps; those of one matrix, side by side
  std::vector<int32_t> index, all, merged;
  std::vector<RoundedInput> rounded;

  // widest: the most inputs or outputs of a matrix; most_inputs: the most inputs of one.
  Products(Engine& engine, int t, int widest, int most_inputs)
      : e(engine), thread(t), threads(engine.s.threads), widest(widest), sums(size_t(MOST_ROWS) * widest),
        picked(size_t(MOST_ROWS) * widest + SPARE), index(size_t(MOST_ROWS) * widest + SPARE), all(widest) {
    std::iota(all.begin(), all.end(), 0);
    if (std::is_same_v<W, int8_t>) {
      rounded.resize(MOST_ROWS);
      for (RoundedInput& row : rounded) row.resize(most_inputs);
    } else {
      mixed.resize(size_t(MOST_ROWS) * widest), merged.resize(widest);
    }
  }

  void barrier() { e.barrier.wait(sense); }

  // Where a thread leaves sums for the others. The two halves alternate: before one is written again, all threads have passed
  // another barrier and finished reading it.
  float* partial(int t) const { return e.partial_sums[t].data() + (half ? e.partial_sums[t].size() / 2 : 0); }

  float* result(int row) { return sums.data() + size_t(row) * widest; }

  // result(row)[0:out] = scale * sum over kept inputs, for every step, in every thread. A thread adds up the same channels
  // whatever a step keeps and whatever steps it is computed with, so that results do not depend on the batch.
  // next: what this thread reads afterwards, if that is known. It is fetched while the memory is idle.
  void multiply(const Matrix& m, int in, int out, int rows, const Prefetch& next = {}) {
    constexpr bool integers = std::is_same_v<W, int8_t>;
    float* own_sums = partial(thread);
    const int stride = integers ? (out + BLOCK - 1) / BLOCK * BLOCK : out;
    std::fill_n(own_sums, size_t(rows) * stride, 0.0f);
    if constexpr (integers) multiply_integers(m, in, stride, rows, own_sums, next);
    else multiply_floats(static_cast<const W*>(m.data), in, out, rows, own_sums), fetch(next);
    barrier();
    for (int r = 0; r < rows; ++r) {
      float* to = result(r);
      const float* first = partial(0) + size_t(r) * stride;
      if (threads == 1) std::copy_n(first, out, to);
      for (int t = 1; t < threads; ++t, first = to) {
        const float* other = partial(t) + size_t(r) * stride;
#pragma GCC ivdep
        for (int o = 0; o < out; ++o) to[o] = first[o] + other[o];
      }
      if (m.scale) {
#pragma GCC ivdep
        for (int o = 0; o < out; ++o) to[o] *= m.scale[o];
      }
    }
    half = !half;
  }

  // What this thread reads first of a matrix, or of its low halves.
  Prefetch first_rows(const Matrix& m, int in, int out, bool low = false) const {
    const int stride = (out + BLOCK - 1) / BLOCK * BLOCK, groups = (in + GROUP - 1) / GROUP, from = groups * thread / threads;
    Prefetch next;
    if (!std::is_same_v<W, int8_t>) return next;
    next.bytes = m.grid ? stride / 2 : stride;
    for (int i = from * GROUP; i < std::min(in, (from + 1) * GROUP); ++i)
      next.row[next.count++] = static_cast<const uint8_t*>(low ? m.low : m.data) + size_t(i) * next.bytes;
    next.pad();
    return next;
  }

  void multiply_floats(const W* weights, int in, int out, int rows, float* own_sums) {
    const int low = in * thread / threads, high = in * (thread + 1) / threads;
    auto within = [&](const Inputs& row) {
      const int32_t* end = row.index + row.count;
      return std::pair(int(std::lower_bound(row.index, end, low) - row.index),
                       int(std::lower_bound(row.index, end, high) - row.index));
    };
    if (rows == 1) {
      const auto [from, to] = within(inputs[0]);
      accumulate(weights, out, inputs[0].index + from, inputs[0].x + from, to - from, own_sums);
    } else {
      const int count = merge(low, high, rows, within);
      accumulate_many(weights, out, merged.data(), mixed.data(), count, rows, own_sums);
    }
  }

  void multiply_integers(const Matrix& m, int in, int out, int rows, float* own_sums, const Prefetch& after) {
    const int groups = (in + GROUP - 1) / GROUP;
    const int from = groups * thread / threads, to = groups * (thread + 1) / threads;
    if (from == to) return fetch(after);
    for (int r = 0; r < rows; ++r)
      rounded[r].round(inputs[r].index, inputs[r].x, inputs[r].count, from, to, inputs[r].most);
    const bool whole = m.low && !std::all_of(inputs, inputs + rows, [](const Inputs& row) { return row.high_halves_only; });
    const Prefetch low = whole ? first_rows(m, in, out, true) : Prefetch();
    stream_groups<false>(m, from, to, out, rows, own_sums, whole ? low : after);
    if (whole) stream_groups<true>(m, from, to, out, rows, own_sums, after);
  }

  // Adds the products of groups [from, to). LOW: of the low halves of nested weights, for the steps that use them.
  template <bool LOW>
  void stream_groups(const Matrix& m, int from, int to, int out, int rows, float* own_sums, const Prefetch& after) {
    const uint8_t* weights = static_cast<const uint8_t*>(LOW ? m.low : m.data);
    const size_t bytes = m.grid ? out / 2 : out;
    auto takes = [&](int r) { return !LOW || !inputs[r].high_halves_only; };
    Group two[2];
    two[from % 2].gather(from, rounded.data(), rows, weights, bytes, takes);
    for (int g = from; g < to; ++g) {
      const Group& now = two[g % 2];
      Group& next = two[(g + 1) % 2];
      const bool last = g + 1 == to;
      if (!last) next.gather(g + 1, rounded.data(), rows, weights, bytes, takes);
      PrefetchCursor cursor{last ? after : next};
      const uint16_t* grid = m.grid + size_t(2) * g * out;
      if (now.count && m.grid) add_packed_group<LOW>(now, cursor, rows, grid, last ? grid : grid + size_t(2) * out, out, own_sums);
      else if (now.count) add_group(now, cursor, rows, out, own_sums);
      while (cursor.left()) cursor.fetch();
    }
  }

  // Lists the channels of [low, high) that any step keeps in `merged`, with every step's values of them, 0 where skipped, in
  // `mixed`. Returns their number.
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

  // Takes all channels of x [rows, n] as inputs.
  void keep_all(const float* x, int n, int rows) {
    for (int r = 0; r < rows; ++r) inputs[r] = {all.data(), x + size_t(r) * n, n};
  }

  // Takes the `count` channels of largest magnitude of x [n], rounded to the plan's bits, as the input of `row`.
  void keep_largest(const float* x, int n, int count, const Plan& plan, int row) {
    int32_t* kept = index.data() + size_t(row) * widest;
    float* rounded = picked.data() + size_t(row) * widest;
    const int found = select(x, n, count, kept, rounded);
    round_to_grid(kept, rounded, found, plan.bits, plan.group ? plan.group : n);
    // Values on such a grid are integers already and are not rounded again.
    const bool exact = plan.bits <= 8 && plan.group == GROUP;
    inputs[row] = {kept, rounded, found, exact ? (1 << (plan.bits - 1)) - 1 : 127, plan.high_halves_only != 0};
  }
};

}  // namespace solm
