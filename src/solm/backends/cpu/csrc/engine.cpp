// One decode step of a Llama-like model in one call: only what an action keeps is read and computed.
//
// Two threads (or more) walk the layers together, with up to 16 steps at once: of several rows, of several known tokens
// of one row, or both. Every thread holds the residual stream and does the small work (norms, selection, activations) for
// itself, so that threads meet only where one needs the others' sums. Matrices are stored input-major: an input channel
// that every step skips is a row of weights that is never read. A step's sums are added up in the same order whatever
// steps go with it. Keys lie in pages of 16 tokens, transposed, beside the per-channel minimum and maximum of the page
// (Quest, ICML 2024).

#include "walker.h"

template <typename W, typename K>
void Engine::work(int thread) {
  const int rows = std::min(steps, MOST_ROWS);
  Kept& kept = walkers[thread];
  if (kept.rows < rows) kept = {rows, std::make_shared<Walker<W, K>>(*this, thread, rows)};
  static_cast<Walker<W, K>*>(kept.walker.get())->run();
}

void Engine::dispatch(int thread) {
  if (s.precision == 0) work<float, float>(thread);
  else if (s.precision == 1) work<bf16, bf16>(thread);
  else if (s.kv_bytes) work<int8_t, uint8_t>(thread);
  else work<int8_t, bf16>(thread);
}

void Engine::serve(int thread) {
  uint64_t done = 0;
  for (;;) {
    uint64_t now = ticket.load(std::memory_order_acquire);
    // A step follows the last one within microseconds or not at all: spin a little, then sleep.
    for (int spins = 0; now == done && spins < 20000; ++spins) {
      PAUSE();
      now = ticket.load(std::memory_order_acquire);
    }
    if (now == done) {
      ticket.wait(done, std::memory_order_acquire);
      continue;
    }
    done = now;
    if (stop.load(std::memory_order_acquire)) return;
    dispatch(thread);
  }
}

// Room for the pages from `held` on of a cache of `pages`.
std::shared_ptr<Pages> make_pages(const Engine& e, int held, int pages) {
  auto made = std::make_shared<Pages>();
  made->count = pages - held, made->tiles = (pages + PAGE - 1) / PAGE - held / PAGE;
  const size_t places = size_t(e.s.layers) * e.s.kv_heads, tile = PAGE * e.s.head_dim * (e.s.precision == 0 ? 4 : 2);
  size_t page = 0;
  e.with_kv([&]<typename K>(K) { page = page_size<K>(e.s.head_dim) * sizeof(K); });
  for (auto* part : {&made->keys, &made->values}) part->allocate(places * made->count * page);
  for (auto* part : {&made->low, &made->high}) part->allocate(places * made->tiles * tile);
  return made;
}

// Pages from `held` to `end` (not included) of a cache, and their tiles of bounds, to the beginning of `to`.
void copy_pages(const Engine& e, const Cache& from, int held, int end, Pages& to) {
  e.with_kv([&]<typename K>(K) {
    using Bound = typename Attention<K>::Bound;
    for (int layer = 0; layer < e.s.layers; ++layer)
      for (int head = 0; head < e.s.kv_heads; ++head) {
        const size_t place = size_t(layer) * e.s.kv_heads + head;
        auto copy = [&](Memory Pages::* part, const auto& stretch, int first, int last, int room) {
          const size_t bytes = stretch.size * sizeof *stretch.own;
          for (int i = first; i < last; ++i)
            std::memcpy((to.*part).data() + (place * room + i - first) * bytes, stretch[i], bytes);
        };
        for (auto part : {&Pages::keys, &Pages::values})
          copy(part, from.stretch<K>(part, e.s, layer, head), held, end, to.count);
        for (auto part : {&Pages::low, &Pages::high})
          copy(part, from.bounds<Bound>(part, e.s, layer, head), held / PAGE, (end + PAGE - 1) / PAGE, to.tiles);
      }
  });
}

// Before anything is written from `position` on: what another cache reads stays as it is. Throws std::bad_alloc.
void make_own(const Engine& e, Cache& c, int position) {
  const int page = position / PAGE;
  const bool lent = c.own.use_count() > 1 && page - c.held < c.own->lent;
  if (page >= c.held && !lent) return;
  auto made = make_pages(e, 0, c.pages());
  copy_pages(e, c, 0, page + 1, *made);
  c = {0, nullptr, made};
}

extern "C" {

// A place for the weights; null where memory cannot be had.
void* solm_arena(size_t bytes) try {
  auto* memory = new Memory();
  memory->allocate(bytes);
  return memory;
} catch (const std::exception&) {
  return nullptr;
}

void* solm_arena_data(void* arena) { return static_cast<Memory*>(arena)->data(); }

void solm_arena_free(void* arena) { delete static_cast<Memory*>(arena); }

// Returns null where memory cannot be had. weights per layer: qkv, out, gate_up, down (data, scale, grid, low)
// then attention_norm, mlp_norm, q_norm, k_norm, qkv_bias; 21 pointers. All must outlive the engine.
void* solm_engine(const Sizes* sizes, const void* const* per_layer, const void* embedding, const Head* head,
                  const float* final_norm, const float* cosine, const float* sine) try {
  auto* e = new Engine();
  e->s = *sizes;
  for (int l = 0; l < sizes->layers; ++l) {
    const void* const* p = per_layer + 21 * l;
    auto floats = [](const void* q) { return static_cast<const float*>(q); };
    auto matrix = [&](int i) { return Matrix{p[i], floats(p[i + 1]), static_cast<const uint16_t*>(p[i + 2]), p[i + 3]}; };
    e->layers.push_back({matrix(0), matrix(4), matrix(8), matrix(12), floats(p[16]), floats(p[17]), floats(p[18]),
                         floats(p[19]), floats(p[20])});
  }
  e->embedding = embedding, e->head = *head, e->final_norm = final_norm, e->cosine = cosine, e->sine = sine;
  const Sizes& s = e->s;
  const int widest = std::max({2 * s.intermediate, (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden,
                               s.heads * (s.head_dim + 2)});
  e->shared.assign(s.threads, std::vector<float>(size_t(2) * MOST_ROWS * (widest + BLOCK)));
  e->senses.assign(s.threads, 0), e->units.resize(s.threads);
  e->walkers.resize(s.threads);
  e->barrier = new Barrier(s.threads);
  for (int t = 1; t < s.threads; ++t) e->workers.emplace_back([e, t] { e->serve(t); });
  return e;
} catch (const std::exception&) {
  return nullptr;
}

void solm_engine_free(void* engine) {
  auto* e = static_cast<Engine*>(engine);
  e->stop.store(true, std::memory_order_release);
  e->ticket.fetch_add(1, std::memory_order_acq_rel);
  e->ticket.notify_all();
  for (auto& worker : e->workers) worker.join();
  delete e->barrier;
  delete e;
}

// A cache of `capacity` tokens (a multiple of 16), holding the first `length` ones of `source` where that is given: whole
// pages of them are shared, or, where the source shares pages itself, those. Null without memory.
void* solm_cache(void* engine, const void* source, int32_t length, int32_t capacity) try {
  auto* e = static_cast<Engine*>(engine);
  auto c = std::make_unique<Cache>();
  auto* from = static_cast<const Cache*>(source);
  if (from && from->shared) c->held = std::min(from->held, length / PAGE), c->shared = from->shared;
  else if (from && length >= PAGE) c->held = length / PAGE, c->shared = from->own;
  c->own = make_pages(*e, c->held, capacity / PAGE);
  if (from) copy_pages(*e, *from, c->held, (length + PAGE - 1) / PAGE, *c->own);
  if (from && !from->shared) from->own->lent = std::max(from->own->lent, c->held);
  return c.release();
} catch (const std::exception&) {
  return nullptr;
}

void solm_cache_free(void* cache) { delete static_cast<Cache*>(cache); }

// Tokens of a prefill, from `position` on, for one layer: keys and values [kv_heads, count, D] float32. Returns 0, or 3
// without memory.
int32_t solm_cache_fill(void* engine, void* cache, int32_t layer, int32_t position, int32_t count, const float* keys,
                        const float* values) try {
  auto* e = static_cast<Engine*>(engine);
  auto* c = static_cast<Cache*>(cache);
  const int D = e->s.head_dim, KV = e->s.kv_heads;
  make_own(*e, *c, position);
  e->with_kv([&]<typename K>(K) {
    const Attention<K> attention(*e, 0);
    for (int t = 0; t < count; ++t)
      for (int h = 0; h < KV; ++h) {
        const size_t offset = (size_t(h) * count + t) * D;
        attention.append(*c, layer, h, position + t, keys + offset, values + offset);
      }
  });
  return 0;
} catch (const std::exception&) {
  return 3;
}

// Layers first to last (not included) of `steps` steps: step i processes tokens[i] at positions[i] of caches[i]. Steps of
// one cache come in the order of their positions, `count` of them.
//
// keep [steps, 3] says what a step may spend (attention, MLP, bits), where it can be controlled; realised [steps, 3] tells
// what these layers contribute to what it spends. Rows [steps / count], where given, decide for themselves instead if they
// have a decider: the static schedule before its layer, its word from there on; actions [steps] tells which, and the rows
// are booked.
//
// stream [steps, H] is read where first > 0, and written: the residual stream, or after the last layer what the head reads.
// logits [steps, V], computed after the last layer, may be null. With `shortlist`, those of an int8 head that are far below
// a step's largest may be approximate.
//
// Returns 0, or with nothing done 1 where a token is none of the model's, 2 where `keep` is out of range, and 3 without
// memory for a row that goes on within what it shares.
int32_t solm_run(void* engine, const Rules* rules, int32_t steps, int32_t count, void* const* caches, const int64_t* tokens,
              const int32_t* positions, const double* keep, Row* rows, int32_t* actions, double* realised, int32_t first,
              int32_t last, float* stream, float* logits, int32_t shortlist) try {
  auto* e = static_cast<Engine*>(engine);
  for (int i = 0; i < steps; ++i)
    if (tokens[i] < 0 || tokens[i] >= e->s.vocabulary) return 1;
  for (int i = 0; i < steps; ++i) {
    const double* k = keep + 3 * size_t(i);
    // Written so that NaN is refused too.
    if (!(k[0] >= 0 && k[0] <= 1 && k[1] >= 0 && k[1] <= 1 && k[2] >= 2 && k[2] <= FULL_BITS)) return 2;
  }
  e->steps = steps, e->first = first, e->last = last, e->stream = stream, e->logits = logits, e->shortlist = shortlist;
  e->caches = reinterpret_cast<Cache* const*>(caches);
  for (int i = 0; i < steps; i += count) make_own(*e, *e->caches[i], positions[i]);
  e->tokens = tokens, e->positions = positions;
  e->rules = rules, e->rows = rows, e->count = count, e->actions = actions, e->realised = realised, e->turn = -1;
  e->plans.resize(steps);
  e->span = size_t(*std::max_element(positions, positions + steps)) / PAGE + 1 + PAGE;
  e->mass.resize(std::max(e->mass.size(), std::min(steps, MOST_ROWS) * e->s.kv_heads * e->span));
  e->width = 0;
  for (int r = 0; rows && r < steps / count; ++r)
    if (rows[r].decider) e->width = std::max(e->width, rows[r].decider->width);
  for (auto& unit : e->units) unit.resize(std::max(unit.size(), size_t(MOST_ROWS) * e->width));
  e->levels.resize(e->width && steps <= MOST_ROWS ? steps : 0);
  int64_t ahead = 0;  // steps of the same row that come first, and will be booked by then
  for (int i = 0; i < steps; ++i) {
    const int kv_length = positions[i] + 1;
    const bool counted = controllable(*rules, kv_length);
    double now[3] = {1, 1, FULL_BITS};
    if (counted) std::copy_n(keep + 3 * size_t(i), 3, now);
    if (rows && rows[i / count].decider) {
      Row& row = rows[i / count];
      const Decider& d = *row.decider;
      int level[3];
      e->turn = d.layer;
      if (i % count == 0) ahead = 0;
      const Realised own = realised_by(d, *rules, e->s, kv_length);
      if (!e->levels.empty()) e->levels[i] = own;
      actions[i] = static_action(d, own, row, row.booked + ahead, counted);
      ahead += counted;
      levels_of(d, actions[i], level);
      for (int axis = 0; axis < 3; ++axis) now[axis] = d.levels[axis][level[axis]];
    }
    e->plans[i] = make_plan(*rules, e->s, now, kv_length);
    for (int axis = 0; axis < 3; ++axis)
      realised[3 * size_t(i) + axis] = realise(*rules, e->s, e->plans[i], kv_length, axis, first, last);
  }
  e->ticket.fetch_add(1, std::memory_order_acq_rel);
  e->ticket.notify_all();
  e->dispatch(0);
  return 0;
} catch (const std::exception&) {
  return 3;
}
}
