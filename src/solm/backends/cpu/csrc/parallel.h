// Work that is shared out among threads which end with it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace solm {

// Calls work(from, to) for parts of [0, count), each in a thread of its own.
template <typename Work>
void in_parallel(int threads, int count, Work work) {
  threads = std::max(1, std::min(threads, count));
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t)
    others.emplace_back(work, int(int64_t(count) * t / threads), int(int64_t(count) * (t + 1) / threads));
  work(0, count / threads);
}

}  // namespace solm
