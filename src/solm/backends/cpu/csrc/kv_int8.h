// Keys and values in int8, half the size of bfloat16: numbers plus 128, and after a page's numbers the float32 scales of its
// 16 tokens. Keys are stored as [D / 4, 16, 4], values as [4, D, 4] (groups of four channels and of four tokens), the order
// in which DotI8 reads. Values of 4 bits are [2, D, 4]: a byte has the number plus 8 of a token, and above it that of the
// fourth token after it. Queries and attention weights are rounded to int16, whose error is negligible beside that of int8.
#pragma once

#include "arch/dot_i16.h"
#include "pages.h"

namespace solm {

template <>
constexpr size_t page_size<uint8_t>(int dim, int bits) { return size_t(2) * bits * dim + 16 * sizeof(float); }

template <typename Byte>
auto scales(Byte* page, int dim, int bits = 8) {
  return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const float, float>*>(page + size_t(2) * bits * dim);
}

inline size_t key_byte(int token, int channel) { return size_t(channel / 4) * 64 + token * 4 + channel % 4; }

// The byte of a value of 8 bits, and that of one of 4, whose upper half it is for every other four tokens.
inline size_t value_byte(int token, int channel, int dim) { return size_t(token / 4) * 4 * dim + channel * 4 + token % 4; }
inline size_t half_byte(int token, int channel, int dim) { return size_t(token / 8) * 4 * dim + channel * 4 + token % 4; }
inline bool is_upper(int token) { return token / 4 % 2; }

// Calls write(d, number) for x [dim] in whole numbers of at most `most`; returns their scale.
template <typename Write>
float quantise(const float* x, int dim, int most, Write write) {
  const float peak = peak_of(x, dim);
  const float inverse = float(most) / std::max(peak, 1.17549435e-36f);
  for (int d = 0; d < dim; ++d) write(d, int32_t(std::nearbyint(x[d] * inverse)));
  return peak / float(most);
}
inline void store_key(uint8_t* page, int token, const float* x, int dim) {
  scales(page, dim)[token] = quantise(x, dim, 127, [&](int d, int32_t n) { page[key_byte(token, d)] = uint8_t(n + 128); });
}
inline void store_value(uint8_t* page, int token, const float* x, int dim, int bits) {
  if (bits == 8) {
    auto write = [&](int d, int32_t n) { page[value_byte(token, d, dim)] = uint8_t(n + 128); };
    scales(page, dim)[token] = quantise(x, dim, 127, write);
  } else {
    const int shift = is_upper(token) ? 4 : 0;
    auto write = [&](int d, int32_t n) {
      uint8_t& byte = page[half_byte(token, d, dim)];
      byte = uint8_t((byte & ~(15 << shift)) | ((n + 8) & 15) << shift);
    };
    scales(page, dim, 4)[token] = quantise(x, dim, 7, write);
  }
}
inline float key_of(const uint8_t* page, int token, int channel, int dim) {
  return scales(page, dim)[token] * float(int(page[key_byte(token, channel)]) - 128);
}

// Calls use(j, 16 sums) for T vectors of `x`: their products with the first `quads` groups of 64 bytes from `from` on, `stride`
// bytes apart. `fetched` will be read later and is prefetched.
template <int T, typename Use>
void dot_int8(const uint8_t* from, size_t stride, int quads, const Int16s* x, const uint8_t* fetched, Use use) {
  DotI16<128> sum[T];
#pragma GCC unroll 4
  for (int j = 0; j < T; ++j) sum[j] = DotI16<128>::begin(x[j]);
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

// out[j] [dim] += attention weights j [count * 16] times the values of `count` pages, which have BITS, for T queries. page(i)
// is page i, which is prefetched `ahead` pages before it is read. Weights of tokens beyond the last must be 0. The weights are
// multiplied with the values' scales in place.
template <int T, int BITS, typename PageOf>
void mix_int8(PageOf page, int count, int dim, int ahead, float* const* weights, float* const* out) {
  int16_t room[T][CHUNK * PAGE];
  for (int first = 0; first < count; first += CHUNK) {
    const int here = std::min(CHUNK, count - first);
    Int16s form[T];
    for (int p = first; p < first + here; ++p) {
      fetch_line(scales(page(std::min(p + CHUNK, count - 1)), dim, BITS), 0);
      const Lanes per_token = Lanes::load(scales(page(p), dim, BITS));
      for (int j = 0; j < T; ++j) {
        Lanes scaled = Lanes::zero();
        scaled.add(Lanes::load(weights[j] + p * PAGE), per_token);
        scaled.write(weights[j] + p * PAGE);
      }
    }
    for (int j = 0; j < T; ++j) form[j] = Int16s::of(weights[j] + first * PAGE, here * PAGE, room[j]);
    for (int d = 0; d < dim; d += 16) {
      using Sum = DotI16<BITS == 8 ? 128 : 8>;
      Sum sum[T];
      for (int j = 0; j < T; ++j) sum[j] = Sum::begin(form[j]);
      each_part([&](auto part) {
        for (int p = 0; p < here; ++p) {
          const uint8_t* from = page(first + p) + size_t(4) * d + part * Bytes::WIDTH;
          const uint8_t* fetched = page(std::min(first + p + ahead, count - 1)) + size_t(4) * d;
          auto add = [&](const Bytes& bytes, int i) SOLM_INLINE {
#pragma GCC unroll 4
            for (int j = 0; j < T; ++j) sum[j].add(part, bytes, form[j], p * PAGE / 4 + i);
          };
          for (int i = 0; i < BITS / 2; ++i) {
            if (!part.value) fetch_line(fetched, size_t(4) * dim * i);
            const Bytes bytes = Bytes::load(from + size_t(4) * dim * i);
            if constexpr (BITS == 8) add(bytes, i);
            else add(bytes.low(), 2 * i), add(bytes.high(), 2 * i + 1);
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

// The same for any number of queries, up to four at a time.
template <int BITS, typename PageOf>
void mix_int8_all(PageOf page, int count, int dim, int ahead, int queries, float* const* weights, float* const* out) {
  for (int g = 0; g < queries; g += 4)
    switch (std::min(4, queries - g)) {
      case 4: mix_int8<4, BITS>(page, count, dim, ahead, weights + g, out + g); break;
      case 3: mix_int8<3, BITS>(page, count, dim, ahead, weights + g, out + g); break;
      case 2: mix_int8<2, BITS>(page, count, dim, ahead, weights + g, out + g); break;
      default: mix_int8<1, BITS>(page, count, dim, ahead, weights + g, out + g);
    }
}

}  // namespace solm
