// The AMX instructions that the engine has, in plain C++ as Intel's manual describes them: to be compiled in place of the
// processor's own (g++ -include).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace amx_tiles {

struct Tiles {
  bool configured = false;
  int rows[8] = {}, row_bytes[8] = {};
  uint8_t byte[8][16][64] = {};
};
inline thread_local Tiles tiles;

// What would be an invalid instruction or a fault.
inline void must(bool valid) {
  if (!valid) std::abort();
}

inline void load_config(const void* from) {
  uint8_t config[64];
  std::memcpy(config, from, sizeof config);
  must(config[0] == 1 && config[1] == 0);
  tiles = {};
  for (int i = 0; i < 8; ++i) {
    tiles.row_bytes[i] = config[16 + 2 * i] | config[17 + 2 * i] << 8, tiles.rows[i] = config[48 + i];
    must(tiles.rows[i] <= 16 && tiles.row_bytes[i] <= 64 && !tiles.rows[i] == !tiles.row_bytes[i]);
  }
  tiles.configured = true;
}

inline void release() { tiles.configured = false; }

inline void zero(int tile) {
  must(tiles.configured && tiles.rows[tile]);
  std::memset(tiles.byte[tile], 0, sizeof tiles.byte[tile]);
}

inline void load(int tile, const void* from, long stride) {
  zero(tile);
  for (int r = 0; r < tiles.rows[tile]; ++r)
    std::memcpy(tiles.byte[tile][r], static_cast<const char*>(from) + r * stride, tiles.row_bytes[tile]);
}

inline void store(int tile, void* to, long stride) {
  must(tiles.configured && tiles.rows[tile]);
  for (int r = 0; r < tiles.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tiles.byte[tile][r], tiles.row_bytes[tile]);
}

// Signed bytes of a times unsigned ones of b.
inline void multiply_signed_unsigned(int sum, int a, int b) {
  must(tiles.configured && sum != a && sum != b && a != b);
  must(tiles.rows[sum] == tiles.rows[a] && tiles.row_bytes[sum] == tiles.row_bytes[b]);
  must(tiles.row_bytes[a] == 4 * tiles.rows[b] && tiles.row_bytes[sum] % 4 == 0);
  for (int m = 0; m < tiles.rows[sum]; ++m)
    for (int n = 0; n < tiles.row_bytes[sum] / 4; ++n) {
      int32_t total;
      std::memcpy(&total, tiles.byte[sum][m] + 4 * n, 4);
      for (int k = 0; k < tiles.rows[b]; ++k)
        for (int i = 0; i < 4; ++i) total += int8_t(tiles.byte[a][m][4 * k + i]) * int32_t(tiles.byte[b][k][4 * n + i]);
      std::memcpy(tiles.byte[sum][m] + 4 * n, &total, 4);
    }
}

}  // namespace amx_tiles

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig(from) amx_tiles::load_config(from)
#define _tile_release() amx_tiles::release()
#define _tile_loadd(tile, from, stride) amx_tiles::load(tile, from, stride)
#define _tile_stored(tile, to, stride) amx_tiles::store(tile, to, stride)
#define _tile_zero(tile) amx_tiles::zero(tile)
#define _tile_dpbsud(sum, a, b) amx_tiles::multiply_signed_unsigned(sum, a, b)
