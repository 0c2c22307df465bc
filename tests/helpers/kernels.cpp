// Prints sums of the integer kernels for numbers that are drawn alike everywhere: what every instruction set must give. With an
// argument no input is negative.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "arch/gemm_i8.h"

using namespace solm;

namespace {

constexpr int CHANNELS = 32, QUADS = CHANNELS / 4, TOKENS = 24;

uint32_t state = 1;
uint32_t draw(uint32_t below) { return (state = state * 1664525u + 1013904223u) / 65536u % below; }

std::vector<uint8_t> weights(int below) {
  std::vector<uint8_t> all(CHANNELS * 64);
  for (auto& byte : all) byte = uint8_t(draw(below));
  for (int o = 0; o < 64; o += 2) all[o] = uint8_t(below - 1), all[CHANNELS * 64 - 1 - o] = 0;  // the ends of the range
  return all;
}

std::vector<int8_t> inputs(bool extreme, bool negative) {
  std::vector<int8_t> all(CHANNELS * TOKENS);
  for (auto& x : all) x = int8_t(extreme ? (draw(2) ? 127 : -127) : int(draw(255)) - 127);
  for (auto& x : all) x = negative ? x : int8_t(std::abs(x));
  return all;
}

void print(const char* name, int number, const Lanes& sums) {
  float x[16];
  sums.write(x);
  std::printf("%s %d:", name, number);
  for (float sum : x) std::printf(" %d", int(sum));
  std::printf("\n");
}

// Four rows of 64 numbers from channel i on, interleaved.
template <typename Load>
void quads_of(int i, int part, Bytes* quad, Load load) {
  Bytes row[4];
  for (int k = 0; k < 4; ++k) row[k] = load(i + k, part);
  interleave(row, quad);
}

template <int BIAS, typename Load>
void dot(const char* name, const int8_t* x, Load load) {
  int32_t total = 0;
  for (int i = 0; i < CHANNELS; ++i) total += x[i];
  DotI8<BIAS> sum[4];
  for (auto& one : sum) one = DotI8<BIAS>::begin(total);
  for (int i = 0; i < CHANNELS; i += 4)
    each_part([&](auto part) {
      Bytes quad[4];
      quads_of(i, part.value, quad, load);
      int32_t four;
      std::memcpy(&four, x + i, 4);
      for (int k = 0; k < 4; ++k) sum[k].add(part, quad[k], four);
    });
  for (int k = 0; k < 4; ++k) print(name, k, sum[k].lanes());
}

template <int BITS, int GROUP_QUADS>
void tile(const char* name, const int8_t* x) {
  using Dot = TileDot<BITS>;
  const auto w = weights(1 << BITS);
  [[maybe_unused]] const TileSetup<GROUP_QUADS> setup{};
  for (int j = 0; j < 4; j += Dot::STRIPS) {
    constexpr size_t STRIP = QUADS * Dot::BYTES;
    alignas(64) uint8_t room[Dot::STRIPS * STRIP];
    alignas(64) int8_t panel[Dot::TOKENS * CHANNELS * 2];
    for (int i = 0; i < QUADS; ++i)
      each_part([&](auto part) {
        Bytes quad[4];
        quads_of(4 * i, part.value, quad, [&](int row, int p) { return Bytes::load(&w[row * 64 + p * Bytes::WIDTH]); });
        for (int s = 0; s < Dot::STRIPS; ++s) Dot::place(quad[j + s], part.value, room + s * STRIP + i * Dot::BYTES);
      });
    for (int t = 0; t < TOKENS; t += Dot::TOKENS) {
      size_t stride = CHANNELS;
      const int8_t* from = Dot::template panel<Dot::TOKENS>(x + t * CHANNELS, stride, CHANNELS, panel);
      for (int first = 0; first < QUADS; first += GROUP_QUADS)
        Dot::template multiply<GROUP_QUADS, Dot::TOKENS>(
            room + first * Dot::BYTES, STRIP, from + 4 * first * Dot::INPUT, stride,
            [&](auto k) {
              int32_t total = 0;
              for (int i = 0; i < 4 * GROUP_QUADS; ++i) total += x[(t + k) * CHANNELS + 4 * first + i];
              return Dot::SIGNED ? 128 * total : 0;
            },
            [&](auto s, auto k, Lanes sums) { print(name, (t + k) * 100 + 10 * (j + s) + first, sums); });
    }
  }
}

}  // namespace

int main(int count, char**) {
  for (bool extreme : {false, true}) {
    const auto x = inputs(extreme, count == 1);
    const auto bytes = weights(256);
    auto load = [&](int row, int part) { return Bytes::load(&bytes[row * 64 + part * Bytes::WIDTH]); };
    dot<128>("int8", x.data(), load);
    dot<0>("low", x.data(), [&](int row, int part) { return load(row, part).low(); });
    dot<8>("high", x.data(), [&](int row, int part) { return load(row, part).high(); });
    dot<0>("field", x.data(), [&](int row, int part) { return load(row, part).field(3, 7); });
    dot<0>("single", x.data(), [&](int row, int part) { return Bytes::single(&bytes[row * 64], part); });
    tile<4, 8>("tile 4", x.data()), tile<5, 8>("tile 5", x.data());
    tile<6, 8>("tile 6", x.data()), tile<8, 8>("tile 8", x.data());
    tile<4, 4>("half 4", x.data()), tile<8, 4>("half 8", x.data());
  }
}
