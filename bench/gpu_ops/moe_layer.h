#ifndef CONCLAVE_BENCH_GPU_OPS_MOE_LAYER_H_
#define CONCLAVE_BENCH_GPU_OPS_MOE_LAYER_H_

// The MoE layer alone (gate_up + SwiGLU + down + weighted sum, routing excluded), timed as a step
// runs it. Random MXFP4 weights and routing; launches rotate over several layers, more than the L2
// cache holds, and over several routings.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bench/gpu_ops/harness.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/experts.h"

namespace conclave::bench {

using kernels::Buffer;
using kernels::DType;
using kernels::ExpertTokens;
using kernels::HostExpert;
using kernels::Tensor;
using kernels::cuda::AllocateDevice;
using kernels::cuda::CudaExpertWeights;
using kernels::cuda::ExpertKernels;
using kernels::cuda::ExpertPlan;
using kernels::cuda::ExpertShape;
using kernels::cuda::ExpertStaging;

inline constexpr int kRoutings = 8;

template <typename T>
T Check(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  fmt::print(stderr, "{}\n", value.status().ToString());
  std::exit(1);
}

struct MoeModel {
  std::string name;
  ExpertShape shape;
  int layers;
};

inline ExpertShape MoeShape(int experts) {
  return {.hidden = 2880,
          .intermediate = 2880,
          .num_experts = experts,
          .experts_per_token = 4,
          .swiglu_limit = 7,
          .swiglu_alpha = 1.702f};
}

// One expert's random weights; all experts get their own copy of them.
struct HostWeights {
  explicit HostWeights(const ExpertShape& shape) {
    std::mt19937_64 random(1);
    const auto fill = [&](std::vector<uint8_t>& bytes, int64_t size) {
      bytes.resize(size);
      for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    };
    const auto scales = [&](std::vector<uint8_t>& bytes, int64_t size) {
      fill(bytes, size);
      for (uint8_t& byte : bytes) byte = 118 + byte % 4;
    };
    const int64_t h = shape.hidden;
    const int64_t i = shape.intermediate;
    fill(gate_up_blocks, i * h);
    scales(gate_up_scales, 2 * i * h / 32);
    fill(down_blocks, i * h / 2);
    scales(down_scales, i * h / 32);
    bias.assign(2 * i, 0x3C00);
  }
  HostExpert Expert() const {
    HostExpert out;
    out.gate_up_blocks = gate_up_blocks.data();
    out.gate_up_scales = gate_up_scales.data();
    out.gate_up_bias = bias.data();
    out.down_blocks = down_blocks.data();
    out.down_scales = down_scales.data();
    out.down_bias = bias.data();
    return out;
  }
  std::vector<uint8_t> gate_up_blocks, gate_up_scales, down_blocks, down_scales;
  std::vector<uint16_t> bias;
};

struct MoeInputs {
  Buffer hidden, ids, weights, count, local_index, activations, partial;
  double distinct = 0;  // experts with tokens, mean over the routings
};

inline Buffer Upload(const void* data, int64_t bytes) {
  Buffer out = Check(AllocateDevice(bytes));
  CheckCuda(cudaMemcpy(out.memory.get(), data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  return out;
}

inline MoeInputs MakeInputs(const ExpertShape& shape, int tokens) {
  std::mt19937 random(tokens);
  MoeInputs out;
  std::vector<__nv_bfloat16> hidden(int64_t{tokens} * shape.hidden);
  std::normal_distribution<float> normal;
  for (auto& value : hidden) value = __float2bfloat16(normal(random));
  const int k = shape.experts_per_token;
  std::vector<int32_t> ids;
  std::vector<int> all(shape.num_experts);
  for (int e = 0; e < shape.num_experts; ++e) all[e] = e;
  for (int routing = 0; routing < kRoutings; ++routing) {
    std::set<int> distinct;
    for (int t = 0; t < tokens; ++t) {
      std::vector<int> chosen;
      std::sample(all.begin(), all.end(), std::back_inserter(chosen), k, random);
      ids.insert(ids.end(), chosen.begin(), chosen.end());
      distinct.insert(chosen.begin(), chosen.end());
    }
    out.distinct += static_cast<double>(distinct.size()) / kRoutings;
  }
  const std::vector<float> weights(int64_t{tokens} * k, 0.25f);
  const std::vector<int32_t> local(all.begin(), all.end());
  out.hidden = Upload(hidden.data(), hidden.size() * 2);
  out.ids = Upload(ids.data(), ids.size() * 4);
  out.weights = Upload(weights.data(), weights.size() * 4);
  out.count = Upload(&tokens, 4);
  out.local_index = Upload(local.data(), local.size() * 4);
  out.activations = Check(AllocateDevice(int64_t{tokens} * k * shape.intermediate * 2));
  out.partial = Check(AllocateDevice(int64_t{tokens} * shape.hidden * 4));
  return out;
}

class MoeBench {
 public:
  MoeBench(const MoeModel& model, int max_tokens) : model_(model) {
    const HostWeights host(model.shape);
    const std::vector<HostExpert> experts(model.shape.num_experts, host.Expert());
    base::ThreadPool pool(4);
    ExpertStaging staging;
    for (int layer = 0; layer < model.layers; ++layer) {
      layers_.push_back(
          Check(kernels::cuda::LoadExpertWeights(model.shape, experts, {}, pool, staging)));
    }
    kernels_ = Check(ExpertKernels::Make(model.shape, max_tokens));
  }

  enum Part { kGateUp = 1, kDown = 2, kBoth = 3 };

  // Median microseconds of one layer.
  double Time(const MoeInputs& inputs, int tokens, const std::optional<ExpertPlan>& plan,
              Part part) {
    kernels_->Force(plan);
    // Down alone builds on what GateUp left.
    Enqueue(inputs, tokens, 0, kBoth, timer_.stream());
    const int calls = tokens <= 8 ? 48 : tokens <= 32 ? 24 : tokens <= 1024 ? 12 : 4;
    return timer_.Median(
        calls, [&](int call, cudaStream_t stream) { Enqueue(inputs, tokens, call, part, stream); });
  }

  std::string Chosen(const MoeInputs& inputs, int tokens) {
    kernels_->Force(std::nullopt);
    const ExpertPlan plan = kernels_->Choose(*layers_[0], Tokens(inputs, tokens, 0));
    std::string name(kernels::cuda::Name(plan.kernel));
    if (plan.kernel == ExpertPlan::Kernel::kStream) {
      name += fmt::format(" {}", plan.gate_up.token_blocks * 8);
    }
    return name;
  }

 private:
  ExpertTokens Tokens(const MoeInputs& inputs, int tokens, int routing) const {
    static constexpr int32_t kZero = 0;
    const int k = model_.shape.experts_per_token;
    ExpertTokens out;
    out.max_copies = tokens;
    out.counts = static_cast<const int32_t*>(inputs.count.memory.get());
    out.first_slot = out.first_output = &kZero;
    out.hidden = static_cast<const std::byte*>(inputs.hidden.memory.get());
    out.hidden_stride = model_.shape.hidden * 2;
    out.expert_ids =
        static_cast<const std::byte*>(inputs.ids.memory.get()) + int64_t{routing} * tokens * k * 4;
    out.expert_ids_stride = k * 4;
    out.weights = static_cast<const std::byte*>(inputs.weights.memory.get());
    out.weights_stride = k * 4;
    out.local_index = static_cast<const int32_t*>(inputs.local_index.memory.get());
    return out;
  }

  void Enqueue(const MoeInputs& inputs, int tokens, int call, Part part, cudaStream_t stream) {
    const CudaExpertWeights& layer = *layers_[call % layers_.size()];
    const ExpertTokens copies = Tokens(inputs, tokens, call % kRoutings);
    const Tensor activations = inputs.activations.AsTensor(
        DType::kBf16, int64_t{tokens} * model_.shape.experts_per_token, model_.shape.intermediate);
    const Tensor partial = inputs.partial.AsTensor(DType::kF32, tokens, model_.shape.hidden);
    if (part & kGateUp) kernels_->GateUp(layer, copies, activations, stream);
    if (part & kDown) kernels_->Down(layer, copies, activations, partial, stream);
    CheckCuda(cudaGetLastError(), "experts");
  }

  const MoeModel model_;
  std::vector<std::unique_ptr<CudaExpertWeights>> layers_;
  std::unique_ptr<ExpertKernels> kernels_;
  GpuTimer timer_;
};

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_GPU_OPS_MOE_LAYER_H_
