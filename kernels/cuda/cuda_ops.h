#ifndef CONCLAVE_KERNELS_CUDA_CUDA_OPS_H_
#define CONCLAVE_KERNELS_CUDA_CUDA_OPS_H_

// The CUDA backend: bf16 activations, float32 partial sums, one stream. Made by MakeCudaOps
// (kernels/ops.h). Ops enqueue and return; Read and Finish wait. A launch that fails is kept with
// the op's name, makes later ops no-ops and is returned by Finish.
//
// One thread. Its device is the thread's current device from MakeCudaOps on.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_slots.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/cuda/step_reads.h"
#include "kernels/cuda/step_stage.h"
#include "kernels/cuda/step_view.h"
#include "kernels/cuda/weight_memory.h"
#include "kernels/ops.h"

namespace conclave::kernels::cuda {

class CudaOps final : public Ops {
 public:
  static absl::StatusOr<std::unique_ptr<CudaOps>> Create(const model::Config& config, int kv_heads,
                                                         const CudaOptions& options);
  ~CudaOps() override;
  CudaOps(const CudaOps&) = delete;
  CudaOps& operator=(const CudaOps&) = delete;

  // Everything is enqueued here; a communicator's collectives belong here too.
  cudaStream_t stream() const { return stream_; }

  const KernelInfo& info() const override { return info_; }
  DType activation_dtype() const override { return DType::kBf16; }
  DType partial_dtype() const override { return DType::kF32; }
  uint64_t mxfp4_launches() const override { return mxfp4_launches_; }

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::StatusOr<DenseWeight> LoadDense(const HostMatrix& matrix) override;
  absl::StatusOr<VectorWeight> LoadVector(std::span<const uint16_t> values) override;
  void Write(const Tensor& destination, const void* host) override;
  void Read(const Tensor& source, void* host) override;
  void SetSlotSampling(int slot, const SlotSampling& sampling) override;
  StepLaunch BeginStep(const StepBatch& batch) override;
  void Submit() override;
  void ForgetRecorded() override;
  int recorded_steps() const { return graphs_->graphs(); }
  absl::Status Finish() override;
  bool runs_ahead() const override { return true; }
  void StartReads(std::span<const Tensor> sources) override;
  bool ReadsDone() override;
  absl::Status FinishReads(std::span<void* const> hosts) override;

  // cuda_ops_attention.cc
  void Embed(const DenseWeight& shard, int first_id, Tensor x) override;
  void NormQkv(const AttentionWeights& weights, Tensor x, Tensor qkv) override;
  void RopeAndCacheWrite(const KvLayer& layer, Tensor qkv) override;
  void Attention(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv, Tensor out) override;
  void RotateAndAttend(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv,
                       Tensor out) override;
  void OutputProjection(const AttentionWeights& weights, Tensor attention, Tensor partial) override;

  // cuda_ops_experts.cc
  absl::StatusOr<std::unique_ptr<ExpertWeights>> LoadExperts(std::span<const HostExpert> experts,
                                                             const KeptExperts& kept) override;
  void ResidualNormRoute(const RouterWeights& weights, int first_row, Tensor partial, Tensor x,
                         const int32_t* forced, Tensor normed, const Routing& routing) override;
  void ExpertGateUp(const ExpertWeights& experts, const ExpertTokens& tokens,
                    Tensor activations) override;
  void ExpertDown(const ExpertWeights& experts, const ExpertTokens& tokens, Tensor activations,
                  Tensor partial) override;
  void AddResidual(Tensor partial, Tensor x) override;
  void ExpertDownResidual(const ExpertWeights& experts, const ExpertTokens& tokens,
                          Tensor activations, Tensor partial, Tensor x) override;
  void PackDispatch(const DispatchTables& tables, const SlotLayout& layout, Tensor normed,
                    const Routing& routing, int64_t block_slots, Tensor send, Tensor send_index,
                    Tensor counts) override;
  void CombineResidual(Tensor partials, const int32_t* first_row, Tensor send_index,
                       Tensor x) override;

  // cuda_ops_output.cc
  void Logits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
              std::span<const int32_t> rows, Tensor logits) override;
  void SampledLogits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                     int first, Tensor logits) override;
  void HeadLogits(const VectorWeight& final_norm, const DenseWeight& head, const VectorWeight& bias,
                  Tensor x, std::span<const int32_t> rows, Tensor logits) override;
  void JoinColumns(std::span<const Tensor> blocks, Tensor out) override;
  void Sample(Tensor logits, int first, const SampleOutput& output) override;
  void StoreSampled(Tensor tokens) override;
  void TargetLogprobs(Tensor logits, std::span<const int32_t> targets, int top,
                      const SampleOutput& output) override;

 private:
  CudaOps(const model::Config& config, int kv_heads, const CudaOptions& options);
  absl::Status Allocate(const model::Config& config, const CudaOptions& options);
  absl::Status MakeRopeTable(const model::Config& config);
  absl::Status Zero(Buffer& buffer);

  bool failed() const { return !status_.ok(); }
  void Keep(absl::Status status);
  // Keeps what the launches since the last call left, under the op's name.
  void Check(std::string_view op);
  KvPages PagesOf(const KvLayer& layer) const;
  void CountLaunch(const CudaExpertWeights& experts, const ExpertTokens& tokens);
  // Of rows of x that `gather` (device memory) names.
  void NormProduct(const VectorWeight& norm, const DenseWeight& weight, const VectorWeight& bias,
                   Tensor x, const int32_t* gather, Tensor out);

  const KernelInfo info_;
  const int64_t hidden_;
  const int num_experts_;
  const int experts_per_token_;
  const float epsilon_;
  const int max_step_tokens_;
  const int max_sequences_;
  const AttentionShape attention_shape_;
  const ExpertShape expert_shape_;

  absl::Status status_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<WeightMemory> weights_;
  std::unique_ptr<StepStage> stage_;
  std::unique_ptr<StepGraphs> graphs_;
  uint64_t mxfp4_launches_ = 0;
  uint64_t launches_before_ = 0;  // at the last BeginStep
  std::unique_ptr<DenseProduct> dense_;
  base::ThreadPool load_pool_;
  ExpertStaging expert_staging_;
  std::unique_ptr<ExpertKernels> experts_;
  StepView view_;
  Buffer bounce_;  // page-locked, for small reads
  StepReads reads_;
  Buffer last_sampled_;  // i32 [max_sequences]
  std::unique_ptr<SampleSlots> sample_slots_;
  Buffer router_logits_;  // f32 [max_step_tokens, experts]
  Buffer rope_memory_;
  RopeTable rope_;
  Buffer attention_memory_;
  AttentionWorkspace attention_;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_CUDA_OPS_H_
