// Teams of threads that are many, busy, asleep and destroyed: prints "ok" where every barrier separated what it should.
#include "team.h"

#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

using namespace solm;

constexpr int THREADS = 8, BARRIERS = 2;

// What the parts of a call see of one another: between two barriers nobody is further than any other.
struct Seen {
  std::atomic<int> reached[THREADS] = {};
  std::atomic<int> calls[THREADS] = {};
  std::atomic<bool> wrong{false};
  const std::shared_ptr<Team> team;
  const Team::Work whole = [this](int part) { work(part); };

  explicit Seen(std::shared_ptr<Team> given = std::make_shared<Team>(THREADS)) : team(std::move(given)) {}

  void run() { team->run(whole); }

  void work(int part) {
    for (int b = 1; b <= BARRIERS; ++b) {
      reached[part].store(b);
      team->wait();
      for (const auto& other : reached)
        if (other.load() < b) wrong.store(true);
      team->wait();
    }
    reached[part].store(0);
    ++calls[part];
  }
};

int main(int, char** given) {
  const int count = std::atoi(given[1]);
  {
    Seen seen;
    for (int i = 1; i <= count; ++i) {
      seen.run();
      for (const auto& calls : seen.calls)
        if (calls.load() != i) return std::puts("a call returned before all of its parts were done"), 1;
      // Long enough for some or all threads to fall asleep.
      if (i % 500 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i % 1000 ? 50 : 5000));
    }
    if (seen.wrong) return std::puts("a part passed a barrier before all had come"), 1;
  }
  for (int i = 0; i < 300; ++i) {  // destroyed before a call, at once after one, and asleep
    Seen seen;
    for (int calls = 0; calls < i % 3; ++calls) seen.run();
    if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  // Called from one thread after another, and two teams at a time.
  Seen first, second;
  for (int i = 0; i < 50; ++i) {
    std::thread one([&] { first.run(); }), other([&] { second.run(); });
    one.join(), other.join();
  }
  if (first.wrong || second.wrong) return std::puts("teams disturbed one another"), 1;
  // Two with the same team, as engines have it, at a time.
  Seen third(Team::shared(THREADS)), fourth(Team::shared(THREADS));
  if (third.team != fourth.team) return std::puts("as many threads were started twice"), 1;
  if (third.team == Team::shared(2)) return std::puts("one team was given for another number of threads"), 1;
  auto often = [](Seen& seen) {
    for (int i = 0; i < 500; ++i) seen.run();
  };
  std::thread one([&] { often(third); }), other([&] { often(fourth); });
  one.join(), other.join();
  for (const Seen* seen : {&third, &fourth}) {
    if (seen->wrong) return std::puts("calls of one team disturbed one another"), 1;
    for (const auto& calls : seen->calls)
      if (calls.load() != 500) return std::puts("a call of a team that others have, too, was lost"), 1;
  }
  // A forked process, which has none of these threads.
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    Seen seen(Team::shared(THREADS));
    seen.run();
    _exit(seen.team == third.team || seen.wrong || seen.calls[THREADS - 1].load() != 1);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status) return std::puts("a forked process has no threads"), 1;
  return std::puts("ok"), 0;
}
