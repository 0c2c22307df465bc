// Fetching memory before it is read, where the hardware cannot guess what comes next.
#pragma once

#include <cstddef>
#include <cstdint>

namespace solm {

// Fetches a cache line, or `bytes` of them, into the second-level cache.
inline void fetch_line(const void* from, size_t offset) {
  __builtin_prefetch(static_cast<const char*>(from) + offset, 0, 2);
}
inline void fetch(const void* from, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) fetch_line(from, line);
}

// Places that will be read next, `bytes` from each on; after `pad`, a multiple of four of them.
struct Prefetch {
  static constexpr int MOST = 32;
  int count = 0, bytes = 0;
  const uint8_t* row[MOST];

  void pad() {
    for (; count % 4; ++count) row[count] = row[0];
  }
};

inline void fetch(const Prefetch& next) {
  for (int i = 0; i < next.count; ++i) fetch(next.row[i], next.bytes);
}

// Fetches four lines at a time, between multiplications: one line of every row in turn, since that is the order of reading.
struct PrefetchCursor {
  const Prefetch& next;
  int row = 0, at = 0;

  bool left() const { return row < next.count && at < next.bytes; }
  void fetch() {
    if (!left()) return;
    for (int k = 0; k < 4; ++k) fetch_line(next.row[row + k], at);
    row += 4;
    if (row == next.count) row = 0, at += 64;
  }
};

}  // namespace solm
