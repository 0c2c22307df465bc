// One thread's part of a head of integers. Outputs are stored in strips of 32, one strip after the other, because no input
// channel of the head is ever skipped. The low half of a byte belongs to one of the first 16 outputs, its high half to one of
// the others; the 64 bytes of a strip for four channels are in the order of DotI8::add. The low halves of int8 weights are
// stored output by output, so that few of them can be read: 64 bytes for 128 channels, the first 64 in the low halves of the
// bytes, and 32 bytes for a last 64 channels.
#pragma once

#include "dot_integer.h"
#include "engine.h"

namespace solm {

constexpr float EXACT_RANGE = 8;  // with approximate_tail, logits within this of the largest are exact

struct HeadSlice {
  const Head& head;
  const int vocabulary, first, last;  // this thread's strips, [first, last)
  const size_t bytes;                 // of a strip
  const int wide;                     // channels, rounded up to a multiple of 64
  int rows = 0;                       // steps of the batch
  std::vector<Group> groups;
  // The steps' rounded inputs [MOST_ROWS, wide] and their scale for every four channels.
  std::vector<int8_t> number;
  std::vector<float> scale;
  // For weights of scale 1: the mean of what the low halves add, and half the variance.
  float mean[MOST_ROWS], half_variance[MOST_ROWS];

  HeadSlice(const Engine& e, int thread)
      : head(e.head), vocabulary(e.s.vocabulary), first(start(e.s, thread)), last(start(e.s, thread + 1)),
        bytes(size_t(e.s.hidden + 3) / 4 * 64), wide((e.s.hidden + 63) / 64 * 64),
        groups((e.s.hidden + GROUP - 1) / GROUP), number(size_t(MOST_ROWS) * wide),
        scale(size_t(MOST_ROWS) * wide / 4) {}

  // Takes the inputs of `count` steps.
  void prepare(const RoundedInput* rounded, int count) {
    rows = count;
    for (size_t g = 0; g < groups.size(); ++g) groups[g].gather(int(g), GROUP, rounded, rows, nullptr, 0, 0, [](int) { return true; });
    constexpr float VARIANCE = (16.0f * 16 - 1) / 12;  // of numbers from 0 to 15
    for (int r = 0; r < rows; ++r) {
      mean[r] = half_variance[r] = 0;
      for (size_t g = 0; g < groups.size(); ++g) {
        const Group& group = groups[g];
        int32_t square = 0;
        for (int i = 0; i < group.count; ++i) square += int32_t(group.q[r][i]) * group.q[r][i];
        mean[r] += 7.5f * group.scale[r] * float(group.total[r]);
        half_variance[r] += 0.5f * VARIANCE * group.scale[r] * group.scale[r] * float(square);
        std::copy_n(group.q[r], group.count, &number[size_t(r) * wide + g * GROUP]);
        std::fill_n(&scale[(size_t(r) * wide + g * GROUP) / 4], QUADS, group.scale[r]);
      }
    }
  }

  static int start(const Sizes& s, int thread) {
    return int(int64_t((s.vocabulary + STRIP - 1) / STRIP) * thread / s.threads);
  }

  // Logits of packed weights with grids [strips, groups, 2, 32]. to(r) is where the logits of step r go.
  template <typename To>
  void packed(To to) const {
    const uint8_t* numbers = static_cast<const uint8_t*>(head.data);
    for (int s = first; s < last; ++s) {
      Lanes sum[MOST_ROWS][2];
      clear(sum);
      const uint8_t* from = numbers + s * bytes;
      const uint16_t* grid = head.grid + size_t(s) * groups.size() * 2 * STRIP;
      add<0>([&](int quad, int part, Bytes* two) { return halves(from + 64 * quad, part, two); },
          [&](const Group& g, int j) {
            const uint16_t* from = grid + (&g - groups.data()) * 2 * STRIP + 16 * j;
            return [&g, &sum, j, step = Lanes::load_half(from), least = Lanes::load_half(from + STRIP)](int r, Lanes part) {
              Lanes steps = Lanes::zero();
              steps.add(step, part);
              steps.add(least, Lanes::all(float(g.total[r])));
              sum[r][j].add(Lanes::all(g.scale[r]), steps);
            };
          });
      for (int r = 0; r < rows; ++r) {
        float found[STRIP];
        sum[r][0].write(found), sum[r][1].write(found + 16);
        std::copy_n(found, std::min(STRIP, vocabulary - s * STRIP), to(r) + s * STRIP);
      }
    }
  }

  // Logits of int8 weights from their high halves, which are half of the bytes, and every step's largest in peak [rows]. What
  // the low halves would add is treated as random with a known variance; taking off half of the variance keeps the sum of the
  // exponentials unbiased.
  template <typename To>
  void approximate(To to, float* peak) const {
    std::fill_n(peak, rows, -INFINITY);
    const uint8_t* high = static_cast<const uint8_t*>(head.data);
    for (int s = first; s < last; ++s) {
      Lanes sum[MOST_ROWS][2];
      clear(sum);
      const uint8_t* from = high + s * bytes;
      add<8>([&](int quad, int part, Bytes* two) { return halves(from + 64 * quad, part, two); },
          [&](const Group& g, int j) {
            return [&g, &sum, j](int r, Lanes part) { sum[r][j].add(Lanes::all(16 * g.scale[r]), part); };
          });
      const int count = std::min(STRIP, vocabulary - s * STRIP);
      const float* scale = head.scale + s * STRIP;
      for (int r = 0; r < rows; ++r) {
        float found[STRIP];
        sum[r][0].write(found), sum[r][1].write(found + 16);
        float* logits = to(r) + s * STRIP;
        for (int i = 0; i < count; ++i) logits[i] = scale[i] * (found[i] + mean[r] - scale[i] * half_variance[r]);
        for (int i = 0; i < count; ++i) peak[r] = logits[i] > peak[r] ? logits[i] : peak[r];
      }
    }
  }

  // Replaces approximate logits [V] of step r by exact ones where they are at least `least`.
  void refine(int r, float least, float* logits) const {
    constexpr int MANY = 32;  // outputs whose low halves are fetched before the first of them is read
    int found[MANY + BLOCK], count = 0;
    auto refine_found = [&] {
      for (int i = 0; i < count; ++i) {
        const float scale = head.scale[found[i]];
        logits[found[i]] += scale * (low_dot(r, low_of(found[i])) - mean[r] + scale * half_variance[r]);
      }
      count = 0;
    };
    const int end = std::min(last * STRIP, vocabulary);
    for (int block = first * STRIP; block < end; block += BLOCK) {
      const int stop = std::min(block + BLOCK, end);
      bool any = false;
#pragma omp simd reduction(| : any)
      for (int v = block; v < stop; ++v) any |= logits[v] >= least;
      for (int v = any ? block : stop; v < stop; ++v) {
        if (!(logits[v] >= least)) continue;
        solm::fetch(low_of(v), wide / 2);
        found[count++] = v;
      }
      if (count >= MANY) refine_found();
    }
    refine_found();
  }

 private:
  const uint8_t* low_of(int output) const { return static_cast<const uint8_t*>(head.low) + size_t(output) * (wide / 2); }

  void clear(Lanes (*sum)[2]) const {
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = Lanes::zero();
  }

  static const Bytes* halves(const uint8_t* from, int part, Bytes* two) {
    if (!part) __builtin_prefetch(from + 4096, 0, 2);
    const Bytes both = Bytes::load(from + part * Bytes::WIDTH);
    two[0] = both.low(), two[1] = both.high();
    return two;
  }

  // Multiplies group by group. quads(quad, part, two) reads the bytes of four channels; use(group, j)(r, 16 sums) takes the
  // products of outputs 16 j to 16 j + 15.
  template <int BIAS, typename Quads, typename Use>
  void add(Quads quads, Use use) const {
    for (size_t g = 0; g < groups.size(); ++g)
      dot_all_rows<BIAS, 2>(groups[g], rows,
                             [&](int i, int part, Bytes* two) { return quads(int(g) * QUADS + i / 4, part, two); },
                             [&](int j) { return use(groups[g], j); });
  }

  // The product of step r's input with the low halves of an output's weights.
  float low_dot(int r, const uint8_t* w) const {
    const int8_t* x = number.data() + size_t(r) * wide;
    const float* by = scale.data() + size_t(r) * wide / 4;
    Lanes sum = Lanes::zero();
    auto use = [&](int channel, auto bytes) {
      auto products = DotI8<0>::begin(0);
      each_part([&](auto part) { products.add(part, bytes(part), x + channel + part * Bytes::WIDTH); });
      sum.add(Lanes::load(by + channel / 4), products.lanes());
    };
    int c = 0;
    for (; c + 128 <= wide; c += 128) {
      __builtin_prefetch(w + c / 2 + 2048, 0, 2);
      auto both = [&](int part) { return Bytes::load(w + c / 2 + part * Bytes::WIDTH); };
      use(c, [&](int part) { return both(part).low(); });
      use(c + 64, [&](int part) { return both(part).high(); });
    }
    if (c < wide) use(c, [&](int part) { return Bytes::single(w + c / 2, part); });
    return sum.sum();
  }
};

}  // namespace solm
