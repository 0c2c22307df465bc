// Matrix products with packed weights (structs.h), one group of input channels at a time, for all steps of a batch together.
#pragma once

#include "arch/packed_pairs.h"
#include "dot_integer.h"

namespace solm {

// How the rows of a packed matrix are laid out, and what its numbers mean.
struct Packing {
  int out, low_bits;
  bool high_only;  // the lower bits are not read: each is taken to be the middle of its range
  float centre;    // lowest = -centre * step where the grid holds none

  Packing(const Matrix& m, bool high_only)
      : out(m.outputs), low_bits(m.bits - 4), high_only(high_only), centre(m.centre < 0 ? 0 : float(m.centre)) {}

  size_t high_bytes() const { return size_t(out) / 2; }
  int blocks_of_chunk() const { return 8 / low_bits; }  // blocks of outputs that share 64 bytes of lower bits
  size_t stride() const {
    if (!low_bits) return high_bytes();
    const int of_chunk = BLOCK * blocks_of_chunk();
    return high_bytes() + size_t((out + of_chunk - 1) / of_chunk) * 64;
  }
  size_t bytes_read() const { return reads_low() ? stride() : high_bytes(); }  // of a row
  bool reads_low() const { return low_bits && !high_only; }
  // A number is factor * (its upper bits) + its lower bits; these are `middle` where they are not read.
  float factor() const { return float(1 << low_bits); }
  float middle() const { return high_only ? (factor() - 1) / 2 : 0; }
};

// The grid of one group of channels. lowest: null where the step gives it.
struct Grid {
  const uint16_t *step, *lowest;

  Grid(const Matrix& m, int group)
      : step(m.grid + size_t(m.centre < 0 ? 2 : 1) * group * m.outputs), lowest(m.centre < 0 ? step + m.outputs : nullptr) {}

  void fetch(int outputs, int count) const {
    for (int line = 0; line < count; line += 32) {
      __builtin_prefetch(step + outputs + line, 0, 2);
      if (lowest) __builtin_prefetch(lowest + outputs + line, 0, 2);
    }
  }
};

// Four input channels at a time of some blocks of outputs, interleaved.
using InterleavedGroup = Bytes[PARTS][QUADS][4];

// Sums over lower bits [rows, 4], of 64 outputs.
using LowSums = Lanes[MOST_ROWS][4];

// y[row * stride + o] += the group's products. next: the grid of what is read afterwards.
class PackedProducts {
 public:
  PackedProducts(const Group& g, PrefetchCursor& cursor, int rows, const Packing& packing, Grid grid, Grid next, size_t stride,
                 float* y)
      : g_(g), cursor_(cursor), rows_(rows), packing_(packing), grid_(grid), next_(next), stride_(stride), y_(y) {}

  void add() {
#if defined(PACKED_PAIRS)
    if (rows_ == 1) {
      switch (packing_.reads_low() ? packing_.low_bits : 0) {
        case 1: return add_pairs<1>();
        case 2: return add_pairs<2>();
        case 4: return add_pairs<4>();
        default: return add_pairs<0>();
      }
    }
#endif
    if (!packing_.reads_low()) return blocks(0, packing_.out, [](int) { return nullptr; });
    const int of_chunk = BLOCK * packing_.blocks_of_chunk();
    InterleavedGroup chunk;
    LowSums sums;
    for (int from = 0; from < packing_.out; from += of_chunk) {
      const size_t place = packing_.high_bytes() + size_t(from) / of_chunk * 64;
      interleave_rows(place, chunk);
      blocks(from, std::min(packing_.out, from + of_chunk), [&](int o) {
        const int at = (o - from) / BLOCK * packing_.low_bits, most = (1 << packing_.low_bits) - 1;
        auto field = [&](int i, int part, Bytes* room) {
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) room[k] = chunk[part][i / 4][k].field(at, most);
          return room;
        };
        dot_all_rows<0, 4>(g_, rows_, field, [&](int j) { return [&sums, j](int r, Lanes sum) { sums[r][j] = sum; }; });
        return const_cast<const LowSums*>(&sums);
      });
    }
  }

 private:
  const Group& g_;
  PrefetchCursor& cursor_;
  const int rows_;
  const Packing& packing_;
  const Grid grid_, next_;
  const size_t stride_;
  float* y_;

  void interleave_rows(size_t place, InterleavedGroup& to) {
    for (int i = 0; i < g_.count; i += 4) {
      each_part([&](auto part) {
        Bytes row[4];
        for (int k = 0; k < 4; ++k) row[k] = Bytes::load(g_.row[i + k] + place + part * Bytes::WIDTH);
        interleave(row, to[part][i / 4]);
      });
      cursor_.fetch();
    }
  }

  // Takes the sums over the upper bits of the block of outputs from o on. low: those over its lower bits, or nullptr.
  template <typename Low>
  auto scaled(int o, Low low) {
    return [this, o, low](int j) {
      constexpr bool ADDS_LOW = !std::is_same_v<Low, std::nullptr_t>;
      const int at = o + 16 * j;
      const Lanes step = Lanes::load_half(grid_.step + at);
      const Lanes lowest = grid_.lowest ? Lanes::load_half(grid_.lowest + at) : Lanes::zero();
      return [this, step, lowest, low, j, to = y_ + at](int r, Lanes sum) {
        const float scale = g_.scale[r];
        Lanes number = Lanes::all(offset(r));  // exact, in whatever order its parts are added
        if constexpr (ADDS_LOW) number = number.plus((*low)[r][j]);
        number.add(Lanes::all(packing_.factor()), sum);
        Lanes scaled = Lanes::zero(), result = Lanes::load(to + r * stride_);
        scaled.add(Lanes::all(scale), number);
        result.add(step, scaled);
        if (grid_.lowest) result.add(lowest, Lanes::all(scale * float(g_.total[r])));
        result.write(to + r * stride_);
      };
    };
  }

  // What is added to a step's sums of numbers.
  float offset(int r) const { return (packing_.middle() - packing_.centre) * float(g_.total[r]); }

#if defined(PACKED_PAIRS)
  // All products of one step with numbers of 4 + LOW bits.
  template <int LOW>
  void add_pairs() {
    if (g_.count > 2 * PackedPairs<LOW, Widest>::HALF) add_halves<LOW, 2>();
    else add_halves<LOW, 1>();
  }

  template <int LOW, int HALVES>
  SOLM_INLINE void add_halves() {
    const int last = packing_.out / BLOCK % 2 ? packing_.out - BLOCK : packing_.out;  // where a single block begins
    add_double_blocks<LOW, HALVES>(last);
    if (last < packing_.out) add_single_block<LOW, HALVES>(last);
  }

  template <int LOW, int HALVES>
  SOLM_INLINE void add_double_blocks(int end) {
    using Pairs = PackedPairs<LOW, Widest>;
    const Pairs pairs(g_.count, g_.row, g_.q[0]);
    typename Pairs::Chunk chunk;
    typename Pairs::Sums upper, lower;
    PrefetchCursor cursor = cursor_;
    auto fetch = [&cursor]() SOLM_INLINE { cursor.fetch<FETCHED>(); };
    auto no_fetch = [] {};  // a line holds all parts
    const StepScale scale = step_scale();
    for (int o = 0; o < end; o += 2 * BLOCK) {
      const int block = o / BLOCK % Pairs::OF_CHUNK;
      if (LOW > 0 && block == 0) pairs.read_chunk(place_of_chunk<LOW>(o), fetch, chunk);
      next_.fetch(o, 2 * BLOCK);
      for (int part = 0; part < Pairs::PARTS; ++part) {
        const typename Pairs::Field first(chunk, part, block), second(chunk, part, block + 1);
        const size_t place = size_t(o) / 2 + Widest::BYTES * part;
        if (part == 0) pairs.template multiply<HALVES, AHEAD>(place, first, second, fetch, upper, lower);
        else pairs.template multiply<HALVES, 0>(place, first, second, no_fetch, upper, lower);
        take<LOW, HALVES, Widest>(scale, upper, lower, 0, o + Widest::BYTES / 4 * part, first.shift);
        take<LOW, HALVES, Widest>(scale, upper, lower, 1, o + Widest::BYTES / 4 * part + BLOCK, second.shift);
      }
    }
    cursor_ = cursor;
  }

  // Its first half is in the lower halves of 32 bytes.
  template <int LOW, int HALVES>
  SOLM_INLINE void add_single_block(int o) {
    using Pairs = PackedPairs<LOW, Wide32>;
    const Pairs pairs(g_.count, g_.row, g_.q[0]);
    typename Pairs::Chunk chunk;
    typename Pairs::Sums upper, lower;
    auto fetch = [this] { cursor_.fetch<FETCHED>(); };
    const StepScale scale = step_scale();
    const int block = o / BLOCK % Pairs::OF_CHUNK;
    if (LOW > 0) pairs.read_chunk(place_of_chunk<LOW>(o), fetch, chunk);
    next_.fetch(o, BLOCK);
    const typename Pairs::Field first(chunk, 0, block), second(chunk, 1, block);
    pairs.template multiply<HALVES, 0>(size_t(o) / 2, first, second, fetch, upper, lower);
    take<LOW, HALVES, Wide32>(scale, upper, lower, 0, o, first.shift);
    take<LOW, HALVES, Wide32>(scale, upper, lower, 1, o + 8, second.shift);
  }

  static constexpr int FETCHED = 2;  // lines per pair of channels, of what is read next
  static constexpr int AHEAD = 192;  // bytes of a row that are in the first-level cache before they are read

  // Where the lower bits of the chunk that holds output o begin in a row.
  template <int LOW>
  size_t place_of_chunk(int o) const {
    return packing_.high_bytes() + size_t(o) / (PackedPairs<LOW, Widest>::OF_CHUNK * BLOCK) * 64;
  }

  // What `scaled` reads of the members, for one step. Compilers would read members again after every result that is written.
  struct StepScale {
    float* y;
    const uint16_t *step, *lowest;
    float scale, offset, total;  // offset: before the scale; total: times the scale
  };

  StepScale step_scale() const {
    const float scale = g_.scale[0], factor = packing_.high_only ? packing_.factor() : 1;
    return {y_, grid_.step, grid_.lowest, scale * factor, offset(0) / factor, scale * float(g_.total[0])};
  }

  // Takes sums for outputs o + 16 k + [0, V::BYTES / 4), as `scaled` does. They are too large by 2^shift.
  template <int LOW, int HALVES, typename V>
  SOLM_INLINE static void take(const StepScale& to, const typename PackedPairs<LOW, V>::Sums& upper,
                               const typename PackedPairs<LOW, V>::Sums& lower, int which, int o, int shift) {
    const auto scale = V::all_floats(to.scale / float(1 << shift)), offset = V::all_floats(to.offset * float(1 << shift));
    const auto total = V::all_floats(to.total);
    auto add = [&](auto with_lowest) SOLM_INLINE {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const int at = o + 16 * k;
        const auto sum = V::floats(PackedPairs<LOW, V>::template total<HALVES>(upper, lower, which, k, shift));
        const auto scaled = V::times(V::plus(sum, offset), scale);
        auto result = V::times_plus(V::load_halves(to.step + at), scaled, V::load_floats(to.y + at));
        if constexpr (with_lowest) result = V::times_plus(V::load_halves(to.lowest + at), total, result);
        V::write_floats(to.y + at, result);
      }
    };
    if (to.lowest) add(std::true_type());
    else add(std::false_type());
  }
#endif

  // Adds the products of outputs [from, end). low(o): the sums over the lower bits of the block from o on.
  template <typename Low>
  void blocks(int from, int end, Low low) {
    int o = from;
    for (; o + 2 * BLOCK <= end; o += 2 * BLOCK) {
      next_.fetch(o, 2 * BLOCK);
      // Interleaving both blocks before separating their halves takes half the work.
      InterleavedGroup both;
      interleave_rows(size_t(o) / 2, both);
      auto half_of = [&](auto half) {
        return [&both, half](int i, int part, Bytes* room) {
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) room[k] = half(both[part][i / 4][k]);
          return room;
        };
      };
      const auto first = low(o);
      dot_all_rows<0, 4>(g_, rows_, half_of([](const Bytes& bytes) { return bytes.low(); }), scaled(o, first));
      const auto second = low(o + BLOCK);
      dot_all_rows<0, 4>(g_, rows_, half_of([](const Bytes& bytes) { return bytes.high(); }), scaled(o + BLOCK, second));
    }
    if (o < end)
      dot_block<0>(g_, rows_, cursor_, [&](const uint8_t* row, int part) { return Bytes::single(row + o / 2, part); },
                   scaled(o, low(o)));
  }
};

}  // namespace solm
