#include "model/checkpoint_fingerprint.h"

#include <algorithm>
#include <functional>
#include <string_view>

#include "model/bfloat16.h"
#include "model/mxfp4.h"

namespace conclave::model {
namespace {

// A tensor up to this size is hashed whole: norms, biases and sinks. Of a larger one, samples.
constexpr size_t kWholeBytes = 65536;
constexpr size_t kSamples = 16;
constexpr size_t kSampleBytes = 64;
constexpr int kExpertSampleValues = 8;

// FNV-1a, 64 bits.
class Hash {
 public:
  void Add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      state_ = (state_ ^ static_cast<uint64_t>(byte)) * 0x100000001B3u;
    }
  }
  void Add(std::string_view text) { Add(std::as_bytes(std::span(text.data(), text.size()))); }
  void Add(int64_t value) { Add(std::as_bytes(std::span(&value, 1))); }
  uint64_t state() const { return state_; }

 private:
  uint64_t state_ = 0xCBF29CE484222325u;
};

// The i-th of kSamples starts, evenly from the first possible to the last.
size_t SampleStart(size_t i, size_t starts) { return (starts - 1) * i / (kSamples - 1); }

void AddTensor(Hash& hash, std::string_view name, const TensorView& view) {
  hash.Add(name);
  hash.Add(static_cast<int64_t>(view.shape.size()));
  for (const int64_t dimension : view.shape) hash.Add(dimension);
  if (view.bytes.size() <= kWholeBytes) {
    hash.Add(view.bytes);
    return;
  }
  for (size_t i = 0; i < kSamples; ++i) {
    const size_t start = SampleStart(i, view.bytes.size() - kSampleBytes + 1);
    hash.Add(view.bytes.subspan(start, kSampleBytes));
  }
}

// Value [row, col] of an expert as bfloat16, whatever the packing.
using ExpertValue = std::function<uint16_t(int64_t expert, int64_t row, int64_t col)>;

ExpertValue Mxfp4Values(const TensorView& blocks, const TensorView& scales) {
  return [&](int64_t expert, int64_t row, int64_t col) {
    const int64_t block =
        (expert * scales.shape[1] + row) * scales.shape[2] + col / kMxfp4BlockValues;
    const auto* bytes = reinterpret_cast<const uint8_t*>(blocks.bytes.data());
    const float value = Mxfp4Value(bytes + block * kMxfp4BlockBytes,
                                   static_cast<uint8_t>(scales.bytes[static_cast<size_t>(block)]),
                                   static_cast<int>(col % kMxfp4BlockValues));
    return FloatToBf16(value);
  };
}

// [E, in, out]
ExpertValue DenseValues(const TensorView& dense) {
  return [&](int64_t expert, int64_t row, int64_t col) {
    const auto* values = reinterpret_cast<const uint16_t*>(dense.bytes.data());
    return values[(expert * dense.shape[1] + col) * dense.shape[2] + row];
  };
}

void AddExperts(Hash& hash, std::string_view name, int64_t experts, int64_t rows, int64_t cols,
                const ExpertValue& value) {
  hash.Add(name);
  for (const int64_t dimension : {experts, rows, cols}) hash.Add(dimension);
  const auto values = static_cast<size_t>(experts * rows * cols);
  if (values == 0) return;
  for (size_t i = 0; i < kSamples; ++i) {
    const auto start = static_cast<int64_t>(SampleStart(i, values));
    const int64_t col = start % cols;
    const int64_t row = start / cols % rows;
    const int64_t expert = start / cols / rows;
    for (int64_t j = col; j < std::min(cols, col + kExpertSampleValues); ++j) {
      const uint16_t bits = value(expert, row, j);
      hash.Add(int64_t{bits == 0x8000 ? uint16_t{0} : bits});
    }
  }
}

void AddLayer(Hash& hash, const LayerTensors& layer, Layout layout) {
  AddTensor(hash, "input_norm", layer.input_norm);
  AddTensor(hash, "q_weight", layer.q_weight);
  AddTensor(hash, "q_bias", layer.q_bias);
  AddTensor(hash, "k_weight", layer.k_weight);
  AddTensor(hash, "k_bias", layer.k_bias);
  AddTensor(hash, "v_weight", layer.v_weight);
  AddTensor(hash, "v_bias", layer.v_bias);
  AddTensor(hash, "o_weight", layer.o_weight);
  AddTensor(hash, "o_bias", layer.o_bias);
  AddTensor(hash, "sinks", layer.sinks);
  AddTensor(hash, "post_norm", layer.post_norm);
  AddTensor(hash, "router_weight", layer.router_weight);
  AddTensor(hash, "router_bias", layer.router_bias);
  AddTensor(hash, "gate_up_bias", layer.gate_up_bias);
  AddTensor(hash, "down_bias", layer.down_bias);
  const int64_t experts = layer.gate_up_bias.shape[0];
  const int64_t width = layer.gate_up_bias.shape[1];  // 2I
  const int64_t hidden = layer.down_bias.shape[1];
  const bool dense = layout == Layout::kBf16;
  AddExperts(hash, "gate_up", experts, width, hidden,
             dense ? DenseValues(layer.gate_up_dense)
                   : Mxfp4Values(layer.gate_up_blocks, layer.gate_up_scales));
  AddExperts(
      hash, "down", experts, hidden, width / 2,
      dense ? DenseValues(layer.down_dense) : Mxfp4Values(layer.down_blocks, layer.down_scales));
}

}  // namespace

uint64_t Fingerprint(const ModelTensors& tensors, Layout layout) {
  Hash hash;
  AddTensor(hash, "embedding", tensors.embedding);
  AddTensor(hash, "final_norm", tensors.final_norm);
  for (const LayerTensors& layer : tensors.layers) AddLayer(hash, layer, layout);
  return hash.state();
}

}  // namespace conclave::model
