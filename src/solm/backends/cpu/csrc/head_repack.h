// A GGUF tensor as the strips of head.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "gguf_types.h"
#include "structs.h"
#include "validate.h"

namespace solm {

// Whether a head is stored with the bits, groups and centre of a type.
inline bool holds(const Head& head, const TypeInfo& info) {
  return head.bits == info.bits && head.group == info.group && head.centre == info.centre;
}

// Floats become int8 with a scale per output, other types keep their bits, groups and centre; or all become INT4.
inline bool valid_head_repack(int32_t type, const void* rows, int64_t row_bytes, int32_t vocabulary, int32_t hidden,
                              int32_t threads, const Head& to, char* message) {
  const TypeInfo info = type_info(type);
  if (!info.values) return refuse(message, "tensor type %d is not supported", type);
  Sizes s{};
  s.precision = 2, s.hidden = hidden;
  if (!rows) return refuse(message, "the tensor has no data");
  if (vocabulary < 1 || vocabulary > 1 << 28)
    return refuse(message, "vocabulary must be in [1, %d], got %d", 1 << 28, vocabulary);
  if (hidden < 1 || hidden > 1 << 24 || hidden % info.values)
    return refuse(message, "hidden must be a multiple of %d in [1, %d], got %d", info.values, 1 << 24, hidden);
  if (row_bytes != int64_t(hidden) / info.values * info.bytes)
    return refuse(message, "a row of %d weights of type %d takes %lld bytes, got %lld", hidden, type,
                  static_cast<long long>(int64_t(hidden) / info.values * info.bytes), static_cast<long long>(row_bytes));
  if (threads < 1 || threads > 1 << 12) return refuse(message, "threads must be in [1, %d], got %d", 1 << 12, threads);
  if (!valid_head(s, to, message)) return false;
  const bool own = info.bits ? holds(to, info) : !to.group, rounded = hidden % GROUP == 0 && holds(to, INT4_INFO);
  return own || rounded ||
         refuse(message, "a head of %d bits in groups of %d does not hold tensor type %d", to.bits, to.group, type);
}

struct StripWriter {
  const int32_t type, vocabulary, hidden;
  const uint8_t* rows;
  const Head& to;
  std::atomic<int>& bad;
  const TypeInfo info = type_info(type);
  const int wide = (hidden + GROUP - 1) / GROUP * GROUP;
  std::vector<uint8_t> numbers = std::vector<uint8_t>(size_t(STRIP) * wide);
  std::vector<float> values = std::vector<float>(info.bits ? 0 : hidden);

  void write(int strip) {
    std::fill(numbers.begin(), numbers.end(), uint8_t(0));
    for (int i = 0; i < STRIP; ++i) {
      const int64_t output = int64_t(strip) * STRIP + i;
      const uint8_t* row = output < vocabulary ? rows + size_t(output) * (hidden / info.values) * info.bytes : nullptr;
      if (to.group) read_groups(row, strip, i);
      else read_floats(row, strip, i);
    }
    const int low = to.bits - HIGH_BITS, quads = (hidden + 3) / 4;
    fill<4>(static_cast<uint8_t*>(const_cast<void*>(to.data)), strip, quads, low);
    auto* lower = static_cast<uint8_t*>(const_cast<void*>(to.low));
    if (low == 1) fill<1>(lower, strip, quads, 0);
    if (low == 2) fill<2>(lower, strip, quads, 0);
    if (low == 4) fill<4>(lower, strip, quads, 0);
  }

 private:
  // Output i of the strip, and its grid; row: null behind the last output.
  void read_groups(const uint8_t* row, int strip, int i) {
    const int planes = to.centre < 0 ? 2 : 1, groups = hidden / to.group, each = GROUP / to.group;
    auto* grid = const_cast<uint16_t*>(to.grid) + size_t(strip) * groups * planes * STRIP + i;
    for (int b = 0; b < hidden / GROUP; ++b) {
      float step[2] = {}, lowest[2] = {};
      uint8_t* found = &numbers[size_t(i) * wide + b * GROUP];
      if (row && holds(to, info)) decode_block(type, row, b, found, step, lowest);
      else if (row) {
        float group[GROUP];
        read_group({type, rows, vocabulary, hidden, nullptr}, row, b, group);
        round_to_int4(group, found, step);
      }
      for (int part = 0; part < each; ++part) {
        uint16_t* place = grid + size_t(b * each + part) * planes * STRIP;
        place[0] = narrow_half(step[part]);
        if (planes == 2) place[STRIP] = narrow_half(lowest[part]);
        if (!is_finite_half(place[0]) || (planes == 2 && !is_finite_half(place[STRIP]))) bad = strip * STRIP + i;
      }
    }
  }

  void read_floats(const uint8_t* row, int strip, int i) {
    float peak = 0;
    bool finite = true;
    for (int c = 0; c < hidden && row; ++c) {
      uint16_t half;
      if (type == F32) std::memcpy(&values[c], row + 4 * size_t(c), 4);
      else if (type == F16) values[c] = blocks::half_at(row + 2 * size_t(c));
      else std::memcpy(&half, row + 2 * size_t(c), 2), values[c] = widen(bf16(half));
      peak = std::max(peak, std::fabs(values[c])), finite &= std::isfinite(values[c]);
    }
    if (!finite) bad = strip * STRIP + i;
    const float scale = std::max(peak, 1e-12f) / 127;
    const_cast<float*>(to.scale)[size_t(strip) * STRIP + i] = row ? scale : 0;
    for (int c = 0; c < hidden && row && finite; ++c)
      numbers[size_t(i) * wide + c] = uint8_t(int(std::nearbyint(values[c] / scale)) + 128);
  }

  // BITS bits of all numbers, from bit `shift` on, to the strip's place in `plane`.
  template <int BITS>
  void fill(uint8_t* plane, int strip, int quads, int shift) const {
    constexpr int EACH = 4 / BITS, MOST = (1 << BITS) - 1;  // times four channels in 64 bytes
    const int chunks = (quads + EACH - 1) / EACH;
    uint8_t* out = plane + size_t(strip) * chunks * 64;
    std::fill_n(out, size_t(chunks) * 64, uint8_t(0));
    for (int i = 0; i < STRIP; ++i) {
      const uint8_t* from = &numbers[size_t(i) * wide];
      for (int quad = 0; quad < quads; ++quad) {
        uint8_t* bytes = out + size_t(quad / EACH) * 64 + i % 16 * 4;
        const int at = (quad % EACH * 2 + i / 16) * BITS;
        for (int k = 0; k < 4; ++k) bytes[k] |= uint8_t((from[4 * quad + k] >> shift & MOST) << at);
      }
    }
  }
};

// Writes a GGUF tensor [vocabulary, hidden], whose rows are next to one another, to the memory that `to` names.
// False where a row, then `bad`, has values that are not finite.
inline bool repack_head(int32_t type, const uint8_t* rows, int32_t vocabulary, int32_t hidden, int32_t threads, const Head& to,
                        std::atomic<int>& bad) {
  const int strips = (vocabulary + STRIP - 1) / STRIP;
  threads = std::min(threads, strips);
  std::vector<StripWriter> writers;
  for (int t = 0; t < threads; ++t) writers.push_back({type, vocabulary, hidden, rows, to, bad});
  auto work = [&](int t) {
    for (int s = int(int64_t(strips) * t / threads); s < int(int64_t(strips) * (t + 1) / threads); ++s) writers[t].write(s);
  };
  {
    std::vector<std::jthread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
  }
  return bad < 0;
}

}  // namespace solm
