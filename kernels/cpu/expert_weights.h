#ifndef CONCLAVE_KERNELS_CPU_EXPERT_WEIGHTS_H_
#define CONCLAVE_KERNELS_CPU_EXPERT_WEIGHTS_H_

// The experts of one layer. MXFP4 is used where it lies in the file map. The dense layout is stored
// transposed ([inputs, outputs]) and is copied once, rows of outputs together.

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "kernels/weights.h"

namespace conclave::kernels {

class CpuExperts final : public ExpertWeights {
 public:
  // INVALID_ARGUMENT naming expert, row and block for an MXFP4 scale that can overflow.
  static absl::StatusOr<std::unique_ptr<CpuExperts>> Load(std::span<const HostExpert> experts,
                                                          const KeptExperts& kept, int64_t hidden,
                                                          int64_t intermediate,
                                                          base::ThreadPool& pool);

  int num_local() const override { return static_cast<int>(experts_.size()); }
  std::string_view format() const override { return dense_ ? "bf16" : "mxfp4"; }

  // [out, in] products of rows [begin, end) with packed tokens; see matmul.h. Gate and up rows are
  // interleaved.
  void GateUp(int local, int64_t begin, int64_t end, std::span<const float* const> x, float* out,
              int64_t out_stride) const;
  void Down(int local, int64_t begin, int64_t end, std::span<const float* const> x, float* out,
            int64_t out_stride) const;
  const uint16_t* gate_up_bias(int local) const { return experts_[local].gate_up_bias; }
  const uint16_t* down_bias(int local) const { return experts_[local].down_bias; }

 private:
  CpuExperts(std::span<const HostExpert> experts, int64_t hidden, int64_t intermediate);
  absl::Status CheckScales(const KeptExperts& kept, base::ThreadPool& pool) const;
  void CopyDense(const KeptExperts& kept, base::ThreadPool& pool);

  std::vector<HostExpert> experts_;
  int64_t hidden_;
  int64_t intermediate_;
  bool dense_ = false;
  // Dense only, per expert: [2I, H] and [H, I]. Shared with the sets that keep the expert.
  std::vector<std::shared_ptr<const uint16_t[]>> gate_up_rows_;
  std::vector<std::shared_ptr<const uint16_t[]>> down_rows_;
};

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_EXPERT_WEIGHTS_H_
