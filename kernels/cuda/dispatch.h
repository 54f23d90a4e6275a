#ifndef CONCLAVE_KERNELS_CUDA_DISPATCH_H_
#define CONCLAVE_KERNELS_CUDA_DISPATCH_H_

// Packing of the expert exchange's send buffer; the contract is that of Ops::PackDispatch.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/ops.h"

namespace conclave::kernels::cuda {

struct PackArguments {
  DispatchTables tables;
  SlotLayout layout;
  const __nv_bfloat16* normed = nullptr;  // [rows, hidden], 16-byte aligned
  const int32_t* expert_ids = nullptr;    // [rows, k]
  const float* weights = nullptr;         // [rows, k]
  int rows = 0;
  int64_t hidden = 0;  // a multiple of 8
  int k = 0;
  int64_t block_slots = 0;        // slots of a destination's block, the header included
  std::byte* send = nullptr;      // [world, block_slots] slots
  int32_t* send_index = nullptr;  // [rows, world]
  int32_t* counts = nullptr;      // [world]
};

// Two launches: the places of the copies, then the copies. Every destination's header is written
// even without rows.
void PackDispatch(const PackArguments& arguments, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_DISPATCH_H_
