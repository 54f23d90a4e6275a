#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_H_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_H_

// Paged attention with sinks over the rows of a step, decode rows and prefill chunks together:
//
//   AttentionWorkspace workspace = LayOutAttention(shape, max_rows, max_runs, memory);
//   PlanAttention(shape, view, workspace, stream);                    // once a step
//   Attention(shape, view, cache, sinks, qkv, out, workspace, stream);  // once a layer
//
//   out[r, h] = sum_j p_j v_j,  p_j = exp(z_j - m) / (sum_j exp(z_j - m) + exp(sinks[h] - m)),
//   z_j = q . k_j / sqrt(D), j the positions that row r sees: up to its own, in sliding layers the
//   last shape.window of these.
//
// What runs, by shape and on the device by run:
//
//   head_dim 64, heads/kv_heads 1, 2, 4 or 8
//     runs of one row    attention_decode.cu    split over the keys, mma.sync, registers only
//     runs of more rows  attention_prefill.cu   TMA + wgmma over tiles of rows x heads
//   anything else        attention_generic.cu   one block per row and head
//
// The plan is a list of work items of even length that the device makes from the step's runs; the
// launches themselves depend on the view's host-side bounds alone, so a captured graph serves every
// step within them. Sums have a fixed order: the same step gives the same bits.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_item.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/step_view.h"

namespace conclave::kernels::cuda {

// Measured on an H100; bench/gpu_ops sweeps it. One step's plan and layers use the same.
struct AttentionTuning {
  int decode_warps = 0;     // of a block: 4, 8, or 0: by the table in attention_plan.cu
  int full_min_blocks = 8;  // KV blocks of a decode piece at least, by layer type
  int sliding_min_blocks = 16;
  int prefill_min_steps = 16;  // of 128 keys of a prefill piece at least
  int prefill_waves = 2;       // pieces in which a prefill block's even share may come
};

// At most this many runs in a step.
inline constexpr int kMaxAttentionRuns = 4096;

// Device memory that AttentionWorkspace needs for steps within these bounds.
int64_t AttentionWorkspaceBytes(const AttentionShape& shape, int max_rows, int max_runs);

// `memory` is 256-byte aligned, zeroed once, and belongs to the workspace from then on.
AttentionWorkspace LayOutAttention(const AttentionShape& shape, int max_rows, int max_runs,
                                   void* memory);

// Divides the step's work. Valid for all layers until the view's contents change.
void PlanAttention(const AttentionShape& shape, const StepView& view,
                   const AttentionWorkspace& workspace, cudaStream_t stream,
                   const AttentionTuning& tuning = {});

// qkv [view.rows, shape.row_values()] rotated, this step's keys and values in the cache; sinks
// [heads]; out [view.rows, heads * D]. All 16-byte aligned. Rows that belong to no run are left.
void Attention(const AttentionShape& shape, const StepView& view, const KvPages& cache,
               const __nv_bfloat16* sinks, const __nv_bfloat16* qkv, __nv_bfloat16* out,
               const AttentionWorkspace& workspace, cudaStream_t stream,
               const AttentionTuning& tuning = {});

// RopeAndCacheWrite and Attention in one. Where the step has single rows alone and the shape is a
// fast one it is a single launch, which reads the plan and the cache's older rows before the kernel
// before it is complete: they must have been complete when that one started. Rotates qkv or not.
void RotateAndAttend(const AttentionShape& shape, const StepView& view, const RopeTable& rope,
                     const KvPages& cache, const __nv_bfloat16* sinks, __nv_bfloat16* qkv,
                     __nv_bfloat16* out, const AttentionWorkspace& workspace, cudaStream_t stream,
                     const AttentionTuning& tuning = {});

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_H_
