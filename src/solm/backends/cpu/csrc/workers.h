// The workers of an engine by the types of weights and of the KV cache. Each type is compiled for itself, in
// workers_*.cpp, because that takes long.
#pragma once

#include <memory>

#include "dot_float.h"
#include "engine.h"

namespace solm {

// Throws std::bad_alloc.
template <typename W, typename K>
std::unique_ptr<WorkerBase> make_worker(Engine& e, int thread);

extern template std::unique_ptr<WorkerBase> make_worker<float, float>(Engine& e, int thread);
extern template std::unique_ptr<WorkerBase> make_worker<bf16, bf16>(Engine& e, int thread);
extern template std::unique_ptr<WorkerBase> make_worker<int8_t, bf16>(Engine& e, int thread);
extern template std::unique_ptr<WorkerBase> make_worker<int8_t, uint8_t>(Engine& e, int thread);

}  // namespace solm
