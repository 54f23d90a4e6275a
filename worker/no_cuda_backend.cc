// Stands in for cuda_backend.cc in a build without CUDA.

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "worker/backend.h"

namespace conclave::worker {

CudaReport ReportCuda(int /*device*/) {
  std::error_code error;
  const bool gpu =
      std::filesystem::exists("/dev/nvidia0", error) || std::filesystem::exists("/dev/dxg", error);
  CudaReport report;
  report.reason = gpu ? "kernel_not_built" : "no_gpu";
  report.message = gpu ? "this build has no CUDA kernels: build it with --config=cuda"
                       : "this machine has no NVIDIA GPU";
  return report;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  const CudaReport report = ReportCuda(options.device);
  return absl::FailedPreconditionError(fmt::format("{}: {}", report.reason, report.message));
}

}  // namespace conclave::worker
