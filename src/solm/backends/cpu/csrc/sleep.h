// Where threads sleep until another one has something for them. Not std::atomic::wait, which yields before it sleeps: Linux
// takes a yield beside a busy process as giving up a whole time slice.
#pragma once

#include <atomic>
#include <climits>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace solm {

class Sleepers {
 public:
  // Sleeps until `wake`, unless ready() is true. May wake earlier.
  template <typename Ready>
  void sleep(Ready ready) {
    count_.fetch_add(1);  // before ready() is asked, and what makes it true comes before `wake` reads it: one sees the other
    const uint32_t before = events_.load();
    if (!ready()) wait(before);
    count_.fetch_sub(1);
  }

  // To be called after what makes ready() true. Costs a load where nobody sleeps.
  void wake() {
    if (!count_.load()) return;
    events_.fetch_add(1);
#if defined(__linux__)
    syscall(SYS_futex, &events_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    events_.notify_all();
#endif
  }

 private:
  alignas(64) std::atomic<int32_t> count_{0};
  std::atomic<uint32_t> events_{0};

  void wait(uint32_t before) {
#if defined(__linux__)
    syscall(SYS_futex, &events_, FUTEX_WAIT_PRIVATE, before, nullptr, nullptr, 0);
#else
    events_.wait(before);
#endif
  }
};

}  // namespace solm
