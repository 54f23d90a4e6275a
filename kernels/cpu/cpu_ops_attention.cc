// The attention half of a layer. A row of qkv is | q of every head | k | v |, of this tp rank.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/lane_order.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/parallel.h"

namespace conclave::kernels {

void CpuOps::NormQkv(const AttentionWeights& weights, Tensor x, Tensor qkv) {
  const auto* norm = static_cast<const uint16_t*>(weights.input_norm.data);
  packed_.Fill(x.rows, PackedSize(hidden_), pool_, [&](int64_t row, float* packed) {
    std::vector<float> normed(hidden_);
    RmsNorm(x.as<float>() + row * hidden_, norm, hidden_, epsilon_, normed.data());
    PackRow(normed.data(), hidden_, packed);
  });
  const DensePart parts[] = {
      {&weights.q, &weights.q_bias}, {&weights.k, &weights.k_bias}, {&weights.v, &weights.v_bias}};
  MultiplyDense(parts, packed_.rows(), pool_, qkv.as<float>(), qkv.cols);
}

int64_t CpuOps::BlockOf(const SequenceRun& run, model::LayerType type, int position) const {
  const int block = position / block_tokens_;
  return type == model::LayerType::kFull ? run.full_blocks[block]
                                         : run.sliding_blocks[block - run.sliding_first];
}

void CpuOps::RopeAndCacheWrite(const KvLayer& layer, Tensor qkv) {
  const int64_t query_size = int64_t{kv_heads_} * heads_per_kv_ * head_dim_;
  const int64_t kv_size = int64_t{kv_heads_} * head_dim_;
  pool_.ParallelFor(qkv.rows, GrainOf(qkv.cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* queries = qkv.as<float>() + row * qkv.cols;
      float* keys = queries + query_size;
      const float* values = keys + kv_size;
      for (float* head = queries; head < values; head += head_dim_) angles_.Rotate(row, head);
      const int position = batch_.positions[row];
      const int64_t slot = BlockOf(RunOf(row), layer.type, position) * cache_block() +
                           int64_t{position % block_tokens_} * head_dim_;
      for (int64_t h = 0; h < kv_heads_; ++h) {
        const int64_t to = slot + h * head_block();
        std::copy_n(keys + h * head_dim_, head_dim_, layer.keys.as<float>() + to);
        std::copy_n(values + h * head_dim_, head_dim_, layer.values.as<float>() + to);
      }
    }
  });
}

int CpuOps::FirstVisible(model::LayerType type, int position) const {
  if (type == model::LayerType::kFull) return 0;
  return std::max(0, position - sliding_window_ + 1);
}

void CpuOps::Attention(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv, Tensor out) {
  CONCLAVE_CHECK(sinks.size == int64_t{kv_heads_} * heads_per_kv_);
  const bool full = layer.type == model::LayerType::kFull;
  const int64_t group_size = int64_t{heads_per_kv_} * head_dim_;
  int64_t visible = 0;
  for (const int32_t position : batch_.positions) {
    visible += position + 1 - FirstVisible(layer.type, position);
  }
  const int64_t per_head = 2 * group_size * visible / std::max<int64_t>(qkv.rows, 1);
  // Short sequences: several tokens to a range. Long ones: a range of its own for every KV head.
  constexpr int64_t kWorkPerRange = 64 * 1024;
  const int64_t grain = std::max<int64_t>(1, kWorkPerRange / std::max<int64_t>(per_head, 1));
  pool_.ParallelFor(qkv.rows * kv_heads_, grain, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> scratch;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / kv_heads_;
      const int64_t head = item % kv_heads_;
      const SequenceRun& run = RunOf(row);
      const int position = batch_.positions[row];
      const PagedHead cache = {.keys = layer.keys.as<float>() + head * head_block(),
                               .values = layer.values.as<float>() + head * head_block(),
                               .block_stride = cache_block(),
                               .block_tokens = block_tokens_,
                               .head_dim = head_dim_,
                               .blocks = full ? run.full_blocks.data() : run.sliding_blocks.data(),
                               .first_block = full ? 0 : run.sliding_first};
      AttendHeads(cache, FirstVisible(layer.type, position), position + 1, heads_per_kv_,
                  qkv.as<float>() + row * qkv.cols + head * group_size,
                  static_cast<const uint16_t*>(sinks.data) + head * heads_per_kv_, scratch,
                  out.as<float>() + row * out.cols + head * group_size);
    }
  });
}

void CpuOps::OutputProjection(const AttentionWeights& weights, Tensor attention, Tensor partial) {
  const int64_t group_size = int64_t{heads_per_kv_} * head_dim_;
  const int64_t packed_group = PackedSize(group_size);
  packed_.Fill(attention.rows, kv_heads_ * packed_group, pool_, [&](int64_t row, float* packed) {
    for (int64_t group = 0; group < kv_heads_; ++group) {
      PackRow(attention.as<float>() + row * attention.cols + group * group_size, group_size,
              packed + group * packed_group);
    }
  });
  MultiplySegments(weights.o, weights.o_bias, kv_heads_, packed_.rows(), pool_,
                   partial.as<double>(), partial.cols);
}

}  // namespace conclave::kernels
