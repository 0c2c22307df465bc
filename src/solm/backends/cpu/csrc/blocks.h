// Blocks of memory of one size with a count of users, taken out of larger pieces: the pages that rows of a cache share.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "memory.h"

namespace solm {

struct Slab;

// What comes before a block's own bytes.
struct alignas(64) Block {
  Slab* slab;
  int users;

  char* data() { return reinterpret_cast<char*>(this + 1); }
};

// Neighbouring blocks. It returns to the system when none of them is used.
struct Slab {
  Memory memory;
  std::vector<Block*> unused;
};

// Not for several threads at once.
class BlockPool {
 public:
  // Of blocks of `bytes`. They lie a multiple of 4 KiB and `step` bytes apart, for the processor's caches: what has the same
  // place in neighbouring blocks, `step` bytes long, would otherwise compete for the same lines of them.
  BlockPool(size_t bytes, size_t step) : bytes_(bytes) {
    constexpr size_t LINE = 64, SETS = 4096;
    const size_t least = rounded(sizeof(Block) + bytes, LINE);
    stride_ = least + (rounded(step, LINE) + SETS - least % SETS) % SETS;
    count_ = int(std::max<size_t>(1, SLAB / stride_));
  }
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Blocks in use, also to be asked by other threads, and what each of them takes.
  int64_t used() const { return used_; }
  int64_t stride() const { return int64_t(stride_); }

  // A block of zeros with one user. Throws std::bad_alloc.
  Block* take() {
    Block* block = unused();
    std::memset(block->data(), 0, bytes_);
    return block;
  }

  // A copy with one user of a block that loses one. Throws std::bad_alloc, and changes nothing then.
  Block* copy(Block* from) {
    Block* block = unused();
    std::memcpy(block->data(), from->data(), bytes_);
    release(from);
    return block;
  }

  void release(Block* block) {
    if (--block->users) return;
    --used_;
    Slab* slab = block->slab;
    slab->unused.push_back(block);
    if (int(slab->unused.size()) < count_) return;
    // One empty slab stays, for the row that comes next.
    auto empty = [&](const auto& other) { return other.get() != slab && int(other->unused.size()) == count_; };
    std::erase_if(slabs_, empty);
  }

 private:
  static constexpr size_t SLAB = size_t(8) << 20;
  size_t bytes_, stride_;
  int count_;  // of a slab
  std::atomic<int64_t> used_ = 0;
  std::vector<std::unique_ptr<Slab>> slabs_;

  static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

  Block* unused() {
    const auto found = std::find_if(slabs_.begin(), slabs_.end(), [](const auto& slab) { return !slab->unused.empty(); });
    Slab& slab = found == slabs_.end() ? add_slab() : **found;
    Block* block = slab.unused.back();
    slab.unused.pop_back();
    block->users = 1;
    ++used_;
    return block;
  }

  Slab& add_slab() {
    auto made = std::make_unique<Slab>();
    made->memory.allocate(stride_ * count_);
    made->unused.reserve(count_);
    slabs_.push_back(std::move(made));
    Slab& slab = *slabs_.back();
    for (int i = count_ - 1; i >= 0; --i) {
      auto* block = reinterpret_cast<Block*>(slab.memory.data() + i * stride_);
      block->slab = &slab;
      slab.unused.push_back(block);
    }
    return slab;
  }
};

}  // namespace solm
