// Keys and values in bytes, at half of bfloat16's size: whole numbers plus 128, and behind a page's numbers the scales of its
// 16 tokens in float32. Keys lie in fours of channels [D / 4, 16, 4], values in fours of tokens [4, D, 4]: what `Integers`
// multiplies at once. Queries and weights are whole numbers of 16 bits, so that they round nothing that shows.
#pragma once

#include <cmath>

#include "integers.h"
#include "model.h"

template <>
constexpr size_t page_size<uint8_t>(int dim) { return size_t(16) * dim + 16 * sizeof(float); }

inline float* scales(uint8_t* page, int dim) { return reinterpret_cast<float*>(page + size_t(16) * dim); }
inline const float* scales(const uint8_t* page, int dim) {
  return reinterpret_cast<const float*>(page + size_t(16) * dim);
}

inline size_t key_byte(int token, int channel) { return size_t(channel / 4) * 64 + token * 4 + channel % 4; }

inline float peak_of(const float* x, int count) {
  float peak = 0;
#pragma omp simd reduction(max : peak)
  for (int i = 0; i < count; ++i) peak = std::max(peak, std::fabs(x[i]));
  return peak;
}

// x [dim] as bytes, number d at page[at(d)]; returns their scale.
template <typename At>
float put_bytes(uint8_t* page, const float* x, int dim, At at) {
  const float peak = peak_of(x, dim);
  const float inverse = 127 / std::max(peak, 1.17549435e-36f);
  for (int d = 0; d < dim; ++d) page[at(d)] = uint8_t(int32_t(std::nearbyint(x[d] * inverse)) + 128);
  return peak / 127;
}
inline void put_key(uint8_t* page, int token, const float* x, int dim) {
  scales(page, dim)[token] = put_bytes(page, x, dim, [&](int d) { return key_byte(token, d); });
}
inline void put_value(uint8_t* page, int token, const float* x, int dim) {
  scales(page, dim)[token] =
      put_bytes(page, x, dim, [&](int d) { return size_t(token / 4) * 4 * dim + d * 4 + token % 4; });
}
inline float key_of(const uint8_t* page, int token, int channel, int dim) {
  return scales(page, dim)[token] * float(int(page[key_byte(token, channel)]) - 128);
}

// Whole numbers of 16 bits, times `scale`, in fours; and the sums of four of their products with bytes in sixteen lanes.
#if defined(FOURS_AVX2)

struct Wide {
  const int16_t* number;
  float scale;

  // x [count], in room [count].
  static Wide of(const float* x, int count, int16_t* room) {
    constexpr float MOST = 32767;
    const float inverse = MOST / std::max(peak_of(x, count), 1.17549435e-33f);
    for (int i = 0; i < count; ++i) room[i] = int16_t(int32_t(std::nearbyint(x[i] * inverse)));
    return {room, 1 / inverse};
  }
};

// Every lane has two sums of 32 bits, side by side: lanes 0 to 3 in a, 4 to 7 in b, and so on.
struct WideSums {
  __m256i a, b, c, d;
  static WideSums begin(const Wide&) {
    const __m256i zero = _mm256_setzero_si256();
    return {zero, zero, zero, zero};
  }
  template <typename Part>
  void add(Part, const Bytes& bytes, const Wide& wide, int i) {
    int64_t four;
    std::memcpy(&four, wide.number + 4 * i, sizeof four);
    const __m256i number = _mm256_xor_si256(bytes.v, _mm256_set1_epi8(-128)), x = _mm256_set1_epi64x(four);
    const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(number));
    const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(number, 1));
    __m256i &first = Part::value ? c : a, &second = Part::value ? d : b;
    first = _mm256_add_epi32(first, _mm256_madd_epi16(low, x));
    second = _mm256_add_epi32(second, _mm256_madd_epi16(high, x));
  }
  Lanes lanes() const {
    auto together = [](__m256i x, __m256i y) {
      return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(_mm256_hadd_epi32(x, y), 0xd8));
    };
    return Lanes::of(together(a, b), together(c, d));
  }
};

#else

// Two digits from -127 to 127: upper ones, worth 254 each, and lower ones.
struct Wide {
  const int8_t *upper, *lower;
  int32_t upper_sum, lower_sum;
  float scale;

  static Wide of(const float* x, int count, int16_t* room) {
    constexpr float MOST = 127 * 254;
    const float inverse = MOST / std::max(peak_of(x, count), 1.17549435e-33f);
    auto *up = reinterpret_cast<int8_t*>(room), *down = up + count;
    int32_t up_sum = 0, down_sum = 0;
#pragma omp simd reduction(+ : up_sum, down_sum)
    for (int i = 0; i < count; ++i) {
      const int32_t number = int32_t(std::nearbyint(x[i] * inverse));
      const int32_t most = int32_t(std::nearbyint(float(number) * (1.0f / 254))), rest = number - 254 * most;
      up[i] = int8_t(most), down[i] = int8_t(rest);
      up_sum += most, down_sum += rest;
    }
    return {up, down, up_sum, down_sum, 1 / inverse};
  }
};

struct WideSums {
  Integers<128> upper, lower;
  static WideSums begin(const Wide& wide) {
    return {Integers<128>::begin(wide.upper_sum), Integers<128>::begin(wide.lower_sum)};
  }
  template <typename Part>
  void add(Part part, const Bytes& bytes, const Wide& wide, int i) {
    int32_t up, down;
    std::memcpy(&up, wide.upper + 4 * i, 4), std::memcpy(&down, wide.lower + 4 * i, 4);
    upper.add(part, bytes, up), lower.add(part, bytes, down);
  }
  Lanes lanes() const {
    Lanes sum = lower.lanes();
    sum.add(Lanes::all(254), upper.lanes());
    return sum;
  }
};

#endif

// use(j, 16 sums) for T of `wide`, each met with the first `fours` fours of what lies at `from`, `stride` bytes apart, and at
// `coming` for later.
template <int T, typename Use>
void meet_bytes(const uint8_t* from, size_t stride, int fours, const Wide* wide, const uint8_t* coming, Use use) {
  WideSums sum[T];
#pragma GCC unroll 4
  for (int j = 0; j < T; ++j) sum[j] = WideSums::begin(wide[j]);
  each_part([&](auto part) {
    for (int i = 0; i < fours; ++i) {
      if (!part.value) fetch_line(coming, i * stride);
      const Bytes bytes = Bytes::load(from + i * stride + part * Bytes::WIDTH);
#pragma GCC unroll 4
      for (int j = 0; j < T; ++j) sum[j].add(part, bytes, wide[j], i);
    }
  });
#pragma GCC unroll 4
  for (int j = 0; j < T; ++j) use(j, sum[j].lanes());
}

// The same for any number of them, up to four at a time.
template <typename Use>
void meet_all(
    const uint8_t* from, size_t stride, int fours, const Wide* wide, int count, const uint8_t* coming, Use use) {
  for (int g = 0; g < count; g += 4, coming = from) {
    auto shifted = [&](int j, Lanes sum) { use(g + j, sum); };
    switch (std::min(4, count - g)) {
      case 4: meet_bytes<4>(from, stride, fours, wide + g, coming, shifted); break;
      case 3: meet_bytes<3>(from, stride, fours, wide + g, coming, shifted); break;
      case 2: meet_bytes<2>(from, stride, fours, wide + g, coming, shifted); break;
      default: meet_bytes<1>(from, stride, fours, wide + g, coming, shifted);
    }
  }
}

template <>
struct Queries<uint8_t> {
  const int dim;
  std::vector<int16_t> room;
  std::vector<Wide> form;

  Queries(int most, int dim) : dim(dim), room(size_t(dim) * most), form(most) {}

  void prepare(const float* x, int count, float scale) {
    for (int j = 0; j < count; ++j) {
      form[j] = Wide::of(x + size_t(j) * dim, dim, &room[size_t(j) * dim]);
      form[j].scale *= scale;
    }
  }

  void score(const uint8_t* page, int group, float* const* scores, const uint8_t* coming) const {
    const Lanes per_token = Lanes::load(scales(page, dim));
    fetch_line(scales(coming, dim), 0);
    meet_all(page, 64, dim / 4, form.data(), group, coming, [&](int j, Lanes sum) {
      Lanes scaled = Lanes::zero(), result = Lanes::zero();
      scaled.add(Lanes::all(form[j].scale), per_token);
      result.add(scaled, sum);
      result.write(scores[j]);
    });
  }
};

// Pages whose weights are rounded together, and summed up in whole numbers, which has room for so many.
constexpr int CHUNK = 16;

// Adds to out[j] [dim] what T queries' weights [count * 16] make of `count` pages of values, `page(i)`, each fetched `ahead`
// pages before it is read. Weights of tokens beyond the last are 0. They are multiplied with the values' scales in place.
template <int T, typename PageOf>
void mix_bytes(PageOf page, int count, int dim, int ahead, float* const* weights, float* const* out) {
  int16_t room[T][CHUNK * PAGE];
  for (int first = 0; first < count; first += CHUNK) {
    const int here = std::min(CHUNK, count - first);
    Wide form[T];
    for (int p = first; p < first + here; ++p) {
      fetch_line(scales(page(std::min(p + CHUNK, count - 1)), dim), 0);
      const Lanes per_token = Lanes::load(scales(page(p), dim));
      for (int j = 0; j < T; ++j) {
        Lanes scaled = Lanes::zero();
        scaled.add(Lanes::load(weights[j] + p * PAGE), per_token);
        scaled.write(weights[j] + p * PAGE);
      }
    }
    for (int j = 0; j < T; ++j) form[j] = Wide::of(weights[j] + first * PAGE, here * PAGE, room[j]);
    for (int d = 0; d < dim; d += 16) {
      WideSums sum[T];
      for (int j = 0; j < T; ++j) sum[j] = WideSums::begin(form[j]);
      each_part([&](auto part) {
        for (int p = 0; p < here; ++p) {
          const uint8_t* from = page(first + p) + size_t(4) * d + part * Bytes::WIDTH;
          const uint8_t* coming = page(std::min(first + p + ahead, count - 1)) + size_t(4) * d;
          for (int i = 0; i < PAGE / 4; ++i) {
            if (!part.value) fetch_line(coming, size_t(4) * dim * i);
            const Bytes bytes = Bytes::load(from + size_t(4) * dim * i);
#pragma GCC unroll 4
            for (int j = 0; j < T; ++j) sum[j].add(part, bytes, form[j], p * PAGE / 4 + i);
          }
        }
      });
      for (int j = 0; j < T; ++j) {
        Lanes result = Lanes::load(out[j] + d);
        result.add(Lanes::all(form[j].scale), sum[j].lanes());
        result.write(out[j] + d);
      }
    }
  }
}
