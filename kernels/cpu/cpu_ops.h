#ifndef CONCLAVE_KERNELS_CPU_CPU_OPS_H_
#define CONCLAVE_KERNELS_CPU_CPU_OPS_H_

// The CPU backend: float32 activations, float64 partial sums, weights where they lie in the files.
// Made by MakeCpuOps (kernels/ops.h). Every op is complete when its call returns.

#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/sample.h"
#include "kernels/ops.h"

namespace conclave::kernels {

class CpuOps final : public Ops {
 public:
  CpuOps(const model::Config& config, int kv_heads, const CpuOptions& options);

  const KernelInfo& info() const override { return info_; }
  DType activation_dtype() const override { return DType::kF32; }
  DType partial_dtype() const override { return DType::kF64; }
  uint64_t mxfp4_launches() const override { return mxfp4_launches_; }

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::StatusOr<DenseWeight> LoadDense(const HostMatrix& matrix) override;
  absl::StatusOr<VectorWeight> LoadVector(std::span<const uint16_t> values) override;
  absl::StatusOr<std::unique_ptr<ExpertWeights>> LoadExperts(std::span<const HostExpert> experts,
                                                             const KeptExperts& kept) override;
  void Write(const Tensor& destination, const void* host) override;

  void SetSlotSampling(int slot, const SlotSampling& sampling) override;
  StepLaunch BeginStep(const StepBatch& batch) override;
  void Submit() override {}
  void ForgetRecorded() override {}
  void Embed(const DenseWeight& shard, int first_id, Tensor x) override;

  // cpu_ops_attention.cc
  void NormQkv(const AttentionWeights& weights, Tensor x, Tensor qkv) override;
  void RopeAndCacheWrite(const KvLayer& layer, Tensor qkv) override;
  void Attention(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv, Tensor out) override;
  void OutputProjection(const AttentionWeights& weights, Tensor attention, Tensor partial) override;

  // cpu_ops_experts.cc
  void ResidualNormRoute(const RouterWeights& weights, int first_row, Tensor partial, Tensor x,
                         const int32_t* forced, Tensor normed, const Routing& routing) override;
  void ExpertGateUp(const ExpertWeights& experts, const ExpertTokens& tokens,
                    Tensor activations) override;
  void ExpertDown(const ExpertWeights& experts, const ExpertTokens& tokens, Tensor activations,
                  Tensor partial) override;
  void AddResidual(Tensor partial, Tensor x) override;
  void PackDispatch(const DispatchTables& tables, const SlotLayout& layout, Tensor normed,
                    const Routing& routing, int64_t block_slots, Tensor send, Tensor send_index,
                    Tensor counts) override;
  void CombineResidual(Tensor partials, const int32_t* first_row, Tensor send_index,
                       Tensor x) override;

  // cpu_ops_output.cc
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
  void Read(const Tensor& source, void* host) override;
  absl::Status Finish() override { return absl::OkStatus(); }

 private:
  void CountLaunch(const CpuExperts& experts, const ExpertTokens& tokens);
  // Floats of one head's cache block and of one block of all heads.
  int64_t head_block() const { return int64_t{block_tokens_} * head_dim_; }
  int64_t cache_block() const { return kv_heads_ * head_block(); }
  // The cache's row of `position` in a block table.
  int64_t BlockOf(const SequenceRun& run, model::LayerType type, int position) const;
  int FirstVisible(model::LayerType type, int position) const;
  const SequenceRun& RunOf(int64_t row) const { return batch_.runs[run_of_row_[row]]; }

  const KernelInfo info_;
  const int64_t hidden_;
  const int head_dim_;
  const int kv_heads_;
  const int heads_per_kv_;
  const int num_experts_;
  const int sliding_window_;
  const int block_tokens_;
  const double epsilon_;
  const ExpertShape expert_shape_;

  base::ThreadPool pool_;
  RotaryAngles angles_;
  std::vector<int32_t> last_sampled_;    // [max_sequences]
  std::vector<SlotTokens> slot_tokens_;  // [max_sequences]
  StepBatch batch_;
  std::vector<int32_t> run_of_row_;  // [T]
  uint64_t mxfp4_launches_ = 0;

  PackedTokens packed_;
  std::vector<float> packed_experts_;
  std::vector<float> router_logits_;
};

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_CPU_OPS_H_
