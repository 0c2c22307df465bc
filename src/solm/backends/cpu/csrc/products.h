// Matrix products of one thread, whose sums it shares with the others.
#pragma once

#include "integers.h"
#include "model.h"

// What one step puts into a matrix: values of the input channels that it keeps, ascending.
struct Inputs {
  const int32_t* index;
  const float* x;
  int count;
  int most = 127;  // whole number that the largest of a group becomes, where weights are integers
  bool halved = false;  // meets the high halves of nested weights alone
};

template <typename W>
struct Products {
  Engine& e;
  const int thread, threads, widest;
  bool sense, turn = false;
  Inputs inputs[MOST_ROWS];
  std::vector<float> sums, picked, mixed;  // results; kept values of all steps; those of a matrix, side by side
  std::vector<int32_t> index, all, merged;
  std::vector<Rounded> rounded;

  // widest: of what a matrix takes or gives; inward: of what one takes.
  Products(Engine& engine, int t, int rows, int widest, int inward)
      : e(engine), thread(t), threads(engine.s.threads), widest(widest), sense(engine.senses[t]) {
    sums.resize(size_t(rows) * widest), picked.resize(size_t(rows) * widest + SPARE), index.resize(size_t(rows) * widest + SPARE);
    all.resize(widest);
    for (int i = 0; i < widest; ++i) all[i] = i;
    if (std::is_same_v<W, int8_t>) {
      rounded.resize(rows);
      for (Rounded& row : rounded) row.resize(inward);
    } else if (rows > 1) {
      mixed.resize(size_t(rows) * widest), merged.resize(widest);
    }
  }

  void meet() { e.barrier->wait(sense); }

  // Where a thread leaves sums for the others. Two places in turn: by the time one is written again, everyone has met
  // once more and is done reading it.
  float* partial(int t) const { return e.shared[t].data() + (turn ? e.shared[t].size() / 2 : 0); }

  float* result(int row) { return sums.data() + size_t(row) * widest; }

  // result(row)[0:out] = scale * sum over kept inputs, for every row; every thread ends with all of it. A thread adds up
  // the same channels whatever a row keeps and whatever rows go with it.
  // next: what this thread reads after it, if that is known; fetched while memory has nothing else to do.
  void multiply(const Matrix& m, int in, int out, int rows, const Coming& next = {}) {
    constexpr bool integers = std::is_same_v<W, int8_t>;
    float* mine = partial(thread);
    const int stride = integers ? (out + BLOCK - 1) / BLOCK * BLOCK : out;
    std::fill_n(mine, size_t(rows) * stride, 0.0f);
    if constexpr (integers) multiply_integers(m, in, stride, rows, mine, next);
    else multiply_floats(static_cast<const W*>(m.data), in, out, rows, mine), fetch(next);
    meet();
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
    turn = !turn;
  }

  // What this thread will read of a matrix first, or of its low halves.
  Coming beginning(const Matrix& m, int in, int out, bool low = false) const {
    const int stride = (out + BLOCK - 1) / BLOCK * BLOCK, groups = (in + GROUP - 1) / GROUP, from = groups * thread / threads;
    Coming next;
    if (!std::is_same_v<W, int8_t>) return next;
    next.bytes = m.grid ? stride / 2 : stride;
    for (int i = from * GROUP; i < std::min(in, (from + 1) * GROUP); ++i)
      next.row[next.count++] = static_cast<const uint8_t*>(low ? m.low : m.data) + size_t(i) * next.bytes;
    next.pad();
    return next;
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

  void multiply_integers(const Matrix& m, int in, int out, int rows, float* mine, const Coming& after) {
    const int groups = (in + GROUP - 1) / GROUP;
    const int from = groups * thread / threads, to = groups * (thread + 1) / threads;
    if (from == to) return fetch(after);
    for (int r = 0; r < rows; ++r)
      rounded[r].round(inputs[r].index, inputs[r].x, inputs[r].count, from, to, inputs[r].most);
    const bool whole = m.low && !std::all_of(inputs, inputs + rows, [](const Inputs& row) { return row.halved; });
    const Coming low = whole ? beginning(m, in, out, true) : Coming();
    stream_groups<false>(m, from, to, out, rows, mine, whole ? low : after);
    if (whole) stream_groups<true>(m, from, to, out, rows, mine, after);
  }

  // What groups from to to (not included) add; LOW: of the low halves of nested weights, for the rows that take them.
  template <bool LOW>
  void stream_groups(const Matrix& m, int from, int to, int out, int rows, float* mine, const Coming& after) {
    const uint8_t* weights = static_cast<const uint8_t*>(LOW ? m.low : m.data);
    const size_t bytes = m.grid ? out / 2 : out;
    auto takes = [&](int r) { return !LOW || !inputs[r].halved; };
    Group two[2];
    two[from % 2].gather(from, rounded.data(), rows, weights, bytes, takes);
    for (int g = from; g < to; ++g) {
      const Group& now = two[g % 2];
      Group& next = two[(g + 1) % 2];
      const bool last = g + 1 == to;
      if (!last) next.gather(g + 1, rounded.data(), rows, weights, bytes, takes);
      Ahead ahead{last ? after : next};
      const uint16_t* grid = m.grid + size_t(2) * g * out;
      if (now.count && m.grid) add_packed_group<LOW>(now, ahead, rows, grid, last ? grid : grid + size_t(2) * out, out, mine);
      else if (now.count) add_group(now, ahead, rows, out, mine);
      while (ahead.left()) ahead.fetch();
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
    inputs[row] = {kept, rounded, found, exact ? (1 << (plan.bits - 1)) - 1 : 127, plan.halved != 0};
  }
};
