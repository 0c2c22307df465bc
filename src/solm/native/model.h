// The engine's view of a model, of the rows' caches and of what a step may spend.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() std::this_thread::yield()
#endif

constexpr int PAGE = 16;
constexpr int MOST_QUERIES = 32;  // query heads of one KV head

struct Sizes {
  int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, precision, threads;
  float epsilon;
};

// Per layer: qkv [H, (heads + 2 kv) D], out [heads D, H], gate_up [H, 2 I], down [I, H], each input-major with one
// scale per output (int8 only); then the head [V, H], output-major. Norms and biases are float32.
//
// A matrix with a `grid` [in / 32, 2, out] (float16: step, then lowest value) is packed instead, 4 bits a weight: of an
// input channel, 64 bytes for every 128 outputs and 32 for a last 64, as `Numbers` reads them.
struct Matrix {
  const void* data;
  const float* scale;
  const uint16_t* grid;
};
struct Layer {
  Matrix qkv, out, gate_up, down;
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm, *qkv_bias;
};

// What one row spends on one step.
struct Plan {
  int32_t inputs, hiddens, bits, group, sparse, sinks, window_start, pages;
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

// Keys and values of one row. K: float32 (precision 0) or bfloat16.
struct Cache {
  int capacity = 0;
  std::vector<char> keys, values, low, high;  // [layers, kv_heads, blocks, D, 16], [.., tokens, D], [.., blocks, D] x 2
};

struct Engine {
  Sizes s;
  std::vector<Layer> layers;
  const void* embedding;
  const float* embedding_scale;
  Matrix head;
  const float *final_norm, *cosine, *sine;  // [positions, D] each

  // The job that threads work on.
  std::atomic<uint64_t> ticket{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  std::vector<char> senses;
  Barrier* barrier = nullptr;
  std::vector<std::vector<float>> shared;  // per thread: partial sums that the others read

  int steps = 0, first = 0, last = 0;
  Cache* const* caches = nullptr;
  const int32_t *tokens = nullptr, *positions = nullptr;
  const Plan* plans = nullptr;
  float* stream = nullptr;  // [steps, H]
  float* logits = nullptr;  // [steps, V] or null

  size_t element() const { return s.precision == 0 ? 4 : 2; }
  int blocks(const Cache& c) const { return c.capacity / PAGE; }

  template <typename W, typename K>
  void work(int thread);
  void dispatch(int thread);
  void serve(int thread);
};
