#ifndef CONCLAVE_KERNELS_CUDA_EXPERTS_H_
#define CONCLAVE_KERNELS_CUDA_EXPERTS_H_

// The experts of a layer on one Hopper GPU: what stands behind Ops::LoadExperts, ExpertGateUp and
// ExpertDown.
//
//   ASSIGN_OR_RETURN(auto weights, LoadExpertWeights(shape, host_experts, pool, staging));
//   ASSIGN_OR_RETURN(auto kernels, ExpertKernels::Make(shape, max_copies));
//   kernels->GateUp(*weights, tokens, activations, stream);
//   kernels->Down(*weights, tokens, activations, partial, stream);
//
// Which kernels run depends on host-side bounds alone, by tokens per expert if all copies were
// valid and routing even (max_copies * k / experts):
//
//   MXFP4, tokens per expert   kernel
//   .. 12                      stream, 16 tokens of an expert at a time; from 17 pairs on six
//                              blocks share a walk and down is prefetched     (expert_stream.h)
//   more, or > 1,024 pairs     tile                                           (expert_tile.h)
//   or sizes stream refuses
//   dense bf16                 dense                                          (expert_dense.h)
//
// Nothing waits for the device; a failed launch is left for cudaGetLastError. Same plan and inputs,
// same bits.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "kernels/cuda/expert_args.h"
#include "kernels/cuda/expert_stream.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"

namespace conclave::kernels::cuda {

struct ExpertShape {
  int hidden = 0;        // multiple of 32
  int intermediate = 0;  // multiple of 32
  int num_experts = 0;   // global
  int experts_per_token = 0;
  float swiglu_limit = 0;
  float swiglu_alpha = 0;
};

class CudaExpertWeights final : public ExpertWeights {
 public:
  CudaExpertWeights(int num_local, bool dense, const MatrixArgs& gate_up, const MatrixArgs& down,
                    Buffer memory)
      : num_local_(num_local),
        dense_(dense),
        gate_up_(gate_up),
        down_(down),
        memory_(std::move(memory)) {}

  int num_local() const override { return num_local_; }
  std::string_view format() const override { return dense_ ? "bf16" : "mxfp4"; }
  bool dense() const { return dense_; }
  const MatrixArgs& gate_up() const { return gate_up_; }
  const MatrixArgs& down() const { return down_; }
  int64_t bytes() const { return memory_.bytes; }

 private:
  int num_local_;
  bool dense_;
  MatrixArgs gate_up_;
  MatrixArgs down_;
  Buffer memory_;
};

// Page-locked memory and its mirror on the device that weights pass through on their way, kept from
// layer to layer: two matrices of one expert, 18 MB at the released MXFP4 shapes. Not shared
// between threads.
class ExpertStaging {
 public:
  ExpertStaging() = default;
  ~ExpertStaging();
  ExpertStaging(const ExpertStaging&) = delete;
  ExpertStaging& operator=(const ExpertStaging&) = delete;

  static constexpr int kSlots = 2;
  struct Slot {
    Buffer host;
    Buffer device;
    cudaEvent_t free = nullptr;  // recorded when the device is done with the slot
  };
  // Slots of at least `bytes`.
  absl::Status Reserve(int64_t bytes);
  Slot& slot(int64_t turn) { return slots_[turn % kSlots]; }
  cudaStream_t stream() const { return stream_; }

 private:
  Slot slots_[kSlots];
  cudaStream_t stream_ = nullptr;
};

// Uploads and repacks the experts of one layer, or copies those that `kept` holds on the device;
// returns when they are there. `pool` shares the copying out of the file map. INVALID_ARGUMENT
// naming expert, matrix, row and block for a scale that can overflow; RESOURCE_EXHAUSTED with the
// bytes wanted and free.
absl::StatusOr<std::unique_ptr<CudaExpertWeights>> LoadExpertWeights(
    const ExpertShape& shape, std::span<const HostExpert> experts, const KeptExperts& kept,
    base::ThreadPool& pool, ExpertStaging& staging);

// Device bytes of one expert's weights.
int64_t ExpertBytes(const ExpertShape& shape, bool dense);

struct ExpertPlan {
  enum class Kernel { kStream, kTile, kDense };
  Kernel kernel = Kernel::kTile;
  StreamOptions gate_up;  // kStream only
  StreamOptions down;
};
std::string_view Name(ExpertPlan::Kernel kernel);

class ExpertKernels {
 public:
  // Allocates the workspace of steps with up to `max_copies` copies. INVALID_ARGUMENT for a shape
  // that no kernel takes.
  static absl::StatusOr<std::unique_ptr<ExpertKernels>> Make(const ExpertShape& shape,
                                                             int max_copies);
  static int64_t WorkspaceBytes(const ExpertShape& shape, int max_copies);

  // See Ops::ExpertGateUp. activations bf16 [rows * k, I]. Hidden vectors bf16, 16-byte aligned.
  void GateUp(const CudaExpertWeights& weights, const ExpertTokens& tokens, Tensor activations,
              cudaStream_t stream);
  // See Ops::ExpertDown. partial f32 [rows, H]. Directly after GateUp of the same tokens on the
  // same stream: it uses GateUp's sorting of the tokens, and starts before GateUp has ended.
  void Down(const CudaExpertWeights& weights, const ExpertTokens& tokens, Tensor activations,
            Tensor partial, cudaStream_t stream);
  // As Down, but the sums are added to x bf16 [rows, H], rounded once.
  void DownResidual(const CudaExpertWeights& weights, const ExpertTokens& tokens,
                    Tensor activations, Tensor x, cudaStream_t stream);

  ExpertPlan Choose(const CudaExpertWeights& weights, const ExpertTokens& tokens) const;
  // For tests and benchmarks: this plan instead of the table's, where it can run.
  void Force(std::optional<ExpertPlan> plan) { forced_ = plan; }

 private:
  ExpertKernels(const ExpertShape& shape, int max_copies, Buffer workspace);
  TokenArgs Tokens(const CudaExpertWeights& weights, const ExpertTokens& tokens) const;
  PartialArgs Partials(const TokenArgs& tokens) const;
  void DownPairs(const CudaExpertWeights& weights, const ExpertTokens& tokens,
                 const TokenArgs& args, Tensor activations, cudaStream_t stream);
  void Sum(const CudaExpertWeights& weights, const TokenArgs& args, float* partial,
           __nv_bfloat16* x, cudaStream_t stream);

  const ExpertShape shape_;
  const int max_copies_;
  Buffer workspace_;
  GroupArgs groups_;
  void* y_ = nullptr;
  std::optional<ExpertPlan> forced_;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERTS_H_
