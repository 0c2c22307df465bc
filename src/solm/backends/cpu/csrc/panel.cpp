#include "panel.h"

#if defined(SOLM_PANELS)

#include <algorithm>
#include <cstring>

#include "arch/each.h"

namespace solm {
namespace {

constexpr int BYTES = -1;  // in place of LOW: numbers are bytes

// The numbers of four channels of 32 outputs of two blocks.
using Vector = __m512i;
using Quad = Vector[2][2];

// One panel of T steps, two blocks of outputs at a time. Numbers have LOW bits beside the upper 4.
template <int LOW, int T>
struct Kernel {
  static constexpr int OF_CHUNK = LOW > 0 ? 8 / LOW : 1;
  static constexpr int FETCHED = LOW == BYTES ? 4 : LOW == 1 ? 3 : 2 + LOW;  // lines of what is read next, per quad

  const Panel& p;
  const Group& g;
  const Packing packing;
  const Grid grid;
  const int quads;
  int32_t start[T];  // of a step's integer sums: what the centre adds
  float offset[T];   // the same of numbers without their lower bits, which is no integer
  float total[T];    // per lowest value
  PrefetchCursor cursor;
  Vector lower[QUADS][4];    // lower bits of a chunk of blocks, interleaved
  Quad known[QUADS];         // unpacked

  explicit Kernel(const Panel& panel)
      : p(panel), g(p.group), packing(p.matrix, p.high_only), grid(p.matrix, p.number), quads((g.count + 3) / 4),
        cursor(p.cursor) {
    const int centre = LOW == BYTES ? 128 : std::max(p.matrix.centre, 0);
    for (int r = 0; r < T; ++r) {
      start[r] = p.high_only ? 0 : -centre * g.total[r];
      offset[r] = (packing.middle() - packing.centre) * float(g.total[r]);
      total[r] = g.scale[r] * float(g.total[r]);
    }
  }

  void add() {
    for (int o = p.from; o < p.to; o += 2 * BLOCK) {
      if (LOW > 0 && o / BLOCK % OF_CHUNK == 0) read_lower(o);
      if (p.next_grid) fetch_grid(o - p.from);
      if (o + BLOCK == p.to) last_block(o);
      else half<0>(o), half<1>(o);
    }
    p.cursor = cursor;
  }

 private:
  static Vector load(const uint8_t* from) { return _mm512_loadu_si512(from); }

  void fetch_grid(int outputs) const {
    constexpr size_t SIZE = 2 * BLOCK * sizeof(uint16_t);
    fetch(p.next_grid + outputs, SIZE);
    if (grid.lowest) fetch(p.next_grid + p.matrix.outputs + outputs, SIZE);
  }

  void read_lower(int o) {
    const size_t place = packing.high_bytes() + size_t(o) / (OF_CHUNK * BLOCK) * 64;
    for (int i = 0; i < quads; ++i) {
      Bytes row[4], quad[4];
      for (int k = 0; k < 4; ++k) row[k] = Bytes::load(g.row[4 * i + k] + place);
      interleave(row, quad);
      for (int j = 0; j < 4; ++j) lower[i][j] = quad[j].v;
    }
  }

  // Outputs 32 HALF + [0, 32) of the quad whose rows read(k) gives.
  template <int HALF, typename Read>
  SOLM_INLINE static void interleave_half(Read read, Vector (&two)[2]) {
    const Vector a = read(0), b = read(1), c = read(2), d = read(3);
    const Vector ab = HALF ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
    const Vector cd = HALF ? _mm512_unpackhi_epi8(c, d) : _mm512_unpacklo_epi8(c, d);
    two[0] = _mm512_unpacklo_epi16(ab, cd), two[1] = _mm512_unpackhi_epi16(ab, cd);
  }

  // Numbers of a vector of which `upper` has the upper 4 bits, `shift` bits too low, and `low` others from bit `at` on.
  template <int SHIFT>
  SOLM_INLINE static Vector joined(Vector upper, Vector low, int at) {
    constexpr int AND_OR = 0xEA;  // (a and b) or c
    const Vector moved = SHIFT >= 0 ? _mm512_slli_epi16(upper, SHIFT) : _mm512_srli_epi16(upper, -SHIFT);
    const Vector field = _mm512_and_si512(_mm512_srl_epi16(low, _mm_cvtsi32_si128(at)), _mm512_set1_epi8((1 << LOW) - 1));
    return _mm512_ternarylogic_epi32(moved, _mm512_set1_epi8(char(15 << LOW)), field, AND_OR);
  }

  // The numbers of quad i of outputs 32 HALF + [0, 32) of two blocks from o on.
  template <int HALF>
  SOLM_INLINE void unpack(int o, int i, Quad& to) const {
    const uint8_t* const* row = g.row + 4 * i;
    if constexpr (LOW == BYTES) {
      each<2>([&](auto b) SOLM_INLINE {
        interleave_half<HALF>([&](int k) SOLM_INLINE { return load(row[k] + o + b * BLOCK); }, to[b]);
      });
    } else {
      Vector upper[2];
      interleave_half<HALF>([&](int k) SOLM_INLINE { return load(row[k] + o / 2); }, upper);
      each<2>([&](auto u) SOLM_INLINE {
        if constexpr (LOW == 0) {
          const Vector most = _mm512_set1_epi8(15);
          to[0][u] = _mm512_and_si512(upper[u], most), to[1][u] = _mm512_and_si512(_mm512_srli_epi16(upper[u], 4), most);
        } else {
          const Vector low = lower[i][2 * HALF + u];
          const int at = o / BLOCK % OF_CHUNK * LOW;
          to[0][u] = joined<LOW>(upper[u], low, at), to[1][u] = joined<LOW - 4>(upper[u], low, at + LOW);
        }
      });
    }
  }

  template <int HALF>
  SOLM_INLINE void half(int o) {
    multiply(o + 32 * HALF, 2, [&](int i, Quad& to) SOLM_INLINE { unpack<HALF>(o, i, to), cursor.template fetch<FETCHED>(); });
  }

  // A single block, of which packed numbers have the upper bits in 32 bytes.
  void last_block(int o) {
    Quad known[2][QUADS];
    for (int i = 0; i < quads; ++i) {
      Bytes row[4], quad[4];
      for (int k = 0; k < 4; ++k) {
        const uint8_t* from = g.row[4 * i + k];
        row[k] = LOW == BYTES ? Bytes::load(from + o) : Bytes::single(from + o / 2, 0);
      }
      interleave(row, quad);
      for (int j = 0; j < 4; ++j) {
        Vector numbers = quad[j].v;
        if constexpr (LOW > 0) numbers = joined<LOW>(numbers, lower[i][j], o / BLOCK % OF_CHUNK * LOW);
        known[j / 2][i][0][j % 2] = numbers, known[j / 2][i][1][j % 2] = _mm512_setzero_si512();
      }
    }
    for (int h = 0; h < 2; ++h)
      multiply(o + 32 * h, 1, [&](int i, Quad& to) SOLM_INLINE {
        each<4>([&](auto k) SOLM_INLINE { to[k / 2][k % 2] = known[h][i][k / 2][k % 2]; });
      });
  }

  // The products with outputs o + [0, 32) of some blocks; numbers(i, to) gives quad i.
  template <typename Numbers>
  SOLM_INLINE void multiply(int o, int blocks, Numbers numbers) const {
    Vector sum[T][2][2];
    each<T>([&](auto t) SOLM_INLINE {
      each<4>([&](auto k) SOLM_INLINE { sum[t][k / 2][k % 2] = _mm512_set1_epi32(start[t]); });
    });
    for (int i = 0; i < quads; ++i) {
      Quad quad;
      numbers(i, quad);
      each<T>([&](auto t) SOLM_INLINE {
        int32_t four;
        std::memcpy(&four, &g.q[t][4 * i], 4);
        const Vector x = _mm512_set1_epi32(four);
        each<4>([&](auto k) SOLM_INLINE { add_products(sum[t][k / 2][k % 2], quad[k / 2][k % 2], x); });
      });
    }
    each<2>([&](auto b) SOLM_INLINE {
      if (b < blocks)
        each<2>([&](auto u) SOLM_INLINE {
          const int at = o + BLOCK * b + 16 * u;
          float* to = p.sums + size_t(at) * T;
          each<T>([&](auto t) SOLM_INLINE { take(t, at, {_mm512_cvtepi32_ps(sum[t][b][u])}, to + 16 * t); });
        });
    });
  }

  // Adds a step's sums with 16 outputs from `at` on, as the products of a single step do.
  SOLM_INLINE void take(int r, int at, Lanes found, float* to) const {
    Lanes result = p.first ? Lanes::zero() : Lanes::load(to);
    if constexpr (LOW == BYTES) {
      result.add(Lanes::all(g.scale[r]), found);
    } else {
      Lanes number = found, scaled = Lanes::zero();
      if (LOW == 0 && p.high_only) number = Lanes::all(offset[r]), number.add(Lanes::all(packing.factor()), found);
      scaled.add(Lanes::all(g.scale[r]), number);
      result.add(Lanes::load_half(grid.step + at), scaled);
      if (grid.lowest) result.add(Lanes::load_half(grid.lowest + at), Lanes::all(total[r]));
    }
    result.write(to);
  }
};

template <int T>
void add_steps(const Panel& p) {
  if (!p.matrix.bits) return Kernel<BYTES, T>(p).add();
  switch (p.high_only ? 4 : p.matrix.bits) {
    case 4: return Kernel<0, T>(p).add();
    case 5: return Kernel<1, T>(p).add();
    case 6: return Kernel<2, T>(p).add();
    default: return Kernel<4, T>(p).add();
  }
}

}  // namespace

void Panel::add() const {
  static_assert(MOST_STEPS == 6);
  switch (steps) {
    case 2: return add_steps<2>(*this);
    case 3: return add_steps<3>(*this);
    case 4: return add_steps<4>(*this);
    case 5: return add_steps<5>(*this);
    default: return add_steps<6>(*this);
  }
}

}  // namespace solm

#endif
