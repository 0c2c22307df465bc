// Inputs of a matrix for all tokens of a chunk.
#pragma once

#include <algorithm>
#include <cmath>

#include "rounding.h"
#include "structs.h"

namespace solm {

// `stride` channels for each token. For float weights `dense`. For integer weights int8 numbers, 0 behind the last channel,
// with a scale per group of 32 channels; and the sum of a group's numbers, and of those of its halves, which some weights have
// grids for: `total` as it is, `sum` times the scale.
struct ChunkInput {
  int channels, stride, groups;
  float *dense, *scale, *sum, *half_sum;
  int32_t *total, *half_total;
  int8_t* number;

  // Rounds x [channels] as steps do. most: the integer that the largest value of a group becomes.
  void round(int token, const float* x, int most = 127) const {
    const int whole = channels / GROUP;
    for (int g = 0; g < whole; ++g) round_group(token, g, x + g * GROUP, float(most));
    if (whole == groups) return;
    float last[GROUP] = {};
    std::copy_n(x + whole * GROUP, channels - whole * GROUP, last);
    round_group(token, whole, last, float(most));
  }

 private:
  void round_group(int token, int group, const float* x, float most) const {
    constexpr int HALF = GROUP / 2;
    int8_t* to = number + size_t(token) * stride + group * GROUP;
    float peak = 0;
#pragma omp simd reduction(max : peak)
    for (int i = 0; i < GROUP; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
    const auto [step, inverse] = Rounding(peak, most);
    int32_t rounded[GROUP], first = 0, second = 0;
    for (int i = 0; i < GROUP; ++i) rounded[i] = int32_t(std::nearbyint(x[i] * inverse));
    for (int i = 0; i < GROUP; ++i) to[i] = int8_t(rounded[i]);
    for (int i = 0; i < HALF; ++i) first += rounded[i], second += rounded[HALF + i];
    const size_t at = size_t(token) * groups + group;
    scale[at] = step, sum[at] = step * float(first + second);
    half_sum[2 * at] = step * float(first), half_sum[2 * at + 1] = step * float(second);
    total[at] = first + second, half_total[2 * at] = first, half_total[2 * at + 1] = second;
  }
};

}  // namespace solm
