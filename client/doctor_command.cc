#include "client/doctor_command.h"

#include <fmt/format.h>

#include <memory>
#include <string>

#include "base/status_macros.h"
#include "client/binaries.h"
#include "client/exit_code.h"
#include "client/worker_probe.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "doctor";

absl::StatusOr<Json> Probe() {
  ASSIGN_OR_RETURN(const std::string worker, FindBinary(kWorkerBinary));
  return ProbeWorker(worker);
}

int Run(bool json) {
  const auto probe = Probe();
  if (!probe.ok()) return Fail(kName, probe.status());
  if (json) {
    fmt::print("{}\n", Dump(*probe));
  } else {
    fmt::print("{}", ProbeText(*probe));
  }
  return kExitOk;
}

}  // namespace

void AddDoctorCommand(base::FlagSet& app, std::function<int()>* run) {
  auto json = std::make_shared<bool>(false);
  base::FlagSet& command = app.AddCommand(kName, "Say which kernels would run here, and why");
  command.AddSwitch("--json", json.get(), "Print one JSON object (docs/cli.md lists its fields)");
  command.SetFooter(
      "Example:\n"
      "  conclave doctor");
  command.OnParsed([json, run] { *run = [json] { return Run(*json); }; });
}

}  // namespace conclave::client
