#include "client/serve_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "base/status_macros.h"
#include "client/binaries.h"
#include "client/exit_code.h"
#include "client/serve_display.h"
#include "client/serve_options.h"
#include "client/serve_session.h"
#include "client/worker_probe.h"
#include "model/checkpoint.h"
#include "model/checkpoint_tokenizer.h"
#include "model/config.h"
#include "model/model_source.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "serve";

// Flags that cannot be right whatever the model is.
absl::Status CheckUsage(ServeOptions& options) {
  ASSIGN_OR_RETURN(options.shape, Resolve(options.shape_flags));
  if (options.weights != "random" &&
      (options.random_flags.seed != 0 || options.random_flags.layers != 0)) {
    return absl::InvalidArgumentError("--seed and --layers are for --weights random");
  }
  std::set<std::string> names;
  for (const std::string& flag : options.heads) {
    ASSIGN_OR_RETURN(const model::HeadFlag head, model::ParseHeadFlag(flag));
    if (!names.insert(head.name).second) {
      return absl::InvalidArgumentError(
          fmt::format("--head {} is given twice: give each head a name of its own", head.name));
    }
  }
  return absl::OkStatus();
}

// Headers of the model and of the heads, and the tokenizer: what is wrong with a folder is said
// before any process starts.
absl::Status CheckFolders(const ServeOptions& options, const model::Config& config) {
  ASSIGN_OR_RETURN(const auto checkpoint, model::OpenCheckpoint(options.source(), config));
  RETURN_IF_ERROR(
      model::LoadCheckpointTokenizer(options.model, options.tokenizer, config).status());
  for (const std::string& flag : options.heads) {
    ASSIGN_OR_RETURN(const model::HeadFlag head, model::ParseHeadFlag(flag));
    RETURN_IF_ERROR(model::OpenHead(head.name, head.dir, config, *checkpoint).status());
  }
  return absl::OkStatus();
}

absl::Status Prepare(ServeOptions& options) {
  ASSIGN_OR_RETURN(options.coordinator_binary, FindBinary(kCoordinatorBinary));
  ASSIGN_OR_RETURN(options.worker_binary, FindBinary(kWorkerBinary));
  if (options.device != "cpu") {
    ASSIGN_OR_RETURN(const Json probe, ProbeWorker(options.worker_binary));
    RETURN_IF_ERROR(CheckDevice(probe, options.device));
    RETURN_IF_ERROR(CheckCudaWorkers(probe, options.shape.world()));
  }
  if (options.log_dir.empty()) return absl::OkStatus();
  std::error_code error;
  std::filesystem::create_directories(options.log_dir, error);
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("--log-dir {} cannot be made: {}", options.log_dir, error.message()));
}

// A folder that only this user can enter, for as long as the service runs.
class PrivateFolder {
 public:
  PrivateFolder() {
    std::error_code error;
    std::string name = (std::filesystem::temp_directory_path(error) / "conclave-XXXXXX").string();
    if (!error && mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~PrivateFolder() {
    std::error_code error;
    if (!path_.empty()) std::filesystem::remove_all(path_, error);
  }
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;

  const std::string& path() const { return path_; }  // empty: it could not be made

 private:
  std::string path_;
};

int Run(ServeOptions& options) {
  if (const auto usage = CheckUsage(options); !usage.ok()) {
    return FailUsage(kName, std::string(usage.message()));
  }
  const auto config = model::LoadConfig(options.source());
  if (!config.ok()) return Fail(kName, config.status());
  if (const auto shape = model::CheckShape(*config, options.shape); !shape.ok()) {
    return FailUsage(kName, std::string(shape.message()));
  }
  absl::Status status = CheckFolders(options, *config);
  status.Update(Prepare(options));
  if (!status.ok()) return Fail(kName, status);

  // Our children have no use for it, and who may read their environment none either.
  unsetenv(kApiKeyVariable);
  std::optional<PrivateFolder> folder;
  if (options.guarded) {
    folder.emplace();
    if (folder->path().empty()) {
      return Fail(kName, absl::InternalError("no temporary folder can be made; set $TMPDIR"));
    }
    options.control_socket = folder->path() + "/control";
  }
  ServeDisplay display(stderr, isatty(STDERR_FILENO) != 0);
  ServeSession session(options, &display);
  status = session.Run();
  if (status.ok()) return kExitOk;
  // Flags that only the coordinator can judge.
  if (absl::IsInvalidArgument(status)) return FailUsage(kName, std::string(status.message()));
  return Fail(kName, status);
}

}  // namespace

void AddServeCommand(base::FlagSet& app, std::function<int()>* run) {
  auto options = std::make_shared<ServeOptions>();
  base::FlagSet& command =
      app.AddCommand(kName, "Serve a checkpoint from several worker processes on this machine");
  AddServeFlags(command, options.get());
  command.SetFooter(
      "Prints 'serving HOST:PORT' when requests are accepted. Ctrl-C stops everything.\n\n"
      "Example:\n"
      "  conclave serve --model demo/tiny_gpt_oss --workers 4 --listen 127.0.0.1:50051\n"
      "  conclave serve --model DIR --head sentiment=DIR2 --workers 4 --tp 2\n"
      "  conclave serve --model bench/configs/gpt_oss_20b --weights random --layers 2");
  command.OnParsed([options, run] { *run = [options] { return Run(*options); }; });
}

}  // namespace conclave::client
