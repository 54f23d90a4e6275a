// From tokens to the output projection. A row of qkv is | q of every head | k | v |, of this rank.

#include <array>

#include "base/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/embedding.h"

namespace conclave::kernels::cuda {
void CudaOps::Embed(const DenseWeight& shard, int first_id, Tensor x) {
  if (failed()) return;
  CONCLAVE_CHECK(x.rows <= view_.rows && x.cols == hidden_);
  const EmbeddingShard rows = {static_cast<const __nv_bfloat16*>(shard.data), shard.rows,
                               shard.row_stride, first_id};
  cuda::Embed(rows, view_.token_ids, last_sampled_.AsTensor(DType::kI32, 1, 1).as<int32_t>(),
              static_cast<int>(x.rows), hidden_, x.as<__nv_bfloat16>(), stream_);
  Check("Embed");
}

void CudaOps::NormQkv(const AttentionWeights& weights, Tensor x, Tensor qkv) {
  if (failed()) return;
  const std::array<DenseSegment, 3> segments = {SegmentOf(weights.q, weights.q_bias),
                                                SegmentOf(weights.k, weights.k_bias),
                                                SegmentOf(weights.v, weights.v_bias)};
  const DenseInput input = {.x = x.as<__nv_bfloat16>(),
                            .rows = static_cast<int>(x.rows),
                            .cols = x.cols,
                            .norm = static_cast<const __nv_bfloat16*>(weights.input_norm.data),
                            .epsilon = epsilon_};
  Keep(dense_->Run(segments, input, {qkv.data, qkv.dtype, qkv.cols}, stream_));
  Check("NormQkv");
}

void CudaOps::RopeAndCacheWrite(const KvLayer& layer, Tensor qkv) {
  if (failed()) return;
  CONCLAVE_CHECK(qkv.cols == attention_shape_.row_values());
  cuda::RopeAndCacheWrite(view_, attention_shape_, rope_, PagesOf(layer), qkv.as<__nv_bfloat16>(),
                          stream_);
  Check("RopeAndCacheWrite");
}

void CudaOps::Attention(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv, Tensor out) {
  if (failed()) return;
  CONCLAVE_CHECK(sinks.size == attention_shape_.heads);
  cuda::Attention(attention_shape_, view_, PagesOf(layer),
                  static_cast<const __nv_bfloat16*>(sinks.data), qkv.as<__nv_bfloat16>(),
                  out.as<__nv_bfloat16>(), attention_, stream_);
  Check("Attention");
}

void CudaOps::RotateAndAttend(const KvLayer& layer, const VectorWeight& sinks, Tensor qkv,
                              Tensor out) {
  if (failed()) return;
  CONCLAVE_CHECK(sinks.size == attention_shape_.heads);
  CONCLAVE_CHECK(qkv.cols == attention_shape_.row_values());
  cuda::RotateAndAttend(attention_shape_, view_, rope_, PagesOf(layer),
                        static_cast<const __nv_bfloat16*>(sinks.data), qkv.as<__nv_bfloat16>(),
                        out.as<__nv_bfloat16>(), attention_, stream_);
  Check("RotateAndAttend");
}

void CudaOps::OutputProjection(const AttentionWeights& weights, Tensor attention, Tensor partial) {
  if (failed()) return;
  const DenseSegment segment = SegmentOf(weights.o, weights.o_bias);
  const DenseInput input = {.x = attention.as<__nv_bfloat16>(),
                            .rows = static_cast<int>(attention.rows),
                            .cols = attention.cols};
  Keep(dense_->Run({&segment, 1}, input, {partial.data, partial.dtype, partial.cols}, stream_));
  Check("OutputProjection");
}

}  // namespace conclave::kernels::cuda
