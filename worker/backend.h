#ifndef CONCLAVE_WORKER_BACKEND_H_
#define CONCLAVE_WORKER_BACKEND_H_

// What a worker computes on: the device's ops, its memory, and the communicator that reaches the
// same kind of device in other workers. One implementation per --device.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "worker/communicator.h"

namespace conclave::worker {

struct DeviceMemory {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

// What ops are made for.
struct OpsLimits {
  int kv_heads = 0;  // of this tp rank
  int max_sequences = 1;
  int block_tokens = 16;
  int max_step_tokens = 1;    // of one group's step
  int max_expert_copies = 1;  // that can reach this rank in a step
};

struct ConnectOptions {
  std::string interface;
  std::string advertise_address;
  absl::Duration timeout = absl::InfiniteDuration();  // of one collective
  std::function<bool()> cancelled;                    // asked while connecting, by any thread
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const kernels::KernelInfo& info() const = 0;
  // Equal for workers that share the memory that Memory() tells of.
  virtual std::string memory_id() const = 0;
  // Any thread.
  virtual DeviceMemory Memory() const = 0;

  // On the step thread, which uses what they return.
  virtual absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeOps(const model::Config& config,
                                                                const OpsLimits& limits) = 0;
  // `ops` are those whose memory the collectives work on; borrowed.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Connect(const std::string& group, int rank,
                                                                int size, Rendezvous& rendezvous,
                                                                const ConnectOptions& options,
                                                                kernels::Ops& ops) = 0;
};

// Host memory, Gloo.
std::unique_ptr<Backend> MakeCpuBackend(int threads);

struct CudaBackendOptions {
  int device = 0;            // CUDA ordinal
  int load_threads = 1;      // that copy weights out of the file map
  bool record_steps = true;  // as of kernels::CudaOptions
  int64_t direct_bytes = 0;  // as of NcclOptions
  std::string interface;     // network interface for NCCL's sockets; empty: NCCL chooses
};
// Make it before the process starts threads (NCCL takes the interface from the environment).
// FAILED_PRECONDITION whose message begins with a reason code ("no_gpu: ...") when it cannot run
// here; the code is kernel_not_built in a build without CUDA.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

// Whether MakeCudaBackend would succeed, for `conclave doctor`.
struct CudaReport {
  std::string reason;  // empty: it would
  std::string message;
  int devices = 0;  // that the driver shows
  kernels::KernelInfo info;
  std::string compute_capability;
  int64_t memory_bytes = 0;
  std::string nccl;  // version, or a reason code with a sentence
};
CudaReport ReportCuda(int device);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_BACKEND_H_
