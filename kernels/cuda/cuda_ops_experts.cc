// The expert half of a layer and the exchange's packing.

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/router.h"

namespace conclave::kernels::cuda {

void CudaOps::ResidualNormRoute(const RouterWeights& weights, int first_row, Tensor partial,
                                Tensor x, const int32_t* forced, Tensor normed,
                                const Routing& routing) {
  if (failed() || x.rows == 0) return;
  CONCLAVE_CHECK(first_row + x.rows <= view_.rows);
  CONCLAVE_CHECK(x.rows <= max_step_tokens_ && weights.weight.row_stride == hidden_);
  const int rows = static_cast<int>(x.rows);
  const int64_t forced_bytes = int64_t{rows} * experts_per_token_ * SizeOf(DType::kI32);
  RouteArguments a;
  a.partial = partial.as<float>();
  a.x = x.as<__nv_bfloat16>();
  a.norm = static_cast<const __nv_bfloat16*>(weights.norm.data);
  a.epsilon = epsilon_;
  a.weight = static_cast<const __nv_bfloat16*>(weights.weight.data);
  a.bias = static_cast<const __nv_bfloat16*>(weights.bias.data);
  a.forced = static_cast<const int32_t*>(
      stage_->Put(forced, forced == nullptr ? 0 : forced_bytes, stream_));
  a.run_of_row = view_.run_of_row + first_row;
  a.rows = rows;
  a.hidden = hidden_;
  a.experts = num_experts_;
  a.k = experts_per_token_;
  a.normed = normed.as<__nv_bfloat16>();
  a.expert_ids = routing.expert_ids.as<int32_t>();
  a.weights = routing.weights.as<float>();
  if (CanFuseRoute(a)) {
    FusedRoute(a, stream_);
  } else {
    ResidualNormRows(a.partial, a.norm, epsilon_, rows, hidden_, a.x, a.normed, stream_);
    auto* logits = static_cast<float*>(router_logits_.memory.get());
    const DenseSegment segment = SegmentOf(weights.weight, weights.bias);
    const DenseInput input = {.x = a.normed, .rows = rows, .cols = hidden_};
    Keep(dense_->Run({&segment, 1}, input, {logits, DType::kF32, num_experts_}, stream_));
    ChooseExperts(logits, a.forced, a.run_of_row, rows, num_experts_, a.k, a.expert_ids, a.weights,
                  stream_);
  }
  Check("ResidualNormRoute");
}

absl::StatusOr<std::unique_ptr<ExpertWeights>> CudaOps::LoadExperts(
    std::span<const HostExpert> experts, const KeptExperts& kept) {
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertWeights> loaded,
                   LoadExpertWeights(expert_shape_, experts, kept, load_pool_, expert_staging_));
  return loaded;
}

void CudaOps::ExpertGateUp(const ExpertWeights& experts, const ExpertTokens& tokens,
                           Tensor activations) {
  if (failed()) return;
  const auto& weights = static_cast<const CudaExpertWeights&>(experts);
  experts_->GateUp(weights, tokens, activations, stream_);
  CountLaunch(weights, tokens);
  Check("ExpertGateUp");
}

void CudaOps::ExpertDown(const ExpertWeights& experts, const ExpertTokens& tokens,
                         Tensor activations, Tensor partial) {
  if (failed()) return;
  const auto& weights = static_cast<const CudaExpertWeights&>(experts);
  experts_->Down(weights, tokens, activations, partial, stream_);
  CountLaunch(weights, tokens);
  Check("ExpertDown");
}

void CudaOps::ExpertDownResidual(const ExpertWeights& experts, const ExpertTokens& tokens,
                                 Tensor activations, Tensor /*partial*/, Tensor x) {
  if (failed()) return;
  const auto& weights = static_cast<const CudaExpertWeights&>(experts);
  experts_->DownResidual(weights, tokens, activations, x, stream_);
  CountLaunch(weights, tokens);
  Check("ExpertDownResidual");
}

void CudaOps::CountLaunch(const CudaExpertWeights& experts, const ExpertTokens& tokens) {
  if (!experts.dense() && experts.num_local() > 0 && tokens.max_copies > 0) ++mxfp4_launches_;
}

void CudaOps::AddResidual(Tensor partial, Tensor x) {
  if (failed()) return;
  CONCLAVE_CHECK(partial.rows == x.rows && partial.cols == x.cols);
  cuda::AddResidual(partial.as<float>(), x.rows * x.cols, x.as<__nv_bfloat16>(), stream_);
  Check("AddResidual");
}

void CudaOps::PackDispatch(const DispatchTables& tables, const SlotLayout& layout, Tensor normed,
                           const Routing& routing, int64_t block_slots, Tensor send,
                           Tensor send_index, Tensor counts) {
  if (failed()) return;
  CONCLAVE_CHECK(send.bytes() >= tables.world * block_slots * layout.slot_bytes);
  CONCLAVE_CHECK(normed.rows < block_slots);
  PackArguments a;
  a.tables = tables;
  a.layout = layout;
  a.normed = normed.as<__nv_bfloat16>();
  a.expert_ids = routing.expert_ids.as<int32_t>();
  a.weights = routing.weights.as<float>();
  a.rows = static_cast<int>(normed.rows);
  a.hidden = hidden_;
  a.k = experts_per_token_;
  a.block_slots = block_slots;
  a.send = send.as<std::byte>();
  a.send_index = send_index.as<int32_t>();
  a.counts = counts.as<int32_t>();
  cuda::PackDispatch(a, stream_);
  Check("PackDispatch");
}

void CudaOps::CombineResidual(Tensor partials, const int32_t* first_row, Tensor send_index,
                              Tensor x) {
  if (failed()) return;
  const int world = static_cast<int>(send_index.cols);
  CONCLAVE_CHECK(world <= kMaxWorld);
  FirstRows first = {};
  std::copy_n(first_row, world, first.row);
  cuda::CombineResidual(partials.as<float>(), first, send_index.as<int32_t>(), world,
                        static_cast<int>(x.rows), hidden_, x.as<__nv_bfloat16>(), stream_);
  Check("CombineResidual");
}

}  // namespace conclave::kernels::cuda
