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

void CudaOps::SampledLogits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                            int first, Tensor logits) {
  if (failed()) return;
  CONCLAVE_CHECK(first + logits.rows <= view_.samples);
  NormProduct(final_norm, lm_head, VectorWeight{}, x, view_.sample_rows + first, logits);
}

void CudaOps::HeadLogits(const VectorWeight& final_norm, const DenseWeight& head,
                         const VectorWeight& bias, Tensor x, std::span<const int32_t> rows,
                         Tensor logits) {
  if (failed()) return;
  for (const int32_t row : rows) CONCLAVE_CHECK(row >= 0 && row < x.rows);
  CONCLAVE_CHECK(logits.rows == static_cast<int64_t>(rows.size()));
  const auto* gather = static_cast<const int32_t*>(
      stage_->Put(rows.data(), static_cast<int64_t>(rows.size() * sizeof(int32_t)), stream_));
  NormProduct(final_norm, head, bias, x, gather, logits);
}

void CudaOps::NormProduct(const VectorWeight& norm, const DenseWeight& weight,
                          const VectorWeight& bias, Tensor x, const int32_t* gather, Tensor out) {
  if (failed() || out.rows == 0) return;
  const DenseSegment segment = SegmentOf(weight, bias);
  const DenseInput input = {.x = x.as<__nv_bfloat16>(),
                            .rows = static_cast<int>(out.rows),
                            .cols = hidden_,
                            .gather = gather,
                            .norm = static_cast<const __nv_bfloat16*>(norm.data),
                            .epsilon = epsilon_};
  Keep(dense_->Run({&segment, 1}, input, {out.data, out.dtype, out.cols}, stream_));
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

namespace {

static_assert(kTopLogprobs == kMaxLogprobs);

SampledRows RowsOf(const SampleOutput& output) {
  return {output.tokens.as<int32_t>(), output.logprobs.as<float>(), output.top_tokens.as<int32_t>(),
          output.top_logprobs.as<float>()};
}

}  // namespace

void CudaOps::SetSlotSampling(int slot, const SlotSampling& sampling) {
  if (failed()) return;
  Keep(sample_slots_->Set(slot, sampling, stream_));
}

void CudaOps::Sample(Tensor logits, int first, const SampleOutput& output) {
  if (failed() || logits.rows == 0) return;
  CONCLAVE_CHECK(first + logits.rows <= view_.samples);
  const auto n = static_cast<int>(logits.rows);
  const auto vocabulary = static_cast<int>(logits.cols);
  const SampleRow* params = view_.sample_params + first;
  if (view_.adjusts) {
    SampleAdjustedRows(logits.as<float>(), n, vocabulary, params, view_.sample_slots + first,
                       sample_slots_->table(), RowsOf(output), stream_);
  } else {
    SampleRows(logits.as<float>(), n, vocabulary, params, RowsOf(output), stream_);
  }
  Check("Sample");
}

void CudaOps::StoreSampled(Tensor tokens) {
  if (failed()) return;
  CONCLAVE_CHECK(tokens.rows == view_.samples);
  cuda::StoreSampled(tokens.as<int32_t>(), view_.sample_slots, view_.samples,
                     static_cast<int32_t*>(last_sampled_.memory.get()), stream_);
  if (view_.adjusts) {
    CountSampled(tokens.as<int32_t>(), view_.samples, view_.sample_params, view_.sample_slots,
                 sample_slots_->table(), stream_);
  }
  Check("StoreSampled");
}

void CudaOps::TargetLogprobs(Tensor logits, std::span<const int32_t> targets, int top,
                             const SampleOutput& output) {
  if (failed() || logits.rows == 0) return;
  CONCLAVE_CHECK(logits.rows == static_cast<int64_t>(targets.size()));
  const auto* device = static_cast<const int32_t*>(
      stage_->Put(targets.data(), static_cast<int64_t>(targets.size_bytes()), stream_));
  cuda::TargetLogprobs(logits.as<float>(), static_cast<int>(logits.rows),
                       static_cast<int>(logits.cols), device, top, RowsOf(output), stream_);
  Check("TargetLogprobs");
}

}  // namespace conclave::kernels::cuda
