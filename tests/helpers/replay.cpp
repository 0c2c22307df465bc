// Repeats calls of an engine that another process has recorded, in another build of it: replay LIBRARY RECORD RESULT
// [VOCABULARY]. See replay.py for what a record holds. With a size of the vocabulary the result is of every token's logits the
// place of the largest, an int64.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "structs.h"

namespace {

[[noreturn]] void fail(const char* what, const char* why) {
  std::fprintf(stderr, "replay: %s: %s\n", what, why);
  std::exit(1);
}

FILE* record;

uint64_t number() {
  uint64_t value;
  if (std::fread(&value, sizeof value, 1, record) != 1) fail("record", "too short");
  return value;
}

// Content for a place in memory.
void place() {
  auto* at = reinterpret_cast<void*>(number());
  const uint64_t bytes = number();
  if (std::fread(at, 1, bytes, record) != bytes) fail("record", "too short");
}

template <typename Function>
Function* found(void* library, const char* name) {
  void* symbol = dlsym(library, name);
  if (!symbol) fail(name, dlerror());
  return reinterpret_cast<Function*>(symbol);
}

}  // namespace

int main(int count, char** argument) {
  const long vocabulary = count > 4 ? std::atol(argument[4]) : 0;
  void* library = dlopen(argument[1], RTLD_NOW);
  if (!library) fail(argument[1], dlerror());
  record = std::fopen(argument[2], "rb");
  FILE* result = std::fopen(argument[3], "wb");
  if (!record || !result) fail(argument[2], "cannot be opened");
  // The same addresses as in the other process, so that pointers stay as they are.
  for (uint64_t maps = number(); maps--;) {
    auto* at = reinterpret_cast<void*>(number());
    const uint64_t bytes = number();
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
      fail("memory", "an address is taken");
  }
  for (uint64_t places = number(); places--;) place();
  char message[solm::MESSAGE];
  void* engine = nullptr;
  const auto* model = reinterpret_cast<const solm::Model*>(number());
  if (found<int32_t(const solm::Model*, void**, char*)>(library, "solm_engine")(model, &engine, message))
    fail("engine", message);
  auto* make = found<int32_t(void*, const void*, int64_t, int64_t, void**, char*)>(library, "solm_cache");
  auto* run = found<int32_t(void*, const solm::Call*)>(library, "solm_run");
  std::map<uint64_t, void*> caches;  // by what they were called
  for (uint64_t events = number(); events--;) {
    if (number() == 0) {
      const uint64_t name = number(), capacity = number();
      if (make(engine, nullptr, 0, int64_t(capacity), &caches[name], message)) fail("cache", message);
      continue;
    }
    const auto* call = reinterpret_cast<const solm::Call*>(number());
    for (uint64_t places = number(); places--;) place();
    auto** cache = const_cast<void**>(call->caches);
    for (int r = 0; r < call->rows; ++r) cache[r] = caches.at(reinterpret_cast<uint64_t>(cache[r]));
    if (run(engine, call)) fail("run", call->message);
    for (uint64_t outputs = number(); outputs--;) {
      const auto* at = reinterpret_cast<const float*>(number());
      const uint64_t bytes = number();
      if (!vocabulary) std::fwrite(at, 1, bytes, result);
      for (const float* row = at; vocabulary && !outputs && row < at + bytes / sizeof(float); row += vocabulary) {
        const int64_t largest = std::max_element(row, row + vocabulary) - row;
        std::fwrite(&largest, sizeof largest, 1, result);
      }
    }
  }
  return std::fclose(result);
}
