// The engine: a model's weights, the threads that work on a call, and all memory that a step needs.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "cache.h"
#include "decide.h"
#include "routing.h"
#include "team.h"

namespace solm {

// One step of a call. number: of its row. at: its place in the call's arrays [rows, count]. decider: null where the step follows
// `keep`. kept: channels of the sites that passed thresholds, of all layers of the call.
struct Step {
  Cache* cache;
  RowState* row;
  const Decider* decider;
  int64_t token;
  int32_t number, at, position;
  Plan plan;
  double kept[SITES];  // channels so far, each counted at its cost
  double visits;       // to experts so far
};

// Steps of a row of a call.
inline int steps_of(const Call& c, int row) { return c.counts ? c.counts[row] : c.count; }

// What calls of many steps (see least_chunk) are processed in, a chunk of up to CHUNK_TOKENS steps at a time. See prompt.h. From
// so many on products of matrices take less time than those of single steps, and from LEAST_LOGITS on that with a head whose
// logits are all exact. They are computed in full: skipped channels save no time there.
struct PromptRoom {
  static constexpr int CHUNK_TOKENS = 256, LEAST_LOGITS = 8;
  int tokens = 0;  // that there is room for
  std::vector<float> stream, results, heads;  // of all tokens: residual stream, products, outputs of heads or the last norm
  std::vector<float> dense, scale, sum, half_sum;             // see ChunkInput
  std::vector<int32_t> total, half_total;
  std::vector<int8_t> number;
  std::vector<Routing> routing;                               // of a layer with experts
  std::vector<float> unit_sums;                               // hidden layers of deciders [tokens, unit_width]
  std::atomic<int> next[2] = {0, 0};                          // tasks that threads have taken
};

// Whether the head of a call is screened: whether logits come from upper bits alone where they cannot be among the largest (see
// head.h). That pays while few strips are read whole. With an adaptive head it pauses otherwise, and a later call shows whether
// this has changed. No logit that has to be exact depends on it.
struct Screening {
  static constexpr int PAUSE = 31;           // calls
  static constexpr double MOST_WHOLE = 0.4;  // of the strips; upper bits take about half of a whole head's time
  bool on = false;                           // in the call in progress

  void begin(bool wanted, bool adaptive) {
    on = wanted && (!adaptive || pause == 0);
    if (wanted && !on) --pause;
    whole = all = 0;
  }
  // That so many of some strips were read whole.
  void add(int64_t read, int64_t strips) { whole += read, all += strips; }
  void end() {
    if (on && double(whole) > MOST_WHOLE * double(all)) pause = PAUSE;
  }

 private:
  int pause = 0;
  std::atomic<int64_t> whole = 0, all = 0;
};

// Cosines and sines [positions so far, rotary / 2].
struct RopeTable : Rope {
  std::vector<float> cosine, sine;

  void extend(int64_t end);
};

// One thread's part of every step; see step.h.
struct WorkerBase {
  virtual ~WorkerBase() = default;
  virtual void run() = 0;
  // Makes room for rows of `pages` pages. Throws std::bad_alloc.
  virtual void reserve(int pages) = 0;
  // The same for reading prompts in chunks of `tokens`.
  virtual void reserve_prompt(int tokens) = 0;
};

struct Engine {
  Sizes s;
  std::vector<Layer> layers;
  const void* embedding;
  Head head;
  const float* head_bias;
  Norm final_norm;
  bool nested = true;  // every weight of an MLP has upper bits that can be read alone
  std::shared_ptr<std::mutex> mutex = std::make_shared<std::mutex>();  // serialises all calls
  std::shared_ptr<PageStore> store = std::make_shared<PageStore>(s);

  std::vector<RopeTable> ropes;
  std::vector<float> balance;  // [layers, heads + kv_heads, D], or empty: see balance_keys

  // What threads work in. It is allocated here and by `reserve`, so that no thread allocates in a step.
  std::vector<std::vector<float>> partial_sums;   // per thread, for the others to read: two halves, used alternately
  std::vector<std::unique_ptr<WorkerBase>> workers;
  std::vector<float> page_upper_bounds;           // [MOST_ROWS, kv_heads, span] of the layer in progress
  std::vector<std::vector<float>> unit_sums;      // per thread: hidden layers of deciders [MOST_ROWS, unit_width]
  std::vector<LevelShares> level_shares;          // [MOST_ROWS], where a call has no more steps than that
  std::vector<Step> steps;
  int reserved_pages = 0;
  PromptRoom prompt;
  Screening screening;

  // The call in progress.
  const Call* call = nullptr;
  bool in_chunks = false;  // as products of matrices; see prompt.h
  int step_count = 0, decision_layer = -1, unit_width = 0;
  size_t span = 0;
  int64_t* actions = nullptr;

  Engine(const Model& model);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Makes room for a call, and rows of their own for what it writes to. Throws std::bad_alloc, and changes nothing that a
  // later call could see then.
  void reserve(const Call& c);
  // Processes a valid call for which `reserve` has made room. Allocates nothing.
  void run(const Call& c);

  // The histogram of a layer's site, or after all sites of its experts, in the call in progress; null where nothing is counted.
  uint32_t* histogram_of(int layer, int site) const {
    return call->histogram ? call->histogram + (size_t(layer) * COUNTED + site) * MAGNITUDES : nullptr;
  }

  const std::shared_ptr<Team> team;

 private:
  const Team::Work process_part = [this](int part) { workers[part]->run(); };

  void balance_keys();
  void reserve_prompt(int tokens);
  void plan_steps(const Call& c);
  void count_kept(const Call& c);
  void book_steps(const Call& c);
};

}  // namespace solm
