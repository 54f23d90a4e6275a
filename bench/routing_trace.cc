#include "bench/routing_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "base/status_macros.h"

namespace conclave::bench {
namespace {

constexpr std::string_view kMagic = "conclave-routing 1";
constexpr int kMaxExperts = std::numeric_limits<uint16_t>::max();

// Takes what stands before `separator`, and both off `text`.
std::string_view Next(std::string_view* text, char separator) {
  const size_t end = text->find(separator);
  const std::string_view part = text->substr(0, end);
  text->remove_prefix(end == std::string_view::npos ? text->size() : end + 1);
  return part;
}

bool ParseNumber(std::string_view text, int most, int* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && *value >= 0 && *value <= most;
}

absl::Status BadLine(int line, std::string_view why) {
  return absl::InvalidArgumentError(fmt::format("line {} of the routing: {}", line, why));
}

absl::Status ParseSizes(std::string_view line, RoutingTrace* trace) {
  for (const auto& [name, value] :
       {std::pair("layers", &trace->layers), std::pair("experts", &trace->experts),
        std::pair("experts_per_token", &trace->experts_per_token)}) {
    if (Next(&line, ' ') != name || !ParseNumber(Next(&line, ' '), kMaxExperts, value) ||
        *value < 1) {
      return BadLine(2, fmt::format("no '{} N'", name));
    }
  }
  if (trace->experts_per_token > trace->experts) return BadLine(2, "more choices than experts");
  return absl::OkStatus();
}

absl::Status ParseToken(std::string_view line, int number, RoutingTrace* trace) {
  for (int layer = 0; layer < trace->layers; ++layer) {
    std::string_view group = Next(&line, ' ');
    const auto first = static_cast<std::ptrdiff_t>(trace->ids.size());
    for (int choice = 0; choice < trace->experts_per_token; ++choice) {
      int id = 0;
      if (!ParseNumber(Next(&group, ','), trace->experts - 1, &id)) {
        return BadLine(number, fmt::format("layer {} has not {} ids below {}", layer,
                                           trace->experts_per_token, trace->experts));
      }
      if (std::find(trace->ids.begin() + first, trace->ids.end(), id) != trace->ids.end()) {
        return BadLine(number, fmt::format("layer {} has expert {} twice", layer, id));
      }
      trace->ids.push_back(static_cast<uint16_t>(id));
    }
    if (!group.empty()) return BadLine(number, fmt::format("layer {} has too many ids", layer));
  }
  return line.empty() ? absl::OkStatus() : BadLine(number, "too many layers");
}

// Draws without replacement: the k largest of log(uniform) / weight are such a draw.
class Drawer {
 public:
  Drawer(const model::Config& config, uint64_t seed)
      : choices_(config.experts_per_token), order_(config.num_experts), random_(seed) {}

  void Draw(std::span<const double> weights, std::vector<uint16_t>* ids) {
    keys_.resize(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      keys_[i] = weights[i] > 0 ? std::log(Uniform()) / weights[i]
                                : std::log(Uniform()) - std::numeric_limits<float>::max();
    }
    std::iota(order_.begin(), order_.end(), uint16_t{0});
    std::partial_sort(order_.begin(), order_.begin() + choices_, order_.end(),
                      [this](uint16_t a, uint16_t b) { return keys_[a] > keys_[b]; });
    ids->insert(ids->end(), order_.begin(), order_.begin() + choices_);
  }

  std::mt19937_64& random() { return random_; }

 private:
  double Uniform() { return (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53; }

  const int choices_;
  std::vector<uint16_t> order_;
  std::vector<double> keys_;
  std::mt19937_64 random_;
};

// `weights`: [layers][experts].
RoutingTrace DrawTokens(const model::Config& config,
                        const std::vector<std::vector<double>>& weights, int tokens,
                        Drawer& drawer) {
  RoutingTrace trace = {config.num_layers, config.num_experts, config.experts_per_token, {}};
  for (int token = 0; token < tokens; ++token) {
    for (const std::vector<double>& layer : weights) drawer.Draw(layer, &trace.ids);
  }
  return trace;
}

}  // namespace

int RoutingTrace::tokens() const {
  return static_cast<int>(ids.size()) / std::max(1, layers * experts_per_token);
}

std::span<const uint16_t> RoutingTrace::Of(int token, int layer) const {
  const auto k = static_cast<size_t>(experts_per_token);
  return {&ids[(static_cast<size_t>(token) * layers + layer) * k], k};
}

absl::StatusOr<RoutingTrace> ParseRoutingTrace(std::string_view text) {
  if (Next(&text, '\n') != kMagic) return BadLine(1, fmt::format("not '{}'", kMagic));
  RoutingTrace trace;
  RETURN_IF_ERROR(ParseSizes(Next(&text, '\n'), &trace));
  for (int line = 3; !text.empty(); ++line) {
    RETURN_IF_ERROR(ParseToken(Next(&text, '\n'), line, &trace));
  }
  return trace;
}

std::string FormatRoutingTrace(const RoutingTrace& trace) {
  std::string text = fmt::format("{}\nlayers {} experts {} experts_per_token {}\n", kMagic,
                                 trace.layers, trace.experts, trace.experts_per_token);
  for (int token = 0; token < trace.tokens(); ++token) {
    for (int layer = 0; layer < trace.layers; ++layer) {
      text += fmt::format("{}{}", layer == 0 ? "" : " ", fmt::join(trace.Of(token, layer), ","));
    }
    text += '\n';
  }
  return text;
}

std::vector<uint64_t> LoadOf(const RoutingTrace& trace, int begin, int end) {
  std::vector<uint64_t> load(static_cast<size_t>(trace.layers) * trace.experts);
  for (int token = begin; token < end; ++token) {
    for (int layer = 0; layer < trace.layers; ++layer) {
      for (const uint16_t id : trace.Of(token, layer)) {
        ++load[static_cast<size_t>(layer) * trace.experts + id];
      }
    }
  }
  return load;
}

RoutingTrace DrawZipf(const model::Config& config, int tokens, double exponent, uint64_t seed) {
  Drawer drawer(config, seed);
  std::vector<double> ranked(static_cast<size_t>(config.num_experts));
  for (size_t i = 0; i < ranked.size(); ++i) {
    ranked[i] = std::pow(static_cast<double>(i + 1), -exponent);
  }
  std::vector<std::vector<double>> weights(static_cast<size_t>(config.num_layers), ranked);
  for (std::vector<double>& layer : weights) {
    std::shuffle(layer.begin(), layer.end(), drawer.random());
  }
  return DrawTokens(config, weights, tokens, drawer);
}

RoutingTrace DrawFromLoad(const model::Config& config, std::span<const uint64_t> load, int tokens,
                          uint64_t seed) {
  Drawer drawer(config, seed);
  std::vector<std::vector<double>> weights;
  const auto experts = static_cast<size_t>(config.num_experts);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const auto part = load.subspan(static_cast<size_t>(layer) * experts, experts);
    weights.emplace_back(part.begin(), part.end());
  }
  return DrawTokens(config, weights, tokens, drawer);
}

absl::StatusOr<std::vector<uint64_t>> LoadFromStatus(const model::Config& config,
                                                     const std::string& json) {
  const nlohmann::json status = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  const auto other = absl::InvalidArgumentError(
      "the status is not one of `conclave status --json` for this config");
  if (!status.is_object() || !status.contains("ranks")) return other;
  std::vector<uint64_t> load(static_cast<size_t>(config.num_layers) * config.num_experts);
  try {
    for (const nlohmann::json& rank : status.at("ranks")) {
      const nlohmann::json& layers = rank.at("layers");
      if (layers.size() != static_cast<size_t>(config.num_layers)) return other;
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        const nlohmann::json& experts = layers[layer].at("experts");
        for (size_t i = 0; i < experts.size(); ++i) {
          const auto expert = experts[i].get<int>();
          if (expert < 0 || expert >= config.num_experts) return other;
          load[layer * static_cast<size_t>(config.num_experts) + static_cast<size_t>(expert)] +=
              layers[layer].at("load").at(i).get<uint64_t>();
        }
      }
    }
  } catch (const nlohmann::json::exception&) {
    return other;
  }
  return load;
}

}  // namespace conclave::bench
