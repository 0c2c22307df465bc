// A stack of its own for work that one thread may leave in the middle and another one go on with.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace solm {

class Fiber {
 public:
  // start(argument) begins at the first switch to it, and must not return. Throws std::bad_alloc.
  Fiber(void (*start)(void*), void* argument) : start_(start), argument_(argument) {
    // Pages of the stack take memory when they are first used. The lowest ones are never mapped: overflows end there.
    stack_ = mmap(nullptr, GUARD + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack_ == MAP_FAILED) throw std::bad_alloc();
    if (mprotect(static_cast<char*>(stack_) + GUARD, STACK, PROT_READ | PROT_WRITE) || getcontext(&context_)) {
      munmap(stack_, GUARD + STACK);
      throw std::bad_alloc();
    }
    context_.uc_stack.ss_sp = static_cast<char*>(stack_) + GUARD;
    context_.uc_stack.ss_size = STACK;
    context_.uc_link = nullptr;
    const auto address = reinterpret_cast<uint64_t>(this);  // arguments are of type int
    makecontext(&context_, reinterpret_cast<void (*)()>(begin), 2, int(address >> 32), int(uint32_t(address)));
  }
  ~Fiber() { munmap(stack_, GUARD + STACK); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on with it, until it leaves. thread: where the calling thread is kept meanwhile.
  void enter(ucontext_t& thread) { swapcontext(&thread, &context_); }
  // Called in the fiber: back to the thread that entered it.
  void leave(ucontext_t& thread) { swapcontext(&context_, &thread); }

 private:
  static constexpr size_t STACK = size_t(1) << 20, GUARD = size_t(1) << 16;
  void (*start_)(void*);
  void* argument_;
  void* stack_;
  ucontext_t context_;

  static void begin(int high, int low) {
    auto* fiber = reinterpret_cast<Fiber*>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
    fiber->start_(fiber->argument_);
  }
};

}  // namespace solm
