#ifndef CONCLAVE_KERNELS_CPU_OPS_FIXTURE_H_
#define CONCLAVE_KERNELS_CPU_OPS_FIXTURE_H_

// What the tests of the CPU ops share.

#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/tensor.h"
#include "model/config.h"

namespace conclave::kernels {

inline model::Config SmallConfig() {
  model::Config config;
  config.num_layers = 2;
  config.num_experts = 16;
  config.experts_per_token = 4;
  config.hidden_size = 96;
  config.intermediate_size = 64;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.vocab_size = 300;
  config.sliding_window = 16;
  config.context_length = 256;
  config.layer_types = {model::LayerType::kSliding, model::LayerType::kFull};
  config.rope.factor = 4;
  config.rope.original_max_positions = 64;
  return config;
}

// The vector's memory as rows of `cols`.
template <typename T>
Tensor AsTensor(std::vector<T>& values, int64_t cols) {
  constexpr DType kType = std::is_same_v<T, float>    ? DType::kF32
                          : std::is_same_v<T, double> ? DType::kF64
                                                      : DType::kI32;
  return {values.data(), kType, static_cast<int64_t>(values.size()) / cols, cols};
}

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_OPS_FIXTURE_H_
