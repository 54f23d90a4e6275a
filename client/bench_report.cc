#include "client/bench_report.h"

#include <fmt/format.h>

#include <cstdlib>
#include <utility>

#include "client/format.h"

namespace conclave::client {
namespace {

// `count` in each second; none without time.
std::optional<double> Rate(int64_t count, absl::Duration length) {
  if (length <= absl::ZeroDuration()) return std::nullopt;
  return static_cast<double>(count) / absl::ToDoubleSeconds(length);
}

std::optional<double> SteadyRate(const RunStatistics& run) {
  return Rate(run.steady().tokens(), run.steady().length());
}

// With more streams the prefills of several requests share steps, and the rate of one says nothing.
std::optional<double> PrefillRate(const RunStatistics& run) {
  if (run.shape().streams != 1 || run.prefill().count() == 0) return std::nullopt;
  return Rate(run.shape().input_len, run.prefill().Mean());
}

// Six digits: what is beyond them is noise.
Json RateJson(std::optional<double> rate) {
  if (!rate.has_value()) return nullptr;
  return std::strtod(fmt::format("{:.6g}", *rate).c_str(), nullptr);
}

Json SecondsJson(absl::Duration duration) {
  return static_cast<double>(absl::ToInt64Nanoseconds(duration)) / 1e9;
}

Json DistributionJson(const Distribution& distribution) {
  if (distribution.count() == 0) return nullptr;
  return {{"count", distribution.count()},
          {"mean", SecondsJson(distribution.Mean())},
          {"p50", SecondsJson(distribution.Percentile(50))},
          {"p90", SecondsJson(distribution.Percentile(90))},
          {"p99", SecondsJson(distribution.Percentile(99))},
          {"max", SecondsJson(distribution.Percentile(100))}};
}

Json SteadyJson(const RunStatistics& run) {
  const SteadyWindow& steady = run.steady();
  if (steady.windows() == 0) return nullptr;
  return {{"tokens_per_second", RateJson(SteadyRate(run))},
          {"tokens", steady.tokens()},
          {"seconds", SecondsJson(steady.length())},
          {"windows", steady.windows()}};
}

template <typename T>
Json OptionalJson(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json(nullptr);
}

Json RunJson(const BenchRun& measured) {
  const RunStatistics& run = measured.statistics;
  const absl::Duration length = run.length();
  return {
      {"concurrency", run.shape().streams},
      {"warmup", measured.warmup},
      {"completed", run.completed()},
      {"failed", run.failed()},
      {"cancelled", run.cancelled()},
      {"error", measured.error.ok()
                    ? Json(nullptr)
                    : Json(fmt::format("{}: {}", absl::StatusCodeToString(measured.error.code()),
                                       std::string(measured.error.message())))},
      {"seconds", SecondsJson(length)},
      {"prompt_tokens", run.prompt_tokens()},
      {"output_tokens", run.output_tokens()},
      {"requests_per_second", RateJson(Rate(run.completed(), length))},
      {"output_tokens_per_second", RateJson(Rate(run.output_tokens(), length))},
      {"total_tokens_per_second",
       RateJson(Rate(run.prompt_tokens() + run.output_tokens(), length))},
      {"steady", SteadyJson(run)},
      {"prefill_tokens_per_second", RateJson(PrefillRate(run))},
      {"ttft_seconds", DistributionJson(run.first_token())},
      {"itl_seconds", DistributionJson(run.between_tokens())},
      {"tpot_seconds", DistributionJson(run.per_token())},
      {"e2e_seconds", DistributionJson(run.whole())},
      {"queue_seconds", DistributionJson(run.queue())},
      {"prefill_seconds", DistributionJson(run.prefill())}};
}

Json ModelJson(const v1::GetModelResponse& model) {
  return {{"name", model.name()},
          {"architecture", model.architecture()},
          {"layers", model.num_layers()},
          {"experts", model.num_experts()},
          {"experts_per_token", model.experts_per_token()},
          {"hidden_size", model.hidden_size()},
          {"vocab_size", model.vocab_size()},
          {"context_length", model.context_length()},
          {"checkpoint_layout", model.experts().checkpoint_layout()},
          {"expert_format", model.experts().resident_format()},
          {"kernel", model.experts().kernel()},
          {"fallback_reason", model.experts().fallback_reason()},
          {"mxfp4_launches", model.experts().mxfp4_launches()},
          {"max_running", model.limits().max_running()},
          {"max_step_tokens", model.limits().max_step_tokens()}};
}

Json ClusterFactsJson(const std::optional<v1::GetClusterResponse>& cluster) {
  if (!cluster.has_value()) return nullptr;
  Json devices = Json::array();
  for (const auto& rank : cluster->ranks()) devices.push_back(rank.device());
  return {{"dp", cluster->dp()}, {"tp", cluster->tp()}, {"devices", std::move(devices)}};
}

Json SettingsJson(const BenchSettings& settings) {
  return {{"input_len", settings.input_len},
          {"output_len", settings.output_len},
          {"requests", OptionalJson(settings.requests)},
          {"duration_seconds", OptionalJson(settings.duration_seconds)},
          {"warmup", OptionalJson(settings.warmup)},
          {"temperature", ShortFloat(settings.temperature)},
          {"seed", settings.seed}};
}

std::string RateCell(std::optional<double> rate) {
  if (!rate.has_value()) return "-";
  return fmt::format("{:.{}f}", *rate, *rate < 10 ? 2 : 1);
}

std::string Rates(const std::vector<BenchRun>& runs) {
  Table table({"streams", "requests", "failed", "seconds", "output tok/s", "total tok/s",
               "requests/s", "steady tok/s", "prefill tok/s"});
  for (const BenchRun& measured : runs) {
    const RunStatistics& run = measured.statistics;
    const absl::Duration length = run.length();
    table.AddRow({std::to_string(run.shape().streams), std::to_string(run.completed()),
                  std::to_string(run.failed()),
                  fmt::format("{:.2f}", absl::ToDoubleSeconds(length)),
                  RateCell(Rate(run.output_tokens(), length)),
                  RateCell(Rate(run.prompt_tokens() + run.output_tokens(), length)),
                  RateCell(Rate(run.completed(), length)), RateCell(SteadyRate(run)),
                  RateCell(PrefillRate(run))});
  }
  return table.ToString();
}

void AddLatency(Table& table, int streams, const char* name, const Distribution& distribution) {
  if (distribution.count() == 0) return;
  const auto millis = [](absl::Duration value) {
    return fmt::format("{:.2f}", absl::ToDoubleMilliseconds(value));
  };
  table.AddRow({std::to_string(streams), name, millis(distribution.Mean()),
                millis(distribution.Percentile(50)), millis(distribution.Percentile(90)),
                millis(distribution.Percentile(99)), millis(distribution.Percentile(100))});
}

std::string Latencies(const std::vector<BenchRun>& runs) {
  Table table({"streams", "milliseconds", "mean", "p50", "p90", "p99", "max"});
  for (const BenchRun& measured : runs) {
    const RunStatistics& run = measured.statistics;
    const int streams = run.shape().streams;
    AddLatency(table, streams, "first token (TTFT)", run.first_token());
    AddLatency(table, streams, "between tokens (ITL)", run.between_tokens());
    AddLatency(table, streams, "per output token (TPOT)", run.per_token());
    AddLatency(table, streams, "whole request", run.whole());
    AddLatency(table, streams, "queue, on the server", run.queue());
    AddLatency(table, streams, "prefill, on the server", run.prefill());
  }
  return table.ToString();
}

std::string Heading(const BenchReport& report) {
  const v1::GetModelResponse& model = report.model;
  std::string text =
      fmt::format("model     {} ({}), experts {}, kernel {}\n", model.name(), model.architecture(),
                  model.experts().resident_format(), model.experts().kernel());
  if (report.cluster.has_value() && !report.cluster->ranks().empty()) {
    text += fmt::format("ranks     dp {} x tp {}, {}\n", report.cluster->dp(), report.cluster->tp(),
                        report.cluster->ranks(0).device());
  }
  const BenchSettings& settings = report.settings;
  text += fmt::format("requests  {} prompt + {} generated tokens, temperature {}, seed {}\n",
                      settings.input_len, settings.output_len, settings.temperature, settings.seed);
  return text;
}

}  // namespace

Json BenchJson(const BenchReport& report) {
  Json runs = Json::array();
  for (const BenchRun& run : report.runs) runs.push_back(RunJson(run));
  return {{"server", report.settings.server},
          {"model", ModelJson(report.model)},
          {"cluster", ClusterFactsJson(report.cluster)},
          {"settings", SettingsJson(report.settings)},
          {"runs", std::move(runs)},
          {"interrupted", report.interrupted}};
}

std::string BenchText(const BenchReport& report) {
  if (report.runs.empty()) return Heading(report);
  return fmt::format("{}\n{}\n{}", Heading(report), Rates(report.runs), Latencies(report.runs));
}

}  // namespace conclave::client
