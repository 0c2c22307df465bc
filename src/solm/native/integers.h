// Products of int8 and 4-bit weights with activations that are rounded to int8, a group of 32 channels at a time, for all
// rows of a walk at once: four multiplications in every lane of one instruction where the processor has it.
#pragma once

#include <vector>

#include "kernels.h"

// Weights are stored as unsigned bytes, int8 ones plus 128, in blocks of 64 outputs whose order makes `interleave` put 16
// neighbours into one vector: byte 16 L + 4 k + m of a block belongs to output 16 k + 4 L + m. Two blocks of 4-bit numbers
// share their bytes, the first in the low halves; a last single block fills 32 bytes, its first half in the low halves.
constexpr int BLOCK = 64, QUADS = GROUP / 4;

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

struct Bytes {
  __m512i v;
  static Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  Bytes low() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
  Bytes high() const { return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15))}; }
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

// Sixteen sums of four products each, of bytes that are BIAS too large.
template <int BIAS>
struct Integers {
  __m512i v;
  // total: the sum of all numbers that the bytes will meet.
  static Integers begin(int32_t total) { return {_mm512_set1_epi32(-BIAS * total)}; }
  void add(const Bytes& w, int32_t four) { v = _mm512_dpbusd_epi32(v, w.v, _mm512_set1_epi32(four)); }
  void add(const Bytes& w, const int8_t* each) { v = _mm512_dpbusd_epi32(v, w.v, _mm512_loadu_si512(each)); }
  Lanes lanes() const { return {_mm512_cvtepi32_ps(v)}; }
};

#elif defined(__AVX2__) && !defined(__AVX512F__)

struct Bytes {
  __m256i half[2];
  static __m256i raw(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i lower(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
  static __m256i upper(__m256i bytes) { return lower(_mm256_srli_epi16(bytes, 4)); }
  static Bytes load(const uint8_t* p) { return {{raw(p), raw(p + 32)}}; }
  Bytes low() const { return {{lower(half[0]), lower(half[1])}}; }
  Bytes high() const { return {{upper(half[0]), upper(half[1])}}; }
  static Bytes single(const uint8_t* p) { return {{lower(raw(p)), upper(raw(p))}}; }
};

inline void interleave(const Bytes* row, Bytes* quad) {
  for (int h = 0; h < 2; ++h) {
    const __m256i first = row[0].half[h], second = row[1].half[h], third = row[2].half[h], fourth = row[3].half[h];
    const __m256i a = _mm256_unpacklo_epi8(first, second), b = _mm256_unpackhi_epi8(first, second);
    const __m256i c = _mm256_unpacklo_epi8(third, fourth), d = _mm256_unpackhi_epi8(third, fourth);
    quad[0].half[h] = _mm256_unpacklo_epi16(a, c), quad[1].half[h] = _mm256_unpackhi_epi16(a, c);
    quad[2].half[h] = _mm256_unpacklo_epi16(b, d), quad[3].half[h] = _mm256_unpackhi_epi16(b, d);
  }
}

// Here an instruction adds two products of an unsigned byte with a signed one, in 16 bits. Bytes below 16 leave room for
// eight such sums, which is what a group has; others shed their bias first and hand their sign to the number they meet,
// which must not be -128.
template <int BIAS>
struct Integers {
  static constexpr bool SMALL = BIAS < 16;
  int32_t start;
  __m256i half[2];
  static Integers begin(int32_t total) {
    return {SMALL ? -BIAS * total : 0, {_mm256_setzero_si256(), _mm256_setzero_si256()}};
  }
  static __m256i fours(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
  void add(int h, __m256i w, __m256i x) {
    if constexpr (SMALL) {
      half[h] = _mm256_add_epi16(half[h], _mm256_maddubs_epi16(w, x));
    } else {
      static_assert(BIAS == 128);
      const __m256i number = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
      const __m256i sums = _mm256_maddubs_epi16(_mm256_abs_epi8(number), _mm256_sign_epi8(x, number));
      half[h] = _mm256_add_epi32(half[h], fours(sums));
    }
  }
  void add(const Bytes& w, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    add(0, w.half[0], x), add(1, w.half[1], x);
  }
  void add(const Bytes& w, const int8_t* each) {
    const auto* x = reinterpret_cast<const uint8_t*>(each);
    add(0, w.half[0], Bytes::raw(x)), add(1, w.half[1], Bytes::raw(x + 32));
  }
  Lanes lanes() const {
    Lanes r;
    for (int h = 0; h < 2; ++h) {
      const __m256i sums = SMALL ? _mm256_add_epi32(fours(half[h]), _mm256_set1_epi32(start)) : half[h];
      r.half[h] = (Lanes::Floats)_mm256_cvtepi32_ps(sums);
    }
    return r;
  }
};

#else

struct Bytes {
  uint8_t v[64];
  static Bytes load(const uint8_t* p) {
    Bytes r;
    std::memcpy(r.v, p, 64);
    return r;
  }
  Bytes low() const {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = v[i] & 15;
    return r;
  }
  Bytes high() const {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.v[i] = v[i] >> 4;
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

template <int BIAS>
struct Integers {
  int32_t v[16];
  static Integers begin(int32_t total) {
    Integers r;
    for (int i = 0; i < 16; ++i) r.v[i] = -BIAS * total;
    return r;
  }
  void add(const Bytes& w, int32_t four) {
    int8_t q[4];
    std::memcpy(q, &four, 4);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 4; ++k) v[i] += int32_t(w.v[4 * i + k]) * q[k];
  }
  void add(const Bytes& w, const int8_t* each) {
    for (int i = 0; i < 64; ++i) v[i / 4] += int32_t(w.v[i]) * each[i];
  }
  Lanes lanes() const {
    float x[16];
    for (int i = 0; i < 16; ++i) x[i] = float(v[i]);
    return Lanes::load(x);
  }
};

#endif

// One row's input of a matrix, rounded: whole numbers of all channels, 0 for skipped ones, and per group the channels that
// it keeps (a bit each), their scale and the sum of their numbers.
struct Rounded {
  std::vector<int8_t> number;
  std::vector<uint32_t> kept;
  std::vector<float> scale;
  std::vector<int32_t> total;
  std::vector<float> spread;  // the input with zeros where it skips

  void resize(int most_channels) {
    const int groups = (most_channels + GROUP - 1) / GROUP;
    number.resize(size_t(groups) * GROUP), spread.resize(size_t(groups) * GROUP);
    kept.resize(groups), scale.resize(groups), total.resize(groups);
  }

  // Groups from to to (not included); most: the whole number that a group's largest becomes.
  void round(const int32_t* index, const float* x, int count, int from, int to, int most) {
    int at = int(std::lower_bound(index, index + count, from * GROUP) - index);
    std::fill(kept.begin() + from, kept.begin() + to, 0);
    std::fill(spread.begin() + size_t(from) * GROUP, spread.begin() + size_t(to) * GROUP, 0.0f);
    for (; at < count && index[at] < to * GROUP; ++at) {
      spread[index[at]] = x[at];
      kept[index[at] / GROUP] |= 1u << (index[at] % GROUP);
    }
    for (int g = from; g < to; ++g) {
      const float* in = spread.data() + size_t(g) * GROUP;
      int8_t* out = number.data() + size_t(g) * GROUP;
      float peak = 0;
#pragma omp simd reduction(max : peak)
      for (int i = 0; i < GROUP; ++i) peak = std::max(peak, std::fabs(in[i]));
      scale[g] = peak / float(most);
      const float inverse = float(most) / std::max(peak, 1.17549435e-36f);
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < GROUP; ++i) {
        const int32_t value = int32_t(std::nearbyint(in[i] * inverse));
        out[i] = int8_t(value);
        sum += value;
      }
      total[g] = sum;
    }
  }
};

// What the rows of a walk keep of one group of channels: the weights' rows that any of them needs, a multiple of four of
// them, and per row of the walk its numbers (0 where it skips one), their scale and their sum.
struct Group {
  int count = 0;
  const uint8_t* row[GROUP];
  int8_t q[MOST_ROWS][GROUP];
  float scale[MOST_ROWS];
  int32_t total[MOST_ROWS];

  void gather(int number, const Rounded* rounded, int rows, const uint8_t* weights, size_t bytes) {
    uint32_t used = 0;
    for (int r = 0; r < rows; ++r) used |= rounded[r].kept[number];
    int8_t channel[GROUP];
    count = 0;
    for (uint32_t rest = used; rest; rest &= rest - 1) {
      channel[count] = int8_t(__builtin_ctz(rest));
      row[count] = weights + (size_t(number) * GROUP + channel[count]) * bytes;
      ++count;
    }
    const int found = count;
    for (; count % 4; ++count) row[count] = row[0];
    for (int r = 0; r < rows; ++r) {
      const int8_t* from = rounded[r].number.data() + size_t(number) * GROUP;
      if (found == GROUP) std::memcpy(q[r], from, GROUP);
      else
        for (int i = 0; i < count; ++i) q[r][i] = i < found ? from[channel[i]] : int8_t(0);
      scale[r] = rounded[r].scale[number], total[r] = rounded[r].total[number];
    }
  }
};

// Fetches the rows of the group after the one at hand, a few lines at a time between multiplications: pieces of every row in
// turn, so that what is needed first comes first, but as long as memory likes to be read.
struct Ahead {
  static constexpr int PIECE = 256;
  const Group& group;
  const int bytes;
  int row = 0, start = 0, at = 0;
  void fetch() {
    for (int i = 0; i < 4 && start < bytes && group.count; ++i) {
      __builtin_prefetch(group.row[row] + at, 0, 2);
      at += 64;
      if (at < std::min(start + PIECE, bytes)) continue;
      if (++row == group.count) row = 0, start += PIECE;
      at = start;
    }
  }
};

// Sums of a group for T rows from r on and N times 16 outputs, whose bytes of four channels from i on `quads(i, room)`
// gives, interleaved, in that room or where they are known: for j of N, done(row, j, 16 sums).
template <int BIAS, int N, int T, typename Quads, typename Done>
void integer_tile(const Group& g, int r, Quads quads, Done done) {
  Integers<BIAS> sum[T][N];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[t][j] = Integers<BIAS>::begin(g.total[r + t]);
  for (int i = 0; i < g.count; i += 4) {
    Bytes room[N];
    const Bytes* quad = quads(i, room);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      int32_t four;
      std::memcpy(&four, &g.q[r + t][i], 4);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sum[t][j].add(quad[j], four);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) done(r + t, j, sum[t][j].lanes());
}

template <int BIAS, int N, typename Quads, typename Done>
void integer_tiles(const Group& g, int rows, Quads quads, Done done) {
  for (int r = 0; r < rows; r += 4)
    switch (std::min(4, rows - r)) {
      case 4: integer_tile<BIAS, N, 4>(g, r, quads, done); break;
      case 3: integer_tile<BIAS, N, 3>(g, r, quads, done); break;
      case 2: integer_tile<BIAS, N, 2>(g, r, quads, done); break;
      default: integer_tile<BIAS, N, 1>(g, r, quads, done);
    }
}

// One block of outputs for all rows; load(row) reads the block's bytes of a row of weights.
template <int BIAS, typename Load, typename Done>
void integer_block(const Group& g, int rows, Ahead& ahead, Load load, Done done) {
  auto fresh = [&](int i, Bytes* quad) {
    Bytes row[4];
    for (int k = 0; k < 4; ++k) row[k] = load(g.row[i + k]);
    interleave(row, quad);
    ahead.fetch();
    return quad;
  };
  if (rows <= 4) return integer_tiles<BIAS, 4>(g, rows, fresh, done);
  Bytes known[QUADS][4];
  for (int i = 0; i < g.count; i += 4) fresh(i, known[i / 4]);
  integer_tiles<BIAS, 4>(g, rows, [&](int i, Bytes*) { return known[i / 4]; }, done);
}

// y[rows, out] += what the group adds for int8 weights, but for their outputs' scales; `next` is fetched meanwhile.
inline void add_group(const Group& g, const Group& next, int rows, int out, float* y) {
  Ahead ahead{next, out};
  for (int o = 0; o < out; o += BLOCK)
    integer_block<128>(g, rows, ahead, [&](const uint8_t* row) { return Bytes::load(row + o); },
                  [&](int r, int j, Lanes sum) {
                    float* to = y + size_t(r) * out + o + 16 * j;
                    Lanes result = Lanes::load(to);
                    result.add(Lanes::all(g.scale[r]), sum);
                    result.write(to);
                  });
}

// The same for packed weights, whose groups have a step and a lowest value for every output, grid [2, out].
inline void add_packed_group(const Group& g, const Group& next, int rows, const uint16_t* grid, const uint16_t* grid_next,
                             int out, float* y) {
  Ahead ahead{next, out / 2};
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
    for (int line = 0; line < 2 * BLOCK; line += 32) {
      __builtin_prefetch(grid_next + o + line, 0, 2);
      __builtin_prefetch(grid_next + out + o + line, 0, 2);
    }
    Bytes both[QUADS][4];
    for (int i = 0; i < g.count; i += 4) {
      Bytes row[4];
      for (int k = 0; k < 4; ++k) row[k] = Bytes::load(g.row[i + k] + o / 2);
      interleave(row, both[i / 4]);
      ahead.fetch();
      ahead.fetch();
    }
    auto part = [&](auto half) {
      return [&both, half](int i, Bytes* room) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) room[k] = half(both[i / 4][k]);
        return room;
      };
    };
    integer_tiles<0, 4>(g, rows, part([](const Bytes& bytes) { return bytes.low(); }), settle(o));
    integer_tiles<0, 4>(g, rows, part([](const Bytes& bytes) { return bytes.high(); }), settle(o + BLOCK));
  }
  if (o < out) integer_block<0>(g, rows, ahead, [&](const uint8_t* row) { return Bytes::single(row + o / 2); }, settle(o));
}
