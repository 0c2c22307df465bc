// The compiled engine's interface: decode steps of Llama-like models that read and compute only what an action keeps.
//
// Several threads process a call together, with all of its steps at once: of several rows, of several known tokens of one row,
// or both. Matrices are stored input-major, so that in a call of few steps an input channel which all of them skip is a row of
// weights that is never read; many steps are products of matrices (prompt.h). The results of a step depend on which of the two
// it is, in their last bits, and not on what the other steps of the call are.
//
// Every function may be called from any thread; calls of one engine are serialised. Functions that can fail
// return one of these codes, and then write one line to `message` [MESSAGE]. A call that fails changes nothing.

#include "head_repack.h"
#include "run.h"
#include "validate.h"

namespace {

using namespace solm;

enum Code : int32_t { DONE = 0, INVALID = 1, NO_MEMORY = 2 };

Engine& engine_of(void* engine) { return *static_cast<Engine*>(engine); }

constexpr size_t CHECKSUM_CHUNK = size_t(1) << 20;

// A fast checksum of memory: any changed word changes it. With any other words fixed, the sum is a bijection of each word,
// because it is multiplied by odd numbers only.
uint64_t checksum_chunk(const uint8_t* data, size_t bytes) {
  constexpr uint64_t ODD = 0x9e3779b97f4a7c15;
  uint64_t lanes[4] = {1, 2, 3, 4}, words[4];
  while (bytes) {
    const size_t taken = std::min(bytes, sizeof words);
    if (taken < sizeof words) std::memset(words, 0, sizeof words);
    std::memcpy(words, data, taken);
    for (int i = 0; i < 4; ++i) lanes[i] = (lanes[i] ^ words[i]) * ODD, lanes[i] ^= lanes[i] >> 32;
    data += taken, bytes -= taken;
  }
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum = (sum ^ lane) * ODD, sum ^= sum >> 32;
  return sum;
}

uint64_t checksum(const uint8_t* data, size_t bytes, int threads) {
  const size_t chunks = (bytes + CHECKSUM_CHUNK - 1) / CHECKSUM_CHUNK;
  std::vector<uint64_t> sums(chunks + 1, bytes);
  in_parallel(threads, int(chunks), [&](int from, int until) {
    for (int c = from; c < until; ++c) {
      const size_t begin = size_t(c) * CHECKSUM_CHUNK;
      sums[c] = checksum_chunk(data + begin, std::min(CHECKSUM_CHUNK, bytes - begin));
    }
  });
  return checksum_chunk(reinterpret_cast<const uint8_t*>(sums.data()), sums.size() * sizeof(uint64_t));
}

}  // namespace

extern "C" {

// See `repack_head`.
int32_t solm_repack_head(int32_t type, const void* rows, int64_t row_bytes, int32_t vocabulary, int32_t hidden, int32_t threads,
                         const Head* to, char* message) try {
  if (!valid_head_repack(type, rows, row_bytes, vocabulary, hidden, threads, *to, message)) return INVALID;
  std::atomic<int> bad{-1};
  if (!repack_head(type, static_cast<const uint8_t*>(rows), vocabulary, hidden, threads, *to, bad))
    return refuse(message, "row %d has values that are not finite", bad.load()), INVALID;
  return DONE;
} catch (const std::exception&) {
  refuse(message, "no memory for the conversion of the head");
  return NO_MEMORY;
}

// Puts a tensor of a file, `bytes` long at `blocks`, at its place in a matrix. See `RawTensor` and `PackedPlace`.
int32_t solm_repack(int32_t type, const void* blocks, size_t bytes, int32_t outputs, int32_t inputs, const int32_t* order,
                    int32_t target, int32_t first, int32_t total, void* data, float* scale, uint16_t* grid, int32_t threads,
                    char* message) try {
  const RawTensor tensor{type, static_cast<const uint8_t*>(blocks), outputs, inputs, order};
  const PackedPlace to{target, first, total, data, scale, grid, threads};
  if (!valid_tensor(tensor, bytes, message) || !valid_place(tensor, to, message)) return INVALID;
  std::atomic<int> bad{-1};
  if (!repack(tensor, to, bad)) return refuse(message, "row %d has values that are not finite", bad.load()), INVALID;
  return DONE;
} catch (const std::exception&) {
  refuse(message, "no memory for repacking weights, or no threads");
  return NO_MEMORY;
}

// Writes values [count, inputs] of `rows` [count] of a tensor of a file.
int32_t solm_dequantise(int32_t type, const void* blocks, size_t bytes, int32_t outputs, int32_t inputs, const int64_t* rows,
                        int64_t count, float* values, char* message) {
  const RawTensor tensor{type, static_cast<const uint8_t*>(blocks), outputs, inputs, nullptr};
  if (!valid_tensor(tensor, bytes, message)) return INVALID;
  for (int64_t r = 0; r < count; ++r)
    if (rows[r] < 0 || rows[r] >= outputs)
      return refuse(message, "row %lld is not among its %d", static_cast<long long>(rows[r]), outputs), INVALID;
  for (int64_t r = 0; r < count; ++r) {
    float group_values[GROUP], *to = values + r * inputs;
    for (int g = 0; g < tensor.groups(); ++g) {
      const int found = read_group(tensor, tensor.row(int(rows[r])), g, group_values);
      std::copy_n(group_values, found, to + g * GROUP);
    }
  }
  return DONE;
}

// A checksum of memory; 0 where there are no threads for it.
uint64_t solm_checksum(const void* data, size_t bytes, int32_t threads) try {
  return checksum(static_cast<const uint8_t*>(data), bytes, threads);
} catch (const std::exception&) {
  return 0;
}

// What the model points to must outlive the engine, except for the array of layers.
int32_t solm_engine(const Model* model, void** made, char* message) try {
  if (!valid_model(*model, message)) return INVALID;
  *made = new Engine(*model);
  return DONE;
} catch (const std::exception&) {
  refuse(message, "no memory for the working space of the engine");
  return NO_MEMORY;
}

// No call may be in progress. Caches may be freed later.
void solm_engine_free(void* engine) { delete static_cast<Engine*>(engine); }

// A cache of `capacity` tokens (a multiple of PAGE), with the first `length` ones of `source`, which may be null.
int32_t solm_cache(void* engine, const void* source, int64_t length, int64_t capacity, void** made, char* message) try {
  Engine& e = engine_of(engine);
  const std::lock_guard lock(*e.mutex);
  const auto* from = static_cast<const Cache*>(source);
  if (from && !valid_cache(e, from, message)) return INVALID;
  constexpr int64_t MOST = int64_t(1) << 30;
  if (capacity < PAGE || capacity > MOST || capacity % PAGE)
    return refuse(message, "a cache's capacity must be a multiple of %d in [%d, %lld], got %lld", PAGE, PAGE,
                  static_cast<long long>(MOST), static_cast<long long>(capacity)), INVALID;
  const int64_t most = from ? std::min<int64_t>(capacity, int64_t(from->capacity) * PAGE) : 0;
  if (length < 0 || length > most)
    return refuse(message, "a cache can take over [0, %lld] tokens, got %lld", static_cast<long long>(most),
                  static_cast<long long>(length)), INVALID;
  *made = make_cache(e.mutex, e.store, from, int(length), int(capacity)).release();
  return DONE;
} catch (const std::exception&) {
  refuse(message, "no memory for a cache of %lld tokens", static_cast<long long>(capacity));
  return NO_MEMORY;
}

void solm_cache_free(void* cache) {
  const std::shared_ptr<std::mutex> mutex = static_cast<Cache*>(cache)->mutex;
  const std::lock_guard lock(*mutex);
  delete static_cast<Cache*>(cache);
}

// Writes how many pages and tiles the caches of an engine hold, and the bytes that each of them takes: [4]. It does not wait for
// calls in progress.
void solm_pages(void* engine, int64_t* counts) {
  const PageStore& store = *engine_of(engine).store;
  counts[0] = store.pages.used(), counts[1] = store.tiles.used();
  counts[2] = store.pages.stride(), counts[3] = store.tiles.stride();
}

// See `Call`.
int32_t solm_run(void* engine, const Call* call) try {
  Engine& e = engine_of(engine);
  const std::lock_guard lock(*e.mutex);
  if (!valid_call(e, *call, call->message)) return INVALID;
  e.reserve(*call);
  e.run(*call);
  return DONE;
} catch (const std::exception&) {
  refuse(call->message, "no memory for a step of %d rows", call->rows);
  return NO_MEMORY;
}

}  // extern "C"
