#include "tests/gpu/device_ops.h"

#ifdef CONCLAVE_WITH_CUDA
#include <fmt/format.h>
#endif

namespace conclave::gpu {
namespace {

#ifdef CONCLAVE_WITH_CUDA

constexpr int kOrdinal = 0;

std::string WhyNoCuda() {
  const kernels::CudaProbe probe = kernels::ProbeCuda(kOrdinal);
  return probe.reason.empty() ? "" : fmt::format("{}: {}", probe.reason, probe.message);
}

absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeCuda(const model::Config& config,
                                                       const DeviceOptions& options) {
  kernels::CudaOptions cuda;
  cuda.device = kOrdinal;
  cuda.max_sequences = options.max_sequences;
  cuda.max_step_tokens = options.max_step_tokens;
  cuda.max_step_blocks = 2 * int64_t{options.max_blocks};
  cuda.load_threads = options.threads;
  cuda.record_steps = options.record_steps;
  return kernels::MakeCudaOps(config, config.num_kv_heads, cuda);
}

#else

std::string WhyNoCuda() { return "built without CUDA"; }

absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeCuda(const model::Config& /*config*/,
                                                       const DeviceOptions& /*options*/) {
  return absl::UnimplementedError("built without CUDA");
}

#endif

}  // namespace

std::string WhyNoGpu() { return WhyNoCuda(); }

absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeDeviceOps(const model::Config& config,
                                                            const DeviceOptions& options) {
  if (options.device == Device::kCuda) return MakeCuda(config, options);
  kernels::CpuOptions cpu;
  cpu.threads = options.threads;
  cpu.max_sequences = options.max_sequences;
  return kernels::MakeCpuOps(config, config.num_kv_heads, cpu);
}

}  // namespace conclave::gpu
