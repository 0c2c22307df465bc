// The functions of a layer between its matrix products.
#pragma once

#include <algorithm>
#include <cmath>

#include "dot_float.h"

namespace solm {

// e^x for x from -87 to 88, within two units in the last place, in a form that compilers vectorise: 2^n times a polynomial
// on |f| < ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
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

// 1 + e^-x. The bounds avoid subnormal numbers such as 1 / e^88, which take the processor fifteen times as long.
inline float one_plus_power(float x) { return 1.0f + exponential(std::min(std::max(-x, -80.0f), 80.0f)); }

enum Activation : int32_t { SILU = 0, GELU_TANH = 1, CLAMPED_SWIGLU = 2 };

// out = activation(gate) * up, where silu(x) = x / (1 + e^-x), and GELU by its approximation with tanh is x / (1 + e^-2u) with
// u = sqrt(2 / pi) (x + 0.044715 x^3). The third is that of gpt-oss: x / (1 + e^-1.702x) (up + 1), of values up to 7.
inline void activate(int32_t activation, const float* gate, const float* up, int n, float* out) {
  if (activation == GELU_TANH) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      const float x = gate[i];
      out[i] = x / one_plus_power(1.59576912f * (x + 0.044715f * x * x * x)) * up[i];
    }
    return;
  }
  if (activation == CLAMPED_SWIGLU) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      const float x = std::min(gate[i], 7.0f);
      out[i] = x / one_plus_power(1.702f * x) * (std::min(std::max(up[i], -7.0f), 7.0f) + 1.0f);
    }
    return;
  }
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) out[i] = gate[i] / one_plus_power(gate[i]) * up[i];
}

// Replaces scores by e^(score - peak), those of -infinity by 0; returns the peak, which is at least the one that is given,
// and the sum in `total`. Without std::max, and with what is below e^-87 set to 0 at the end, it takes 0.34 ns a score
// instead of 1.45.
inline float softmax_terms(float* scores, int n, float& total, float peak = -INFINITY) {
#pragma omp simd reduction(max : peak)
  for (int t = 0; t < n; ++t) peak = scores[t] > peak ? scores[t] : peak;
#pragma GCC ivdep
  for (int t = 0; t < n; ++t) {
    const float below = scores[t] - peak, power = exponential(below);
    scores[t] = below > -87.0f ? power : 0.0f;
  }
  total = sum_of(scores, n);
  return peak;
}

// Replaces x by cap * tanh(x / cap).
inline void soft_cap(float* x, int64_t n, float cap) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) x[i] = cap - 2 * cap / one_plus_power(-2 / cap * x[i]);
}

// Adds a bias, if there is one.
inline void add_bias(float* x, const float* bias, int n) {
  if (!bias) return;
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) x[i] += bias[i];
}

inline void multiply_all(float* x, int n, float by) {
  for (int i = 0; i < n; ++i) x[i] *= by;
}

inline void multiply_each(float* x, const float* by, int n) {
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) x[i] *= by[i];
}

inline void rms_norm(const float* x, const float* weight, int n, float epsilon, float* out) {
  const float scale = 1.0f / std::sqrt(dot(x, x, n) / float(n) + epsilon);
  for (int i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

}  // namespace solm
