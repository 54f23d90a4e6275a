#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/expert_weights.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/parallel.h"

namespace conclave::kernels {

std::unique_ptr<Ops> MakeCpuOps(const model::Config& config, int kv_heads,
                                const CpuOptions& options) {
  return std::make_unique<CpuOps>(config, kv_heads, options);
}

CpuOps::CpuOps(const model::Config& config, int kv_heads, const CpuOptions& options)
    : info_(DescribeCpu()),
      hidden_(config.hidden_size),
      head_dim_(config.head_dim),
      kv_heads_(kv_heads),
      heads_per_kv_(config.num_heads / config.num_kv_heads),
      num_experts_(config.num_experts),
      sliding_window_(config.sliding_window),
      block_tokens_(options.block_tokens),
      epsilon_(config.rms_norm_eps),
      expert_shape_{.hidden = config.hidden_size,
                    .intermediate = config.intermediate_size,
                    .k = config.experts_per_token,
                    .swiglu = {static_cast<float>(config.swiglu_limit),
                               static_cast<float>(config.swiglu_alpha)}},
      pool_(options.threads),
      angles_(config.rope, config.head_dim),
      last_sampled_(options.max_sequences),
      slot_tokens_(options.max_sequences) {}

absl::StatusOr<Buffer> CpuOps::Allocate(int64_t bytes) { return AllocatePages(bytes); }

absl::StatusOr<DenseWeight> CpuOps::LoadDense(const HostMatrix& matrix) {
  return DenseWeight{matrix.data, matrix.rows, matrix.cols, matrix.row_stride, nullptr};
}

absl::StatusOr<VectorWeight> CpuOps::LoadVector(std::span<const uint16_t> values) {
  if (values.empty()) return VectorWeight{};
  return VectorWeight{values.data(), static_cast<int64_t>(values.size()), nullptr};
}

absl::StatusOr<std::unique_ptr<ExpertWeights>> CpuOps::LoadExperts(
    std::span<const HostExpert> experts, const KeptExperts& kept) {
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertWeights> loaded,
                   CpuExperts::Load(experts, kept, hidden_, expert_shape_.intermediate, pool_));
  return loaded;
}

void CpuOps::Write(const Tensor& destination, const void* host) {
  if (destination.bytes() > 0) std::memcpy(destination.data, host, destination.bytes());
}

void CpuOps::Read(const Tensor& source, void* host) {
  if (source.bytes() > 0) std::memcpy(host, source.data, source.bytes());
}

StepLaunch CpuOps::BeginStep(const StepBatch& batch) {
  CONCLAVE_CHECK(batch.positions.size() == batch.token_ids.size());
  batch_ = batch;
  angles_.SetPositions(batch.positions);
  run_of_row_.clear();
  for (size_t run = 0; run < batch.runs.size(); ++run) {
    CONCLAVE_CHECK(batch.runs[run].first_row == static_cast<int>(run_of_row_.size()));
    run_of_row_.resize(run_of_row_.size() + batch.runs[run].rows, static_cast<int32_t>(run));
  }
  CONCLAVE_CHECK(run_of_row_.size() == batch.token_ids.size());
  return {.rows = batch.rows(), .samples = static_cast<int>(batch.sample_rows.size())};
}

void CpuOps::Embed(const DenseWeight& shard, int first_id, Tensor x) {
  pool_.ParallelFor(x.rows, GrainOf(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t id = batch_.token_ids[row];
      if (id < 0) id = last_sampled_.at(-1 - id);
      id -= first_id;
      float* out = x.as<float>() + row * x.cols;
      if (id < 0 || id >= shard.rows) {
        std::fill(out, out + x.cols, 0.0f);
        continue;
      }
      const auto* from = static_cast<const uint16_t*>(shard.data) + id * shard.row_stride;
      for (int64_t i = 0; i < x.cols; ++i) out[i] = Bf16ToFloat(from[i]);
    }
  });
}

}  // namespace conclave::kernels
