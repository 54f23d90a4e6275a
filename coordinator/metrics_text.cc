#include "coordinator/metrics_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "base/version.h"

namespace conclave::coordinator {
namespace {

using Label = std::pair<std::string_view, std::string>;
using Labels = std::initializer_list<Label>;

// Writes families: a heading, then its samples.
class Writer {
 public:
  void Family(std::string_view name, std::string_view type, std::string_view help) {
    name_ = fmt::format("conclave_{}", name);
    fmt::format_to(out(), "# HELP {0} {2}\n# TYPE {0} {1}\n", name_, type, help);
  }
  void Counter(std::string_view name, std::string_view help, uint64_t value) {
    Family(name, "counter", help);
    Sample({}, value);
  }
  template <typename Number>
  void Gauge(std::string_view name, std::string_view help, Number value) {
    Family(name, "gauge", help);
    Sample({}, value);
  }
  template <typename Number>
  void Sample(Labels labels, Number value) {
    text_ += name_;
    AppendLabels(labels, "");
    fmt::format_to(out(), " {}\n", value);
  }
  // Of the last family, which is a histogram.
  void Samples(Labels labels, const Histogram& histogram) {
    uint64_t below = 0;
    for (size_t i = 0; i < histogram.counts.size(); ++i) {
      below += histogram.counts[i];
      const bool last = i == Histogram::kBounds.size();
      text_ += name_ + "_bucket";
      AppendLabels(labels, last ? "+Inf" : fmt::format("{}", Histogram::kBounds[i]));
      fmt::format_to(out(), " {}\n", below);
    }
    text_ += name_ + "_sum";
    AppendLabels(labels, "");
    fmt::format_to(out(), " {}\n{}_count", histogram.sum, name_);
    AppendLabels(labels, "");
    fmt::format_to(out(), " {}\n", below);
  }
  void OneHistogram(std::string_view name, std::string_view help, const Histogram& histogram) {
    Family(name, "histogram", help);
    Samples({}, histogram);
  }
  std::string Take() { return std::move(text_); }

 private:
  std::back_insert_iterator<std::string> out() { return std::back_inserter(text_); }

  void AppendLabels(Labels labels, const std::string& bound) {
    if (labels.size() == 0 && bound.empty()) return;
    char before = '{';
    for (const auto& [name, value] : labels) {
      fmt::format_to(out(), "{}{}=\"{}\"", before, name, Escaped(value));
      before = ',';
    }
    if (!bound.empty()) fmt::format_to(out(), "{}le=\"{}\"", before, bound);
    text_ += '}';
  }

  static std::string Escaped(std::string_view value) {
    std::string escaped;
    for (const char c : value) {
      if (c == '\\' || c == '"') escaped += '\\';
      if (c == '\n') {
        escaped += "\\n";
      } else {
        escaped += c;
      }
    }
    return escaped;
  }

  std::string text_;
  std::string name_;
};

void WriteGroup(const EngineReport& report, const ProcessFacts& facts, Writer& out) {
  const v1::GetClusterResponse& cluster = report.cluster;
  const bool any = cluster.ranks_size() > 0;
  out.Family("build_info", "gauge", "What runs, always 1.");
  out.Sample({{"version", base::kVersion},
              {"model", facts.model},
              {"device", any ? cluster.ranks(0).device() : ""},
              {"kernel", any ? cluster.ranks(0).kernel() : ""}},
             1);
  out.Gauge("ready", "Whether requests are taken, as grpc.health.v1 says.", facts.ready ? 1 : 0);
  out.Gauge("draining", "Whether new work is refused because of a drain.",
            cluster.draining() ? 1 : 0);
  out.Family("group_state", "gauge", "1 for the state that the group of workers is in.");
  for (int state = v1::FORMING; state <= v1::RECOVERING; ++state) {
    out.Sample({{"state", v1::ClusterState_Name(static_cast<v1::ClusterState>(state))}},
               cluster.state() == state ? 1 : 0);
  }
  out.Gauge("epoch", "Number of the epoch.", cluster.epoch());
  out.Family("workers", "gauge", "Workers that are registered.");
  out.Sample({{"role", "rank"}}, cluster.ranks_size());
  out.Sample({{"role", "spare"}}, report.spares);
  out.Gauge("workers_wanted", "Ranks of the group.", facts.workers_wanted);
  out.Gauge("load_progress", "Fraction of the weights loaded, the least over the ranks.",
            cluster.load_progress());
}

void WriteCalls(const CallAccount& calls, Writer& out) {
  std::array<uint64_t, kCodes> by_code = {};
  out.Family("requests_total", "counter", "Calls that have ended.");
  for (size_t method = 0; method < kMethods; ++method) {
    for (size_t code = 0; code < kCodes; ++code) {
      const uint64_t ended = calls.ended(static_cast<Method>(method), code);
      by_code[code] += ended;
      // OK is there from the start, for rates to begin at.
      if (ended == 0 && code != 0) continue;
      out.Sample({{"method", MethodName(static_cast<Method>(method))}, {"code", CodeName(code)}},
                 ended);
    }
  }
  out.Family("errors_total", "counter", "Calls that have ended with another code than OK.");
  for (size_t code = 1; code < kCodes; ++code) {
    out.Sample({{"code", CodeName(code)}}, by_code[code]);
  }
  out.Family("calls_open", "gauge", "Calls under way.");
  for (size_t method = 0; method < kMethods; ++method) {
    out.Sample({{"method", MethodName(static_cast<Method>(method))}},
               calls.open(static_cast<Method>(method)));
  }
}

void WriteSequences(const EngineReport& report, const ProcessFacts& facts, Writer& out) {
  const v1::Counters& counters = report.cluster.counters();
  out.Family("sequences_total", "counter", "Completions and inputs that have ended.");
  out.Sample({{"outcome", "finished"}}, counters.requests_finished());
  out.Sample({{"outcome", "failed"}}, counters.requests_failed());
  out.Sample({{"outcome", "cancelled"}}, counters.requests_cancelled());
  out.Gauge("queued", "Sequences that wait for their admission.", counters.queued());
  out.Gauge("queue_limit", "The most that may wait.", facts.queue_limit);
  out.Gauge("running", "Sequences that are computed now.", counters.running());
  out.Gauge("running_limit", "The most that may be.", facts.running_limit);
  out.Counter("refused_early_total", "Sequences refused because of their deadline.",
              counters.requests_refused_early());
  out.Counter("preemptions_total", "Times that a sequence gave up its KV blocks.",
              counters.preemptions());
  out.Counter("overrun_tokens_total", "Results dropped: the sequence had ended.",
              counters.overrun_tokens());
}

void WriteKvBlocks(const v1::Counters& counters, Writer& out) {
  const std::array<std::pair<const char*, const v1::KvBlocks*>, 2> kinds = {
      {{"full", &counters.full_blocks()}, {"sliding", &counters.sliding_blocks()}}};
  out.Family("kv_blocks", "gauge", "KV blocks by kind of layer and what they are used for.");
  for (const auto& [kind, blocks] : kinds) {
    const uint64_t held = blocks->used() + blocks->cached();
    out.Sample({{"kind", kind}, {"state", "used"}}, blocks->used());
    out.Sample({{"kind", kind}, {"state", "cached"}}, blocks->cached());
    out.Sample({{"kind", kind}, {"state", "free"}},
               blocks->total() - std::min(held, uint64_t{blocks->total()}));
  }
  out.Family("kv_blocks_capacity", "gauge", "KV blocks that there are.");
  for (const auto& [kind, blocks] : kinds) out.Sample({{"kind", kind}}, blocks->total());
  const v1::PrefixCache& cache = counters.prefix_cache();
  out.Counter("prefix_cache_prompt_tokens_total", "Prompt tokens of sequences admitted.",
              cache.prompt_tokens());
  out.Counter("prefix_cache_hit_tokens_total", "Of these, found in the prefix cache.",
              cache.hit_tokens());
  out.Counter("prefix_cache_evicted_blocks_total", "Blocks that the prefix cache gave up.",
              cache.evicted_blocks());
}

void WriteTokens(const EngineReport& report, Writer& out) {
  const v1::Counters& counters = report.cluster.counters();
  const EngineMetrics& metrics = report.metrics;
  out.Family("tokens_total", "counter", "Tokens by kind.");
  out.Sample({{"kind", "prompt"}}, counters.prefix_cache().prompt_tokens());
  out.Sample({{"kind", "cached"}}, counters.prefix_cache().hit_tokens());
  out.Sample({{"kind", "generated"}}, metrics.generated_tokens);
  out.Sample({{"kind", "classified"}}, metrics.classified_tokens);
  out.Counter("tokens_computed_total", "Rows of all steps.", counters.tokens_computed());
  out.Counter("steps_total", "Steps that every rank has answered.", counters.steps());
  out.Gauge("plans_in_flight", "Steps that are not answered.", report.plans_in_flight);
  out.OneHistogram("queue_seconds", "From arrival until the first admission.", metrics.queue);
  out.OneHistogram("time_to_first_token_seconds", "From arrival until the first token.",
                   metrics.first_token);
  out.OneHistogram("time_between_tokens_seconds", "Between tokens of a sequence.",
                   metrics.between_tokens);
  out.OneHistogram("request_seconds", "From arrival until the end of a sequence.", metrics.whole);
  out.Family("step_seconds", "histogram", "Steps of the ranks, by where their time went.");
  for (size_t stage = 0; stage < kStages.size(); ++stage) {
    out.Samples({{"stage", kStages[stage]}}, metrics.steps[stage]);
  }
}

void WriteRanks(const v1::GetClusterResponse& cluster, Writer& out) {
  const auto each = [&](const auto& write) {
    for (const v1::Rank& rank : cluster.ranks()) write(std::to_string(rank.rank()), rank);
  };
  out.Family("rank_seconds_total", "counter", "Seconds of a rank's steps in this epoch.");
  each([&](const std::string& rank, const v1::Rank& facts) {
    const double moving = std::max(0.0, facts.exchange_seconds() - facts.wait_seconds());
    out.Sample({{"rank", rank}, {"stage", kStages[0]}}, facts.compute_seconds());
    out.Sample({{"rank", rank}, {"stage", kStages[1]}}, moving);
    out.Sample({{"rank", rank}, {"stage", kStages[2]}}, facts.wait_seconds());
  });
  out.Family("exchange_bytes_total", "counter", "Bytes sent in collectives in this epoch.");
  each([&](const std::string& rank, const v1::Rank& facts) {
    out.Sample({{"rank", rank}}, facts.exchange_bytes());
  });
  out.Family("dispatched_copies_total", "counter",
             "Copies of tokens sent to other ranks' experts in this epoch.");
  each([&](const std::string& rank, const v1::Rank& facts) {
    out.Sample({{"rank", rank}}, facts.dispatched_copies());
  });
  out.Family("memory_bytes", "gauge", "Memory of the ranks.");
  each([&](const std::string& rank, const v1::Rank& facts) {
    const v1::Memory& memory = facts.memory();
    out.Sample({{"rank", rank}, {"kind", "weights"}}, memory.weight_bytes());
    out.Sample({{"rank", rank}, {"kind", "kv"}}, memory.kv_bytes());
    out.Sample({{"rank", rank}, {"kind", "free"}}, memory.free_bytes());
    out.Sample({{"rank", rank}, {"kind", "total"}}, memory.total_bytes());
  });
}

// Token-expert pairs of one layer.
struct LayerLoad {
  std::vector<uint64_t> ranks;
  std::vector<uint64_t> experts;
};

std::vector<LayerLoad> LoadOf(const v1::GetClusterResponse& cluster) {
  std::vector<LayerLoad> layers;
  for (const v1::Rank& rank : cluster.ranks()) {
    layers.resize(std::max(layers.size(), static_cast<size_t>(rank.layers_size())));
  }
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (const v1::Rank& rank : cluster.ranks()) {
      layers[layer].ranks.push_back(0);
      if (layer >= static_cast<size_t>(rank.layers_size())) continue;
      const v1::LayerExperts& held = rank.layers(static_cast<int>(layer));
      for (int i = 0; i < std::min(held.experts_size(), held.load_size()); ++i) {
        std::vector<uint64_t>& experts = layers[layer].experts;
        experts.resize(std::max<size_t>(experts.size(), held.experts(i) + 1));
        experts[held.experts(i)] += held.load(i);
        layers[layer].ranks.back() += held.load(i);
      }
    }
  }
  return layers;
}

// The largest over the mean, 1 where there is nothing.
double Imbalance(const std::vector<uint64_t>& loads) {
  const auto sum = static_cast<double>(std::accumulate(loads.begin(), loads.end(), uint64_t{0}));
  if (sum == 0) return 1;
  const auto most = static_cast<double>(*std::max_element(loads.begin(), loads.end()));
  return most * static_cast<double>(loads.size()) / sum;
}

void WriteExperts(const v1::GetClusterResponse& cluster, Writer& out) {
  const std::vector<LayerLoad> layers = LoadOf(cluster);
  out.Family("expert_pairs_total", "counter", "Token-expert pairs computed in this epoch.");
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (size_t i = 0; i < layers[layer].ranks.size(); ++i) {
      out.Sample({{"layer", std::to_string(layer)},
                  {"rank", std::to_string(cluster.ranks(static_cast<int>(i)).rank())}},
                 layers[layer].ranks[i]);
    }
  }
  out.Family("expert_imbalance", "gauge", "The most loaded rank over the mean of the ranks.");
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    out.Sample({{"layer", std::to_string(layer)}}, Imbalance(layers[layer].ranks));
  }
  out.Family("expert_skew", "gauge", "The most loaded expert over the mean of the experts.");
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    out.Sample({{"layer", std::to_string(layer)}}, Imbalance(layers[layer].experts));
  }
}

}  // namespace

std::string MetricsText(const EngineReport& report, const CallAccount& calls,
                        const ProcessFacts& facts) {
  Writer out;
  WriteGroup(report, facts, out);
  WriteCalls(calls, out);
  WriteSequences(report, facts, out);
  WriteKvBlocks(report.cluster.counters(), out);
  WriteTokens(report, out);
  WriteRanks(report.cluster, out);
  WriteExperts(report.cluster, out);
  return out.Take();
}

}  // namespace conclave::coordinator
