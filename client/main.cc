// The `conclave` command. One file per subcommand; `conclave SUBCOMMAND --help` for each.

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <functional>
#include <string>

#include "base/mapped_files.h"
#include "client/classify_command.h"
#include "client/doctor_command.h"
#include "client/exit_code.h"
#include "client/generate_command.h"
#include "client/plan_command.h"
#include "client/serve_command.h"
#include "client/status_command.h"
#include "client/tokenize_command.h"

namespace conclave::client {
namespace {

int FailParse(const CLI::App& app, const CLI::ParseError& error, const std::string& first_word) {
  const auto parsed = app.get_subcommands();
  if (!parsed.empty()) return FailUsage(parsed.front()->get_name(), error.what());
  // CLI11 would say that a subcommand is missing.
  if (first_word.empty() || first_word.front() == '-') return FailUsage("", error.what());
  return FailUsage("", "'" + first_word + "' is not a subcommand");
}

int Main(int argc, char** argv) {
  CLI::App app("Serves gpt-oss models from a group of worker processes, and talks to the service.",
               "conclave");
  app.footer(
      "Example:\n"
      "  conclave serve --model demo/tiny_gpt_oss --workers 4 --listen 127.0.0.1:50051\n"
      "  conclave generate --server 127.0.0.1:50051 --prompt 'Once upon a time'");
  app.require_subcommand(1);
  app.fallthrough(false);
  std::function<int()> run;
  AddServeCommand(app, &run);
  AddGenerateCommand(app, &run);
  AddClassifyCommand(app, &run);
  AddTokenizeCommand(app, &run);
  AddStatusCommand(app, &run);
  AddPlanCommand(app, &run);
  AddDoctorCommand(app, &run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return FailParse(app, error, argc > 1 ? argv[1] : "");
  }
  return run();
}

}  // namespace
}  // namespace conclave::client

int main(int argc, char** argv) {
  // gRPC's own notices on stderr say nothing that our one line does not.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  conclave::base::ReportUnreadableFiles("conclave");
  return conclave::client::Main(argc, argv);
}
