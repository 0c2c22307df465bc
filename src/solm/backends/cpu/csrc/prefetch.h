// Fetching memory before it is read, where the hardware cannot guess what comes next.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arch/each.h"

namespace solm {

// Fetches a cache line, or `bytes` of them, into the second-level cache.
inline void fetch_line(const void* from, size_t offset) {
  __builtin_prefetch(static_cast<const char*>(from) + offset, 0, 2);
}
inline void fetch(const void* from, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) fetch_line(from, line);
}

// Rows that will be read next, `bytes` of each. After `pad`, some of them follow again, up to a multiple of four.
struct Prefetch {
  static constexpr int MOST = 32;
  int count = 0;
  size_t bytes = 0;
  const uint8_t* row[MOST];

  void pad() {
    for (int i = count; i % 4; ++i) row[i] = row[0];
  }
};

inline void fetch(const Prefetch& next) {
  for (int i = 0; i < next.count; ++i) fetch(next.row[i], next.bytes);
}

// Fetches rows a few lines at a time, between multiplications with the rows before them. A product reads a line of every row
// and then the next line of every row, but memory gives neighbouring lines faster: fetched row by row, weights arrive 1.2 to
// 1.4 times as fast. So all of a group's rows, up to 100 KB, are in the second-level cache when their products begin.
// A copy in a local variable stays in registers.
class PrefetchCursor {
 public:
  explicit PrefetchCursor(const Prefetch& next) : next_(&next) {}

  bool left() const { return at_ < end_ || row_ < next_->count; }

  template <int LINES = 4>
  SOLM_INLINE void fetch() {
    for (int k = 0; k < LINES; ++k, at_ += 64) {
      if (at_ >= end_) {
        if (row_ >= next_->count) return;
        at_ = next_->row[row_++], end_ = at_ + next_->bytes;
      }
      fetch_line(at_, 0);
    }
  }

 private:
  const Prefetch* next_;
  int row_ = 0;
  const uint8_t *at_ = nullptr, *end_ = nullptr;  // in the row before row_
};

}  // namespace solm
