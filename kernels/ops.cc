#include "kernels/ops.h"

namespace conclave::kernels {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

SlotLayout MakeSlotLayout(DType activation, int hidden_size, int experts_per_token) {
  constexpr int64_t kSlotAlignment = 16;
  SlotLayout layout;
  layout.hidden_offset = 0;
  // Ids and weights stay aligned whatever the hidden size and activation type.
  layout.expert_ids_offset = RoundUp(hidden_size * SizeOf(activation), sizeof(int32_t));
  layout.weights_offset = layout.expert_ids_offset + experts_per_token * SizeOf(DType::kI32);
  layout.slot_bytes =
      RoundUp(layout.weights_offset + experts_per_token * SizeOf(DType::kF32), kSlotAlignment);
  return layout;
}

}  // namespace conclave::kernels
