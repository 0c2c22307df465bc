// Integers, with a KV cache in int8.
#include "step.h"

namespace solm {

template std::unique_ptr<WorkerBase> make_worker<int8_t, uint8_t>(Engine& e, int thread);

}  // namespace solm
