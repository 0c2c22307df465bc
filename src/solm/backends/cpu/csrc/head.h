// One thread's share of a head of integers. Outputs lie in strips of 32, one after the other, since no channel of a head is
// ever skipped: a byte's low half belongs to one of the first 16 outputs, its high half to one of the others, and a strip's
// 64 bytes for four channels are in the order of `Integers::add`. The low halves of int8 lie output by output, 64 bytes for
// 128 channels (the first 64 in their low halves) and 32 for a last 64, so that few of them can be read.
#pragma once

#include "integers.h"
#include "model.h"

constexpr int STRIP = 32;
constexpr float REACH = 8;  // how far below the largest a shortlisted logit may be

struct Strips {
  const Head& head;
  const int vocabulary, rows, first, last;  // strips from first to last (not included)
  const size_t bytes;                       // of a strip
  const int wide;                           // channels, up to a multiple of 64
  std::vector<Group> groups;
  // Rows' inputs in whole numbers [rows, wide] and the scale of every four of them; what an average low half adds, and half
  // the variance of what low halves add, for weights of scale 1.
  std::vector<int8_t> number;
  std::vector<float> scale;
  float mean[MOST_ROWS], spread[MOST_ROWS];

  Strips(const Engine& e, int thread, const Rounded* rounded, int rows)
      : head(e.head), vocabulary(e.s.vocabulary), rows(rows), first(start(e, thread)), last(start(e, thread + 1)),
        bytes(size_t(e.s.hidden + 3) / 4 * 64), wide((e.s.hidden + 63) / 64 * 64),
        groups((e.s.hidden + GROUP - 1) / GROUP), number(size_t(rows) * wide), scale(size_t(rows) * wide / 4) {
    for (size_t g = 0; g < groups.size(); ++g) groups[g].gather(int(g), rounded, rows, nullptr, 0, [](int) { return true; });
    constexpr float VARIANCE = (16.0f * 16 - 1) / 12;  // of numbers from 0 to 15
    for (int r = 0; r < rows; ++r) {
      mean[r] = spread[r] = 0;
      for (size_t g = 0; g < groups.size(); ++g) {
        const Group& group = groups[g];
        int32_t square = 0;
        for (int i = 0; i < group.count; ++i) square += int32_t(group.q[r][i]) * group.q[r][i];
        mean[r] += 7.5f * group.scale[r] * float(group.total[r]);
        spread[r] += 0.5f * VARIANCE * group.scale[r] * group.scale[r] * float(square);
        std::copy_n(group.q[r], group.count, &number[size_t(r) * wide + g * GROUP]);
        std::fill_n(&scale[(size_t(r) * wide + g * GROUP) / 4], QUADS, group.scale[r]);
      }
    }
  }

  static int start(const Engine& e, int thread) {
    return int(int64_t((e.s.vocabulary + STRIP - 1) / STRIP) * thread / e.s.threads);
  }

  // Numbers of 4 bits on grids [strips, groups, 2, 32]; to(row) is where that row's logits go.
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

  // Logits from the high halves, which are half of the bytes, and each row's largest in peak [rows]. What the low halves
  // would have added is as good as random, with a known spread: taking off half its square keeps the sum of the
  // exponentials right on average.
  template <typename To>
  void screened(To to, float* peak) const {
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
        for (int i = 0; i < count; ++i) logits[i] = scale[i] * (found[i] + mean[r] - scale[i] * spread[r]);
        for (int i = 0; i < count; ++i) peak[r] = logits[i] > peak[r] ? logits[i] : peak[r];
      }
    }
  }

  // Puts what is exact in place of what is screened, where a row's logits [V] reach `least`.
  void settle(int r, float least, float* logits) const {
    constexpr int MANY = 32;  // whose low halves are fetched before the first of them is read
    int found[MANY + BLOCK], count = 0;
    auto settle_found = [&] {
      for (int i = 0; i < count; ++i) {
        const float scale = head.scale[found[i]];
        logits[found[i]] += scale * (low_dot(r, low_of(found[i])) - mean[r] + scale * spread[r]);
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
        ::fetch(low_of(v), wide / 2);
        found[count++] = v;
      }
      if (count >= MANY) settle_found();
    }
    settle_found();
  }

 private:
  const uint8_t* low_of(int output) const { return head.low + size_t(output) * (wide / 2); }

  void clear(Lanes (*sum)[2]) const {
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = Lanes::zero();
  }

  static const Bytes* halves(const uint8_t* from, int part, Bytes* two) {
    if (!part) __builtin_prefetch(from + 4096, 0, 2);
    const Bytes both = Bytes::load(from + part * Bytes::WIDTH);
    two[0] = both.low(), two[1] = both.high();
    return two;
  }

  // Group by group: quads(quad, two) reads the bytes of four channels, and use(group, j)(row, 16 sums) takes what they add.
  template <int BIAS, typename Quads, typename Use>
  void add(Quads quads, Use use) const {
    for (size_t g = 0; g < groups.size(); ++g)
      integer_tiles<BIAS, 2>(groups[g], rows,
                             [&](int i, int part, Bytes* two) { return quads(int(g) * QUADS + i / 4, part, two); },
                             [&](int j) { return use(groups[g], j); });
  }

  // Product of row r with the low halves of an output's weights.
  float low_dot(int r, const uint8_t* w) const {
    const int8_t* x = number.data() + size_t(r) * wide;
    const float* by = scale.data() + size_t(r) * wide / 4;
    Lanes sum = Lanes::zero();
    auto use = [&](int channel, auto bytes) {
      auto products = Integers<0>::begin(0);
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
