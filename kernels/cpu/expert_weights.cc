#include "kernels/cpu/expert_weights.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cpu/lane_order.h"
#include "kernels/cpu/matmul.h"
#include "model/mxfp4.h"

namespace conclave::kernels {
namespace {

absl::Status CheckScale(const uint8_t* scales, int64_t rows, int64_t blocks, int expert,
                        std::string_view matrix) {
  const uint8_t* end = scales + rows * blocks;
  const uint8_t* bad =
      std::find_if(scales, end, [](uint8_t scale) { return scale > model::kMaxMxfp4Scale; });
  if (bad == end) return absl::OkStatus();
  const int64_t at = bad - scales;
  return absl::InvalidArgumentError(fmt::format(
      "local expert {}, {} row {}, block {}: MXFP4 scale byte {}, at most {} keeps weights finite",
      expert, matrix, at / blocks, at % blocks, *bad, model::kMaxMxfp4Scale));
}

// from [inputs, outputs] -> rows of outputs, in squares that fit the cache.
std::shared_ptr<const uint16_t[]> Transposed(const uint16_t* from, int64_t inputs,
                                             int64_t outputs) {
  constexpr int64_t kSquare = 64;
  auto out = std::make_shared_for_overwrite<uint16_t[]>(inputs * outputs);
  for (int64_t i0 = 0; i0 < inputs; i0 += kSquare) {
    for (int64_t o0 = 0; o0 < outputs; o0 += kSquare) {
      for (int64_t o = o0; o < std::min(o0 + kSquare, outputs); ++o) {
        for (int64_t i = i0; i < std::min(i0 + kSquare, inputs); ++i) {
          out[o * inputs + i] = from[i * outputs + o];
        }
      }
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuExperts>> CpuExperts::Load(std::span<const HostExpert> experts,
                                                             const KeptExperts& kept,
                                                             int64_t hidden, int64_t intermediate,
                                                             base::ThreadPool& pool) {
  std::unique_ptr<CpuExperts> out(new CpuExperts(experts, hidden, intermediate));
  if (out->dense_) {
    out->CopyDense(kept, pool);
  } else {
    RETURN_IF_ERROR(out->CheckScales(kept, pool));
  }
  return out;
}

CpuExperts::CpuExperts(std::span<const HostExpert> experts, int64_t hidden, int64_t intermediate)
    : experts_(experts.begin(), experts.end()), hidden_(hidden), intermediate_(intermediate) {
  dense_ = !experts_.empty() && experts_.front().gate_up_dense != nullptr;
  for (const HostExpert& expert : experts_) {
    CONCLAVE_CHECK((expert.gate_up_dense != nullptr) == dense_);
    CONCLAVE_CHECK((expert.down_dense != nullptr) == dense_);
    CONCLAVE_CHECK(dense_ || (expert.gate_up_blocks != nullptr && expert.down_blocks != nullptr));
  }
  CONCLAVE_CHECK(dense_ || (hidden % kBlockColumns == 0 && intermediate % kBlockColumns == 0));
}

absl::Status CpuExperts::CheckScales(const KeptExperts& kept, base::ThreadPool& pool) const {
  std::vector<absl::Status> found(experts_.size());
  pool.ParallelFor(num_local(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int expert = static_cast<int>(i);
      if (kept.of(i) >= 0) continue;
      found[i] = CheckScale(experts_[i].gate_up_scales, 2 * intermediate_, hidden_ / kBlockColumns,
                            expert, "gate_up");
      found[i].Update(CheckScale(experts_[i].down_scales, hidden_, intermediate_ / kBlockColumns,
                                 expert, "down"));
    }
  });
  for (const absl::Status& status : found) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

void CpuExperts::CopyDense(const KeptExperts& kept, base::ThreadPool& pool) {
  const auto* from = static_cast<const CpuExperts*>(kept.from);
  gate_up_rows_.resize(experts_.size());
  down_rows_.resize(experts_.size());
  pool.ParallelFor(num_local(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (const int local = kept.of(i); local >= 0) {
        gate_up_rows_[i] = from->gate_up_rows_[local];
        down_rows_[i] = from->down_rows_[local];
        continue;
      }
      gate_up_rows_[i] = Transposed(experts_[i].gate_up_dense, hidden_, 2 * intermediate_);
      down_rows_[i] = Transposed(experts_[i].down_dense, intermediate_, hidden_);
    }
  });
}

void CpuExperts::GateUp(int local, int64_t begin, int64_t end, std::span<const float* const> x,
                        float* out, int64_t out_stride) const {
  if (dense_) {
    MatmulBf16({gate_up_rows_[local].get(), hidden_, hidden_}, begin, end, x, out, out_stride);
    return;
  }
  const HostExpert& expert = experts_[local];
  MatmulMxfp4({expert.gate_up_blocks, expert.gate_up_scales, hidden_}, begin, end, x, out,
              out_stride);
}

void CpuExperts::Down(int local, int64_t begin, int64_t end, std::span<const float* const> x,
                      float* out, int64_t out_stride) const {
  if (dense_) {
    MatmulBf16({down_rows_[local].get(), intermediate_, intermediate_}, begin, end, x, out,
               out_stride);
    return;
  }
  const HostExpert& expert = experts_[local];
  MatmulMxfp4({expert.down_blocks, expert.down_scales, intermediate_}, begin, end, x, out,
              out_stride);
}

}  // namespace conclave::kernels
