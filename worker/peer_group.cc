#include "worker/peer_group.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/clock.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"

namespace conclave::worker {
namespace {

constexpr char kReached[] = "reached";

// Of the running system: the same in all its containers and network namespaces.
std::string HostId() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  const char* const said = std::getenv("NCCL_HOSTID");
  return fmt::format("{} {}", id, said == nullptr ? "" : said);
}

// What the others need to open a window: the IPC handle, then the host.
std::string CardOf(const kernels::Buffer& window) {
  cudaIpcMemHandle_t handle;
  if (cudaIpcGetMemHandle(&handle, window.memory.get()) != cudaSuccess) {
    cudaGetLastError();
    return "";
  }
  return std::string(handle.reserved, sizeof(handle.reserved)) + HostId();
}

// What every rank put under `key`/<rank>.
absl::StatusOr<std::vector<std::string>> Gather(const std::string& key, int rank, int size,
                                                std::string mine, Rendezvous& rendezvous,
                                                absl::Time deadline) {
  RETURN_IF_ERROR(rendezvous.Put(fmt::format("{}/{}", key, rank), mine));
  std::vector<std::string> all(size);
  for (int r = 0; r < size; ++r) {
    if (r == rank) {
      all[r] = mine;
      continue;
    }
    ASSIGN_OR_RETURN(all[r],
                     rendezvous.Get(fmt::format("{}/{}", key, r), deadline - base::SteadyNow()));
  }
  return all;
}

}  // namespace

absl::Status PeerGroup::Allocate(int rank, int size, int64_t block_bytes) {
  using kernels::cuda::ToStatus;
  block_bytes_ = block_bytes;
  const int64_t bytes = kernels::cuda::PeerWindowBytes(size, block_bytes);
  ASSIGN_OR_RETURN(own_, kernels::cuda::AllocateDevice(bytes));
  ASSIGN_OR_RETURN(abort_, kernels::cuda::AllocatePinned(sizeof(int)));
  std::memset(abort_.memory.get(), 0, sizeof(int));
  RETURN_IF_ERROR(ToStatus(cudaMemset(own_.memory.get(), 0, bytes), "zeroing a window"));
  RETURN_IF_ERROR(ToStatus(cudaDeviceSynchronize(), "zeroing a window"));
  windows_.rank = rank;
  windows_.ranks = size;
  windows_.part_bytes = kernels::cuda::PeerPartBytes(block_bytes);
  windows_.windows[rank] = static_cast<std::byte*>(own_.memory.get());
  windows_.aborted = static_cast<const int*>(abort_.memory.get());
  return absl::OkStatus();
}

bool PeerGroup::Open(const std::vector<std::string>& cards) {
  cudaIpcMemHandle_t handle;
  const std::string host = HostId();
  for (int r = 0; r < windows_.ranks; ++r) {
    if (r == windows_.rank) continue;
    if (cards[r].size() < sizeof(handle.reserved) ||
        cards[r].substr(sizeof(handle.reserved)) != host) {
      return false;
    }
    std::memcpy(handle.reserved, cards[r].data(), sizeof(handle.reserved));
    void* window = nullptr;
    if (cudaIpcOpenMemHandle(&window, handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    opened_.push_back(window);
    windows_.windows[r] = static_cast<std::byte*>(window);
  }
  return true;
}

absl::StatusOr<std::unique_ptr<PeerGroup>> PeerGroup::Connect(const std::string& group, int rank,
                                                              int size, Rendezvous& rendezvous,
                                                              int64_t block_bytes,
                                                              absl::Time deadline) {
  if (size < 2 || size > kernels::cuda::kMaxPeers || block_bytes <= 0) return nullptr;
  std::unique_ptr<PeerGroup> peers(new PeerGroup);
  RETURN_IF_ERROR(peers->Allocate(rank, size, block_bytes));
  ASSIGN_OR_RETURN(
      const std::vector<std::string> cards,
      Gather("window/" + group, rank, size, CardOf(peers->own_), rendezvous, deadline));
  const std::string mine = peers->Open(cards) ? kReached : "";
  ASSIGN_OR_RETURN(const std::vector<std::string> reached,
                   Gather("windows/" + group, rank, size, mine, rendezvous, deadline));
  for (const std::string& said : reached) {
    if (said != kReached) return nullptr;
  }
  return peers;
}

PeerGroup::~PeerGroup() {
  if (abort_.memory == nullptr) return;
  Abort();
  cudaDeviceSynchronize();  // the stream may be gone by now
  for (void* window : opened_) cudaIpcCloseMemHandle(window);
}

void PeerGroup::Abort() { *static_cast<volatile int*>(abort_.memory.get()) = 1; }

}  // namespace conclave::worker
