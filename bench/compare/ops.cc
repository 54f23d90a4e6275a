// Our ops as a shared library, for compare.py: each call makes up its inputs and returns the median
// microseconds of one launch inside a CUDA graph, on the calling process's device.

#include <memory>
#include <optional>
#include <vector>

#include "bench/gpu_ops/attention_step.h"
#include "bench/gpu_ops/moe_layer.h"

namespace conclave::bench {
namespace {

double AttentionTime(const std::vector<RunSpec>& runs, int calls) {
  return AttentionStep(runs, false).Time({}, calls);
}

}  // namespace
}  // namespace conclave::bench

extern "C" {

// The MoE layer of 120b (128 experts) or 20b (32), routing excluded.
__attribute__((visibility("default"))) double conclave_moe_us(int experts, int layers, int tokens) {
  using namespace conclave::bench;  // NOLINT(google-build-using-namespace)
  static std::unique_ptr<MoeBench> bench;
  static int made_for = 0;
  constexpr int kMaxTokens = 8192;
  const MoeModel model = {"", MoeShape(experts), layers};
  if (made_for != experts) {
    bench = nullptr;  // not both at once
    bench = std::make_unique<MoeBench>(model, kMaxTokens);
    made_for = experts;
  }
  const MoeInputs inputs = MakeInputs(model.shape, tokens);
  return bench->Time(inputs, tokens, std::nullopt, MoeBench::kBoth);
}

// Attention of a full layer: `rows` sequences with one row each at the end of `context` positions.
__attribute__((visibility("default"))) double conclave_decode_us(int rows, int context) {
  return conclave::bench::AttentionTime(
      std::vector<conclave::kernels::cuda::RunSpec>(rows, {1, context - 1}), 24);
}

// ... one sequence of `tokens` rows from position 0 on.
__attribute__((visibility("default"))) double conclave_prefill_us(int tokens) {
  return conclave::bench::AttentionTime({{tokens, 0}}, 4);
}

}  // extern "C"
