#include "kernels/cuda/cuda_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/router.h"

namespace conclave::kernels {

absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(const model::Config& config, int kv_heads,
                                                 const CudaOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Ops> ops, cuda::CudaOps::Create(config, kv_heads, options));
  return ops;
}

namespace cuda {
namespace {

constexpr int64_t kBounceBytes = int64_t{64} << 10;
constexpr int64_t kArgumentBytes = int64_t{1} << 20;

// Blocks that the tables of all sequences can name in one step.
int64_t StepBlocks(const model::Config& config, const CudaOptions& options) {
  if (options.max_step_blocks > 0) return options.max_step_blocks;
  const auto blocks = [&](int64_t tokens) { return tokens / options.block_tokens + 2; };
  const int64_t window =
      std::min<int64_t>(config.context_length, config.sliding_window + options.max_step_tokens);
  return options.max_sequences * (blocks(config.context_length) + blocks(window));
}

absl::Status CheckShape(const model::Config& config, const CudaOptions& options) {
  if (config.hidden_size % 32 != 0) {
    return absl::FailedPreconditionError(fmt::format(
        "shape_unsupported: hidden_size {} is not a multiple of 32", config.hidden_size));
  }
  if (options.block_tokens != kKvBlockTokens) {
    return absl::FailedPreconditionError(
        fmt::format("shape_unsupported: KV blocks of {} tokens, the kernels have {}",
                    options.block_tokens, kKvBlockTokens));
  }
  if (config.num_experts > kMaxRoutedExperts || config.experts_per_token > kMaxRouteChoices) {
    return absl::FailedPreconditionError(fmt::format(
        "shape_unsupported: {} experts, {} for a token: at most {} and {}", config.num_experts,
        config.experts_per_token, kMaxRoutedExperts, kMaxRouteChoices));
  }
  return absl::OkStatus();
}

}  // namespace

CudaOps::CudaOps(const model::Config& config, int kv_heads, const CudaOptions& options)
    : info_(DescribeCuda(options.device)),
      hidden_(config.hidden_size),
      num_experts_(config.num_experts),
      experts_per_token_(config.experts_per_token),
      epsilon_(static_cast<float>(config.rms_norm_eps)),
      max_step_tokens_(options.max_step_tokens),
      max_sequences_(options.max_sequences),
      attention_shape_{.heads = kv_heads * (config.num_heads / config.num_kv_heads),
                       .kv_heads = kv_heads,
                       .head_dim = config.head_dim,
                       .window = config.sliding_window},
      expert_shape_{.hidden = config.hidden_size,
                    .intermediate = config.intermediate_size,
                    .num_experts = config.num_experts,
                    .experts_per_token = config.experts_per_token,
                    .swiglu_limit = static_cast<float>(config.swiglu_limit),
                    .swiglu_alpha = static_cast<float>(config.swiglu_alpha)},
      load_pool_(options.load_threads) {}

absl::StatusOr<std::unique_ptr<CudaOps>> CudaOps::Create(const model::Config& config, int kv_heads,
                                                         const CudaOptions& options) {
  const CudaProbe probe = ProbeCuda(options.device);
  if (!probe.reason.empty()) {
    return absl::FailedPreconditionError(fmt::format("{}: {}", probe.reason, probe.message));
  }
  RETURN_IF_ERROR(CheckShape(config, options));
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(options.device), "cudaSetDevice"));
  std::unique_ptr<CudaOps> ops(new CudaOps(config, kv_heads, options));
  RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&ops->stream_, cudaStreamNonBlocking),
                           "cudaStreamCreate"));
  RETURN_IF_ERROR(ops->Allocate(config, options));
  RETURN_IF_ERROR(ops->MakeRopeTable(config));
  RETURN_IF_ERROR(ops->Finish());
  return ops;
}

CudaOps::~CudaOps() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  weights_.reset();
  graphs_.reset();
  stage_.reset();
  dense_.reset();
  cudaStreamDestroy(stream_);
}

absl::Status CudaOps::Zero(Buffer& buffer) {
  return ToStatus(cudaMemsetAsync(buffer.memory.get(), 0, buffer.bytes, stream_), "zeroing memory");
}

absl::Status CudaOps::Allocate(const model::Config& config, const CudaOptions& options) {
  StepLimits limits;
  limits.max_rows = options.max_step_tokens;
  limits.max_runs = std::min(options.max_step_tokens, options.max_sequences);
  limits.max_blocks = StepBlocks(config, options);
  limits.max_samples = limits.max_runs;
  limits.argument_bytes = std::max(
      kArgumentBytes, int64_t{options.max_step_tokens} * experts_per_token_ * SizeOf(DType::kI32));
  ASSIGN_OR_RETURN(stage_, StepStage::Create(limits));
  graphs_ = std::make_unique<StepGraphs>(limits.max_runs, options.record_steps);
  ASSIGN_OR_RETURN(weights_, WeightMemory::Create(stream_));
  // Logits are made in tiles of up to 256 rows, whatever a step has.
  constexpr int kTileRows = 256;
  ASSIGN_OR_RETURN(dense_,
                   DenseProduct::Create(std::max(options.max_step_tokens, kTileRows), hidden_));
  const int copies =
      options.max_expert_copies > 0 ? options.max_expert_copies : options.max_step_tokens;
  ASSIGN_OR_RETURN(experts_, ExpertKernels::Make(expert_shape_, copies));
  ASSIGN_OR_RETURN(bounce_, AllocatePinned(kBounceBytes));
  constexpr int64_t kSampledBytes = 8 + 8 * kMaxLogprobs;  // of a sequence: all of SampleOutput
  RETURN_IF_ERROR(reads_.Allocate(options.max_sequences * kSampledBytes));
  ASSIGN_OR_RETURN(last_sampled_, Allocate(options.max_sequences * SizeOf(DType::kI32)));
  ASSIGN_OR_RETURN(sample_slots_, SampleSlots::Create(options.max_sequences, config.vocab_size));
  ASSIGN_OR_RETURN(router_logits_,
                   Allocate(int64_t{options.max_step_tokens} * num_experts_ * SizeOf(DType::kF32)));
  ASSIGN_OR_RETURN(attention_memory_, Allocate(AttentionWorkspaceBytes(
                                          attention_shape_, limits.max_rows, limits.max_runs)));
  attention_ = LayOutAttention(attention_shape_, limits.max_rows, limits.max_runs,
                               attention_memory_.memory.get());
  return absl::OkStatus();
}

absl::Status CudaOps::MakeRopeTable(const model::Config& config) {
  ASSIGN_OR_RETURN(rope_memory_, Allocate(RopeTableBytes(config.context_length, config.head_dim)));
  rope_ = {static_cast<float2*>(rope_memory_.memory.get()), config.context_length,
           config.head_dim / 2};
  const std::vector<float> frequencies =
      model::RopeInverseFrequencies(config.rope, config.head_dim);
  ASSIGN_OR_RETURN(const Buffer staged,
                   Allocate(static_cast<int64_t>(frequencies.size() * sizeof(float))));
  Write(staged.AsTensor(DType::kF32, 1, static_cast<int64_t>(frequencies.size())),
        frequencies.data());
  FillRopeTable(static_cast<const float*>(staged.memory.get()),
                static_cast<float>(config.rope.attention_factor), rope_, stream_);
  Check("FillRopeTable");
  return Finish();  // before `staged` goes
}

absl::StatusOr<Buffer> CudaOps::Allocate(int64_t bytes) {
  ASSIGN_OR_RETURN(Buffer buffer, AllocateDevice(bytes));
  RETURN_IF_ERROR(Zero(buffer));
  return buffer;
}

absl::StatusOr<DenseWeight> CudaOps::LoadDense(const HostMatrix& matrix) {
  // k and v should follow a layer's q without a gap.
  const AttentionShape& shape = attention_shape_;
  const bool queries =
      matrix.rows == int64_t{shape.heads} * shape.head_dim && matrix.cols == hidden_;
  const int64_t with_next =
      queries ? 2 * int64_t{shape.kv_heads} * shape.head_dim * hidden_ * SizeOf(DType::kBf16) : 0;
  return weights_->LoadMatrix(matrix, with_next);
}

absl::StatusOr<VectorWeight> CudaOps::LoadVector(std::span<const uint16_t> values) {
  return weights_->LoadVector(values);
}

void CudaOps::Write(const Tensor& destination, const void* host) {
  if (failed() || destination.bytes() == 0) return;
  Keep(ToStatus(
      cudaMemcpyAsync(destination.data, host, destination.bytes(), cudaMemcpyHostToDevice, stream_),
      "Write"));
  Keep(ToStatus(cudaStreamSynchronize(stream_), "Write"));
}

void CudaOps::Read(const Tensor& source, void* host) {
  const int64_t bytes = source.bytes();
  if (bytes == 0) return;
  // What is read after a failure is defined, and worth nothing.
  if (failed()) {
    std::memset(host, 0, bytes);
    return;
  }
  void* to = bytes <= kBounceBytes ? bounce_.memory.get() : host;
  Keep(ToStatus(cudaMemcpyAsync(to, source.data, bytes, cudaMemcpyDeviceToHost, stream_), "Read"));
  Keep(ToStatus(cudaStreamSynchronize(stream_), "Read"));
  if (failed()) {
    std::memset(host, 0, bytes);
  } else if (to != host) {
    std::memcpy(host, to, bytes);
  }
}

StepLaunch CudaOps::BeginStep(const StepBatch& batch) {
  const StepShape shape = graphs_->Begin(batch);
  const StepLaunch launch = {.rows = shape.rows,
                             .samples = shape.samples,
                             .replayed = graphs_->use() == StepGraphs::Use::kReplay};
  if (failed()) return launch;
  view_ = stage_->Begin(batch, shape, stream_);
  Check("BeginStep");
  if (failed()) return launch;
  launches_before_ = mxfp4_launches_;
  if (graphs_->use() == StepGraphs::Use::kRecord) Keep(graphs_->StartCapture(stream_));
  if (launch.replayed || failed()) return launch;
  PlanAttention(attention_shape_, view_, attention_, stream_);
  Check("BeginStep");
  return launch;
}

void CudaOps::Submit() {
  if (failed()) return;
  if (graphs_->use() == StepGraphs::Use::kReplay) mxfp4_launches_ += graphs_->launches();
  Keep(graphs_->Submit(stream_, mxfp4_launches_ - launches_before_));
}

void CudaOps::ForgetRecorded() {
  graphs_->Abandon(stream_);
  cudaStreamSynchronize(stream_);
  reads_.Clear();
  graphs_->Clear();
}

absl::Status CudaOps::Finish() {
  graphs_->Abandon(stream_);  // of a step that ended before Submit
  Keep(ToStatus(cudaStreamSynchronize(stream_), "the step's kernels"));
  cudaGetLastError();  // a failure that was kept is not found again by the next Check
  return std::exchange(status_, absl::OkStatus());
}

void CudaOps::StartReads(std::span<const Tensor> sources) {
  // Also after a failure: FinishReads reports it.
  Keep(reads_.Start(sources, stream_));
}

bool CudaOps::ReadsDone() { return failed() || reads_.Done(); }

absl::Status CudaOps::FinishReads(std::span<void* const> hosts) {
  if (failed()) return Finish();
  Keep(reads_.Take(hosts));
  cudaGetLastError();
  return std::exchange(status_, absl::OkStatus());
}

void CudaOps::Keep(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void CudaOps::Check(std::string_view op) { Keep(ToStatus(cudaGetLastError(), op)); }

KvPages CudaOps::PagesOf(const KvLayer& layer) const {
  const AttentionShape& shape = attention_shape_;
  const int64_t block_values = int64_t{shape.kv_heads} * kKvBlockTokens * shape.head_dim;
  return {.keys = layer.keys.as<__nv_bfloat16>(),
          .values = layer.values.as<__nv_bfloat16>(),
          .blocks = layer.keys.rows * layer.keys.cols / block_values,
          .sliding = layer.type == model::LayerType::kSliding};
}

}  // namespace cuda
}  // namespace conclave::kernels
