// What a layer is made of, for one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "lanes.h"

constexpr int MOST_ROWS = 16;  // steps that walk through the weights together

// y[0:out] += sum over kept inputs of x * row. Eight rows at a time, so that y is read and written an eighth as often.
// Rows about 24 KiB ahead are prefetched into the second-level cache: which they are no hardware can guess, and into the
// first they would not fit (16 GB/s without, 17 into the first level, 29 into the second, of 29 that plain reading gets).
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

// The same for `T` of `rows` rows at once, `block` inputs: x [block, rows] and y [rows, out] start at the first of them.
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

// y[rows, out] += x[count, rows]^T times the rows of weights that index names: weights are read once for all.
template <typename W>
void accumulate_many(const W* weights, int out, const int32_t* index, const float* x, int count, int rows, float* y) {
  constexpr int BLOCK = 16;
  const int ahead = std::clamp(24576 / int(out * sizeof(W)), BLOCK, 64);
  for (int i = 0; i < count; i += BLOCK) {
    const int block = std::min(BLOCK, count - i);
    const W* row[BLOCK];
    const W* next[BLOCK];
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

constexpr int GROUP = 32;  // input channels that share a scale, or a step and a lowest value

// Products of w [n] with T vectors.
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

template <typename W>
float dot(const W* w, const float* x, int n) {
  float total;
  dots<1>(w, &x, n, &total);
  return total;
}

// e^x for x from -87 to 88, within a unit or two in the last place, in a form that compilers vectorise: 2^n times a
// polynomial on |f| < ln 2 / 2. Adding 1.5 * 2^23 rounds to a whole number and leaves it in the lowest bits.
inline float exponential(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.0f / 5040;
  y = y * f + 1.0f / 720;
  y = y * f + 1.0f / 120;
  y = y * f + 1.0f / 24;
  y = y * f + 1.0f / 6;
  y = y * f + 0.5f;
  y = y * f + 1.0f;
  y = y * f + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return y * scale;
}

// silu(gate) * up. The bounds keep clear of subnormal numbers: 1 / e^88 is one, and takes the processor fifteen times as long.
inline void gated(const float* gate, const float* up, int n, float* out) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exponential(std::min(std::max(-gate[i], -80.0f), 80.0f))) * up[i];
}

// Turns scores into e^(score - their peak), those of -infinity into 0; returns the peak, and their sum in `total`. Without
// std::max, and with what lies below e^-87 set to 0 at the end, it takes a quarter of the time: .34 ns a score, not 1.45.
inline float soften(float* scores, int n, float& total) {
  float peak = -INFINITY, sum = 0;
#pragma omp simd reduction(max : peak)
  for (int t = 0; t < n; ++t) peak = scores[t] > peak ? scores[t] : peak;
#pragma omp simd reduction(+ : sum)
  for (int t = 0; t < n; ++t) {
    const float below = scores[t] - peak, power = exponential(below);
    scores[t] = below > -87.0f ? power : 0.0f;
    sum += scores[t];
  }
  total = sum;
  return peak;
}

inline void rms_norm(const float* x, const float* weight, int n, float epsilon, float* out) {
  const float scale = 1.0f / std::sqrt(dot(x, x, n) / float(n) + epsilon);
  for (int i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}
