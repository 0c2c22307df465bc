// Fetching memory before it is read, where the hardware cannot guess what comes next.
#pragma once

#include <algorithm>
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

inline int lines_of(size_t bytes) { return int((bytes + 63) / 64); }

// Rows that will be read next, `lines` cache lines of each, one line of every row in turn. After `pad`, some of them follow
// again, up to a multiple of four. Rows of packed weights are not read from front to back: before every `between` lines comes
// one from `low` bytes on.
struct Prefetch {
  static constexpr int MOST = 32;
  int count = 0, lines = 0, between = 0;
  size_t low = 0;
  const uint8_t* row[MOST];

  void pad() {
    for (int i = count; i % 4; ++i) row[i] = row[0];
  }

  // Where the line that is read as number `line` starts.
  size_t place(int line) const {
    if (!between) return size_t(line) * 64;
    const int of_low = line / (between + 1), rest = line % (between + 1);
    return rest ? size_t(line - of_low - 1) * 64 : low + size_t(of_low) * 64;
  }
};

inline void fetch(const Prefetch& next) {
  for (int line = 0; line < next.lines; ++line)
    for (int i = 0; i < next.count; ++i) fetch_line(next.row[i], next.place(line));
}

// Fetches what is read a little later, a few lines at a time, between multiplications: lines of the same rows, and at their
// end the first ones of the next rows, or all of these. It must keep pace: as many lines as are read. Short rows may be fetched
// whole, one after the other, since memory gives neighbouring lines faster; all those of now have then been fetched before.
class PrefetchCursor {
 public:
  static constexpr int AHEAD = 4;   // lines of a row: 8 KiB of 32 rows
  static constexpr int SHORT = 12;  // lines of a row: 24 KiB of 32 rows

  PrefetchCursor(const Prefetch& now, const Prefetch& next, bool all, bool whole_rows = false)
      : from_(now.count && !whole_rows ? &now : &next), next_(next), last_(all ? next.lines : std::min(AHEAD, next.lines)),
        bytes_(whole_rows && !all ? size_t(next.lines) * 64 : 0) {
    go_to(now.count && !whole_rows ? AHEAD : 0);
  }

  bool left() const { return from_ != nullptr; }
  template <int ROWS = 4>
  void fetch() {
    if (!left()) return;
    if (bytes_) return fetch_whole<ROWS>();
    for (int k = 0; k < ROWS; ++k) __builtin_prefetch(from_->row[row_ + k] + place_, 0, 3);
    row_ += ROWS;
    if (row_ >= from_->count) go_to(line_ + 1);
  }

 private:
  const Prefetch* from_;
  const Prefetch& next_;
  const int last_;      // lines of the next rows
  const size_t bytes_;  // of a row that is fetched whole
  int row_ = 0, line_ = 0;
  size_t place_ = 0;

  template <int LINES>
  void fetch_whole() {
    const uint8_t* row = from_->row[row_] + place_;
    for (int k = 0; k < LINES; ++k) __builtin_prefetch(row + 64 * k, 0, 3);
    place_ += LINES * 64;
    if (place_ < bytes_) return;
    place_ = 0;
    if (++row_ >= from_->count) from_ = nullptr;
  }

  void go_to(int line) {
    row_ = 0, line_ = line;
    if (from_ != &next_ && line_ >= from_->lines) from_ = &next_, line_ = 0;
    if (from_ == &next_ && (line_ >= last_ || !next_.count)) from_ = nullptr;
    else place_ = from_->place(line_);
  }
};

}  // namespace solm
