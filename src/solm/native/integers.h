// Products of int8 and 4-bit weights with activations that are rounded to int8, a group of 32 channels at a time, for all
// rows of a walk at once: four multiplications in every lane of one instruction where the processor has it.
#pragma once

#include "kernels.h"

// Weights are stored as unsigned bytes, int8 ones plus 128, in blocks of 64 outputs whose order makes `interleave` put 16
// neighbours into one vector: byte 16 L + 4 k + m of a block belongs to output 16 k + 4 L + m. Two blocks of 4-bit numbers
// share their bytes, the first in the low halves; a last single block fills 32 bytes, its first half in the low halves.
constexpr int BLOCK = 64, QUADS = GROUP / 4;

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

struct Bytes {
  __m512i v;
  static Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static Bytes low(const uint8_t* p) { return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15))}; }
  static Bytes high(const uint8_t* p) {
    return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15))};
  }
  static Bytes single(const uint8_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), most = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(raw, most), high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), most);
    return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
  }
};

// From four rows of 64 outputs to four times 16 outputs, each with its four bytes.
inline void interleave(const Bytes* row, Bytes* quad) {
  const __m512i a = _mm512_unpacklo_epi8(row[0].v, row[1].v), b = _mm512_unpackhi_epi8(row[0].v, row[1].v);
  const __m512i c = _mm512_unpacklo_epi8(row[2].v, row[3].v), d = _mm512_unpackhi_epi8(row[2].v, row[3].v);
  quad[0].v = _mm512_unpacklo_epi16(a, c), quad[1].v = _mm512_unpackhi_epi16(a, c);
  quad[2].v = _mm512_unpacklo_epi16(b, d), quad[3].v = _mm512_unpackhi_epi16(b, d);
}

struct Integers {
  __m512i v;
  static Integers all(int32_t x) { return {_mm512_set1_epi32(x)}; }
  void add(const Bytes& w, int32_t four) { v = _mm512_dpbusd_epi32(v, w.v, _mm512_set1_epi32(four)); }
  Lanes lanes() const { return {_mm512_cvtepi32_ps(v)}; }
};

#else

struct Bytes {
  uint8_t v[64];
  static Bytes load(const uint8_t* p) {
    Bytes r;
    std::memcpy(r.v, p, 64);
    return r;
  }
  static Bytes low(const uint8_t* p) {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = p[i] & 15;
    return r;
  }
  static Bytes high(const uint8_t* p) {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = p[i] >> 4;
    return r;
  }
  static Bytes single(const uint8_t* p) {
    Bytes r;
    for (int i = 0; i < 32; ++i) r.v[i] = p[i] & 15, r.v[32 + i] = p[i] >> 4;
    return r;
  }
};

inline void interleave(const Bytes* row, Bytes* quad) {
  for (int k = 0; k < 4; ++k)
    for (int lane = 0; lane < 16; ++lane)
      for (int r = 0; r < 4; ++r) quad[k].v[4 * lane + r] = row[r].v[16 * (lane / 4) + 4 * k + lane % 4];
}

struct Integers {
  int32_t v[16];
  static Integers all(int32_t x) {
    Integers r;
    for (int i = 0; i < 16; ++i) r.v[i] = x;
    return r;
  }
  void add(const Bytes& w, int32_t four) {
    int8_t q[4];
    std::memcpy(q, &four, 4);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 4; ++k) v[i] += int32_t(w.v[4 * i + k]) * q[k];
  }
  Lanes lanes() const {
    float x[16];
    for (int i = 0; i < 16; ++i) x[i] = float(v[i]);
    return Lanes::load(x);
  }
};

#endif

// What the rows of a walk keep of one group of channels: the weights' rows that any of them needs, a multiple of four of
// them, and per row of the walk its activations (0 where it skips one), their scale and their sum.
struct Group {
  int number = 0, count = 0;
  const uint8_t* row[GROUP];
  int8_t q[MOST_ROWS][GROUP];
  float scale[MOST_ROWS];
  int32_t total[MOST_ROWS];

  void round(int r, const int32_t* channels, const float* x, int kept, const int8_t* place, int most) {
    float peak = 0;
    for (int i = 0; i < kept; ++i) peak = std::max(peak, std::fabs(x[i]));
    scale[r] = peak / float(most), total[r] = 0;
    std::fill_n(q[r], GROUP, int8_t(0));
    const float inverse = 1.0f / std::max(scale[r], 1.17549435e-38f);
    for (int i = 0; i < kept; ++i) {
      const int value = int(std::nearbyint(x[i] * inverse));
      q[r][int(place[channels[i] % GROUP])] = int8_t(value);
      total[r] += value;
    }
  }
};

// Sums of a group for T rows from r on and one block of outputs, where load(row) reads the block's bytes: for j of four,
// done(row, j, 16 sums).
template <int T, typename Load, typename Done>
void integer_tile(const Group& g, int r, int bias, Load load, Done done) {
  Integers sum[T][4];
  for (int t = 0; t < T; ++t)
    for (int j = 0; j < 4; ++j) sum[t][j] = Integers::all(-bias * g.total[r + t]);
  for (int i = 0; i < g.count; i += 4) {
    Bytes row[4], quad[4];
    for (int k = 0; k < 4; ++k) row[k] = load(g.row[i + k]);
    interleave(row, quad);
    for (int t = 0; t < T; ++t) {
      int32_t four;
      std::memcpy(&four, &g.q[r + t][i], 4);
      for (int j = 0; j < 4; ++j) sum[t][j].add(quad[j], four);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int j = 0; j < 4; ++j) done(r + t, j, sum[t][j].lanes());
}

template <typename Load, typename Done>
void integer_tiles(const Group& g, int rows, int bias, Load load, Done done) {
  for (int r = 0; r < rows; r += 4)
    switch (std::min(4, rows - r)) {
      case 4: integer_tile<4>(g, r, bias, load, done); break;
      case 3: integer_tile<3>(g, r, bias, load, done); break;
      case 2: integer_tile<2>(g, r, bias, load, done); break;
      default: integer_tile<1>(g, r, bias, load, done);
    }
}

// y[rows, out] += what the group adds for int8 weights, but for their outputs' scales; `next` is fetched meanwhile.
inline void add_group(const Group& g, const Group& next, int rows, int out, float* y) {
  for (int o = 0; o < out; o += BLOCK) {
    for (int k = 0; k < next.count; ++k) __builtin_prefetch(next.row[k] + o, 0, 2);
    integer_tiles(g, rows, 128, [&](const uint8_t* row) { return Bytes::load(row + o); },
                  [&](int r, int j, Lanes sum) {
                    float* to = y + size_t(r) * out + o + 16 * j;
                    Lanes result = Lanes::load(to);
                    result.add(Lanes::all(g.scale[r]), sum);
                    result.write(to);
                  });
  }
}

// The same for packed weights, whose groups have a step and a lowest value for every output, grid [2, out].
inline void add_packed_group(const Group& g, const Group& next, int rows, const uint16_t* grid, const uint16_t* grid_next,
                             int out, float* y) {
  auto settle = [&](int o) {
    return [&, o](int r, int j, Lanes sum) {
      float* to = y + size_t(r) * out + o + 16 * j;
      Lanes steps = Lanes::zero(), result = Lanes::load(to);
      steps.add(Lanes::load_half(grid + o + 16 * j), sum);
      steps.add(Lanes::load_half(grid + out + o + 16 * j), Lanes::all(float(g.total[r])));
      result.add(Lanes::all(g.scale[r]), steps);
      result.write(to);
    };
  };
  int o = 0;
  for (; o + 2 * BLOCK <= out; o += 2 * BLOCK) {
    for (int k = 0; k < next.count; ++k) __builtin_prefetch(next.row[k] + o / 2, 0, 2);
    for (int line = 0; line < 2 * BLOCK; line += 32) {
      __builtin_prefetch(grid_next + o + line, 0, 2);
      __builtin_prefetch(grid_next + out + o + line, 0, 2);
    }
    integer_tiles(g, rows, 0, [&](const uint8_t* row) { return Bytes::low(row + o / 2); }, settle(o));
    integer_tiles(g, rows, 0, [&](const uint8_t* row) { return Bytes::high(row + o / 2); }, settle(o + BLOCK));
  }
  if (o < out) integer_tiles(g, rows, 0, [&](const uint8_t* row) { return Bytes::single(row + o / 2); }, settle(o));
}
