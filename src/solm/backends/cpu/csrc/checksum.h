// A fast checksum of memory: any changed word changes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace solm {

constexpr size_t CHECKSUM_CHUNK = size_t(1) << 20;

// With any other words fixed, the sum is a bijection of each word, because it is multiplied by odd numbers only.
inline uint64_t checksum_chunk(const uint8_t* data, size_t bytes) {
  constexpr uint64_t ODD = 0x9e3779b97f4a7c15;
  uint64_t lanes[4] = {1, 2, 3, 4}, words[4];
  while (bytes) {
    const size_t taken = std::min(bytes, sizeof words);
    if (taken < sizeof words) std::memset(words, 0, sizeof words);
    std::memcpy(words, data, taken);
    for (int i = 0; i < 4; ++i) lanes[i] = (lanes[i] ^ words[i]) * ODD, lanes[i] ^= lanes[i] >> 32;
    data += taken, bytes -= taken;
  }
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum = (sum ^ lane) * ODD, sum ^= sum >> 32;
  return sum;
}

inline uint64_t checksum(const uint8_t* data, size_t bytes, int threads) {
  const size_t chunks = (bytes + CHECKSUM_CHUNK - 1) / CHECKSUM_CHUNK;
  std::vector<uint64_t> sums(chunks + 1, bytes);
  in_parallel(threads, int(chunks), [&](int from, int until) {
    for (int c = from; c < until; ++c) {
      const size_t begin = size_t(c) * CHECKSUM_CHUNK;
      sums[c] = checksum_chunk(data + begin, std::min(CHECKSUM_CHUNK, bytes - begin));
    }
  });
  return checksum_chunk(reinterpret_cast<const uint8_t*>(sums.data()), sums.size() * sizeof(uint64_t));
}

}  // namespace solm
