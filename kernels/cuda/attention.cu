#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int64_t kAlignment = 256;

// Hands out consecutive aligned pieces of memory; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* Take(int64_t count) {
    T* taken = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return taken;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

AttentionWorkspace Carve(const AttentionShape& shape, int max_rows, int max_runs, Carver& carver) {
  AttentionWorkspace out;
  if (!IsFastShape(shape)) return out;
  out.decode_limit = DecodePieces(shape, {.decode_warps = 4}, max_runs);
  out.prefill_limit = PrefillPieces(shape);
  const int decode_items = std::max(max_runs, out.decode_limit);
  const int prefill_items = PrefillItems(shape, max_rows, max_runs);
  out.counts = carver.Take<int32_t>(kAttentionLists);
  out.tickets = carver.Take<int32_t>(2 * kAttentionLists);
  out.decode_arrivals = carver.Take<int32_t>(out.decode_limit * shape.kv_heads);
  out.prefill_arrivals = carver.Take<int32_t>(out.prefill_limit * shape.kv_heads);
  for (const AttentionList list : {kDecodeFull, kDecodeSliding}) {
    out.items[list] = carver.Take<AttentionItem>(decode_items);
  }
  for (const AttentionList list : {kPrefillFull, kPrefillSliding}) {
    out.items[list] = carver.Take<AttentionItem>(prefill_items);
  }
  out.decode_partials =
      carver.Take<float>(out.decode_limit * shape.kv_heads * PartialFloats(kDecodeHeads));
  out.prefill_partials =
      carver.Take<float>(out.prefill_limit * shape.kv_heads * PartialFloats(kPrefillRows));
  return out;
}

AttentionParams ParamsOf(const AttentionShape& shape, const StepView& view, const KvPages& cache,
                         const __nv_bfloat16* sinks, const __nv_bfloat16* qkv, __nv_bfloat16* out,
                         const AttentionWorkspace& workspace) {
  return {.view = view,
          .shape = shape,
          .cache = cache,
          .sinks = sinks,
          .qkv = qkv,
          .out = out,
          .workspace = workspace,
          .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
          .angles = nullptr};
}

}  // namespace

int64_t AttentionWorkspaceBytes(const AttentionShape& shape, int max_rows, int max_runs) {
  Carver carver(nullptr);
  Carve(shape, max_rows, max_runs, carver);
  return carver.used();
}

AttentionWorkspace LayOutAttention(const AttentionShape& shape, int max_rows, int max_runs,
                                   void* memory) {
  Carver carver(memory);
  return Carve(shape, max_rows, max_runs, carver);
}

void PlanAttention(const AttentionShape& shape, const StepView& view,
                   const AttentionWorkspace& workspace, cudaStream_t stream,
                   const AttentionTuning& tuning) {
  CONCLAVE_CHECK(view.runs <= kMaxAttentionRuns);
  CONCLAVE_CHECK(tuning.prefill_waves <= kMaxPrefillWaves);
  if (view.rows == 0 || !IsFastShape(shape)) return;
  LaunchPlan(shape, tuning, view, workspace, stream);
}

void RotateAndAttend(const AttentionShape& shape, const StepView& view, const RopeTable& rope,
                     const KvPages& cache, const __nv_bfloat16* sinks, __nv_bfloat16* qkv,
                     __nv_bfloat16* out, const AttentionWorkspace& workspace, cudaStream_t stream,
                     const AttentionTuning& tuning) {
  if (view.rows == 0) return;
  if (!IsFastShape(shape) || view.max_run_rows > 1) {
    RopeAndCacheWrite(view, shape, rope, cache, qkv, stream);
    Attention(shape, view, cache, sinks, qkv, out, workspace, stream, tuning);
    return;
  }
  AttentionParams params = ParamsOf(shape, view, cache, sinks, qkv, out, workspace);
  params.angles = rope.angles;
  LaunchDecode(params, tuning, stream);
}

void Attention(const AttentionShape& shape, const StepView& view, const KvPages& cache,
               const __nv_bfloat16* sinks, const __nv_bfloat16* qkv, __nv_bfloat16* out,
               const AttentionWorkspace& workspace, cudaStream_t stream,
               const AttentionTuning& tuning) {
  if (view.rows == 0) return;
  const AttentionParams params = ParamsOf(shape, view, cache, sinks, qkv, out, workspace);
  if (!IsFastShape(shape)) {
    LaunchGeneric(params, stream);
    return;
  }
  LaunchDecode(params, tuning, stream);
  if (view.max_run_rows > 1) LaunchPrefill(params, stream);
}

}  // namespace conclave::kernels::cuda
