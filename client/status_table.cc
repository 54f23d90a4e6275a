#include "client/status_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "client/format.h"

namespace conclave::client {
namespace {

// Experts of one rank: one range when all layers agree, else how many per layer.
std::string ExpertSummary(const v1::Rank& rank) {
  if (rank.layers().empty()) return "-";
  const auto ids = [](const v1::LayerExperts& layer) {
    return FormatRanges({layer.experts().data(), static_cast<size_t>(layer.experts_size())});
  };
  const std::string first = ids(rank.layers(0));
  const bool same = std::all_of(rank.layers().begin(), rank.layers().end(),
                                [&](const auto& layer) { return ids(layer) == first; });
  if (same) return first;
  const auto [least, most] = std::minmax_element(
      rank.layers().begin(), rank.layers().end(),
      [](const auto& a, const auto& b) { return a.experts_size() < b.experts_size(); });
  return least->experts_size() == most->experts_size()
             ? fmt::format("{} per layer", least->experts_size())
             : fmt::format("{} to {} per layer", least->experts_size(), most->experts_size());
}

uint64_t Load(const v1::Rank& rank) {
  uint64_t sum = 0;
  for (const auto& layer : rank.layers()) {
    sum = std::accumulate(layer.load().begin(), layer.load().end(), sum);
  }
  return sum;
}

std::string RanksText(const v1::GetClusterResponse& cluster) {
  uint64_t total = 0;
  for (const auto& rank : cluster.ranks()) total += Load(rank);
  Table table({"rank", "dp", "tp", "device", "pid", "weights", "kv", "free", "experts", "load",
               "exchange"});
  for (const auto& rank : cluster.ranks()) {
    const double share =
        total == 0 ? 0 : 100.0 * static_cast<double>(Load(rank)) / static_cast<double>(total);
    table.AddRow({std::to_string(rank.rank()), std::to_string(rank.dp_rank()),
                  std::to_string(rank.tp_rank()), rank.device(), std::to_string(rank.pid()),
                  FormatBytes(rank.memory().weight_bytes()), FormatBytes(rank.memory().kv_bytes()),
                  FormatBytes(rank.memory().free_bytes()), ExpertSummary(rank),
                  fmt::format("{:.0f} %", share), FormatBytes(rank.exchange_bytes())});
  }
  return table.ToString();
}

// Where the ranks' steps spent their time.
std::string TimesText(const v1::GetClusterResponse& cluster) {
  Table table({"rank", "compute s", "exchange s", "wait s", "compute", "exchange", "wait"});
  for (const auto& rank : cluster.ranks()) {
    const double move = std::max(0.0, rank.exchange_seconds() - rank.wait_seconds());
    const double all = rank.compute_seconds() + move + rank.wait_seconds();
    const auto share = [all](double part) {
      return fmt::format("{:.0f} %", all > 0 ? 100 * part / all : 0);
    };
    table.AddRow({std::to_string(rank.rank()), fmt::format("{:.2f}", rank.compute_seconds()),
                  fmt::format("{:.2f}", move), fmt::format("{:.2f}", rank.wait_seconds()),
                  share(rank.compute_seconds()), share(move), share(rank.wait_seconds())});
  }
  return table.ToString();
}

// How much more the most loaded rank computes than the mean of all, by layer: what `rebalance`
// evens out.
std::string BalanceText(const v1::GetClusterResponse& cluster) {
  double sum = 0;
  double worst = 0;
  int layers = 0;
  for (int layer = 0; !cluster.ranks().empty() && layer < cluster.ranks(0).layers_size(); ++layer) {
    double most = 0;
    double all = 0;
    for (const auto& rank : cluster.ranks()) {
      if (layer >= rank.layers_size()) return "";
      const auto& load = rank.layers(layer).load();
      const auto pairs =
          static_cast<double>(std::accumulate(load.begin(), load.end(), uint64_t{0}));
      most = std::max(most, pairs);
      all += pairs;
    }
    if (all == 0) continue;
    const double imbalance = most * cluster.ranks_size() / all;
    sum += imbalance;
    worst = std::max(worst, imbalance);
    ++layers;
  }
  if (layers == 0 || cluster.ranks_size() == 1) return "";
  return fmt::format("expert load    imbalance {:.2f} (mean of {} layers), {:.2f} (worst layer)\n",
                     sum / layers, layers, worst);
}

std::string BlocksText(const v1::KvBlocks& blocks) {
  return fmt::format("{} of {} ({} cached; at most {} for one sequence)", blocks.used(),
                     blocks.total(), blocks.cached(), blocks.max_per_sequence());
}

std::string HitText(const v1::PrefixCache& cache) {
  if (!cache.enabled()) return "off";
  const auto prompt = static_cast<double>(cache.prompt_tokens());
  const double rate = prompt > 0 ? static_cast<double>(cache.hit_tokens()) / prompt : 0;
  return fmt::format("{:.1f} % hits ({} of {} prompt tokens), {} blocks evicted", 100 * rate,
                     cache.hit_tokens(), cache.prompt_tokens(), cache.evicted_blocks());
}

std::string CountersText(const v1::Counters& counters) {
  std::string text;
  const auto out = std::back_inserter(text);
  fmt::format_to(out,
                 "requests       {} running, {} queued, {} finished, {} failed, {} cancelled\n",
                 counters.running(), counters.queued(), counters.requests_finished(),
                 counters.requests_failed(), counters.requests_cancelled());
  fmt::format_to(out, "computed       {} tokens in {} steps ({} dropped as overrun)\n",
                 counters.tokens_computed(), counters.steps(), counters.overrun_tokens());
  fmt::format_to(out, "plans          {} in flight at most\n", counters.max_plans_in_flight());
  fmt::format_to(
      out, "queue          {:.2f} s the longest wait, {} refused early, {} preemptions\n",
      counters.max_queue_seconds(), counters.requests_refused_early(), counters.preemptions());
  fmt::format_to(out, "prefix cache   {}\n", HitText(counters.prefix_cache()));
  fmt::format_to(out, "KV blocks      full layers {}\n", BlocksText(counters.full_blocks()));
  fmt::format_to(out, "               sliding layers {}\n", BlocksText(counters.sliding_blocks()));
  return text;
}

}  // namespace

std::string StatusText(const v1::GetClusterResponse& cluster) {
  std::string text = fmt::format("state          {}", v1::ClusterState_Name(cluster.state()));
  const auto out = std::back_inserter(text);
  if (cluster.state() == v1::LOADING) {
    fmt::format_to(out, " ({:.0f} %)", 100 * cluster.load_progress());
  }
  if (cluster.draining()) text += ", draining";
  fmt::format_to(out, ", epoch {}, {} ranks (dp {} x tp {})\n", cluster.epoch(),
                 cluster.ranks_size(), cluster.dp(), cluster.tp());
  if (!cluster.problem().empty()) fmt::format_to(out, "problem        {}\n", cluster.problem());
  return text + "\n" + RanksText(cluster) + "\n" + TimesText(cluster) + "\n" +
         BalanceText(cluster) + CountersText(cluster.counters());
}

std::string RatesText(const v1::GetClusterResponse& before, const v1::GetClusterResponse& now,
                      absl::Duration between) {
  const double seconds = absl::ToDoubleSeconds(between);
  const auto rate = [seconds](uint64_t from, uint64_t to) {
    return seconds > 0 && to >= from ? static_cast<double>(to - from) / seconds : 0;
  };
  const v1::Counters& a = before.counters();
  const v1::Counters& b = now.counters();
  return fmt::format(
      "rates          {:.0f} tokens/s computed, {:.1f} steps/s, {:.1f} requests/s finished\n",
      rate(a.tokens_computed(), b.tokens_computed()), rate(a.steps(), b.steps()),
      rate(a.requests_finished(), b.requests_finished()));
}

}  // namespace conclave::client
