#include "worker/nccl_api.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include "base/status_macros.h"
#include "worker/nccl_communicator.h"

namespace conclave::worker {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";
// The first whose communicators can be given up on at any time.
constexpr int kOldestVersion = NCCL_VERSION(2, 18, 1);

std::string VersionText(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

// Looks up functions until one is missing.
class Symbols {
 public:
  Symbols(void* library, std::string file) : library_(library), file_(std::move(file)) {}

  template <typename Function>
  void Find(const char* name, Function& function) {
    void* const symbol = dlsym(library_, name);
    function = reinterpret_cast<Function>(symbol);
    if (symbol == nullptr && missing_.empty()) missing_ = name;
  }
  absl::Status status() const {
    if (missing_.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        fmt::format("nccl_too_old: {} has no {}", file_, missing_));
  }

 private:
  void* const library_;
  const std::string file_;
  std::string missing_;
};

}  // namespace

absl::StatusOr<NcclApi> LoadNcclFrom(const std::string& file) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("nccl_missing: {}; several GPU ranks need NCCL {} or later: install it or name "
                    "its folder in LD_LIBRARY_PATH",
                    dlerror(), VersionText(kOldestVersion)));
  }
  NcclApi api;
  Symbols symbols(library, file);
  symbols.Find("ncclGetVersion", api.GetVersion);
  symbols.Find("ncclGetUniqueId", api.GetUniqueId);
  symbols.Find("ncclCommInitRankConfig", api.CommInitRankConfig);
  symbols.Find("ncclCommGetAsyncError", api.CommGetAsyncError);
  symbols.Find("ncclCommDestroy", api.CommDestroy);
  symbols.Find("ncclCommAbort", api.CommAbort);
  symbols.Find("ncclGroupStart", api.GroupStart);
  symbols.Find("ncclGroupEnd", api.GroupEnd);
  symbols.Find("ncclSend", api.Send);
  symbols.Find("ncclRecv", api.Recv);
  symbols.Find("ncclGetErrorString", api.GetErrorString);
  symbols.Find("ncclGetLastError", api.GetLastError);
  RETURN_IF_ERROR(symbols.status());
  api.GetVersion(&api.version);
  if (api.version < kOldestVersion) {
    return absl::FailedPreconditionError(fmt::format("nccl_too_old: {} is NCCL {}, {} is needed",
                                                     file, VersionText(api.version),
                                                     VersionText(kOldestVersion)));
  }
  return api;
}

absl::StatusOr<const NcclApi*> LoadNccl() {
  // Never destroyed: NCCL's own threads may outlive main.
  static const auto* const loaded = new absl::StatusOr<NcclApi>(LoadNcclFrom(kLibrary));
  if (!loaded->ok()) return loaded->status();
  return &loaded->value();
}

absl::StatusOr<std::string> NcclVersion() {
  ASSIGN_OR_RETURN(const NcclApi* const api, LoadNccl());
  return VersionText(api->version);
}

}  // namespace conclave::worker
