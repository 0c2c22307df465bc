// Matrix products of one thread, whose sums all threads share.
#pragma once

#include "dot_float.h"
#include "dot_packed.h"
#include "engine.h"
#include "panel.h"
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
  bool half = false;  // which half of the partial sums is in use
  Inputs inputs[MOST_ROWS];
  std::vector<float> sums, picked, mixed;  // results; kept values of all steps; those of one matrix, side by side
  std::vector<int32_t> index, all, merged;
  std::vector<RoundedInput> rounded;
  std::vector<Group> groups;  // of a matrix that is multiplied in panels

  // widest: the most inputs or outputs of a matrix; most_inputs: the most inputs of one.
  Products(Engine& engine, int t, int widest, int most_inputs)
      : e(engine), thread(t), threads(engine.s.threads), widest(widest), sums(size_t(MOST_ROWS) * widest + BLOCK),
        picked(size_t(MOST_ROWS) * widest + SPARE), index(size_t(MOST_ROWS) * widest + SPARE), all(widest) {
    std::iota(all.begin(), all.end(), 0);
    if (std::is_same_v<W, int8_t>) {
      rounded.resize(MOST_ROWS);
      for (RoundedInput& row : rounded) row.resize(most_inputs);
      if (HAS_PANELS) groups.resize(2 * (((most_inputs + GROUP - 1) / GROUP + threads - 1) / threads));
    } else {
      mixed.resize(size_t(MOST_ROWS) * widest), merged.resize(widest);
    }
  }

  void barrier() { e.team->wait(); }

  // Where a thread leaves sums for the others. The two halves alternate: before one is written again, all threads have passed
  // another barrier and finished reading it.
  float* partial(int t) const { return e.partial_sums[t].data() + (half ? e.partial_sums[t].size() / 2 : 0); }

  float* result(int row) { return sums.data() + size_t(row) * widest; }

  // result(row)[0:out] = scale * sum over kept inputs, for every step, in every thread. A thread adds up the same channels
  // whatever a step keeps and whatever steps it is computed with, so that results do not depend on the batch.
  // next: what this thread reads afterwards, if that is known. It is fetched while the memory is idle.
  void multiply(const Product& p, int in, int out, int rows, const Prefetch& next = {}) {
    constexpr bool integers = std::is_same_v<W, int8_t>;
    float* own_sums = partial(thread);
    const int stride = integers ? padded(out) : out;
    const bool panels = in_panels(rows);
    if (!panels) std::fill_n(own_sums, size_t(rows) * stride, 0.0f);
    if constexpr (integers) multiply_integers(p, in, stride, rows, own_sums, next);
    else multiply_floats(static_cast<const W*>(p.part[0].data), in, out, rows, own_sums), fetch(next);
    barrier();
    for (int r = 0; r < rows; ++r) {
      float* to = result(r);
      if (panels) {
        add_panels(r, rows, out, to);
      } else {
        const float* first = partial(0) + size_t(r) * stride;
        if (threads == 1) std::copy_n(first, out, to);
        for (int t = 1; t < threads; ++t, first = to) {
          const float* other = partial(t) + size_t(r) * stride;
#pragma GCC ivdep
          for (int o = 0; o < out; ++o) to[o] = first[o] + other[o];
        }
      }
      for (int i = 0; i < p.parts; to += p.part[i++].outputs) {
        const float* scale = p.part[i].scale;
        if (!scale) continue;
#pragma GCC ivdep
        for (int o = 0; o < p.part[i].outputs; ++o) to[o] *= scale[o];
      }
    }
    half = !half;
  }

  // Whether so many steps are multiplied with integer weights in panels.
  static bool in_panels(int rows) { return HAS_PANELS && std::is_same_v<W, int8_t> && rows > 1; }

  // The sums of one of `rows` steps from all threads' panels, to `to` [out], and up to 15 numbers behind.
  void add_panels(int row, int rows, int out, float* to) const {
    for (int o = 0; o < out; o += 16) {
      const size_t at = size_t(o) * rows + 16 * row;
      Lanes sum = Lanes::load(partial(0) + at);
      for (int t = 1; t < threads; ++t) sum = sum.plus(Lanes::load(partial(t) + at));
      sum.write(to + o);
    }
  }

  static int padded(int out) { return (out + BLOCK - 1) / BLOCK * BLOCK; }

  // Bytes from one input channel's weights to the next one's.
  static size_t stride_of(const Matrix& m) { return m.bits ? Packing(m, false).stride() : padded(m.outputs); }

  // The groups of a matrix, of `size` channels each, that this thread multiplies.
  struct Range {
    int size, from, to;
  };
  Range range_of(const Matrix& m, int in) const {
    const int groups = (in + GROUP - 1) / GROUP, size = m.bits ? m.group : GROUP, each = GROUP / size;
    return {size, groups * thread / threads * each, std::min(groups * (thread + 1) / threads * each, (in + size - 1) / size)};
  }

  // Bytes of a channel's weights that are read.
  static size_t bytes_read(const Matrix& m, bool high_only) {
    return m.bits ? Packing(m, high_only).bytes_read() : stride_of(m);
  }

  // What this thread reads first of a matrix product, for so many steps.
  Prefetch first_rows(const Product& p, int in, int rows) const { return first_rows(p.part[0], in, rows, false); }

  // kept: bits of the channels of a whole group that are read.
  Prefetch first_rows(const Matrix& m, int in, int rows, bool high_only, uint32_t kept = ~0u) const {
    Prefetch next;
    if (!std::is_same_v<W, int8_t>) return next;
    const Range range = range_of(m, in);
    const size_t stride = stride_of(m);
    if (in_panels(rows)) set_slab(m, high_only, 0, slab_of(rows), next.slices);
    else next.slices[0].bytes = bytes_read(m, high_only);
    for (int i = range.from * range.size; i < std::min(in, (range.from + 1) * range.size); ++i)
      if (kept >> (i % GROUP) & 1) next.row[next.count++] = static_cast<const uint8_t*>(m.data) + i * stride;
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

  void multiply_integers(const Product& p, int in, int stride, int rows, float* own_sums, const Prefetch& after) {
    const int groups = (in + GROUP - 1) / GROUP;
    const int from = groups * thread / threads, to = groups * (thread + 1) / threads;
    if (from == to) {
      if (in_panels(rows)) std::fill_n(own_sums, size_t(rows) * stride, 0.0f);
      return fetch(after);
    }
    for (int r = 0; r < rows; ++r)
      rounded[r].round(inputs[r].index, inputs[r].x, inputs[r].count, from, to, inputs[r].most);
    // Steps that read weights in full, and those that read their upper bits alone, take a pass each.
    const bool some_high = std::any_of(inputs, inputs + rows, [](const Inputs& row) { return row.high_halves_only; });
    const bool all_high = some_high && std::all_of(inputs, inputs + rows, [](const Inputs& row) { return row.high_halves_only; });
    uint32_t kept = 0;  // of the first group
    for (int r = 0; r < rows; ++r) kept |= rounded[r].kept[from];
    const int step = in_panels(rows) ? rows : 1;  // of sums, per output
    for (int i = 0; i < p.parts; own_sums += step * p.part[i++].outputs) {
      const Matrix& m = p.part[i];
      const Prefetch next = i + 1 < p.parts ? first_rows(p.part[i + 1], in, rows, all_high, kept) : after;
      if (!m.bits || !some_high) {
        stream_groups(m, in, stride, rows, own_sums, next, false, false, [](int) { return true; });
        continue;
      }
      if (!all_high) {
        const Prefetch again = first_rows(m, in, rows, true);
        stream_groups(m, in, stride, rows, own_sums, again, false, false, [&](int r) { return !inputs[r].high_halves_only; });
      }
      stream_groups(m, in, stride, rows, own_sums, next, true, !all_high, [&](int r) { return inputs[r].high_halves_only; });
    }
  }

  // Adds the products of this thread's groups, for the steps that takes(r) names. again: whether other steps' are added already.
  template <typename Takes>
  void stream_groups(const Matrix& m, int in, int stride, int rows, float* own_sums, const Prefetch& after, bool high_only,
                     bool again, Takes takes) {
    if constexpr (HAS_PANELS)
      if (in_panels(rows)) return stream_panels(m, in, rows, own_sums, after, high_only, again, takes);
    const Range range = range_of(m, in);
    const Packing packing(m, high_only);
    const size_t row = stride_of(m);
    const auto* weights = static_cast<const uint8_t*>(m.data);
    Group two[2];
    for (Group& group : two) group.slices[0].bytes = bytes_read(m, high_only);
    auto gather = [&](int g) { two[g % 2].gather(g, range.size, rounded.data(), rows, weights, row, takes); };
    gather(range.from);
    for (int g = range.from; g < range.to; ++g) {
      const Group& now = two[g % 2];
      const bool last = g + 1 == range.to;
      if (!last) gather(g + 1);
      PrefetchCursor cursor(last ? after : two[(g + 1) % 2]);
      if (now.count && m.bits)
        PackedProducts(now, cursor, rows, packing, Grid(m, g), Grid(m, last ? g : g + 1), stride, own_sums).add();
      else if (now.count)
        add_group(now, cursor, rows, padded(m.outputs), stride, own_sums);
      while (cursor.left()) cursor.fetch();
    }
  }

  // Where rows have the `slab` outputs from `from` on: their upper bits, or bytes, and their lower bits.
  static void set_slab(const Matrix& m, bool high_only, int from, int slab, Slice* slices) {
    const int count = std::min(slab, padded(m.outputs) - from);
    if (!m.bits) {
      slices[0] = {size_t(from), size_t(count)};
      return;
    }
    const Packing packing(m, high_only);
    slices[0] = {size_t(from) / 2, size_t(count) / 2};
    const int of_chunk = packing.reads_low() ? BLOCK * packing.blocks_of_chunk() : 0;
    if (of_chunk)
      slices[1] = {packing.high_bytes() + size_t(from) / of_chunk * 64, size_t((count + of_chunk - 1) / of_chunk) * 64};
  }

  // The same as stream_groups, for a few steps, a slab of outputs at a time. Sums are written, unless they are added again.
  template <typename Takes>
  void stream_panels(const Matrix& m, int in, int rows, float* own_sums, const Prefetch& after, bool high_only, bool again,
                     Takes takes) {
    const Range range = range_of(m, in);
    const auto* weights = static_cast<const uint8_t*>(m.data);
    const int count = range.to - range.from, out = padded(m.outputs), slab = slab_of(rows);
    for (int i = 0; i < count; ++i)
      groups[i].gather(range.from + i, range.size, rounded.data(), rows, weights, stride_of(m), takes);
    for (int from = 0; from < out; from += slab) {
      const int to = std::min(from + slab, out);
      bool first = !again;
      for (int i = 0; i < count; ++i) {
        const int next = i + 1 < count ? i + 1 : 0, next_from = next ? from : from + slab;
        Slice slices[2];
        if (next_from < out) set_slab(m, high_only, next_from, slab, slices);
        PrefetchCursor cursor = next_from < out ? PrefetchCursor(groups[next], slices[0], slices[1]) : PrefetchCursor(after);
        const uint16_t* grid = m.bits && next_from < out ? Grid(m, range.from + next).step + next_from : nullptr;
        if (groups[i].count) {
          Panel{m, groups[i], range.from + i, rows, high_only, first, from, to, cursor, grid, own_sums}.add();
          first = false;
        }
        while (cursor.left()) cursor.fetch();
      }
      if (first) std::fill_n(own_sums + size_t(from) * rows, size_t(to - from) * rows, 0.0f);
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

  // Takes the `count` channels of largest magnitude of x [n], or those of at least `limit` if that is not negative, rounded to
  // the plan's bits, as the input of `row`. Returns the number of them.
  int keep_channels(const float* x, int n, int count, float limit, const Plan& plan, int row) {
    int32_t* kept = index.data() + size_t(row) * widest;
    float* rounded = picked.data() + size_t(row) * widest;
    const int found = limit < 0 ? select(x, n, count, kept, rounded) : select_from(x, n, limit, kept, rounded);
    round_to_grid(kept, rounded, found, plan.bits, plan.group ? plan.group : n);
    // Values on such a grid are integers already and are not rounded again.
    const bool exact = plan.bits <= 8 && plan.group == GROUP;
    inputs[row] = {kept, rounded, found, exact ? (1 << (plan.bits - 1)) - 1 : 127, plan.high_halves_only != 0};
    return found;
  }
};

}  // namespace solm
