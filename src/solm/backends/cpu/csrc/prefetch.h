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

// A part of every row, `place` bytes from where rows start.
struct Slice {
  size_t place = 0, bytes = 0;
};

// Rows that will be read next, one slice of all of them and then another one. After `pad`, some of them follow again, up to a
// multiple of four.
struct Prefetch {
  static constexpr int MOST = 32;
  int count = 0;
  Slice slices[2];
  const uint8_t* row[MOST];

  void pad() {
    for (int i = count; i % 4; ++i) row[i] = row[0];
  }
};

inline void fetch(const Prefetch& next) {
  for (const Slice& slice : next.slices)
    for (int i = 0; i < next.count; ++i) fetch(next.row[i] + slice.place, slice.bytes);
}

// Fetches rows a few lines at a time, between multiplications with the rows before them. A product reads a line of every row
// and then the next line of every row, but memory gives neighbouring lines faster: fetched row by row, weights arrive 1.2 to
// 1.4 times as fast. So all of a group's rows, up to 100 KB, are in the second-level cache when their products begin.
// A copy in a local variable stays in registers.
class PrefetchCursor {
 public:
  explicit PrefetchCursor(const Prefetch& next) : PrefetchCursor(next, next.slices[0], next.slices[1]) {}
  // Of other slices of the same rows.
  PrefetchCursor(const Prefetch& next, Slice first, Slice second) : next_(&next), slice_(first), second_(second) {}

  bool left() const { return at_ < end_ || row_ < next_->count || second_.bytes; }

  template <int LINES = 4>
  SOLM_INLINE void fetch() {
    for (int k = 0; k < LINES; ++k, at_ += 64) {
      if (at_ >= end_) {
        if (row_ >= next_->count) {
          if (!second_.bytes) return;
          slice_ = second_, second_ = {}, row_ = 0;
        }
        if (row_ >= next_->count) return;
        at_ = next_->row[row_++] + slice_.place, end_ = at_ + slice_.bytes;
      }
      fetch_line(at_, 0);
    }
  }

 private:
  const Prefetch* next_;
  Slice slice_, second_;
  int row_ = 0;
  const uint8_t *at_ = nullptr, *end_ = nullptr;  // in the row before row_
};

}  // namespace solm
