#include "kernels/cuda/experts.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/expert_dense.h"
#include "kernels/cuda/expert_group.h"
#include "kernels/cuda/expert_tile.h"
#include "kernels/cuda/mxfp4_layout.h"

namespace conclave::kernels::cuda {
namespace {

// The table of experts.h.
struct StreamRow {
  int64_t pairs;  // up to so many
  StreamOptions gate_up;
  StreamOptions down;
};
constexpr StreamRow kStreamTable[] = {
    {16,
     {.token_blocks = 2, .warp_chunks = 3, .stages = 4},
     {.token_blocks = 2, .warp_chunks = 3, .stages = 4}},
    {kMaxStreamPairs,
     {.token_blocks = 2, .warp_chunks = 3, .stages = 3, .interleave = 6, .prefetch = 4},
     {.token_blocks = 2, .warp_chunks = 3, .stages = 3, .interleave = 6}},
};
// With more tokens for each expert the tile kernel is faster.
constexpr int64_t kMaxStreamTokensPerExpert = 12;

// Results of this many pairs are kept in float32 until they are added up, of more in bf16: there
// the bytes count.
constexpr int64_t kMaxFloatPairs = 1024;

struct WorkspaceLayout {
  int64_t offsets, slot, out_row, pair, y, bytes;
};

WorkspaceLayout LayOut(const ExpertShape& shape, int max_copies) {
  const int64_t pairs = int64_t{max_copies} * shape.experts_per_token;
  int64_t end = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 255) / 256 * 256;
    return begin;
  };
  WorkspaceLayout out{};
  out.offsets = take((shape.num_experts + 1) * sizeof(int32_t));
  out.slot = take(pairs * sizeof(int32_t));
  out.out_row = take(pairs * sizeof(int32_t));
  out.pair = take(pairs * sizeof(int32_t));
  const int64_t value_bytes = std::max(std::min(pairs, kMaxFloatPairs) * 4, pairs * 2);
  out.y = take(value_bytes * shape.hidden);
  out.bytes = end;
  return out;
}

}  // namespace

std::string_view Name(ExpertPlan::Kernel kernel) {
  switch (kernel) {
    case ExpertPlan::Kernel::kStream:
      return "stream";
    case ExpertPlan::Kernel::kTile:
      return "tile";
    case ExpertPlan::Kernel::kDense:
      return "dense";
  }
  return "";
}

int64_t ExpertKernels::WorkspaceBytes(const ExpertShape& shape, int max_copies) {
  return LayOut(shape, max_copies).bytes;
}

absl::StatusOr<std::unique_ptr<ExpertKernels>> ExpertKernels::Make(const ExpertShape& shape,
                                                                   int max_copies) {
  if (shape.hidden % kBlockCols != 0 || shape.intermediate % kBlockCols != 0) {
    return absl::InvalidArgumentError(
        fmt::format("experts of {} x {}: sizes must be multiples of {}", shape.hidden,
                    shape.intermediate, kBlockCols));
  }
  if (shape.num_experts > kMaxTileExperts || shape.experts_per_token > kMaxChoices) {
    return absl::InvalidArgumentError(fmt::format("{} experts, {} for a token: at most {} and {}",
                                                  shape.num_experts, shape.experts_per_token,
                                                  kMaxTileExperts, kMaxChoices));
  }
  if (int64_t{max_copies} * shape.experts_per_token > kMaxGroupedPairs) {
    return absl::InvalidArgumentError(
        fmt::format("{} tokens of {} experts in a step: at most {} pairs", max_copies,
                    shape.experts_per_token, kMaxGroupedPairs));
  }
  ASSIGN_OR_RETURN(Buffer workspace, AllocateDevice(WorkspaceBytes(shape, max_copies)));
  return std::unique_ptr<ExpertKernels>(new ExpertKernels(shape, max_copies, std::move(workspace)));
}

ExpertKernels::ExpertKernels(const ExpertShape& shape, int max_copies, Buffer workspace)
    : shape_(shape), max_copies_(max_copies), workspace_(std::move(workspace)) {
  const WorkspaceLayout layout = LayOut(shape, max_copies);
  auto* memory = static_cast<std::byte*>(workspace_.memory.get());
  groups_.offsets = reinterpret_cast<int32_t*>(memory + layout.offsets);
  groups_.slot = reinterpret_cast<int32_t*>(memory + layout.slot);
  groups_.out_row = reinterpret_cast<int32_t*>(memory + layout.out_row);
  groups_.pair = reinterpret_cast<int32_t*>(memory + layout.pair);
  y_ = memory + layout.y;
}

TokenArgs ExpertKernels::Tokens(const CudaExpertWeights& weights,
                                const ExpertTokens& tokens) const {
  CONCLAVE_CHECK(tokens.max_copies >= 0 && tokens.max_copies <= max_copies_);
  CONCLAVE_CHECK(tokens.num_sources >= 1 && tokens.num_sources <= kMaxSources);
  CONCLAVE_CHECK(tokens.hidden_stride % 16 == 0 &&
                 reinterpret_cast<uintptr_t>(tokens.hidden) % 16 == 0);
  TokenArgs args = {};
  args.num_sources = tokens.num_sources;
  args.max_copies = tokens.max_copies;
  args.k = shape_.experts_per_token;
  args.num_experts = shape_.num_experts;
  args.num_local = weights.num_local();
  args.counts = reinterpret_cast<const std::byte*>(tokens.counts);
  args.counts_stride = tokens.counts_stride;
  args.hidden = tokens.hidden;
  args.hidden_stride = tokens.hidden_stride;
  args.expert_ids = tokens.expert_ids;
  args.expert_ids_stride = tokens.expert_ids_stride;
  args.weights = tokens.weights;
  args.weights_stride = tokens.weights_stride;
  args.local_index = tokens.local_index;
  args.load = tokens.load;
  std::copy_n(tokens.first_slot, tokens.num_sources, args.first_slot);
  std::copy_n(tokens.first_output, tokens.num_sources, args.first_output);
  return args;
}

PartialArgs ExpertKernels::Partials(const TokenArgs& tokens) const {
  return {y_, int64_t{tokens.max_copies} * tokens.k > kMaxFloatPairs};
}

ExpertPlan ExpertKernels::Choose(const CudaExpertWeights& weights,
                                 const ExpertTokens& tokens) const {
  ExpertPlan plan;
  if (weights.dense()) {
    plan.kernel = ExpertPlan::Kernel::kDense;
    return plan;
  }
  const TokenArgs args = Tokens(weights, tokens);
  const bool can_stream = CanStreamExperts(args, weights.gate_up(), weights.down());
  if (forced_.has_value() && (can_stream || forced_->kernel != ExpertPlan::Kernel::kStream)) {
    return *forced_;
  }
  const int64_t pairs = int64_t{args.max_copies} * args.k;
  if (!can_stream || pairs > kMaxStreamTokensPerExpert * args.num_experts) return plan;
  for (const StreamRow& row : kStreamTable) {
    if (pairs > row.pairs) continue;
    plan.kernel = ExpertPlan::Kernel::kStream;
    plan.gate_up = row.gate_up;
    plan.down = row.down;
    return plan;
  }
  return plan;
}

void ExpertKernels::GateUp(const CudaExpertWeights& weights, const ExpertTokens& tokens,
                           Tensor activations, cudaStream_t stream) {
  if (tokens.max_copies == 0 || weights.num_local() == 0) return;
  CONCLAVE_CHECK(activations.dtype == DType::kBf16 && activations.cols == shape_.intermediate);
  const TokenArgs args = Tokens(weights, tokens);
  const ExpertPlan plan = Choose(weights, tokens);
  const SwiGluArgs swiglu = {shape_.swiglu_limit, shape_.swiglu_alpha};
  auto* out = activations.as<__nv_bfloat16>();
  if (plan.kernel == ExpertPlan::Kernel::kStream) {
    StreamGateUp(args, weights.gate_up(), weights.down(), swiglu, out, plan.gate_up, stream);
    return;
  }
  GroupPairs(args, groups_, stream);
  if (plan.kernel == ExpertPlan::Kernel::kDense) {
    DenseGateUp(args, weights.gate_up(), groups_, swiglu, out, stream);
  } else {
    TileGateUp(args, weights.gate_up(), groups_, swiglu, out, stream);
  }
}

void ExpertKernels::Down(const CudaExpertWeights& weights, const ExpertTokens& tokens,
                         Tensor activations, Tensor partial, cudaStream_t stream) {
  if (tokens.max_copies == 0) return;
  CONCLAVE_CHECK(partial.dtype == DType::kF32 && partial.cols == shape_.hidden);
  const TokenArgs args = Tokens(weights, tokens);
  DownPairs(weights, tokens, args, activations, stream);
  Sum(weights, args, partial.as<float>(), nullptr, stream);
}

void ExpertKernels::DownResidual(const CudaExpertWeights& weights, const ExpertTokens& tokens,
                                 Tensor activations, Tensor x, cudaStream_t stream) {
  if (tokens.max_copies == 0) return;
  CONCLAVE_CHECK(x.dtype == DType::kBf16 && x.cols == shape_.hidden);
  const TokenArgs args = Tokens(weights, tokens);
  DownPairs(weights, tokens, args, activations, stream);
  Sum(weights, args, nullptr, x.as<__nv_bfloat16>(), stream);
}

void ExpertKernels::DownPairs(const CudaExpertWeights& weights, const ExpertTokens& tokens,
                              const TokenArgs& args, Tensor activations, cudaStream_t stream) {
  if (weights.num_local() == 0) return;
  const PartialArgs y = Partials(args);
  const auto* in = activations.as<const __nv_bfloat16>();
  const ExpertPlan plan = Choose(weights, tokens);
  switch (plan.kernel) {
    case ExpertPlan::Kernel::kStream:
      StreamDown(args, weights.down(), in, shape_.hidden, static_cast<float*>(y.rows), plan.down,
                 stream);
      break;
    case ExpertPlan::Kernel::kTile:
      TileDown(args, weights.down(), groups_, in, shape_.hidden, y, stream);
      break;
    case ExpertPlan::Kernel::kDense:
      DenseDown(args, weights.down(), groups_, in, shape_.hidden, y, stream);
      break;
  }
}

void ExpertKernels::Sum(const CudaExpertWeights& weights, const TokenArgs& args, float* partial,
                        __nv_bfloat16* x, cudaStream_t stream) {
  // The kernels of the experts start after GateUp has waited for the tokens.
  const bool tokens_complete = weights.num_local() > 0;
  SumPartials(args, Partials(args), shape_.hidden, tokens_complete, partial, x, stream);
}

}  // namespace conclave::kernels::cuda
