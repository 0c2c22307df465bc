// Products of integer weights with a few tokens by AMX, a tile of tokens with a tile of weights at a time; see gemm_i8.h.
#pragma once

#include "dot_i8.h"
#include "each.h"

// SOLM_NO_AMX: where the processor has AMX and the kernel does not permit its use.
#if defined(__AMX_INT8__) && defined(DOT_I8_VNNI) && !defined(SOLM_NO_AMX)
#define GEMM_I8_AMX

namespace solm {

// The shapes of tiles, as LDTILECFG reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 2 are sums of 12, 8 and 4 tokens, 3 to 5 the same tokens' inputs of 4 QUADS channels, and 6 is the weights.
template <int QUADS>
constexpr TileShapes tile_shapes() {
  TileShapes shapes;
  for (int i = 0; i < 3; ++i) {
    shapes.rows[i] = shapes.rows[3 + i] = uint8_t(12 - 4 * i);
    shapes.row_bytes[i] = 64, shapes.row_bytes[3 + i] = 4 * QUADS;
  }
  shapes.rows[6] = QUADS, shapes.row_bytes[6] = 64;
  return shapes;
}

// Tiles are given back because the kernel saves those in use whenever another thread takes the core.
template <int QUADS>
struct TileSetup {
  static constexpr TileShapes SHAPES = tile_shapes<QUADS>();
  TileSetup() { _tile_loadconfig(&SHAPES); }
  ~TileSetup() { _tile_release(); }
  TileSetup(const TileSetup&) = delete;
  TileSetup& operator=(const TileSetup&) = delete;
};

template <int BITS>
struct TileDot {
  static constexpr int TOKENS = 12, STRIPS = 1, BYTES = 64, INPUT = 1;
  static constexpr bool SIGNED = false;

  static void place(const Bytes& quad, int, uint8_t* to) { _mm512_store_si512(to, quad.v); }
  template <int T>
  static const int8_t* panel(const int8_t* x, size_t&, int, int8_t*) { return x; }

  template <int QUADS, int T, typename Start, typename Use>
  static SOLM_INLINE void multiply(const uint8_t* tile, size_t, const int8_t* x, size_t stride, Start start, Use use) {
    static_assert(T == 12 || T == 8 || T == 4);
    alignas(64) int32_t sums[T * 16];
    asm volatile("" ::: "memory");  // compilers do not know that tiles are loaded from memory
    _tile_loadd(6, tile, BYTES);
#define SOLM_MULTIPLY_TILES(sum, inputs) \
  {                                      \
    _tile_zero(sum);                     \
    _tile_loadd(inputs, x, stride);      \
    _tile_dpbsud(sum, inputs, 6);        \
    _tile_stored(sum, sums, 64);         \
  }
    if constexpr (T == 12) SOLM_MULTIPLY_TILES(0, 3)
    else if constexpr (T == 8) SOLM_MULTIPLY_TILES(1, 4)
    else SOLM_MULTIPLY_TILES(2, 5)
#undef SOLM_MULTIPLY_TILES
    each<T>([&](auto t) SOLM_INLINE {
      const __m512i sum = _mm512_add_epi32(_mm512_load_si512(sums + 16 * t), _mm512_set1_epi32(start(t)));
      use(FIRST_STRIP, t, Lanes{_mm512_cvtepi32_ps(sum)});
    });
  }
};

}  // namespace solm

#endif
