// How much of its time a thread has had no core although it had something to do.
#pragma once

#include <time.h>

#include <chrono>
#include <cstdint>

namespace solm {

// Nanoseconds of a clock that never goes back.
inline int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class CoreTime {
 public:
  // Starts anew after a sleep: what has passed until now was not missed.
  void resume() { wall_ = now(), used_ = used(); }

  // Adds what has been missed since; to be called before a sleep.
  void pause() {
    const int64_t wall = wall_, before = used_;
    resume();
    missed_ += wall_ - wall - (used_ - before);
  }

  // Whether it missed more than one in PART_MISSED of the time since the last answer that was yes or took more than SPAN.
  bool missed_much() {
    pause();
    const int64_t span = wall_ - since_;
    const bool much = missed_ > LEAST_MISSED && missed_ > span / PART_MISSED;
    if (much || span > SPAN) since_ = wall_, missed_ = 0;
    return much;
  }

  int64_t since() const { return since_; }

  static constexpr int64_t SPAN = 10'000'000;  // nanoseconds

 private:
  static constexpr int64_t LEAST_MISSED = 1'000'000, PART_MISSED = 10;  // nanoseconds; one in so many
  int64_t wall_ = 0, used_ = 0, missed_ = 0, since_ = 0;

  static int64_t used() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * int64_t(1'000'000'000) + time.tv_nsec;
  }
};

}  // namespace solm
