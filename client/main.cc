// The `conclave` command. One file per subcommand; `conclave SUBCOMMAND --help` for each.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "base/flags.h"
#include "base/mapped_files.h"
#include "client/bench_command.h"
#include "client/chat_command.h"
#include "client/classify_command.h"
#include "client/doctor_command.h"
#include "client/drain_command.h"
#include "client/exit_code.h"
#include "client/generate_command.h"
#include "client/plan_command.h"
#include "client/rebalance_command.h"
#include "client/serve_command.h"
#include "client/status_command.h"
#include "client/tokenize_command.h"

namespace conclave::client {
namespace {

using ParseOutcome = base::ParsedFlags::Outcome;

int FailParse(const base::ParsedFlags& parsed, const std::string& first_word) {
  if (!parsed.command.empty()) return FailUsage(parsed.command, parsed.text);
  // The text would say that a subcommand is missing.
  if (first_word.empty() || first_word.front() == '-') return FailUsage("", parsed.text);
  return FailUsage("", "'" + first_word + "' is not a subcommand");
}

int Main(int argc, char** argv) {
  base::FlagSet app(
      "Serves gpt-oss models from a group of worker processes, and talks to the service.",
      "conclave");
  app.SetFooter(
      "Example:\n"
      "  conclave serve --model demo/tiny_gpt_oss --workers 4 --listen 127.0.0.1:50051\n"
      "  conclave generate --server 127.0.0.1:50051 --prompt 'Once upon a time'");
  std::function<int()> run;
  AddServeCommand(app, &run);
  AddGenerateCommand(app, &run);
  AddChatCommand(app, &run);
  AddClassifyCommand(app, &run);
  AddTokenizeCommand(app, &run);
  AddStatusCommand(app, &run);
  AddRebalanceCommand(app, &run);
  AddDrainCommand(app, &run);
  AddBenchCommand(app, &run);
  AddPlanCommand(app, &run);
  AddDoctorCommand(app, &run);
  const base::ParsedFlags parsed = app.Parse(argc, argv);
  if (parsed.outcome == ParseOutcome::kError) return FailParse(parsed, argc > 1 ? argv[1] : "");
  if (parsed.outcome == ParseOutcome::kHelp) {
    std::fputs(parsed.text.c_str(), stdout);
    return kExitOk;
  }
  const int code = run();
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  return Fail(parsed.command, absl::DataLossError("standard output cannot be written"));
}

}  // namespace
}  // namespace conclave::client

int main(int argc, char** argv) {
  // gRPC's own notices on stderr say nothing that our one line does not.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  conclave::base::ReportUnreadableFiles("conclave");
  return conclave::client::Main(argc, argv);
}
