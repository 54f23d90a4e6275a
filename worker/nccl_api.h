#ifndef CONCLAVE_WORKER_NCCL_API_H_
#define CONCLAVE_WORKER_NCCL_API_H_

// NCCL's functions, found at run time: a worker starts, and serves alone, where the library is
// missing.

#include <nccl.h>

#include <string>

#include "absl/status/statusor.h"

namespace conclave::worker {

struct NcclApi {
  decltype(&::ncclGetVersion) GetVersion = nullptr;
  decltype(&::ncclGetUniqueId) GetUniqueId = nullptr;
  decltype(&::ncclCommInitRankConfig) CommInitRankConfig = nullptr;
  decltype(&::ncclCommGetAsyncError) CommGetAsyncError = nullptr;
  decltype(&::ncclCommDestroy) CommDestroy = nullptr;
  decltype(&::ncclCommAbort) CommAbort = nullptr;
  decltype(&::ncclGroupStart) GroupStart = nullptr;
  decltype(&::ncclGroupEnd) GroupEnd = nullptr;
  decltype(&::ncclSend) Send = nullptr;
  decltype(&::ncclRecv) Recv = nullptr;
  decltype(&::ncclGetErrorString) GetErrorString = nullptr;
  decltype(&::ncclGetLastError) GetLastError = nullptr;
  int version = 0;  // as NCCL_VERSION_CODE
};

// The library of this process, loaded by the first call. FAILED_PRECONDITION, which begins with
// "nccl_missing" or "nccl_too_old" and says what to do, when there is none that serves.
absl::StatusOr<const NcclApi*> LoadNccl();

// As LoadNccl, from a file of that name, searched as dlopen does. It stays loaded.
absl::StatusOr<NcclApi> LoadNcclFrom(const std::string& file);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_NCCL_API_H_
