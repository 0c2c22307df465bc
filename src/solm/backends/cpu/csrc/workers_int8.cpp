// Integers, with a KV cache in bfloat16.
#include "step.h"

namespace solm {

template std::unique_ptr<WorkerBase> make_worker<int8_t, bf16>(Engine& e, int thread);

}  // namespace solm
