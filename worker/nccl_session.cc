#include "worker/nccl_session.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cstring>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace conclave::worker {
namespace {

// How often asynchronous errors are looked for.
constexpr absl::Duration kMonitorInterval = absl::Milliseconds(20);
// How often the state is looked at while connecting.
constexpr absl::Duration kConnectInterval = absl::Milliseconds(2);
// NCCL puts a group on the stream within microseconds, unless it first connects to a peer.
constexpr absl::Duration kSpin = absl::Microseconds(200);
constexpr absl::Duration kLaunchInterval = absl::Microseconds(50);

bool Succeeded(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

std::string Describe(const NcclApi& api, ncclComm_t comm, std::string_view what,
                     ncclResult_t result) {
  std::string_view detail = api.GetLastError(comm);
  while (!detail.empty() && detail.back() == '\n') detail.remove_suffix(1);
  return detail.empty() ? fmt::format("{}: {}", what, api.GetErrorString(result))
                        : fmt::format("{}: {} ({})", what, api.GetErrorString(result), detail);
}

// Rank 0 makes the id that the others connect by.
absl::StatusOr<ncclUniqueId> ExchangeId(const NcclApi& api, const std::string& group, int rank,
                                        Rendezvous& rendezvous, absl::Time deadline) {
  const std::string key = "nccl/" + group;
  ncclUniqueId id;
  if (rank == 0) {
    const ncclResult_t result = api.GetUniqueId(&id);
    if (result != ncclSuccess) {
      return absl::UnavailableError(Describe(api, nullptr, "ncclGetUniqueId", result));
    }
    RETURN_IF_ERROR(rendezvous.Put(key, std::string(id.internal, sizeof(id.internal))));
    return id;
  }
  ASSIGN_OR_RETURN(const std::string value, rendezvous.Get(key, deadline - base::SteadyNow()));
  if (value.size() != sizeof(id.internal)) {
    return absl::UnavailableError(
        fmt::format("an NCCL id of {} bytes, not {}", value.size(), sizeof(id.internal)));
  }
  std::memcpy(id.internal, value.data(), value.size());
  return id;
}

absl::Status AwaitConnected(const NcclApi& api, ncclComm_t comm, const NcclOptions& options,
                            absl::Time deadline) {
  for (;;) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = api.CommGetAsyncError(comm, &state);
    if (result != ncclSuccess) state = result;
    if (state == ncclSuccess) return absl::OkStatus();
    if (state != ncclInProgress) {
      return absl::UnavailableError(Describe(api, comm, "ncclCommInitRank", state));
    }
    if (base::SteadyNow() > deadline) return absl::UnavailableError("out of time");
    if (options.cancelled && options.cancelled()) return absl::UnavailableError("cancelled");
    absl::SleepFor(kConnectInterval);
  }
}

absl::StatusOr<ncclComm_t> Init(const NcclApi& api, const std::string& group, int rank, int size,
                                Rendezvous& rendezvous, const NcclOptions& options,
                                absl::Time deadline) {
  ASSIGN_OR_RETURN(const ncclUniqueId id, ExchangeId(api, group, rank, rendezvous, deadline));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = group.c_str();
  ncclComm_t comm = nullptr;
  const ncclResult_t result = api.CommInitRankConfig(&comm, size, id, rank, &config);
  absl::Status status =
      Succeeded(result) ? AwaitConnected(api, comm, options, deadline)
                        : absl::UnavailableError(Describe(api, comm, "ncclCommInitRank", result));
  if (status.ok()) return comm;
  if (comm != nullptr) api.CommAbort(comm);
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclSession>> NcclSession::Connect(const std::string& group,
                                                                  int rank, int size,
                                                                  Rendezvous& rendezvous,
                                                                  const NcclOptions& options,
                                                                  absl::Time deadline) {
  CONCLAVE_CHECK(size >= 1 && rank >= 0 && rank < size);
  ASSIGN_OR_RETURN(const NcclApi* const api, LoadNccl());
  const cudaError_t error = cudaSetDevice(options.device);
  if (error != cudaSuccess) return absl::UnavailableError(cudaGetErrorString(error));
  absl::StatusOr<ncclComm_t> comm = Init(*api, group, rank, size, rendezvous, options, deadline);
  if (!comm.ok()) {
    return absl::UnavailableError(fmt::format("group {}: rank {} of {} could not connect: {}",
                                              group, rank, size,
                                              std::string(comm.status().message())));
  }
  return std::unique_ptr<NcclSession>(new NcclSession(*api, group, rank, size, *comm, options));
}

NcclSession::NcclSession(const NcclApi& api, std::string group, int rank, int size, ncclComm_t comm,
                         const NcclOptions& options)
    : api_(api),
      group_(std::move(group)),
      rank_(rank),
      size_(size),
      device_(options.device),
      stream_(static_cast<cudaStream_t>(options.stream)),
      comm_(comm),
      monitor_([this] { Monitor(); }) {}

NcclSession::~NcclSession() {
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  monitor_.join();
  absl::MutexLock lock(&mutex_);
  if (comm_ != nullptr) api_.CommDestroy(comm_);
}

absl::Status NcclSession::Enqueue(std::span<const Transfer> transfers) {
  {
    absl::MutexLock lock(&mutex_);
    if (failed_) return Failure();
    const ncclResult_t result = StartGroup(transfers);
    if (!Succeeded(result)) {
      FailLocked(Describe(api_, comm_, "sending and receiving", result));
      return Failure();
    }
  }
  return AwaitLaunch();
}

ncclResult_t NcclSession::StartGroup(std::span<const Transfer> transfers) {
  ncclResult_t result = api_.GroupStart();
  for (const Transfer& transfer : transfers) {
    if (Succeeded(result) && transfer.send_bytes > 0) {
      result =
          api_.Send(transfer.send, transfer.send_bytes, ncclInt8, transfer.peer, comm_, stream_);
    }
    if (Succeeded(result) && transfer.recv_bytes > 0) {
      result =
          api_.Recv(transfer.recv, transfer.recv_bytes, ncclInt8, transfer.peer, comm_, stream_);
    }
  }
  const ncclResult_t ended = api_.GroupEnd();  // whatever happened: a group was opened
  return Succeeded(result) ? ended : result;
}

absl::Status NcclSession::AwaitLaunch() {
  const absl::Time patient = base::SteadyNow() + kSpin;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (failed_) return Failure();
      const ncclResult_t state = Poll();
      if (failed_) return Failure();
      if (state == ncclSuccess) return absl::OkStatus();
    }
    if (base::SteadyNow() < patient) {
      std::this_thread::yield();
    } else {
      absl::SleepFor(kLaunchInterval);
    }
  }
}

ncclResult_t NcclSession::Poll() {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = api_.CommGetAsyncError(comm_, &state);
  if (result != ncclSuccess) state = result;
  if (!Succeeded(state)) FailLocked(Describe(api_, comm_, "NCCL", state));
  return state;
}

void NcclSession::Fail(std::string_view reason) {
  absl::MutexLock lock(&mutex_);
  FailLocked(reason);
}

void NcclSession::FailLocked(std::string_view reason) {
  if (failed_) return;
  failed_ = true;
  reason_ = reason;
  if (on_failure_) on_failure_();
}

void NcclSession::OnFailure(std::function<void()> act) {
  absl::MutexLock lock(&mutex_);
  on_failure_ = std::move(act);
  if (failed_ && on_failure_) on_failure_();
}

absl::Status NcclSession::Failure() const {
  return absl::UnavailableError(
      fmt::format("group {} of {} ranks, at rank {}: {}", group_, size_, rank_, reason_));
}

absl::Status NcclSession::status() {
  absl::MutexLock lock(&mutex_);
  return failed_ ? Failure() : absl::OkStatus();
}

void NcclSession::Monitor() {
  cudaSetDevice(device_);
  ncclComm_t comm = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    while (
        !mutex_.AwaitWithTimeout(absl::Condition(this, &NcclSession::Ending), kMonitorInterval)) {
      Poll();
    }
    if (!failed_) return;
    comm = std::exchange(comm_, nullptr);
  }
  api_.CommAbort(comm);
}

}  // namespace conclave::worker
