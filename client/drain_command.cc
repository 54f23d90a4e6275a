#include "client/drain_command.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>

#include "client/client.h"
#include "client/exit_code.h"
#include "client/json_shapes.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "drain";

struct Flags {
  ServerFlags server;
  std::optional<float> limit;
  bool resume = false;
  bool json = false;
};

int Run(const Flags& flags) {
  v1::DrainRequest request;
  if (flags.limit.has_value()) request.set_limit_seconds(*flags.limit);
  request.set_resume(flags.resume);
  absl::StatusOr<Client> connected = flags.server.Connect();
  if (!connected.ok()) return Fail(kName, connected.status());
  Client& client = *connected;
  const auto response = client.Drain(request, flags.server.call_options());
  if (!response.ok()) return FailCall(kName, flags.server.server, response.status());
  if (flags.json) {
    fmt::print("{}\n", Dump(DrainJson(*response)));
  } else if (!response->draining()) {
    fmt::print("serving        work is taken again\n");
  } else {
    fmt::print("drained        in {:.2f} s: {} calls were under way, {} were cut short\n",
               response->seconds(), response->calls(), response->cut());
  }
  return kExitOk;
}

}  // namespace

void AddDrainCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command =
      app.AddCommand(kName, "Have a server take no new work, and wait for what is under way");
  AddServerFlags(command, &flags->server);
  command.Add("--limit", &flags->limit, "What is under way may go on for so long [--drain-limit]")
      .Type("SECONDS");
  command.AddSwitch("--resume", &flags->resume, "Take work again");
  command.AddSwitch("--json", &flags->json, "Print one JSON object (docs/cli.md lists its fields)");
  command.SetFooter(
      "Example:\n"
      "  conclave drain --limit 60");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
