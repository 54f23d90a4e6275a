#include "client/rebalance_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>

#include "client/client.h"
#include "client/exit_code.h"
#include "client/format.h"
#include "client/json_shapes.h"
#include "client/server_flags.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "rebalance";

struct Flags {
  ServerFlags server;
  int replicas = 0;
  bool dry_run = false;
  bool json = false;
};

void PrintMoves(const v1::RebalanceResponse& response, bool dry_run) {
  Table table({"rank", "experts", "gained", "dropped", dry_run ? "to load" : "loaded"});
  for (int rank = 0; rank < response.ranks_size(); ++rank) {
    const v1::RankMoves& moves = response.ranks(rank);
    table.AddRow({std::to_string(rank), std::to_string(moves.held()),
                  std::to_string(moves.gained()), std::to_string(moves.dropped()),
                  FormatBytes(moves.loaded_bytes())});
  }
  fmt::print("{}", table.ToString());
}

void Print(const v1::RebalanceResponse& response, bool dry_run) {
  double sum_before = 0;
  double sum_after = 0;
  double most_before = 1;
  double most_after = 1;
  for (const auto& layer : response.layers()) {
    sum_before += layer.imbalance_before();
    sum_after += layer.imbalance_after();
    most_before = std::max(most_before, layer.imbalance_before());
    most_after = std::max(most_after, layer.imbalance_after());
  }
  const int layers = std::max(1, response.layers_size());
  fmt::print(
      "imbalance      {:.2f} -> {:.2f} (mean of {} layers), {:.2f} -> {:.2f} (worst layer)\n",
      sum_before / layers, sum_after / layers, response.layers_size(), most_before, most_after);
  if (dry_run) {
    fmt::print("dry run        nothing was moved\n\n");
  } else if (response.seconds() == 0) {
    fmt::print("nothing moves  no layer would gain from it\n\n");
  } else {
    fmt::print("moved          in {:.2f} s, epoch {}\n\n", response.seconds(), response.epoch());
  }
  PrintMoves(response, dry_run);
}

int Run(const Flags& flags) {
  v1::RebalanceRequest request;
  request.set_replicas(static_cast<uint32_t>(flags.replicas));
  request.set_dry_run(flags.dry_run);
  absl::StatusOr<Client> connected = flags.server.Connect();
  if (!connected.ok()) return Fail(kName, connected.status());
  Client& client = *connected;
  const auto response = client.Rebalance(request, flags.server.call_options());
  if (!response.ok()) return FailCall(kName, flags.server.server, response.status());
  if (flags.json) {
    fmt::print("{}\n", Dump(RebalanceJson(*response)));
  } else {
    Print(*response, flags.dry_run);
  }
  return kExitOk;
}

}  // namespace

void AddRebalanceCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command =
      app.AddCommand(kName, "Move experts between the ranks to even out the load observed");
  AddServerFlags(command, &flags->server);
  command
      .Add("--replicas", &flags->replicas,
           "Extra copies in each layer, for the experts that are asked for most")
      .Type("N")
      .NonNegative()
      .ShowDefault();
  command.AddSwitch("--dry-run", &flags->dry_run, "Say what would move, and move nothing");
  command.AddSwitch("--json", &flags->json, "Print one JSON object (docs/cli.md lists its fields)");
  command.SetFooter(
      "Example:\n"
      "  conclave rebalance --replicas 8 --dry-run");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
