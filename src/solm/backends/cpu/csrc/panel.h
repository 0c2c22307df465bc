// Products of a few steps with integer weights: a slab of outputs at a time, so that the sums of all steps stay in the
// first-level cache while the rows of one group of input channels after another are read. Each row is unpacked once.
#pragma once

#include <algorithm>

#include "dot_packed.h"

#if defined(DOT_I8_VNNI)
#define SOLM_PANELS
#endif

namespace solm {

#if defined(SOLM_PANELS)
constexpr bool HAS_PANELS = true;
#else
constexpr bool HAS_PANELS = false;  // other instruction sets multiply a few steps otherwise, see dot_packed.h and gemm.h
#endif

// How many outputs are multiplied with so many steps before the next ones: a power of two, so that their sums stay in the cache
// of the core. Rows are read in pieces of this size, which memory gives faster the longer they are: passes of 2 to 4 steps of
// 1.5B in 4 bits take 4 to 8 % less with 4,096 outputs than with 1,024 (Zen 4).
constexpr int slab_of(int steps) {
  return steps <= 4 ? 4096 : 2048;
}

// The products of one group of input channels with outputs [from, to) of a matrix, multiples of 64 of them. `from` is a multiple
// of a slab. The sums are [outputs / 16, steps, 16], of all outputs of the matrix.
struct Panel {
  static constexpr int MOST_STEPS = 6;  // whose sums with 64 outputs fit into the registers together

  const Matrix& matrix;
  const Group& group;
  int number;  // of the group
  int steps;
  bool high_only;
  bool first;  // whether the products are written, not added
  int from, to;
  PrefetchCursor& cursor;     // of what is read afterwards
  const uint16_t* next_grid;  // of these outputs in the group that is; null where there is none
  float* sums;

  // Adds them. Defined where HAS_PANELS.
  void add() const;
};

// From how many steps on a call with integer weights is processed in chunks (prompt.h). With panels every thread adds up the
// sums of all others for all steps, which takes too long for many threads.
constexpr int least_chunk(int threads) {
  constexpr int MOST_SUMS = 64;  // of threads times steps
  return HAS_PANELS ? std::clamp(MOST_SUMS / threads, LEAST_STEPS - 1, Panel::MOST_STEPS) + 1 : LEAST_STEPS;
}

}  // namespace solm
