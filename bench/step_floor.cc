#include "bench/step_floor.h"

#include <algorithm>
#include <cmath>

namespace conclave::bench {
namespace {

double Bytes(const model::TensorView& view) { return static_cast<double>(view.bytes.size()); }

double DenseBytes(const model::LayerTensors& layer) {
  return Bytes(layer.q_weight) + Bytes(layer.k_weight) + Bytes(layer.v_weight) +
         Bytes(layer.o_weight) + Bytes(layer.router_weight);
}

double ExpertBytes(const model::LayerTensors& layer) {
  return Bytes(layer.gate_up_blocks) + Bytes(layer.gate_up_scales) + Bytes(layer.down_blocks) +
         Bytes(layer.down_scales) + Bytes(layer.gate_up_dense) + Bytes(layer.down_dense);
}

}  // namespace

double DecodeStepBytes(const model::Config& config, const model::ModelTensors& tensors,
                       const model::ParallelShape& shape, int batch) {
  const double unused = 1 - static_cast<double>(config.experts_per_token) / config.num_experts;
  const double touched = 1 - std::pow(unused, batch);
  double dense = Bytes(tensors.lm_head);
  double experts = 0;
  for (const model::LayerTensors& layer : tensors.layers) {
    dense += DenseBytes(layer);
    experts += ExpertBytes(layer) * touched;
  }
  return dense * std::min(shape.dp, batch) + experts;
}

}  // namespace conclave::bench
