// Products of small blocks of float32 matrices, for prompts.
#pragma once

#include <cstddef>

#include "arch/each.h"
#include "arch/lanes.h"

namespace solm {

// Rows whose sums fit in the registers together, and a multiple of what every product of a prompt takes at once.
#if defined(__AVX512F__)
constexpr int FLOAT_ROWS = 12;
#else
constexpr int FLOAT_ROWS = 6;
#endif
constexpr int ROW_STEP = 12;
static_assert(ROW_STEP % FLOAT_ROWS == 0);

constexpr int rounded_up(int count, int step) { return (count + step - 1) / step * step; }

// y [FLOAT_ROWS, 16], or with ADD y plus this, = a [FLOAT_ROWS, count] times b [count, 16]. Rows are `*_stride` floats apart.
template <bool ADD>
void multiply_tile(const float* a, size_t a_stride, const float* b, size_t b_stride, int count, float* y, size_t y_stride) {
  Lanes sum[FLOAT_ROWS];
  each<FLOAT_ROWS>([&](auto r) SOLM_INLINE { sum[r] = ADD ? Lanes::load(y + r * y_stride) : Lanes::zero(); });
  for (int i = 0; i < count; ++i) {
    const Lanes row = Lanes::load(b + i * b_stride);
    each<FLOAT_ROWS>([&](auto r) SOLM_INLINE { sum[r].add(Lanes::all(a[r * a_stride + i]), row); });
  }
  each<FLOAT_ROWS>([&](auto r) SOLM_INLINE { sum[r].write(y + r * y_stride); });
}

}  // namespace solm
