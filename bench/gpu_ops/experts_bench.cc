// The MoE layer alone (gate_up + SwiGLU + down + weighted sum, routing excluded) at the released
// shapes: microseconds, bytes, achieved rates, floor and ratio, by tokens.
//
// Random MXFP4 weights and routing. Launches rotate over several layers, more than the L2 cache
// holds, and over several routings. Bytes are those of the experts that have tokens.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/gpu_ops/harness.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/experts.h"

namespace conclave::bench {
namespace {

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
using kernels::cuda::StreamOptions;

constexpr int kRoutings = 8;

template <typename T>
T Check(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  fmt::print(stderr, "{}\n", value.status().ToString());
  std::exit(1);
}

struct Model {
  std::string name;
  ExpertShape shape;
  int layers;
};

ExpertShape Shape(int experts) {
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

struct Inputs {
  Buffer hidden, ids, weights, count, local_index, activations, partial;
  double distinct = 0;  // experts with tokens, mean over the routings
};

Buffer Upload(const void* data, int64_t bytes) {
  Buffer out = Check(AllocateDevice(bytes));
  CheckCuda(cudaMemcpy(out.memory.get(), data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  return out;
}

Inputs MakeInputs(const ExpertShape& shape, int tokens) {
  std::mt19937 random(tokens);
  Inputs out;
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

class Bench {
 public:
  Bench(const Model& model, int max_tokens) : model_(model) {
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
  double Time(const Inputs& inputs, int tokens, const std::optional<ExpertPlan>& plan, Part part) {
    kernels_->Force(plan);
    // Down alone builds on what GateUp left.
    Enqueue(inputs, tokens, 0, kBoth, timer_.stream());
    const int calls = tokens <= 8 ? 48 : tokens <= 32 ? 24 : tokens <= 1024 ? 12 : 4;
    return timer_.Median(
        calls, [&](int call, cudaStream_t stream) { Enqueue(inputs, tokens, call, part, stream); });
  }

  std::string Chosen(const Inputs& inputs, int tokens) {
    kernels_->Force(std::nullopt);
    const ExpertPlan plan = kernels_->Choose(*layers_[0], Tokens(inputs, tokens, 0));
    std::string name(kernels::cuda::Name(plan.kernel));
    if (plan.kernel == ExpertPlan::Kernel::kStream) {
      name += fmt::format(" {}", plan.gate_up.token_blocks * 8);
    }
    return name;
  }

 private:
  ExpertTokens Tokens(const Inputs& inputs, int tokens, int routing) const {
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

  void Enqueue(const Inputs& inputs, int tokens, int call, Part part, cudaStream_t stream) {
    const CudaExpertWeights& layer = *layers_[call % layers_.size()];
    const ExpertTokens copies = Tokens(inputs, tokens, call % kRoutings);
    const Tensor activations = inputs.activations.AsTensor(
        DType::kBf16, int64_t{tokens} * model_.shape.experts_per_token, model_.shape.intermediate);
    const Tensor partial = inputs.partial.AsTensor(DType::kF32, tokens, model_.shape.hidden);
    if (part & kGateUp) kernels_->GateUp(layer, copies, activations, stream);
    if (part & kDown) kernels_->Down(layer, copies, activations, partial, stream);
    CheckCuda(cudaGetLastError(), "experts");
  }

  const Model model_;
  std::vector<std::unique_ptr<CudaExpertWeights>> layers_;
  std::unique_ptr<ExpertKernels> kernels_;
  GpuTimer timer_;
};

ExpertPlan Stream(const StreamOptions& gate_up, const StreamOptions& down) {
  ExpertPlan plan;
  plan.kernel = ExpertPlan::Kernel::kStream;
  plan.gate_up = gate_up;
  plan.down = down;
  return plan;
}

std::string Describe(const StreamOptions& options) {
  return fmt::format("{} tokens {} chunks {} stages {} blocks interleave {} prefetch {}",
                     options.token_blocks * 8, options.warp_chunks, options.stages,
                     options.blocks_per_multiprocessor, options.interleave, options.prefetch);
}

// Every kernel at the sizes where it may be the best.
void PrintVariants(Bench& bench, const Inputs& inputs, int tokens) {
  std::vector<ExpertPlan> variants;
  const auto add = [&](StreamOptions gate_up, StreamOptions down, int prefetch) {
    down.interleave = gate_up.interleave;
    gate_up.prefetch = prefetch;
    variants.push_back(Stream(gate_up, down));
  };
  if (tokens <= 4) {
    for (const int prefetch : {0, 3, 6}) {
      for (const int chunks : {3, 5}) {
        add({.token_blocks = 1, .warp_chunks = chunks, .stages = 3},
            {.token_blocks = 1, .warp_chunks = chunks, .stages = 5}, prefetch);
      }
      add({.token_blocks = 1, .warp_chunks = 3, .stages = 2, .blocks_per_multiprocessor = 2},
          {.token_blocks = 1, .warp_chunks = 3, .stages = 2, .blocks_per_multiprocessor = 2},
          prefetch);
    }
  }
  if (tokens <= 256) {
    for (const int stages : {3, 4, 5}) {
      for (const int interleave : {1, 6, 12}) {
        for (const int prefetch : {0, 4}) {
          const StreamOptions options = {
              .token_blocks = 2, .warp_chunks = 3, .stages = stages, .interleave = interleave};
          if (stages == 4 || prefetch == 4) add(options, options, prefetch);
        }
      }
    }
  }
  for (const ExpertPlan& plan : variants) {
    std::printf("  %8.1f us, %s | %d\n", bench.Time(inputs, tokens, plan, Bench::kBoth),
                Describe(plan.gate_up).c_str(), plan.down.stages);
  }
  const ExpertPlan tile;
  std::printf("  %8.1f us, gate_up %.1f, down %.1f, tile\n",
              bench.Time(inputs, tokens, tile, Bench::kBoth),
              bench.Time(inputs, tokens, tile, Bench::kGateUp),
              bench.Time(inputs, tokens, tile, Bench::kDown));
}

void Run(const Model& model, const std::vector<int>& sizes, bool variants) {
  Bench bench(model, *std::max_element(sizes.begin(), sizes.end()));
  const double pair_flops = 6.0 * model.shape.hidden * model.shape.intermediate;
  for (const int tokens : sizes) {
    const Inputs inputs = MakeInputs(model.shape, tokens);
    const double us = bench.Time(inputs, tokens, std::nullopt, Bench::kBoth);
    const double bytes =
        inputs.distinct * static_cast<double>(kernels::cuda::ExpertBytes(model.shape, false));
    PrintRow(fmt::format("experts {}: {}", model.name, bench.Chosen(inputs, tokens)),
             fmt::format("{} tokens", tokens), us,
             {.bytes = bytes, .flops = pair_flops * tokens * model.shape.experts_per_token});
    if (variants) PrintVariants(bench, inputs, tokens);
  }
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) {
  using conclave::bench::Run;
  using conclave::bench::Shape;
  CLI::App app("The MoE layer alone, at the released shapes, on one GPU.");
  std::vector<int> sizes = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
  bool variants = false;
  std::string only;
  app.add_option("--tokens", sizes, "numbers of tokens");
  app.add_flag("--variants", variants, "time every kernel, not only the table's");
  app.add_option("--model", only, "120b or 20b; both if not given");
  CLI11_PARSE(app, argc, argv);
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess || properties.major != 9) {
    fmt::print("skipped: no Hopper GPU\n");
    return 0;
  }
  conclave::bench::PrintHeader("MoE layer");
  if (only != "20b") Run({"120b", Shape(128), 3}, sizes, variants);
  if (only != "120b") Run({"20b", Shape(32), 8}, sizes, variants);
  return 0;
}
