// The engine's view of a model, of the rows' caches and of what a step may spend.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "select.h"
#include "tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() std::this_thread::yield()
#endif

constexpr int PAGE = 16;
constexpr int MOST_QUERIES = 32;  // query heads of one KV head
constexpr int MOST_LEVELS = 100;  // of one axis
constexpr double FULL_BITS = 16;

struct Sizes {
  int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, precision, embedding, kv_bytes, threads,
      norms_after, whole_norms;  // as in solm.backends.cpu.library
  float epsilon;
};

// Per layer: qkv [H, (heads + 2 kv) D], out [heads D, H], gate_up [H, 2 I], down [I, H], each input-major with one
// scale per output (int8 only, and in the order of integers.h). Norms and biases are float32.
//
// A matrix with a `grid` [in / 32, 2, out] (float16: step, then lowest value) is packed instead, 4 bits a weight: of an
// input channel, 64 bytes for every 128 outputs and 32 for a last 64. If it is nested, `low` holds 4 bits more of every
// weight, packed alike: what is left of it, from minus half a step in fifteenths of a step.
struct Matrix {
  const void* data;
  const float* scale;
  const uint16_t* grid;
  const void* low;
};
struct Layer {
  Matrix qkv, out, gate_up, down;
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm, *qkv_bias;
};

// The head: rows [V, H] of floats, or integers in the strips of head.h: bytes' high halves in `data`, low ones in `low` and a
// scale per output, or numbers of 4 bits in `data` with their `grid`.
struct Head {
  const void* data;
  const uint8_t* low;
  const float* scale;
  const uint16_t* grid;
};

constexpr int KNOTS = 21;  // of a profile's curves, as in solm.core.allocation

constexpr int HIGH_BITS = 4;  // of a nested weight, as in solm.core.nested

// How an action is carried out, as in solm.core.sparsity: sites of the MLP axis as flags, group 0 for a whole token; whether
// its bits are those of weights.
struct Rules {
  int32_t sinks, window, input_site, hidden_site, hidden_power, group, heads, weight_bits;
  const double* profile;  // [layers · heads + layers, KNOTS], pages of KV heads (1: of all) and then channels, or null
};

// What one step spends in a layer: pages of those `between` sinks and window, and `keep` of the MLP's channels, at `bits` of
// activations and, if `halved`, with no more than the high halves of nested weights. Under a
// profile `pages`, `share` of those between, and before it has dealt them out the channels, are the average layer's.
struct Plan {
  int32_t inputs, hiddens, bits, halved, group, sparse, sinks, window_start, pages, between, always;
  double share, keep;
};

// A value policy over an action space (solm.policies.value_policy): its network, input-major, and per axis the levels as keep
// numbers, the average gain of each, and the curve from an average share to its price.
struct Decider {
  int32_t layer, width, clamp, points, sizes[3];
  const float *read, *read_bias, *head, *head_bias, *scale, *trust;
  const double *levels[3], *shares[3], *own[3], *rest[3], *spent[3], *prices;
};

// What a row may spend and has spent; a null decider leaves it to the caller.
struct Row {
  const Decider* decider;
  double target[3], spent[3], early[3];
  int64_t booked, left;
};

// What every level of every axis realises for a step, and what of it the layers before the policy's contribute.
struct Realised {
  double share[3][MOST_LEVELS], begun[3][MOST_LEVELS];
};

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait(bool& sense) {
    sense = !sense;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      sense_.store(sense, std::memory_order_release);
      return;
    }
    for (int spins = 0; sense_.load(std::memory_order_acquire) != sense; ++spins) {
      PAUSE();
      if (spins > 20000) std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<bool> sense_{false};
};

// Keys and values, a page after the other, and the bounds of keys, 16 pages in a tile; float32 (precision 0), bfloat16, or
// bytes with bounds in bfloat16 (`kv_bytes`). See tiles.h and bytes.h.
struct Pages {
  int count = 0, tiles = 0;  // of a layer's head
  int lent = 0;              // the first of them that other caches read, too
  Memory keys, values;       // [layers, kv_heads, count, 16 D]
  Memory low, high;          // [layers, kv_heads, tiles, 16 D]
};

// Pages of one head of a layer: of K numbers each, the first `held` of them shared.
template <typename K>
struct Stretch {
  const K* shared;
  K* own;
  int held;
  size_t size;
  const K* operator[](int page) const { return page < held ? shared + page * size : mine(page); }
  K* mine(int page) const { return own + (page - held) * size; }
};

// What one row has seen. Rows that were forked share whole pages and own what comes after.
struct Cache {
  int held = 0;                         // pages of another cache that this one begins with
  std::shared_ptr<const Pages> shared;  // where those are
  std::shared_ptr<Pages> own;           // from page `held` on; bounds from the tile of that page on

  int pages() const { return held + own->count; }

  template <typename K>
  Stretch<K> stretch(Memory Pages::* part, const Sizes& s, int layer, int head) const {
    return within<K>(part, size_t(layer) * s.kv_heads + head, &Pages::count, held, page_size<K>(s.head_dim));
  }
  // The same for tiles of bounds, of 16 pages each.
  template <typename K>
  Stretch<K> bounds(Memory Pages::* part, const Sizes& s, int layer, int head) const {
    return within<K>(part, size_t(layer) * s.kv_heads + head, &Pages::tiles, held / PAGE, size_t(PAGE) * s.head_dim);
  }

 private:
  template <typename K>
  Stretch<K> within(Memory Pages::* part, size_t place, int Pages::* count, int held, size_t size) const {
    auto* mine = reinterpret_cast<K*>(((*own).*part).data()) + place * ((*own).*count) * size;
    if (!shared) return {nullptr, mine, 0, size};
    return {reinterpret_cast<const K*>(((*shared).*part).data()) + place * ((*shared).*count) * size, mine, held, size};
  }
};

struct Engine {
  Sizes s;
  std::vector<Layer> layers;
  const void* embedding;  // [V, H], the model's own: float32 (sizes' embedding 0), bfloat16 (1) or float16 (2)
  Head head;
  const float *final_norm, *cosine, *sine;  // [positions, D] each

  // The job that threads work on.
  std::atomic<uint64_t> ticket{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  std::vector<char> senses;
  // What threads work in, from one step to the next: made for so many rows.
  struct Kept {
    int rows = 0;
    std::shared_ptr<void> walker;
  };
  std::vector<Kept> walkers;
  Barrier* barrier = nullptr;
  std::vector<std::vector<float>> shared;  // per thread: partial sums that the others read
  std::vector<float> mass;                 // what queries may find in pages, [rows, kv_heads, span], of the layer in progress
  size_t span = 0;

  int steps = 0, first = 0, last = 0;
  Cache* const* caches = nullptr;
  const int64_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  std::vector<Plan> plans;  // [steps]
  const Rules* rules = nullptr;
  Row* rows = nullptr;  // one for every `count` steps, or null
  int count = 1, turn = -1;  // the layer before which rows are decided
  std::vector<Realised> levels;  // [steps], of the decided ones, where a walk takes them all
  std::vector<std::vector<float>> units;  // per thread: its part of the sums of hidden layers [rows, width]
  int width = 0;
  int32_t* actions = nullptr;  // [steps]
  double* realised = nullptr;  // [steps, 3]
  float* stream = nullptr;  // [steps, H]
  float* logits = nullptr;  // [steps, V] or null
  bool shortlist = false;   // logits far below the largest may be approximate

  // Calls use with a number of the type that caches hold.
  template <typename Use>
  void with_kv(Use use) const {
    if (s.precision == 0) use(float());
    else if (s.kv_bytes) use(uint8_t());
    else use(bf16());
  }

  template <typename W, typename K>
  void work(int thread);
  void dispatch(int thread);
  void serve(int thread);
};
