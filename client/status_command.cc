#include "client/status_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "client/client.h"
#include "client/exit_code.h"
#include "client/json_shapes.h"
#include "client/server_flags.h"
#include "client/status_table.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "status";
constexpr char kDefaultInterval[] = "2";
constexpr double kLeastInterval = 0.05;
constexpr double kMostInterval = 86'400;

// Home, and away with what was below the last line.
constexpr char kBegin[] = "\x1b[H";
constexpr char kEraseRest[] = "\x1b[K";
constexpr char kEraseBelow[] = "\x1b[J";

struct Flags {
  ServerFlags server{.timeout_seconds = 10};
  bool json = false;
  std::string watch;  // empty: once
};

// Every line replaces the one that was there: no flicker.
void Redraw(const std::string& text) {
  std::string frame = kBegin;
  for (const char c : text) {
    if (c == '\n') frame += kEraseRest;
    frame += c;
  }
  fmt::print("{}{}", frame, kEraseBelow);
}

// Until the process is interrupted.
int Watch(const Flags& flags, double seconds) {
  const bool terminal = !flags.json && isatty(STDOUT_FILENO) != 0;
  absl::StatusOr<Client> connected = flags.server.Connect();
  if (!connected.ok()) return Fail(kName, connected.status());
  Client& client = *connected;
  v1::GetClusterResponse before;
  absl::Time looked;
  for (bool first = true;; first = false) {
    const auto cluster = client.GetCluster(flags.server.call_options());
    const absl::Time now = absl::Now();
    if (!cluster.ok()) {
      // The service may come back; one that was never there is a mistake.
      const int code = FailCall(kName, flags.server.server, cluster.status());
      if (first) return code;
    } else if (flags.json) {
      fmt::print("{}\n", Dump(ClusterJson(*cluster)));
    } else {
      const std::string rates = first ? "" : RatesText(before, *cluster, now - looked);
      const std::string text = absl::FormatTime("%Y-%m-%d %H:%M:%S", now, absl::LocalTimeZone()) +
                               "  " + flags.server.server + "\n" + rates + StatusText(*cluster);
      if (terminal) {
        if (first) fmt::print("{}{}", kBegin, kEraseBelow);
        Redraw(text);
      } else {
        fmt::print("{}\n", text);
      }
    }
    if (cluster.ok()) before = *cluster;
    looked = now;
    // Whoever reads this is gone.
    if (std::fflush(stdout) != 0) return kExitOk;
    absl::SleepFor(absl::Seconds(seconds));
  }
}

int Run(const Flags& flags) {
  if (!flags.watch.empty()) {
    double seconds = 0;
    const char* end = flags.watch.data() + flags.watch.size();
    if (std::from_chars(flags.watch.data(), end, seconds).ptr != end) seconds = -1;
    if (!(seconds >= kLeastInterval && seconds <= kMostInterval)) {
      return FailUsage(kName, fmt::format("--watch {}: seconds between {} and {}", flags.watch,
                                          kLeastInterval, kMostInterval));
    }
    return Watch(flags, seconds);
  }
  absl::StatusOr<Client> connected = flags.server.Connect();
  if (!connected.ok()) return Fail(kName, connected.status());
  Client& client = *connected;
  const auto cluster = client.GetCluster(flags.server.call_options());
  if (!cluster.ok()) return FailCall(kName, flags.server.server, cluster.status());
  fmt::print("{}", flags.json ? Dump(ClusterJson(*cluster)) + "\n" : StatusText(*cluster));
  return kExitOk;
}

}  // namespace

void AddStatusCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command = app.AddCommand(kName, "Show the workers behind a server, and counters");
  AddServerFlags(command, &flags->server);
  command
      .Add(
          "--watch", [flags](const std::string& given) { flags->watch = given; },
          "Again every so many seconds, as a live table on a terminal")
      .Type("SECONDS")
      .ValueOptional(kDefaultInterval);
  command.AddSwitch("--json", &flags->json, "Print one JSON object (docs/cli.md lists its fields)");
  command.SetFooter(
      "Example:\n"
      "  conclave status --server 127.0.0.1:50051 --watch");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
