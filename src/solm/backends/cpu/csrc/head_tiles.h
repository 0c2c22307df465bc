// Upper bits of a head of integers that have grids, multiplied with many steps as matrices, a block of two strips at a time.
#pragma once

#include <memory>

#include "engine.h"
#include "gemm.h"

namespace solm {

struct HeadTiles {
  // What lower bits add to a block's outputs is random: its sums from upper bits, and the variances [MOST_ROWS, BLOCK].
  std::vector<float> sums, variances;

  HeadTiles(const Head& head, const Sizes& s)
      : sums(STEPS * BLOCK), variances(STEPS * BLOCK), head(head), channels(s.hidden), vocabulary(s.vocabulary),
        whole((s.hidden + GROUP - 1) / GROUP), numbers(STEPS * whole * GROUP), scale(STEPS * whole), sum(STEPS * whole),
        half_sum(2 * STEPS * whole), total(STEPS * whole), half_total(2 * STEPS * whole) {}

  // Takes the inputs of `rows` steps.
  void take(const RoundedInput* rounded, int rows) {
    for (int r = 0; r < rows; ++r) {
      std::copy_n(rounded[r].number.data(), whole * GROUP, &numbers[r * whole * GROUP]);
      for (size_t g = 0; g < whole; ++g) {
        const size_t at = r * whole + g;
        const int32_t* half = &rounded[r].total[2 * g];
        scale[at] = rounded[r].scale[g], total[at] = half[0] + half[1], sum[at] = scale[at] * float(total[at]);
        for (int h = 0; h < 2; ++h) half_total[2 * at + h] = half[h], half_sum[2 * at + h] = scale[at] * float(half[h]);
      }
    }
  }

  ChunkInput inputs() {
    return {channels, int(whole * GROUP), int(whole), nullptr, scale.data(), sum.data(), half_sum.data(), total.data(),
            half_total.data(), numbers.data()};
  }

  // Leaves `sums` and `variances` of a block for so many steps. variance(g, r): of what lower bits add in group g of step r, per
  // square of a step of the grid.
  template <int QUADS_OF_GROUP, typename Variance>
  void multiply_upper(int block, int rows, Variance variance) {
    const float per_factor = 1 / float(1 << (head.bits - HIGH_BITS));
    multiply_block<HIGH_BITS, QUADS_OF_GROUP, true>(
        *tiles, inputs(), 0, rows, 1, sums.data(), nullptr,
        [&](Tile& tile, int first, int count) {
          return unpack_head<HIGH_BITS, QUADS_OF_GROUP, true>(tile, head, channels, vocabulary, block, first, count);
        },
        [&](int on, int first, int count) {
          return upper_bits_of<QUADS_OF_GROUP>(head, channels, vocabulary, block + on, first, count);
        },
        [&](const Tile& tile, int from, int count) {
          for (int j = 0; j < BLOCK; j += 16) {
            Lanes square[Tile::MOST_GROUPS];
            for (int g = 0; g < count; ++g) {
              Lanes step = Lanes::zero();
              step.add(Lanes::load(tile.step[g] + j), Lanes::all(per_factor));
              square[g] = Lanes::zero(), square[g].add(step, step);
            }
            for (int r = 0; r < rows; ++r) {
              float* to = &variances[r * BLOCK + j];
              Lanes found = from ? Lanes::load(to) : Lanes::zero();
              for (int g = 0; g < count; ++g) found.add(square[g], Lanes::all(variance(from + g, r)));
              found.write(to);
            }
          }
        });
  }

 private:
  static constexpr size_t STEPS = rounded_up(MOST_ROWS, ROW_STEP);
  const Head& head;
  const int channels, vocabulary;
  const size_t whole;  // groups of 32 channels
  // See ChunkInput.
  std::vector<int8_t> numbers;
  std::vector<float> scale, sum, half_sum;
  std::vector<int32_t> total, half_total;
  std::unique_ptr<TilePair> tiles = std::make_unique<TilePair>();
};

}  // namespace solm
