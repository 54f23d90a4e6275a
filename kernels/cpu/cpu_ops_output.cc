// From the last hidden states to logits and tokens.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/lane_order.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/sample.h"

namespace conclave::kernels {

void CpuOps::Logits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                    std::span<const int32_t> rows, Tensor logits) {
  HeadLogits(final_norm, lm_head, VectorWeight{}, x, rows, logits);
}

void CpuOps::SampledLogits(const VectorWeight& final_norm, const DenseWeight& lm_head, Tensor x,
                           int first, Tensor logits) {
  Logits(final_norm, lm_head, x, batch_.sample_rows.subspan(first, logits.rows), logits);
}

void CpuOps::HeadLogits(const VectorWeight& final_norm, const DenseWeight& head,
                        const VectorWeight& bias, Tensor x, std::span<const int32_t> rows,
                        Tensor logits) {
  const auto* norm = static_cast<const uint16_t*>(final_norm.data);
  packed_.Fill(static_cast<int64_t>(rows.size()), PackedSize(hidden_), pool_,
               [&](int64_t i, float* packed) {
                 CONCLAVE_CHECK(rows[i] >= 0 && rows[i] < x.rows);
                 std::vector<float> normed(hidden_);
                 RmsNorm(x.as<float>() + rows[i] * hidden_, norm, hidden_, epsilon_, normed.data());
                 PackRow(normed.data(), hidden_, packed);
               });
  const DensePart parts[] = {{&head, &bias}};
  MultiplyDense(parts, packed_.rows(), pool_, logits.as<float>(), logits.cols);
}

void CpuOps::JoinColumns(std::span<const Tensor> blocks, Tensor out) {
  int64_t first = 0;
  for (const Tensor& block : blocks) {
    for (int64_t row = 0; row < block.rows; ++row) {
      std::copy_n(block.as<float>() + row * block.cols, block.cols,
                  out.as<float>() + row * out.cols + first);
    }
    first += block.cols;
  }
  CONCLAVE_CHECK(first == out.cols);
}

namespace {

std::span<const float> RowOf(Tensor logits, int64_t row) {
  return {logits.as<float>() + row * logits.cols, static_cast<size_t>(logits.cols)};
}

// Row `row` of `output` but its token; `top` as SampleParams::logprobs.
void WriteLogprobs(std::span<const float> logits, int32_t token, int top, int64_t row,
                   const SampleOutput& output) {
  int32_t* top_tokens = output.top_tokens.as<int32_t>() + row * kMaxLogprobs;
  float* top_logprobs = output.top_logprobs.as<float>() + row * kMaxLogprobs;
  std::fill_n(top_tokens, kMaxLogprobs, -1);
  std::fill_n(top_logprobs, kMaxLogprobs, 0.0f);
  output.logprobs.as<float>()[row] = 0;
  if (top < 0) return;
  const LogProbs logprobs(logits);
  output.logprobs.as<float>()[row] = logprobs.of(token);
  for (const auto& [id, value] : logprobs.Top(std::min(top, kMaxLogprobs))) {
    *top_tokens++ = id;
    *top_logprobs++ = value;
  }
}

}  // namespace

void CpuOps::SetSlotSampling(int slot, const SlotSampling& sampling) {
  slot_tokens_.at(slot) = SlotTokens(sampling);
}

void CpuOps::Sample(Tensor logits, int first, const SampleOutput& output) {
  const std::span<const SampleParams> params = batch_.sample_params.subspan(first, logits.rows);
  const std::span<const int32_t> slots = batch_.sample_slots.subspan(first, logits.rows);
  pool_.ParallelFor(logits.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> adjusted;
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> raw = RowOf(logits, row);
      std::span<const float> drawn_from = raw;
      if (params[row].adjusts()) {
        adjusted.assign(raw.begin(), raw.end());
        slot_tokens_[slots[row]].Adjust(params[row], adjusted);
        drawn_from = adjusted;
      }
      const int32_t token = SampleToken(drawn_from, params[row]);
      output.tokens.as<int32_t>()[row] = token;
      WriteLogprobs(raw, token, params[row].logprobs, row, output);
    }
  });
}

void CpuOps::StoreSampled(Tensor tokens) {
  CONCLAVE_CHECK(tokens.rows == static_cast<int64_t>(batch_.sample_slots.size()));
  for (int64_t i = 0; i < tokens.rows; ++i) {
    const int32_t token = tokens.as<int32_t>()[i];
    const int32_t slot = batch_.sample_slots[i];
    last_sampled_.at(slot) = token;
    if (batch_.sample_params[i].counted) slot_tokens_[slot].CountGenerated(token);
  }
}

void CpuOps::TargetLogprobs(Tensor logits, std::span<const int32_t> targets, int top,
                            const SampleOutput& output) {
  CONCLAVE_CHECK(logits.rows == static_cast<int64_t>(targets.size()));
  pool_.ParallelFor(logits.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      WriteLogprobs(RowOf(logits, row), targets[row], std::max(top, 0), row, output);
    }
  });
}

}  // namespace conclave::kernels
