#include <cuda_runtime.h>
#include <fmt/format.h>

#include <string>

#include "base/status_macros.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops.h"
#include "worker/backend.h"
#ifdef CONCLAVE_WITH_NCCL
#include "worker/nccl_communicator.h"
#endif

namespace conclave::worker {
namespace {

// The GPU's UUID: the same wherever it is seen from.
std::string DeviceId(int device) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    cudaGetLastError();
    return fmt::format("cuda-{}", device);
  }
  std::string id = "gpu-";
  for (const char byte : properties.uuid.bytes) {
    id += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  }
  return id;
}

#ifdef CONCLAVE_WITH_NCCL

std::string NcclText() {
  const absl::StatusOr<std::string> version = NcclVersion();
  return version.ok() ? *version : std::string(version.status().message());
}

void UseInterface(const std::string& interface) {
  if (!interface.empty()) SetNcclInterface(interface);
}

#else

std::string NcclText() { return "kernel_not_built: built without NCCL's headers"; }

void UseInterface(const std::string& /*interface*/) {}

#endif

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaBackendOptions& options)
      : options_(options),
        info_(kernels::DescribeCuda(options.device)),
        memory_id_(DeviceId(options.device)) {}

  const kernels::KernelInfo& info() const override { return info_; }
  std::string memory_id() const override { return memory_id_; }

  DeviceMemory Memory() const override {
    size_t free = 0;
    size_t total = 0;
    // The current device is the calling thread's. Setting back another would make a context there.
    cudaSetDevice(options_.device);
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
      cudaGetLastError();
      return {};
    }
    return {static_cast<int64_t>(total), static_cast<int64_t>(free)};
  }

  absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeOps(const model::Config& config,
                                                        const OpsLimits& limits) override {
    return kernels::MakeCudaOps(config, limits.kv_heads,
                                {.device = options_.device,
                                 .max_sequences = limits.max_sequences,
                                 .block_tokens = limits.block_tokens,
                                 .max_step_tokens = limits.max_step_tokens,
                                 .max_expert_copies = limits.max_expert_copies,
                                 .load_threads = options_.load_threads,
                                 .record_steps = options_.record_steps});
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Connect(
      [[maybe_unused]] const std::string& group, [[maybe_unused]] int rank, int size,
      [[maybe_unused]] Rendezvous& rendezvous, [[maybe_unused]] const ConnectOptions& options,
      [[maybe_unused]] kernels::Ops& ops) override {
#ifdef CONCLAVE_WITH_NCCL
    return ConnectNccl(group, rank, size, rendezvous,
                       {.stream = static_cast<kernels::cuda::CudaOps&>(ops).stream(),
                        .device = options_.device,
                        .direct_bytes = options_.direct_bytes,
                        .cancelled = options.cancelled});
#else
    return absl::FailedPreconditionError(
        fmt::format("{} CUDA workers need NCCL, whose headers were not there when this was built: "
                    "build it again where they are, or serve with one worker",
                    size));
#endif
  }

 private:
  const CudaBackendOptions options_;
  const kernels::KernelInfo info_;
  const std::string memory_id_;
};

}  // namespace

CudaReport ReportCuda(int device) {
  const kernels::CudaProbe probe = kernels::ProbeCuda(device);
  CudaReport report;
  report.reason = probe.reason;
  report.message = probe.message;
  if (cudaGetDeviceCount(&report.devices) != cudaSuccess) {
    cudaGetLastError();
    report.devices = 0;
  }
  if (device < report.devices) report.info = kernels::DescribeCuda(device);
  report.compute_capability = probe.compute_capability;
  report.memory_bytes = probe.memory_bytes;
  report.nccl = NcclText();
  return report;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  const CudaReport report = ReportCuda(options.device);
  if (!report.reason.empty()) {
    return absl::FailedPreconditionError(fmt::format("{}: {}", report.reason, report.message));
  }
  UseInterface(options.interface);
  return std::make_unique<CudaBackend>(options);
}

}  // namespace conclave::worker
