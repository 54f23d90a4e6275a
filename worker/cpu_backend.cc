#include "kernels/ops.h"
#include "worker/backend.h"
#include "worker/host_memory.h"

namespace conclave::worker {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : threads_(threads) {}

  const kernels::KernelInfo& info() const override { return info_; }
  std::string memory_id() const override { return HostId(); }
  DeviceMemory Memory() const override {
    const HostMemory memory = ReadHostMemory();
    return {static_cast<int64_t>(memory.total_bytes), static_cast<int64_t>(memory.free_bytes)};
  }

  absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeOps(const model::Config& config,
                                                        const OpsLimits& limits) override {
    return kernels::MakeCpuOps(config, limits.kv_heads,
                               {.threads = threads_,
                                .max_sequences = limits.max_sequences,
                                .block_tokens = limits.block_tokens});
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Connect(const std::string& group, int rank,
                                                        int size, Rendezvous& rendezvous,
                                                        const ConnectOptions& options,
                                                        kernels::Ops& /*ops*/) override {
    GlooOptions gloo;
    gloo.interface = options.interface;
    gloo.hostname = options.advertise_address;
    gloo.timeout = options.timeout;
    gloo.cancelled = options.cancelled;
    return ConnectGloo(group, rank, size, rendezvous, gloo);
  }

 private:
  const int threads_;
  const kernels::KernelInfo info_ = kernels::DescribeCpu();
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(int threads) {
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace conclave::worker
