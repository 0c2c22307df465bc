// One thread's part of a head of integers. No input channel of the head is ever skipped, so that outputs are stored in strips
// of 32, one strip after the other. `data` has the upper 4 bits of all numbers: 64 bytes for four channels of a strip, in the
// order of DotI8::add, the low halves of the bytes for the first 16 outputs and the high halves for the others. `low` has the
// other bits of numbers of 5, 6 or 8 bits, in fields of 1, 2 or 4 bits: 64 bytes for 16, 8 or 4 channels, the fields 2 i and
// 2 i + 1 of every byte for the i-th four of them.
//
// With exact_largest, all upper bits are read first. What the lower bits would add is treated as random with a known
// variance, and only strips where a logit may be one of the largest are read whole.
#pragma once

#include "dot_integer.h"
#include "engine.h"
#include "select.h"

namespace solm {

constexpr float SAFE_DEVIATIONS = 6;  // standard deviations that an approximate logit is taken to be off at most

struct HeadSlice {
  // One group of channels: for every step of the batch, what its sums of numbers are multiplied with.
  struct ScaledGroup : Group {
    float offset[MOST_ROWS];    // the part of the centre in the sum of numbers
    float upper[MOST_ROWS];     // per sum of upper bits
    float centre[MOST_ROWS];    // the part of the centre, per step of the grid
    float mean[MOST_ROWS];      // what lower bits add on average, likewise
    float variance[MOST_ROWS];  // of what they add, likewise
    float total[MOST_ROWS];     // per lowest value
  };

  const Head& head;
  const int thread, threads;
  int outputs = 0, first = 0, last = 0;  // the first tokens, whose logits are wanted; this thread's strips, [first, last)
  const int channels, low_bits;       // of a group; of a number
  const int in_channels;              // of the head
  const size_t high_bytes, low_bytes; // of a strip
  int rows = 0;                       // steps of the batch
  std::vector<ScaledGroup> groups;
  // Per step of the batch and strip of this thread: what its largest logit is at least and at most.
  std::vector<float> at_least, at_most;
  std::vector<float> bounds;

  HeadSlice(const Engine& e, int thread)
      : head(e.head), thread(thread), threads(e.s.threads), channels(head.group ? head.group : GROUP), low_bits(head.bits - HIGH_BITS), in_channels(e.s.hidden),
        high_bytes(size_t(e.s.hidden + 3) / 4 * 64),
        low_bytes(low_bits ? (size_t(e.s.hidden + 3) / 4 + 4 / low_bits - 1) / (4 / low_bits) * 64 : 0),
        groups((e.s.hidden + channels - 1) / channels) {
    const int blocks = (e.s.vocabulary + 2 * STRIP - 1) / (2 * STRIP), most = 2 * ((blocks + threads - 1) / threads);
    at_least.resize(low_bits ? size_t(MOST_ROWS) * most : 0), at_most.resize(at_least.size());
    bounds.resize(std::max(most, threads * MOST_EXACT));
    for (size_t g = 0; g < groups.size(); ++g)
      groups[g].count = (std::min(channels, in_channels - int(g) * channels) + 3) / 4 * 4;
  }

  // The first strip of a thread.
  int start(int thread) const {
    const int strips = (outputs + STRIP - 1) / STRIP, blocks = (strips + 1) / 2;
    return std::min(int(int64_t(blocks) * thread / threads) * 2, strips);
  }

  // Takes the inputs of `count` steps, whose logits of the first `wanted` tokens are to be computed.
  void prepare(const RoundedInput* rounded, int count, int wanted) {
    rows = count, outputs = wanted, first = start(thread), last = start(thread + 1);
    const float per_upper = float(1 << low_bits), centre = head.centre < 0 ? 0 : float(head.centre);
    for (int r = 0; r < rows; ++r)
      for (size_t g = 0; g < groups.size(); ++g) {
        ScaledGroup& group = groups[g];
        const int from = int(g) * channels;
        const float scale = rounded[r].scale[from / GROUP];
        int32_t total = 0, squares = 0;
        for (int i = 0; i < channels; ++i) {
          const int32_t q = rounded[r].number[from + i];
          group.q[r][i] = int8_t(q), total += q, squares += q * q;
        }
        group.Group::total[r] = total, group.scale[r] = scale;
        group.upper[r] = scale * per_upper;
        group.total[r] = scale * float(total), group.offset[r] = -centre * float(total);
        group.centre[r] = -centre * group.total[r];
        group.mean[r] = 0.5f * (per_upper - 1) * group.total[r];
        group.variance[r] = (per_upper * per_upper - 1) / 12 * scale * scale * float(squares);
      }
  }

  // All logits, exactly. to(r) is where the logits of step r go.
  template <typename To>
  void exact(To to) const {
    with_form([&]<int FORM>() {
      for (int s = first; s < last; ++s) whole_strip<FORM>(s, 0, rows, to);
    });
  }

  // Logits from upper bits alone, and what the `largest` largest of this thread are at least, in found[r * largest].
  // Taking off half of the variance keeps the sum of the exponentials unbiased.
  template <typename To>
  void approximate(int largest, To to, float* found) {
    with_form([&]<int FORM>() {
      for (int s = first; s < last; ++s) upper_strip<FORM>(s, to);
    });
    const int strips = last - first, known = std::min(strips, largest);
    for (int r = 0; r < rows; ++r) {
      std::copy_n(&at_least[size_t(r) * strips], strips, bounds.data());
      take_largest(bounds.data(), strips, known);
      std::copy_n(bounds.data(), known, found + size_t(r) * largest);
      std::fill_n(found + size_t(r) * largest + known, largest - known, -INFINITY);
    }
  }

  // Replaces approximate logits by exact ones where they may be among the `largest` largest. found(t): what thread t found.
  // Returns the number of strips that were read whole, each once for every step.
  template <typename To, typename Found>
  int64_t refine(int largest, int threads, To to, Found found) {
    float needed[MOST_ROWS];
    for (int r = 0; r < rows; ++r) {
      for (int t = 0; t < threads; ++t) std::copy_n(found(t) + size_t(r) * largest, largest, &bounds[size_t(t) * largest]);
      take_largest(bounds.data(), threads * largest, largest);
      needed[r] = bounds[largest - 1];
    }
    const auto needs = [&](int r, int strip) {
      return !(at_most[size_t(r) * (last - first) + strip - first] < needed[r]);
    };
    int64_t read = 0;
    with_form([&]<int FORM>() {
      for (int s = first; s < last; ++s)
        for (int r = 0, end; r < rows; r = end) {  // steps side by side together
          for (end = r; end < rows && needs(end, s);) ++end;
          if (end > r) whole_strip<FORM>(s, r, end, to), read += end - r;
          else ++end;
        }
    });
    return read;
  }

 private:
  enum Form { SCALES, STEPS, STEPS_AND_LOWEST };  // of weights: scales per output, grids without and with lowest values

  template <typename Use>
  void with_form(Use use) const {
    if (!head.group) use.template operator()<SCALES>();
    else if (head.centre >= 0) use.template operator()<STEPS>();
    else use.template operator()<STEPS_AND_LOWEST>();
  }

  // The grid of a group of a strip: steps, then lowest values, of 32 outputs each.
  template <int FORM>
  const uint16_t* grid(int strip, int group) const {
    return head.grid + (size_t(strip) * groups.size() + group) * FORM * STRIP;
  }

  // Numbers of 4 bits of four channels as bytes of two vectors.
  static const Bytes* halves(const uint8_t* from, int part, Bytes* two) {
    if (!part) fetch_line(from, 4096);
    const Bytes both = Bytes::load(from + part * Bytes::WIDTH);
    two[0] = both.low(), two[1] = both.high();
    return two;
  }

  // Writes the logits of a strip.
  void write(int strip, const Lanes* sum, float* logits) const {
    float found[STRIP];
    sum[0].write(found), sum[1].write(found + 16);
    const int at = strip * STRIP, count = std::min(STRIP, outputs - at);
    if (!head.group)
      for (int i = 0; i < count; ++i) found[i] *= head.scale[at + i];
    std::copy_n(found, count, logits + at);
  }

  // The logits of steps [from, to_row) from all bits, added up as `multiply_tokens` does.
  template <int FORM, typename To>
  void whole_strip(int strip, int from, int to_row, To to) const {
    Lanes sum[MOST_ROWS][2], number[MOST_ROWS][2];
    for (int r = from; r < to_row; ++r) sum[r][0] = sum[r][1] = Lanes::zero();
    const uint8_t* high = static_cast<const uint8_t*>(head.data) + strip * high_bytes;
    const uint8_t* low = static_cast<const uint8_t*>(head.low) + strip * low_bytes;
    const int fields = low_bits ? 4 / low_bits : 0, most = (1 << low_bits) - 1;
    const Lanes per_upper = Lanes::all(float(1 << low_bits));
    for (int g = 0; g < int(groups.size()); ++g) {
      const ScaledGroup& group = groups[g];
      const uint16_t* grid = this->grid<FORM>(strip, g);
      // Numbers less their centre. They are exact, in whatever order their parts are added.
      auto take_upper = [&](int j) {
        return [&, j](int r, Lanes part) {
          number[r][j] = Lanes::all(group.offset[r]);
          number[r][j].add(per_upper, part);
        };
      };
      auto take_lower = [&](int j) { return [&, j](int r, Lanes part) { number[r][j] = number[r][j].plus(part); }; };
      const int quad = g * channels / 4;
      dot_all_rows<0, 2>(
          group, to_row, [&](int i, int part, Bytes* two) { return halves(high + 64 * (quad + i / 4), part, two); },
          take_upper, from);
      if (low_bits == HIGH_BITS)
        dot_all_rows<0, 2>(
            group, to_row, [&](int i, int part, Bytes* two) { return halves(low + 64 * (quad + i / 4), part, two); },
            take_lower, from);
      else if (low_bits)
        dot_all_rows<0, 2>(group, to_row, [&](int i, int part, Bytes* two) {
            const int number = quad + i / 4, at = number % fields * 2 * low_bits;
            const uint8_t* place = low + number / fields * 64;
            if (!part) fetch_line(place, 4096);
            const Bytes all = Bytes::load(place + part * Bytes::WIDTH);
            two[0] = all.field(at, most), two[1] = all.field(at + low_bits, most);
            return static_cast<const Bytes*>(two);
          }, take_lower, from);
      for (int j = 0; j < 2; ++j) {
        Lanes step = Lanes::zero(), lowest = Lanes::zero();
        if constexpr (FORM != SCALES) step = Lanes::load_half(grid + 16 * j);
        if constexpr (FORM == STEPS_AND_LOWEST) lowest = Lanes::load_half(grid + STRIP + 16 * j);
        for (int r = from; r < to_row; ++r) {
          const Lanes scale = Lanes::all(group.scale[r]);
          if constexpr (FORM == SCALES) {
            sum[r][j].add(scale, number[r][j]);
            continue;
          }
          Lanes scaled = Lanes::zero();
          scaled.add(scale, number[r][j]);
          sum[r][j].add(step, scaled);
          if constexpr (FORM == STEPS_AND_LOWEST) sum[r][j].add(lowest, Lanes::all(group.total[r]));
        }
      }
    }
    for (int r = from; r < to_row; ++r) write(strip, sum[r], to(r));
  }

  // The logits of steps from r on from upper bits, and the bounds of the strip's largest, T steps at a time.
  template <int FORM, typename To, int T = ROWS_AT_ONCE<2>>
  void upper_strip(int strip, To to, int r = 0) {
    for (; r + T <= rows; r += T) upper_rows<FORM, T>(strip, r, to);
    if constexpr (T > 1) upper_strip<FORM, To, T - 1>(strip, to, r);
  }

  template <int FORM, int T, typename To>
  void upper_rows(int strip, int first_row, To to) {
    Lanes sum[T][2], variance[T][2];
    each<T>([&](auto t) SOLM_INLINE {
      each<2>([&](auto j) SOLM_INLINE { sum[t][j] = variance[t][j] = Lanes::zero(); });
    });
    const uint8_t* high = static_cast<const uint8_t*>(head.data) + strip * high_bytes;
    for (int g = 0; g < int(groups.size()); ++g) {
      const ScaledGroup& group = groups[g];
      const uint16_t* grid = this->grid<FORM>(strip, g);
      if constexpr (FORM != SCALES) fetch_line(grid, 1024);
      const int quad = g * channels / 4;
      dot_rows<0, 2, T>(group, first_row,
          [&](int i, int part, Bytes* two) SOLM_INLINE { return halves(high + 64 * (quad + i / 4), part, two); },
          [&](auto j) SOLM_INLINE {
            Lanes step = Lanes::all(1), square = Lanes::zero();
            if constexpr (FORM != SCALES) step = Lanes::load_half(grid + 16 * j);
            square.add(step, step);
            return [&, j, step, square](int r, Lanes part) SOLM_INLINE {
              const int t = r - first_row;
              Lanes value = Lanes::all(group.centre[r] + group.mean[r]);
              value.add(Lanes::all(group.upper[r]), part);
              sum[t][j].add(step, value);
              variance[t][j].add(square, Lanes::all(group.variance[r]));
              if constexpr (FORM == STEPS_AND_LOWEST)
                sum[t][j].add(Lanes::load_half(grid + STRIP + 16 * j), Lanes::all(group.total[r]));
            };
          });
    }
    for (int t = 0; t < T; ++t) {
      float found[STRIP], spread[STRIP];
      for (int j = 0; j < 2; ++j) sum[t][j].write(found + 16 * j), variance[t][j].write(spread + 16 * j);
      take_upper(strip, first_row + t, found, spread, to(first_row + t));
    }
  }

  // Takes the sums of a strip's upper bits for step r, and the variances of what lower bits add.
  void take_upper(int strip, int r, float* found, float* spread, float* logits) {
    const int at = strip * STRIP, count = std::min(STRIP, outputs - at);
    if (!head.group)
      for (int i = 0; i < count; ++i) found[i] *= head.scale[at + i], spread[i] *= head.scale[at + i] * head.scale[at + i];
    float peak = -INFINITY, widest = 0;
    for (int i = 0; i < count; ++i) peak = std::max(peak, found[i]), widest = std::max(widest, spread[i]);
    for (int i = 0; i < count; ++i) logits[at + i] = found[i] - 0.5f * spread[i];
    const float off = SAFE_DEVIATIONS * std::sqrt(widest), least = peak - off;
    const size_t place = size_t(r) * (last - first) + strip - first;
    at_least[place] = least > -INFINITY ? least : -INFINITY;  // not NaN, which could not be sorted
    at_most[place] = peak + off;
  }
};

}  // namespace solm
