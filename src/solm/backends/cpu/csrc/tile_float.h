// Products of small blocks of float32 matrices, for prompts.
#pragma once

#include <cstddef>

#include "arch/each.h"
#include "arch/lanes.h"

namespace solm {

// Rows and strips of 16 outputs whose sums fit in the registers together. Two strips share what is loaded of `a`: loads, and
// not multiplications, would limit one alone.
#if defined(__AVX512F__)
constexpr int FLOAT_ROWS = 12, FLOAT_STRIPS = 2;
#else
constexpr int FLOAT_ROWS = 6, FLOAT_STRIPS = 1;
#endif
constexpr int ROW_STEP = 12;  // a multiple of what every product of a prompt takes at once
static_assert(ROW_STEP % FLOAT_ROWS == 0);

constexpr int rounded_up(int count, int step) { return (count + step - 1) / step * step; }

// y [FLOAT_ROWS, 16 * STRIPS], or with ADD y plus this, = a [FLOAT_ROWS, count] times b [count, 16] of every strip. Rows are
// `*_stride` floats apart, and strips of b `b_strip` floats.
template <bool ADD, int STRIPS>
void multiply_tile(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t b_strip, int count, float* y,
                   size_t y_stride) {
  const auto each_sum = [](auto use) SOLM_INLINE {
    each<FLOAT_ROWS>([&](auto r) SOLM_INLINE { each<STRIPS>([&](auto s) SOLM_INLINE { use(r, s); }); });
  };
  Lanes sum[FLOAT_ROWS][STRIPS];
  each_sum([&](auto r, auto s) SOLM_INLINE { sum[r][s] = ADD ? Lanes::load(y + r * y_stride + 16 * s) : Lanes::zero(); });
  for (int i = 0; i < count; ++i) {
    Lanes row[STRIPS];
    each<STRIPS>([&](auto s) SOLM_INLINE { row[s] = Lanes::load(b + i * b_stride + s * b_strip); });
    each<FLOAT_ROWS>([&](auto r) SOLM_INLINE {
      const Lanes by = Lanes::all(a[r * a_stride + i]);
      each<STRIPS>([&](auto s) SOLM_INLINE { sum[r][s].add(by, row[s]); });
    });
  }
  each_sum([&](auto r, auto s) SOLM_INLINE { sum[r][s].write(y + r * y_stride + 16 * s); });
}

// The same for any number of strips.
template <bool ADD>
void multiply_strips(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t b_strip, int strips, int count,
                     float* y, size_t y_stride) {
  int s = 0;
  for (; s + FLOAT_STRIPS <= strips; s += FLOAT_STRIPS)
    multiply_tile<ADD, FLOAT_STRIPS>(a, a_stride, b + s * b_strip, b_stride, b_strip, count, y + 16 * s, y_stride);
  for (; s < strips; ++s)
    multiply_tile<ADD, 1>(a, a_stride, b + s * b_strip, b_stride, b_strip, count, y + 16 * s, y_stride);
}

}  // namespace solm
