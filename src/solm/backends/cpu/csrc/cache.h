// The KV cache of a row: a list of pages of 16 tokens, of which rows that begin alike share the first ones.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "blocks.h"
#include "kv_int8.h"
#include "structs.h"

namespace solm {

// The type of the bounds of keys of type K.
template <typename K>
using BoundOf = std::conditional_t<sizeof(K) == 1, bf16, K>;

// Calls use with a number of the type in which caches of these sizes hold keys and values.
template <typename Use>
void with_kv_type(const Sizes& s, Use use) {
  if (s.precision == 0) use(float());
  else if (s.value_bits) use(uint8_t());
  else use(bf16());
}

// All pages of an engine's caches, [layers, kv_heads, keys or values, page], and the bounds of their keys in tiles of 16 pages,
// [layers, kv_heads, least or largest, 16 D]; float32, bfloat16, or int8 (values in 8 or 4 bits) with bounds in bfloat16. The
// layout of a page is in pages.h and kv_int8.h.
struct PageStore {
  BlockPool pages, tiles;

  explicit PageStore(const Sizes& s)
      : pages(pool(s, page_bytes(s, 8), page_bytes(s, s.value_bits))), tiles(pool(s, bound_bytes(s), bound_bytes(s))) {}

  // Of keys or values, in `bits` where these are in integers.
  static size_t page_bytes(const Sizes& s, int bits) {
    size_t bytes = 0;
    with_kv_type(s, [&]<typename K>(K) { bytes = page_size<K>(s.head_dim, bits) * sizeof(K); });
    return bytes;
  }
  static size_t bound_bytes(const Sizes& s) { return size_t(PAGE) * s.head_dim * (s.precision == 0 ? 4 : 2); }

 private:
  static BlockPool pool(const Sizes& s, size_t first, size_t second) {
    return {size_t(s.layers) * s.kv_heads * (first + second), first};
  }
};

// The part of every page, or tile, that belongs to one head of a layer.
template <typename K>
struct PageRange {
  Block* const* blocks;
  size_t offset;
  K* operator[](int page) const { return reinterpret_cast<K*>(reinterpret_cast<char*>(blocks[page]) + offset); }
};

// What one row has seen. Pages are taken when they are first written to.
struct Cache {
  const std::shared_ptr<std::mutex> mutex;  // of the engine that it belongs to, and may outlive
  const std::shared_ptr<PageStore> store;   // likewise
  const int capacity;                       // pages
  std::vector<Block*> pages, tiles;

  Cache(std::shared_ptr<std::mutex> mutex, std::shared_ptr<PageStore> store, int capacity)
      : mutex(std::move(mutex)), store(std::move(store)), capacity(capacity) {
    pages.reserve(capacity), tiles.reserve((capacity + PAGE - 1) / PAGE);
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;
  ~Cache() {
    for (Block* page : pages) store->pages.release(page);
    for (Block* tile : tiles) store->tiles.release(tile);
  }

  template <typename K>
  PageRange<K> keys(const Sizes& s, int layer, int head) const {
    return range<K>(pages, s, layer, head, 0, head_size<K>(s));
  }
  template <typename K>
  PageRange<K> values(const Sizes& s, int layer, int head) const {
    return range<K>(pages, s, layer, head, page_size<K>(s.head_dim), head_size<K>(s));
  }
  // Tiles of the bounds of keys of type K: the least ones, the largest ones.
  template <typename K>
  PageRange<BoundOf<K>> low(const Sizes& s, int layer, int head) const {
    return range<BoundOf<K>>(tiles, s, layer, head, 0, 2 * bounds(s));
  }
  template <typename K>
  PageRange<BoundOf<K>> high(const Sizes& s, int layer, int head) const {
    return range<BoundOf<K>>(tiles, s, layer, head, bounds(s), 2 * bounds(s));
  }

 private:
  static size_t bounds(const Sizes& s) { return size_t(PAGE) * s.head_dim; }

  // Numbers of a head's keys and values in a page.
  template <typename K>
  static size_t head_size(const Sizes& s) { return page_size<K>(s.head_dim) + page_size<K>(s.head_dim, s.value_bits); }

  // What begins at number `place` of every head's `size`.
  template <typename K>
  static PageRange<K> range(const std::vector<Block*>& of, const Sizes& s, int layer, int head, size_t place, size_t size) {
    return {of.data(), sizeof(Block) + ((size_t(layer) * s.kv_heads + head) * size + place) * sizeof(K)};
  }
};

// A cache of `capacity` tokens that holds the first `length` ones of `source`, if given: the same pages. Throws std::bad_alloc.
inline std::unique_ptr<Cache> make_cache(std::shared_ptr<std::mutex> mutex, std::shared_ptr<PageStore> store,
                                         const Cache* source, int length, int capacity) {
  auto made = std::make_unique<Cache>(std::move(mutex), std::move(store), capacity / PAGE);
  if (!source) return made;
  auto share = [](const std::vector<Block*>& from, std::vector<Block*>& to, int count) {
    for (int i = 0; i < std::min(count, int(from.size())); ++i) to.push_back(from[i]), ++from[i]->users;
  };
  const int pages = (length + PAGE - 1) / PAGE;
  share(source->pages, made->pages, pages);
  share(source->tiles, made->tiles, (pages + PAGE - 1) / PAGE);
  return made;
}

// Gives a cache pages of its own from `position` on for `count` tokens, more than none. Throws std::bad_alloc; what the cache
// has seen stays, and so do the pages that it got before.
inline void make_writable(Cache& cache, int64_t position, int64_t count) {
  auto own = [](std::vector<Block*>& blocks, BlockPool& pool, size_t first, size_t last) {
    while (blocks.size() <= last) blocks.push_back(pool.take());
    for (size_t i = first; i <= last; ++i)
      if (blocks[i]->users > 1) blocks[i] = pool.copy(blocks[i]);
  };
  const size_t first = position / PAGE, last = (position + count - 1) / PAGE;
  own(cache.pages, cache.store->pages, first, last);
  own(cache.tiles, cache.store->tiles, first / PAGE, last / PAGE);
}

// Writes the key and value [D] of one head. The page of `position` must be writable.
template <typename K>
void append(const Cache& cache, const Sizes& s, int layer, int head, int position, const float* key, const float* value) {
  using Bound = BoundOf<K>;
  const int page = position / PAGE, slot = position % PAGE, D = s.head_dim;
  K* keys = cache.keys<K>(s, layer, head)[page];
  store_key(keys, slot, key, D);
  store_value(cache.values<K>(s, layer, head)[page], slot, value, D, s.value_bits);
  // Bounds are only read of pages before the window, which is at least a page long: those are complete.
  if (slot < PAGE - 1) return;
  Bound* low = cache.low<K>(s, layer, head)[page / PAGE];
  Bound* high = cache.high<K>(s, layer, head)[page / PAGE];
  for (int d = 0; d < D; ++d) {
    float least = INFINITY, most = -INFINITY;
    for (int t = 0; t < PAGE; ++t) {
      const float k = key_of(keys, t, d, D);
      least = std::min(least, k), most = std::max(most, k);
    }
    const size_t at = tile_at<Bound>(d, page % PAGE);
    low[at] = store<Bound>(least), high[at] = store<Bound>(most);
  }
}

}  // namespace solm
