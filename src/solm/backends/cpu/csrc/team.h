// Threads, and the parts of a call that they process. All engines of a process with as many threads have the same ones, and
// take turns: two calls at a time would only take each other's cores.
//
// A call has as many parts as there are threads, and its results depend on that number, not on which thread processes which
// part. Where every thread has a core, each stays with a part and waits for the others in a loop: that takes less than a
// microsecond, and waking up takes fifty. Where other processes want the cores, a thread that has lost its own would hold up all
// others, and loops would take time from those that have work. Then threads leave their parts at every barrier, whoever has a
// core goes on with a part that nobody processes, and who finds none soon sleeps.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core_time.h"
#include "fiber.h"
#include "sleep.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace solm {

class Team {
 public:
  using Work = std::function<void(int)>;  // processes a part of a call

  // The team of all that ask for as many threads; it ends with the last of them. A forked process has none of its parent's
  // threads, and gets teams of its own. Throws std::bad_alloc and std::system_error.
  static std::shared_ptr<Team> shared(int threads) {
    static std::mutex asking;
    static std::map<std::pair<pid_t, int>, std::weak_ptr<Team>> teams;
    const std::lock_guard<std::mutex> one_at_a_time(asking);
    std::weak_ptr<Team>& known = teams[{getpid(), threads}];
    std::shared_ptr<Team> team = known.lock();
    if (!team) known = team = std::make_shared<Team>(threads);
    return team;
  }

  // Throws std::bad_alloc and std::system_error.
  explicit Team(int threads) : count_(threads), members_(threads) {
    if (count_ == 1) return;
    parts_.reserve(count_), threads_.reserve(count_ - 1);
    for (int i = 0; i < count_; ++i) parts_.push_back(std::make_unique<Part>(*this, i));
    for (int i = 0; i < count_; ++i) members_[i].number = i;
    try {
      for (int i = 1; i < count_; ++i) threads_.emplace_back([this, i] { serve(members_[i]); });
    } catch (...) {  // the destructor will not run
      stop();
      throw;
    }
  }
  ~Team() { stop(); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Processes all parts of a call. The calling thread takes part; others that call this wait until it is done.
  void run(const Work& work) {
    if (count_ == 1) return work(0);
    const std::lock_guard<std::mutex> one_at_a_time(calling_);
    work_ = &work;
    Member& member = members_[0];
    Member* const before = std::exchange(self, &member);
    member.time.resume();
    idle_.store(false);
    arrivals_.fetch_add(count_);  // for which all parts wait
    sleepers_.wake();
    while (!idle_.load()) take_turn(member);
    self = before;
  }

  // Called in every part: waits until all parts have come here.
  void wait() {
    const uint64_t arrived = arrivals_.fetch_add(1) + 1, over = arrived % count_;
    if (!over) {
      sleepers_.wake();
      if (late_.load(std::memory_order_relaxed)) look_around();
      if (crowded_.load(std::memory_order_relaxed)) leave(arrived);
      return;
    }
    const uint64_t target = arrived - over + count_;
    if (crowded_.load(std::memory_order_relaxed)) return leave(target);
    for (int i = 0; i < 100; ++i) {
      if (arrivals_.load(std::memory_order_acquire) >= target) return;
      pause();
    }
    wait_long(target);
  }

 private:
  // Nanoseconds. How long a thread waits in a loop before it sleeps; where cores are crowded, before it takes a part that is
  // another thread's; and after which it asks whether they are. PATIENCE is longer than what most callers do between steps.
  static constexpr int64_t PATIENCE = 400'000, CROWDED_PATIENCE = 10'000, TAKES_OVER = 3'000, LATE = 100'000;
  static constexpr int64_t CROWDED_FOR = 30'000'000;  // after a thread last missed its core

  // A part that nobody processes is `free`, and goes on as soon as there are `target` arrivals.
  struct Part {
    Team& team;
    const int number;
    std::atomic<uint64_t> target;
    std::atomic<bool> free{true};
    Fiber fiber;

    Part(Team& all, int i) : team(all), number(i), target(all.count_), fiber(begin, this) {}

    static void begin(void* given) {
      auto* part = static_cast<Part*>(given);
      for (;;) (*part->team.work_)(part->number), part->team.finish();
    }
  };

  struct alignas(64) Member {
    int number = 0;
    Part* part = nullptr;  // that it processes
    ucontext_t context;    // where it goes on when it leaves that
    CoreTime time;
  };

  static inline thread_local Member* self = nullptr;  // the calling thread, in its part of a call

  const int count_;
  const pid_t owner_ = getpid();
  std::mutex calling_;
  const Work* work_ = nullptr;  // of the call in progress
  std::vector<Member> members_;
  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<std::thread> threads_;
  alignas(64) std::atomic<uint64_t> arrivals_{0};  // of parts at barriers; a multiple of their number whenever all have come
  alignas(64) std::atomic<bool> crowded_{false};   // other processes want the cores
  std::atomic<bool> late_{false};                  // somebody waits long
  std::atomic<bool> idle_{true}, stop_{false};     // no call is in progress
  std::atomic<int64_t> crowded_until_{0};
  Sleepers sleepers_;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }

  void stop() {
    stop_.store(true);
    sleepers_.wake();
    // A forked process does not have these threads, and their handles may belong to threads of its own by now.
    if (owner_ != getpid()) {
      new std::vector<std::thread>(std::move(threads_));
      return;
    }
    for (auto& thread : threads_) thread.join();
  }

  void serve(Member& member) {
    self = &member;
    member.time.resume();
    while (!stop_.load()) take_turn(member);
  }

  // Processes a part up to where it waits for others, or waits for one.
  void take_turn(Member& member) {
    if (!process_any(member, 0)) wait_for_part(member);
    if (!crowded_.load(std::memory_order_relaxed)) return;
    const int64_t time = now();
    if (time - member.time.since() > CoreTime::SPAN && member.time.missed_much()) crowded_until_.store(time + CROWDED_FOR);
    if (time > crowded_until_.load()) crowded_.store(false);
  }

  bool may_go_on(const Part& part) const { return part.free.load() && arrivals_.load() >= part.target.load(); }

  // Processes a part that may go on: its own one, or another, which it leaves to that one's thread for a moment.
  bool process_any(Member& member, int64_t waited) {
    const bool own_only = waited < TAKES_OVER && crowded_.load(std::memory_order_relaxed);
    for (int i = 0; i < (own_only ? 1 : count_); ++i) {
      Part& part = *parts_[(member.number + i) % count_];
      if (!may_go_on(part) || !part.free.exchange(false)) continue;
      const bool first = arrivals_.load() >= part.target.load();  // nobody else has processed it in between
      if (first) member.part = &part, part.fiber.enter(member.context);
      part.free.store(true);
      if (first) return true;
    }
    return false;
  }

  void wait_for_part(Member& member) {
    auto over = [&] { return stop_.load() || (member.number == 0 && idle_.load()); };
    const int64_t start = now(), patience = crowded_.load(std::memory_order_relaxed) ? CROWDED_PATIENCE : PATIENCE;
    for (int64_t waited = 0; waited < patience; waited = now() - start)
      for (int i = 0; i < 20; ++i, pause())
        if (over() || process_any(member, waited)) return;
    member.time.pause();
    sleepers_.sleep([&] {
      return over() || std::any_of(parts_.begin(), parts_.end(), [&](const auto& part) { return may_go_on(*part); });
    });
    member.time.resume();
  }

  // What follows is called in a part. Since a part may go on in another thread, `self` must not be kept across `leave`.

  [[gnu::noinline]] void leave(uint64_t target) {
    Member& member = *self;
    member.part->target.store(target);
    member.part->fiber.leave(member.context);
  }

  [[gnu::noinline]] void finish() {
    const uint64_t arrived = arrivals_.fetch_add(1) + 1, over = arrived % count_;
    if (!over) {
      idle_.store(true);
      sleepers_.wake();
    }
    leave(arrived + (over ? count_ - over : 0) + count_);
  }

  [[gnu::noinline]] void wait_long(uint64_t target) {
    const int64_t start = now();
    for (int64_t waited = 0; waited < PATIENCE; waited = now() - start) {
      if (waited > LATE && !late_.load(std::memory_order_relaxed)) late_.store(true, std::memory_order_relaxed);
      for (int i = 0; i < 50; ++i, pause())
        if (arrivals_.load(std::memory_order_acquire) >= target) return;
    }
    leave(target);
  }

  // Somebody has waited long for this thread: had it no core?
  [[gnu::noinline]] void look_around() {
    late_.store(false, std::memory_order_relaxed);
    if (!self->time.missed_much()) return;
    crowded_until_.store(now() + CROWDED_FOR);
    crowded_.store(true);
  }
};

}  // namespace solm
