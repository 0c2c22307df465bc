// Products of float32 and bfloat16 weights with float32 vectors.
#pragma once

#include <algorithm>
#include <cstddef>

#include "arch/lanes.h"

namespace solm {

// y[0:out] += sum over kept inputs of x * row. Eight rows at a time, so that y is read and written an eighth as often. Rows
// about 24 KiB ahead are prefetched, because the hardware cannot guess them, into the second-level cache, because the first
// is too small: 29 GB/s, as much as plain reading gets, against 17 with the first level and 16 without.
template <typename W>
void accumulate(const W* weights, int out, const int32_t* index, const float* x, int count, float* y) {
  const int ahead = std::clamp(24576 / int(out * sizeof(W)), 8, 64);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const W* row[8];
    const W* next[8];
    Lanes v[8];
    for (int k = 0; k < 8; ++k) {
      row[k] = weights + size_t(index[i + k]) * out;
      next[k] = weights + size_t(index[std::min(i + ahead + k, count - 1)]) * out;
      v[k] = Lanes::all(x[i + k]);
    }
    int o = 0;
    for (; o + 64 <= out; o += 64) {
      Lanes sum[4];
      for (int j = 0; j < 4; ++j) sum[j] = Lanes::load(y + o + 16 * j);
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) {
        for (size_t line = 0; line < 64 * sizeof(W); line += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(next[k] + o) + line, 0, 2);
        for (int j = 0; j < 4; ++j) sum[j].add(v[k], Lanes::load(row[k] + o + 16 * j));
      }
      for (int j = 0; j < 4; ++j) sum[j].write(y + o + 16 * j);
    }
    for (; o < out; ++o)
      for (int k = 0; k < 8; ++k) y[o] += x[i + k] * widen(row[k][o]);
  }
  for (; i < count; ++i) {
    const W* row = weights + size_t(index[i]) * out;
    const float v = x[i];
    for (int o = 0; o < out; ++o) y[o] += v * widen(row[o]);
  }
}

// The same for `block` inputs and T of `rows` steps at once. x [block, rows] and y [rows, out] start at the first of them.
template <int T, typename W>
void accumulate_tile(const W* const* row, int block, int o, const float* x, int rows, float* y, int out) {
  Lanes sum[T][4];
  for (int r = 0; r < T; ++r)
    for (int j = 0; j < 4; ++j) sum[r][j] = Lanes::load(y + size_t(r) * out + o + 16 * j);
  for (int k = 0; k < block; ++k) {
    Lanes w[4];
    for (int j = 0; j < 4; ++j) w[j] = Lanes::load(row[k] + o + 16 * j);
    for (int r = 0; r < T; ++r) {
      const Lanes v = Lanes::all(x[k * rows + r]);
      for (int j = 0; j < 4; ++j) sum[r][j].add(v, w[j]);
    }
  }
  for (int r = 0; r < T; ++r)
    for (int j = 0; j < 4; ++j) sum[r][j].write(y + size_t(r) * out + o + 16 * j);
}

// y[rows, out] += x[count, rows]^T times the rows of weights in `index`. Weights are read once for all steps.
template <typename W>
void accumulate_many(const W* weights, int out, const int32_t* index, const float* x, int count, int rows, float* y) {
  constexpr int INPUTS = 16;  // at a time
  const int ahead = std::clamp(24576 / int(out * sizeof(W)), INPUTS, 64);
  for (int i = 0; i < count; i += INPUTS) {
    const int block = std::min(INPUTS, count - i);
    const W* row[INPUTS];
    const W* next[INPUTS];
    for (int k = 0; k < block; ++k) {
      row[k] = weights + size_t(index[i + k]) * out;
      next[k] = weights + size_t(index[std::min(i + ahead + k, count - 1)]) * out;
    }
    const float* from = x + size_t(i) * rows;
    int o = 0;
    for (; o + 64 <= out; o += 64) {
      for (int k = 0; k < block; ++k)
        for (size_t line = 0; line < 64 * sizeof(W); line += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(next[k] + o) + line, 0, 2);
      for (int r = 0; r < rows; r += 4) {
        float* to = y + size_t(r) * out;
        switch (std::min(4, rows - r)) {
          case 4: accumulate_tile<4>(row, block, o, from + r, rows, to, out); break;
          case 3: accumulate_tile<3>(row, block, o, from + r, rows, to, out); break;
          case 2: accumulate_tile<2>(row, block, o, from + r, rows, to, out); break;
          default: accumulate_tile<1>(row, block, o, from + r, rows, to, out);
        }
      }
    }
    for (; o < out; ++o)
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < block; ++k) y[size_t(r) * out + o] += from[size_t(k) * rows + r] * widen(row[k][o]);
  }
}

// Products of w [n] with T vectors [n].
template <int T, typename W>
void dots(const W* w, const float* const* x, int n, float* out) {
  Lanes sum[T][4];
  for (int r = 0; r < T; ++r)
    for (int j = 0; j < 4; ++j) sum[r][j] = Lanes::zero();
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; ++j) {
      const Lanes v = Lanes::load(w + i + 16 * j);
      for (int r = 0; r < T; ++r) sum[r][j].add(v, Lanes::load(x[r] + i + 16 * j));
    }
  for (; i + 16 <= n; i += 16) {
    const Lanes v = Lanes::load(w + i);
    for (int r = 0; r < T; ++r) sum[r][0].add(v, Lanes::load(x[r] + i));
  }
  for (int r = 0; r < T; ++r) {
    float total = sum[r][0].sum() + sum[r][1].sum() + sum[r][2].sum() + sum[r][3].sum();
    for (int rest = i; rest < n; ++rest) total += widen(w[rest]) * x[r][rest];
    out[r] = total;
  }
}

// Products of w [n] with `count` vectors [n], 1 to 4.
template <typename W>
void up_to_four_dots(const W* w, const float* const* x, int count, int n, float* out) {
  switch (count) {
    case 4: return dots<4>(w, x, n, out);
    case 3: return dots<3>(w, x, n, out);
    case 2: return dots<2>(w, x, n, out);
    default: return dots<1>(w, x, n, out);
  }
}

template <typename W>
float dot(const W* w, const float* x, int n) {
  float total;
  dots<1>(w, &x, n, &total);
  return total;
}

// The sum of x [n], in the same order on every processor.
inline float sum_of(const float* x, int n) {
  Lanes sum = Lanes::zero();
  int i = 0;
  for (; i + 16 <= n; i += 16) sum = sum.plus(Lanes::load(x + i));
  float total = sum.sum();
  for (; i < n; ++i) total += x[i];
  return total;
}

}  // namespace solm
