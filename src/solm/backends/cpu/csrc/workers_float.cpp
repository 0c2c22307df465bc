// Floats.
#include "step.h"

namespace solm {

template std::unique_ptr<WorkerBase> make_worker<float, float>(Engine& e, int thread);
template std::unique_ptr<WorkerBase> make_worker<bf16, bf16>(Engine& e, int thread);

}  // namespace solm
