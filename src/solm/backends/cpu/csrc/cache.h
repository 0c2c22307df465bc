// The KV cache of a row: pages of 16 tokens, of which forks share the whole ones.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>

#include "kv_int8.h"
#include "memory.h"
#include "structs.h"

namespace solm {

// Keys and values page by page, and bounds of the keys in tiles of 16 pages; float32, bfloat16, or int8 with bounds in
// bfloat16. The layout of a page is in pages.h and kv_int8.h.
struct Pages {
  int count = 0, tiles = 0;  // of one KV head of a layer
  int shared = 0;            // first pages that other caches read too
  Memory keys, values;       // [layers, kv_heads, count, page]
  Memory low, high;          // [layers, kv_heads, tiles, 16 D]
};

// The type of the bounds of keys of type K.
template <typename K>
using BoundOf = std::conditional_t<sizeof(K) == 1, bf16, K>;

// The pages, or tiles, of one head of a layer, `size` numbers each: first `shared_count` shared ones, then the cache's own.
template <typename K>
struct PageRange {
  const K* shared;
  K* own;
  int shared_count;
  size_t size;
  const K* operator[](int page) const { return page < shared_count ? shared + page * size : own_page(page); }
  K* own_page(int page) const { return own + (page - shared_count) * size; }
};

// What one row has seen.
struct Cache {
  std::shared_ptr<std::mutex> mutex;    // of the engine that it belongs to, and may outlive
  int shared_count = 0;                 // pages of another cache that this one begins with
  std::shared_ptr<const Pages> shared;  // where those are
  std::shared_ptr<Pages> own;           // the pages from `shared_count` on, and the tiles from that page's tile on

  int pages() const { return shared_count + own->count; }

  // Keys or values of a head.
  template <typename K>
  PageRange<K> range(Memory Pages::* part, const Sizes& s, int layer, int head) const {
    return range_of<K>(part, size_t(layer) * s.kv_heads + head, &Pages::count, shared_count, page_size<K>(s.head_dim));
  }
  // Tiles of bounds of a head.
  template <typename K>
  PageRange<K> bounds(Memory Pages::* part, const Sizes& s, int layer, int head) const {
    return range_of<K>(part, size_t(layer) * s.kv_heads + head, &Pages::tiles, shared_count / PAGE,
                       size_t(PAGE) * s.head_dim);
  }

 private:
  template <typename K>
  PageRange<K> range_of(Memory Pages::* part, size_t head, int Pages::* count, int shared_count, size_t size) const {
    auto* first = reinterpret_cast<K*>(((*own).*part).data()) + head * ((*own).*count) * size;
    if (!shared) return {nullptr, first, 0, size};
    auto* others = reinterpret_cast<const K*>(((*shared).*part).data()) + head * ((*shared).*count) * size;
    return {others, first, shared_count, size};
  }
};

// Calls use with a number of the type in which caches of these sizes hold keys and values.
template <typename Use>
void with_kv_type(const Sizes& s, Use use) {
  if (s.precision == 0) use(float());
  else if (s.kv_int8) use(uint8_t());
  else use(bf16());
}

// Room for the pages from `first` on of a cache of `pages`. Throws std::bad_alloc.
inline std::shared_ptr<Pages> make_pages(const Sizes& s, int first, int pages) {
  auto made = std::make_shared<Pages>();
  made->count = pages - first, made->tiles = (pages + PAGE - 1) / PAGE - first / PAGE;
  const size_t heads = size_t(s.layers) * s.kv_heads, tile = PAGE * s.head_dim * (s.precision == 0 ? 4 : 2);
  size_t page = 0;
  with_kv_type(s, [&]<typename K>(K) { page = page_size<K>(s.head_dim) * sizeof(K); });
  for (auto* part : {&made->keys, &made->values}) part->allocate(heads * made->count * page);
  for (auto* part : {&made->low, &made->high}) part->allocate(heads * made->tiles * tile);
  return made;
}

// Copies pages [first, end) of a cache, and their tiles of bounds, to the beginning of `to`.
inline void copy_pages(const Sizes& s, const Cache& from, int first, int end, Pages& to) {
  with_kv_type(s, [&]<typename K>(K) {
    for (int layer = 0; layer < s.layers; ++layer)
      for (int head = 0; head < s.kv_heads; ++head) {
        const size_t place = size_t(layer) * s.kv_heads + head;
        auto copy = [&](Memory Pages::* part, const auto& range, int from_page, int to_page, int room) {
          const size_t bytes = range.size * sizeof *range.own;
          for (int i = from_page; i < to_page; ++i)
            std::memcpy((to.*part).data() + (place * room + i - from_page) * bytes, range[i], bytes);
        };
        for (auto part : {&Pages::keys, &Pages::values})
          copy(part, from.range<K>(part, s, layer, head), first, end, to.count);
        for (auto part : {&Pages::low, &Pages::high})
          copy(part, from.bounds<BoundOf<K>>(part, s, layer, head), first / PAGE, (end + PAGE - 1) / PAGE, to.tiles);
      }
  });
}

// A cache of `capacity` tokens that holds the first `length` ones of `source`, if given. Whole pages of them are shared, or,
// where the source shares pages itself, those. Throws std::bad_alloc.
inline std::unique_ptr<Cache> make_cache(std::shared_ptr<std::mutex> mutex, const Sizes& s, const Cache* source, int length,
                                         int capacity) {
  auto made = std::make_unique<Cache>();
  made->mutex = std::move(mutex);
  if (source && source->shared)
    made->shared_count = std::min(source->shared_count, length / PAGE), made->shared = source->shared;
  else if (source && length >= PAGE)
    made->shared_count = length / PAGE, made->shared = source->own;
  made->own = make_pages(s, made->shared_count, capacity / PAGE);
  if (source) copy_pages(s, *source, made->shared_count, (length + PAGE - 1) / PAGE, *made->own);
  if (source && !source->shared) source->own->shared = std::max(source->own->shared, made->shared_count);
  return made;
}

// Copies pages that another cache reads before anything is written from `position` on. Throws std::bad_alloc, and leaves the
// cache as it was then.
inline void make_writable(const Sizes& s, Cache& cache, int64_t position) {
  const int page = int(position / PAGE);
  const bool read_by_others = cache.own.use_count() > 1 && page - cache.shared_count < cache.own->shared;
  if (page >= cache.shared_count && !read_by_others) return;
  auto made = make_pages(s, 0, cache.pages());
  copy_pages(s, cache, 0, page + 1, *made);
  cache.shared_count = 0, cache.shared = nullptr, cache.own = std::move(made);
}

// Writes the key and value [D] of one head. The page of `position` must be writable.
template <typename K>
void append(const Cache& cache, const Sizes& s, int layer, int head, int position, const float* key, const float* value) {
  using Bound = BoundOf<K>;
  const int page = position / PAGE, slot = position % PAGE, D = s.head_dim;
  K* keys = cache.range<K>(&Pages::keys, s, layer, head).own_page(page);
  store_key(keys, slot, key, D);
  store_value(cache.range<K>(&Pages::values, s, layer, head).own_page(page), slot, value, D);
  // Bounds are only read of pages before the window, which is at least a page long: those are complete.
  if (slot < PAGE - 1) return;
  Bound* low = cache.bounds<Bound>(&Pages::low, s, layer, head).own_page(page / PAGE);
  Bound* high = cache.bounds<Bound>(&Pages::high, s, layer, head).own_page(page / PAGE);
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
