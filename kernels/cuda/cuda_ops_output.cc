// From the last hidden states to logits and tokens.

#include "base/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/sample.h"

namespace conclave::kernels::cuda {

void CudaOps::Logits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                     std::span<const int32_t> rows, Tensor logits) {
  HeadLogits(final_norm, lm_head, VectorWeight{}, x, rows, logits);
}

void CudaOps::HeadLogits(const VectorWeight& final_norm, const DenseWeight& head,
                         const VectorWeight& bias, Tensor x, std::span<const int32_t> rows,
                         Tensor logits) {
  if (failed() || rows.empty()) return;
  for (const int32_t row : rows) CONCLAVE_CHECK(row >= 0 && row < x.rows);
  const DenseSegment segment = SegmentOf(head, bias);
  const DenseInput input = {
      .x = x.as<__nv_bfloat16>(),
      .rows = static_cast<int>(rows.size()),
      .cols = hidden_,
      .gather = static_cast<const int32_t*>(
          stage_->Put(rows.data(), static_cast<int64_t>(rows.size() * sizeof(int32_t)), stream_)),
      .norm = static_cast<const __nv_bfloat16*>(final_norm.data),
      .epsilon = epsilon_};
  Keep(dense_->Run({&segment, 1}, input, {logits.data, logits.dtype, logits.cols}, stream_));
  Check("Logits");
}

void CudaOps::JoinColumns(std::span<const Tensor> blocks, Tensor out) {
  if (failed()) return;
  const int64_t pitch = out.cols * SizeOf(out.dtype);
  int64_t first = 0;
  for (const Tensor& block : blocks) {
    const int64_t width = block.cols * SizeOf(block.dtype);
    if (width > 0 && block.rows > 0) {
      cudaMemcpy2DAsync(out.as<std::byte>() + first, pitch, block.data, width, width, block.rows,
                        cudaMemcpyDeviceToDevice, stream_);
    }
    first += width;
  }
  CONCLAVE_CHECK(first == pitch);
  Check("JoinColumns");
}

void CudaOps::Sample(Tensor logits, std::span<const SampleParams> params,
                     const SampleOutput& output) {
  static_assert(kTopLogprobs == kMaxLogprobs);
  if (failed() || params.empty()) return;
  CONCLAVE_CHECK(static_cast<int64_t>(params.size()) == logits.rows);
  sample_rows_.clear();
  for (const SampleParams& row : params) {
    sample_rows_.push_back({.temperature = row.temperature,
                            .top_k = row.top_k,
                            .top_p = row.top_p,
                            .min_p = row.min_p,
                            .seed = row.seed,
                            .position = row.position,
                            .logprobs = row.logprobs});
  }
  const auto* device_rows = static_cast<const SampleRow*>(stage_->Put(
      sample_rows_.data(), static_cast<int64_t>(sample_rows_.size() * sizeof(SampleRow)), stream_));
  SampleRows(logits.as<float>(), static_cast<int>(logits.rows), static_cast<int>(logits.cols),
             device_rows,
             {output.tokens.as<int32_t>(), output.logprobs.as<float>(),
              output.top_tokens.as<int32_t>(), output.top_logprobs.as<float>()},
             stream_);
  Check("Sample");
}

void CudaOps::StoreSampled(Tensor tokens, std::span<const int32_t> slots) {
  if (failed() || slots.empty()) return;
  for (const int32_t slot : slots) CONCLAVE_CHECK(slot >= 0 && slot < max_sequences_);
  const auto* device_slots = static_cast<const int32_t*>(
      stage_->Put(slots.data(), static_cast<int64_t>(slots.size() * sizeof(int32_t)), stream_));
  cuda::StoreSampled(tokens.as<int32_t>(), device_slots, static_cast<int>(slots.size()),
                     static_cast<int32_t*>(last_sampled_.memory.get()), stream_);
  Check("StoreSampled");
}

}  // namespace conclave::kernels::cuda
