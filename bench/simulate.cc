// What a step would take in other shapes, on other links, under other routing, without the
// machines.
//
//   bazel build //bench:simulate
//   bazel-bin/bench/simulate --config bench/configs/gpt_oss_120b --shapes 1x1 2x1 1x2 8x1
//   bazel-bin/bench/simulate ... --zipf 1 --placement load --replicas 16 --per-rank
//   conclave status --json > status.json; bazel-bin/bench/simulate ... --status status.json
//
// The routing is recorded (--routing, a file as of bench/routing_trace.h), drawn from the load of a
// running server (--status), or drawn from a Zipf distribution (--zipf). With --placement load the
// experts are placed by the first half of the tokens, and the second half is replayed. Each line
// is the mean of --steps steps, each of other tokens. docs/scaling.md explains the model.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/flags.h"
#include "base/status_macros.h"
#include "bench/step_simulator.h"
#include "model/model_source.h"

namespace conclave::bench {
namespace {

constexpr uint32_t kMaxBatch = 1 << 20;

struct Flags {
  std::string config = "bench/configs/gpt_oss_120b";
  int layers = 0;
  std::vector<std::string> shapes = {"1x1", "2x1", "1x2", "4x1", "8x1"};
  std::vector<uint32_t> batches = {1, 8, 32, 128};
  int context = 1024;
  int prefill = 0;
  std::string device = "h100";
  std::string link = "nvlink";
  std::string exchange = "auto";
  std::string routing;
  std::string status;
  double zipf = 0;
  uint64_t seed = 1;
  int tokens = 4096;
  std::string placement = "balanced";
  int replicas = 0;
  int steps = 8;
  bool per_rank = false;
  std::string write_routing;
};

void Declare(base::FlagSet& app, Flags& flags) {
  app.Add("--config", &flags.config, "folder of a config.json").Type("DIR").ShowDefault();
  app.Add("--layers", &flags.layers, "the first N layers; 0: all").Range(0, 1 << 20);
  app.Add("--shapes", &flags.shapes, "data x tensor parallel").Type("DPxTP...");
  app.Add("--batches", &flags.batches, "sequences of the whole world");
  app.Add("--context", &flags.context, "keys that a token attends to").Range(1, 1 << 24);
  app.Add("--prefill", &flags.prefill, "a chunk of N tokens of one sequence instead of decoding")
      .Range(0, 1 << 20);
  app.Add("--device", &flags.device, "h100, or cpu2").OneOf({"h100", "cpu2"}).ShowDefault();
  app.Add("--link", &flags.link, "between ranks")
      .OneOf({"nvlink", "infiniband", "loopback"})
      .ShowDefault();
  app.Add("--exchange", &flags.exchange, "auto, fixed, exact or replicated").ShowDefault();
  app.Add("--routing", &flags.routing, "recorded routing").Type("FILE");
  app.Add("--status", &flags.status, "draw from the load that `conclave status --json` printed")
      .Type("FILE");
  app.Add("--zipf", &flags.zipf, "draw from this exponent; 0: all experts alike").ShowDefault();
  app.Add("--seed", &flags.seed, "of the draw").ShowDefault();
  app.Add("--tokens", &flags.tokens, "to draw").Range(1, 1 << 20).ShowDefault();
  app.Add("--placement", &flags.placement, "balanced, or by load: the first half of the tokens'")
      .OneOf({"balanced", "load"})
      .ShowDefault();
  app.Add("--replicas", &flags.replicas, "extra experts of a layer, with --placement load")
      .Range(0, 1 << 20);
  app.Add("--steps", &flags.steps, "to average").Range(1, 1 << 20).ShowDefault();
  app.AddSwitch("--per-rank", &flags.per_rank, "a second table: what each rank does");
  app.Add("--write-routing", &flags.write_routing, "write the routing here too").Type("FILE");
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(path + " cannot be read");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::Status CheckSizes(const model::Config& config, const RoutingTrace& trace) {
  if (trace.layers == config.num_layers && trace.experts == config.num_experts &&
      trace.experts_per_token == config.experts_per_token && trace.tokens() > 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(fmt::format(
      "the routing has {} tokens, {} layers and {} of {} experts; the model {} layers and {} of {}",
      trace.tokens(), trace.layers, trace.experts_per_token, trace.experts, config.num_layers,
      config.experts_per_token, config.num_experts));
}

absl::StatusOr<RoutingTrace> MakeTrace(const Flags& flags, const model::Config& config) {
  if (!flags.routing.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.routing));
    return ParseRoutingTrace(text);
  }
  if (!flags.status.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.status));
    ASSIGN_OR_RETURN(const std::vector<uint64_t> load, LoadFromStatus(config, text));
    return DrawFromLoad(config, load, flags.tokens, flags.seed);
  }
  return DrawZipf(config, flags.tokens, flags.zipf, flags.seed);
}

absl::StatusOr<model::ParallelShape> ParseShape(const model::Config& config,
                                                const std::string& text) {
  model::ParallelShape shape;
  if (std::sscanf(text.c_str(), "%dx%d", &shape.dp, &shape.tp) != 2 || shape.dp < 1 ||
      shape.tp < 1) {
    return absl::InvalidArgumentError(fmt::format("--shapes: '{}' is not DPxTP", text));
  }
  RETURN_IF_ERROR(CheckShape(config, shape));
  return shape;
}

const char* ModeName(internal::v1::ExchangeMode mode) {
  switch (mode) {
    case internal::v1::EXCHANGE_MODE_FIXED:
      return "fixed";
    case internal::v1::EXCHANGE_MODE_EXACT:
      return "exact";
    case internal::v1::EXCHANGE_MODE_REPLICATED:
      return "replicated";
    default:
      return "-";
  }
}

template <typename T>
void Add(const std::vector<T>& more, std::vector<T>* sum) {
  sum->resize(more.size());
  for (size_t i = 0; i < more.size(); ++i) (*sum)[i] += more[i];
}

// Sums of `steps` steps.
struct Sums {
  StepPrediction total;
  int steps = 0;

  void Count(const StepPrediction& step) {
    total.mode = step.mode;
    total.seconds += step.seconds;
    total.attention_seconds += step.attention_seconds;
    total.expert_seconds += step.expert_seconds;
    total.exchange_seconds += step.exchange_seconds;
    total.other_seconds += step.other_seconds;
    total.pair_imbalance += step.pair_imbalance;
    total.time_imbalance += step.time_imbalance;
    Add(step.busy, &total.busy);
    Add(step.sent_bytes, &total.sent_bytes);
    Add(step.copies, &total.copies);
    Add(step.pairs, &total.pairs);
    ++steps;
  }
};

class Report {
 public:
  Report(const Flags& flags, const model::Config& config, const RoutingTrace& trace,
         coordinator::ExchangeChoice choice)
      : flags_(flags), config_(config), trace_(trace), choice_(choice) {}

  void Line(const model::ParallelShape& shape, const model::Placement& placement, int batch) {
    const Sums sums = Simulate(shape, placement, batch);
    const StepPrediction& total = sums.total;
    const double milli = 1e3 / sums.steps;
    const auto [least, most] = std::minmax_element(total.busy.begin(), total.busy.end());
    const int tokens = flags_.prefill > 0 ? flags_.prefill : batch;
    fmt::print(
        "| {} x {} | {} | {} | {:.2f} | {:.0f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | "
        "{:.2f} "
        "| {:.0f} to {:.0f} | {:.2f} |\n",
        shape.dp, shape.tp, tokens, ModeName(total.mode), total.seconds * milli,
        tokens * sums.steps / total.seconds, total.attention_seconds * milli,
        total.expert_seconds * milli, total.exchange_seconds * milli, total.other_seconds * milli,
        total.pair_imbalance / sums.steps, total.time_imbalance / sums.steps,
        100 * *least / total.seconds, 100 * *most / total.seconds,
        1e-6 *
            static_cast<double>(
                *std::max_element(total.sent_bytes.begin(), total.sent_bytes.end())) /
            sums.steps);
    if (flags_.per_rank) details_ += Details(shape, tokens, sums);
  }

  const std::string& details() const { return details_; }

 private:
  Sums Simulate(const model::ParallelShape& shape, const model::Placement& placement,
                int batch) const {
    const Simulator simulator(config_, placement, shape, Device(shape), Link(), choice_);
    SimulatedStep step = {std::vector<int>(shape.dp), flags_.context, flags_.prefill > 0};
    for (int group = 0; group < shape.dp; ++group) {
      step.rows[group] = batch / shape.dp + (group < batch % shape.dp ? 1 : 0);
    }
    if (step.prefill) {
      std::fill(step.rows.begin(), step.rows.end(), 0);
      step.rows[0] = flags_.prefill;
    }
    const int replayed = trace_.tokens() - FirstReplayed();
    Sums sums;
    for (int i = 0; i < flags_.steps; ++i) {
      const int first = FirstReplayed() + static_cast<int>(int64_t{replayed} * i / flags_.steps);
      sums.Count(simulator.Run(trace_, first, step));
    }
    return sums;
  }

  int FirstReplayed() const { return flags_.placement == "load" ? trace_.tokens() / 2 : 0; }
  DeviceProfile Device(const model::ParallelShape& shape) const {
    return flags_.device == "h100" ? H100Device() : TwoCoreCpu(shape.world());
  }
  LinkProfile Link() const {
    if (flags_.link == "nvlink") return NvLink();
    return flags_.link == "infiniband" ? InfiniBand() : Loopback();
  }

  static std::string Details(const model::ParallelShape& shape, int tokens, const Sums& sums) {
    std::string text;
    for (int rank = 0; rank < shape.world(); ++rank) {
      text += fmt::format("| {} x {} | {} | {} | {:.0f} | {:.1f} | {:.1f} | {:.0f} |\n", shape.dp,
                          shape.tp, tokens, rank, 100 * sums.total.busy[rank] / sums.total.seconds,
                          static_cast<double>(sums.total.pairs[rank]) / sums.steps,
                          static_cast<double>(sums.total.copies[rank]) / sums.steps,
                          static_cast<double>(sums.total.sent_bytes[rank]) / sums.steps);
    }
    return text;
  }

  const Flags& flags_;
  const model::Config& config_;
  const RoutingTrace& trace_;
  const coordinator::ExchangeChoice choice_;
  std::string details_;
};

absl::Status RunAll(const Flags& flags) {
  model::ModelSource source = {flags.config, std::nullopt};
  source.random = model::RandomWeights{.seed = 0, .layers = flags.layers};
  ASSIGN_OR_RETURN(const model::Config config, model::LoadConfig(source));
  ASSIGN_OR_RETURN(const coordinator::ExchangeChoice choice,
                   coordinator::ParseExchangeChoice(flags.exchange));
  ASSIGN_OR_RETURN(const RoutingTrace trace, MakeTrace(flags, config));
  RETURN_IF_ERROR(CheckSizes(config, trace));
  if (!flags.write_routing.empty()) {
    std::ofstream file(flags.write_routing);
    file << FormatRoutingTrace(trace);
    if (!file.flush()) return absl::UnavailableError("cannot write " + flags.write_routing);
  }
  const std::vector<uint64_t> load = LoadOf(trace, 0, (trace.tokens() + 1) / 2);
  fmt::print(
      "| dp x tp | tokens | mode | ms | tokens/s | attention | experts | exchange | other | pairs, "
      "most / mean | time | busy % | MB sent "
      "|\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  Report report(flags, config, trace, choice);
  for (const std::string& text : flags.shapes) {
    ASSIGN_OR_RETURN(const model::ParallelShape shape, ParseShape(config, text));
    const model::Placement placement =
        flags.placement == "load"
            ? model::PlacementFromLoad(config, shape.world(), load, flags.replicas)
            : model::BalancedPlacement(config, shape.world());
    RETURN_IF_ERROR(coordinator::ExchangePolicy::Create(choice, shape, 1).status());
    for (const uint32_t batch : flags.batches) {
      if (batch < 1 || batch > kMaxBatch) {
        return absl::InvalidArgumentError(fmt::format("--batches: from 1 to {}", kMaxBatch));
      }
      report.Line(shape, placement, static_cast<int>(batch));
      if (flags.prefill > 0) break;
    }
  }
  if (flags.per_rank) {
    fmt::print("\n| dp x tp | tokens | rank | busy % | pairs | copies sent | bytes sent |\n");
    fmt::print("|---|---|---|---|---|---|---|\n{}", report.details());
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  base::FlagSet app("Predicts the step time of a group of ranks.", "simulate");
  Flags flags;
  Declare(app, flags);
  const base::ParsedFlags parsed = app.Parse(argc, argv);
  if (parsed.outcome == base::ParsedFlags::Outcome::kHelp) {
    fmt::print("{}", parsed.text);
    return 0;
  }
  if (parsed.outcome == base::ParsedFlags::Outcome::kError) {
    fmt::print(stderr, "simulate: {} (see --help)\n", parsed.text);
    return 2;
  }
  const absl::Status status = RunAll(flags);
  if (status.ok()) return 0;
  fmt::print(stderr, "simulate: {}\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) { return conclave::bench::Main(argc, argv); }
