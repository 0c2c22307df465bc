// Checks at the border of what repacks and dequantises tensors, as those of validate.h.
#pragma once

#include "repack.h"
#include "validate.h"

namespace solm {

inline bool valid_tensor(const RawTensor& tensor, size_t bytes, char* message) {
  constexpr int MOST = 1 << 30;
  const TypeInfo info = type_info(tensor.type);
  if (!info.values) return refuse(message, "tensor type %d is not supported", tensor.type);
  if (tensor.outputs < 1 || tensor.outputs > MOST || tensor.inputs < 1 || tensor.inputs > MOST || tensor.inputs % info.values)
    return refuse(message, "[%d, %d] is no shape of a tensor with blocks of %d", tensor.outputs, tensor.inputs, info.values);
  const size_t wanted = size_t(tensor.outputs) * tensor.row_bytes();
  if (!tensor.blocks || bytes != wanted) return refuse(message, "it must have %zu bytes, not %zu", wanted, bytes);
  for (int o = 0; tensor.order && o < tensor.outputs; ++o)
    if (tensor.order[o] < 0 || tensor.order[o] >= tensor.outputs)
      return refuse(message, "row %d is not among its %d", tensor.order[o], tensor.outputs);
  return true;
}

inline bool valid_place(const RawTensor& tensor, const PackedPlace& to, char* message) {
  const bool packed = to.target == OWN || to.target == NESTED;
  if (to.target < OWN || to.target > NESTED) return refuse(message, "unknown target %d", to.target);
  if (to.target == OWN && !type_info(tensor.type).bits) return refuse(message, "floats have no numbers of their own");
  if (to.target == NESTED && tensor.inputs % GROUP)
    return refuse(message, "nested weights need inputs in multiples of %d, not %d", GROUP, tensor.inputs);
  if (to.first < 0 || to.total < 1 || to.first > to.total || tensor.outputs > to.total - to.first)
    return refuse(message, "outputs %d and the next %d are not among %d", to.first, tensor.outputs, to.total);
  if (packed && to.total % BLOCK) return refuse(message, "packed outputs come in multiples of %d, not %d", BLOCK, to.total);
  if (!to.data || (packed && !to.grid) || (to.target == INT8 && !to.scale)) return refuse(message, "no memory was given");
  if (to.threads < 1 || to.threads > 1 << 12) return refuse(message, "threads must be in [1, %d], got %d", 1 << 12, to.threads);
  return true;
}

}  // namespace solm
