// Keys and values in int8, half the size of bfloat16: numbers plus 128, and after a page's numbers the float32 scales of its
// 16 tokens. Keys are stored as [D / 4, 16, 4], values as [4, D, 4] (groups of four channels and of four tokens), the order
// in which DotI8 reads. Queries and attention weights are rounded to int16, whose error is negligible beside that of int8.
#pragma once

#include "arch/dot_i16.h"
#include "pages.h"

namespace solm {

template <>
constexpr size_t page_size<uint8_t>(int dim) { return size_t(16) * dim + 16 * sizeof(float); }

inline float* scales(uint8_t* page, int dim) { return reinterpret_cast<float*>(page + size_t(16) * dim); }
inline const float* scales(const uint8_t* page, int dim) {
  return reinterpret_cast<const float*>(page + size_t(16) * dim);
}

inline size_t key_byte(int token, int channel) { return size_t(channel / 4) * 64 + token * 4 + channel % 4; }

// Writes x [dim] in int8, number d to page[at(d)]; returns the scale.
template <typename At>
float quantise_int8(uint8_t* page, const float* x, int dim, At at) {
  const float peak = peak_of(x, dim);
  const float inverse = 127 / std::max(peak, 1.17549435e-36f);
  for (int d = 0; d < dim; ++d) page[at(d)] = uint8_t(int32_t(std::nearbyint(x[d] * inverse)) + 128);
  return peak / 127;
}
inline void store_key(uint8_t* page, int token, const float* x, int dim) {
  scales(page, dim)[token] = quantise_int8(page, x, dim, [&](int d) { return key_byte(token, d); });
}
inline void store_value(uint8_t* page, int token, const float* x, int dim) {
  scales(page, dim)[token] =
      quantise_int8(page, x, dim, [&](int d) { return size_t(token / 4) * 4 * dim + d * 4 + token % 4; });
}
inline float key_of(const uint8_t* page, int token, int channel, int dim) {
  return scales(page, dim)[token] * float(int(page[key_byte(token, channel)]) - 128);
}

// Calls use(j, 16 sums) for T vectors of `x`: their products with the first `quads` groups of 64 bytes from `from` on, `stride`
// bytes apart. `fetched` will be read later and is prefetched.
template <int T, typename Use>
void dot_int8(const uint8_t* from, size_t stride, int quads, const Int16s* x, const uint8_t* fetched, Use use) {
  DotI16 sum[T];
#pragma GCC unroll 4
  for (int j = 0; j < T; ++j) sum[j] = DotI16::begin(x[j]);
  each_part([&](auto part) {
    for (int i = 0; i < quads; ++i) {
      if (!part.value) fetch_line(fetched, i * stride);
      const Bytes bytes = Bytes::load(from + i * stride + part * Bytes::WIDTH);
#pragma GCC unroll 4
      for (int j = 0; j < T; ++j) sum[j].add(part, bytes, x[j], i);
    }
  });
#pragma GCC unroll 4
  for (int j = 0; j < T; ++j) use(j, sum[j].lanes());
}

// The same for any number of vectors, up to four at a time.
template <typename Use>
void dot_int8_all(
    const uint8_t* from, size_t stride, int quads, const Int16s* x, int count, const uint8_t* fetched, Use use) {
  for (int g = 0; g < count; g += 4, fetched = from) {
    auto shifted = [&](int j, Lanes sum) { use(g + j, sum); };
    switch (std::min(4, count - g)) {
      case 4: dot_int8<4>(from, stride, quads, x + g, fetched, shifted); break;
      case 3: dot_int8<3>(from, stride, quads, x + g, fetched, shifted); break;
      case 2: dot_int8<2>(from, stride, quads, x + g, fetched, shifted); break;
      default: dot_int8<1>(from, stride, quads, x + g, fetched, shifted);
    }
  }
}

template <>
struct Queries<uint8_t> {
  const int dim;
  std::vector<int16_t> room;
  std::vector<Int16s> form;

  Queries(int most, int dim) : dim(dim), room(size_t(dim) * most), form(most) {}

  void prepare(const float* x, int count, float scale) {
    for (int j = 0; j < count; ++j) {
      form[j] = Int16s::of(x + size_t(j) * dim, dim, &room[size_t(j) * dim]);
      form[j].scale *= scale;
    }
  }

  void score(const uint8_t* page, int group, float* const* scores, const uint8_t* fetched) const {
    const Lanes per_token = Lanes::load(scales(page, dim));
    fetch_line(scales(fetched, dim), 0);
    dot_int8_all(page, 64, dim / 4, form.data(), group, fetched, [&](int j, Lanes sum) {
      Lanes scaled = Lanes::zero(), result = Lanes::zero();
      scaled.add(Lanes::all(form[j].scale), per_token);
      result.add(scaled, sum);
      result.write(scores[j]);
    });
  }
};

// Pages whose attention weights share a scale and whose products are added up in int32, which cannot overflow for so many.
constexpr int CHUNK = 16;

// out[j] [dim] += attention weights j [count * 16] times the values of `count` pages, for T queries. page(i) is page i, which
// is prefetched `ahead` pages before it is read. Weights of tokens beyond the last must be 0. The weights are multiplied with
// the values' scales in place.
template <int T, typename PageOf>
void mix_int8(PageOf page, int count, int dim, int ahead, float* const* weights, float* const* out) {
  int16_t room[T][CHUNK * PAGE];
  for (int first = 0; first < count; first += CHUNK) {
    const int here = std::min(CHUNK, count - first);
    Int16s form[T];
    for (int p = first; p < first + here; ++p) {
      fetch_line(scales(page(std::min(p + CHUNK, count - 1)), dim), 0);
      const Lanes per_token = Lanes::load(scales(page(p), dim));
      for (int j = 0; j < T; ++j) {
        Lanes scaled = Lanes::zero();
        scaled.add(Lanes::load(weights[j] + p * PAGE), per_token);
        scaled.write(weights[j] + p * PAGE);
      }
    }
    for (int j = 0; j < T; ++j) form[j] = Int16s::of(weights[j] + first * PAGE, here * PAGE, room[j]);
    for (int d = 0; d < dim; d += 16) {
      DotI16 sum[T];
      for (int j = 0; j < T; ++j) sum[j] = DotI16::begin(form[j]);
      each_part([&](auto part) {
        for (int p = 0; p < here; ++p) {
          const uint8_t* from = page(first + p) + size_t(4) * d + part * Bytes::WIDTH;
          const uint8_t* fetched = page(std::min(first + p + ahead, count - 1)) + size_t(4) * d;
          for (int i = 0; i < PAGE / 4; ++i) {
            if (!part.value) fetch_line(fetched, size_t(4) * dim * i);
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

}  // namespace solm
