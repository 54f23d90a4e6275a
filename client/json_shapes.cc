#include "client/json_shapes.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

namespace conclave::client {
namespace {

Json TokenJson(const v1::TokenLogprobs& logprobs) {
  Json top = Json::array();
  for (const auto& entry : logprobs.top()) {
    top.push_back({{"token", entry.token()}, {"logprob", ShortFloat(entry.logprob())}});
  }
  return {{"token", logprobs.token()},
          {"logprob", ShortFloat(logprobs.logprob())},
          {"top", std::move(top)}};
}

// Of a GenerateResponse or a PromptEcho.
template <typename Part>
Json LogprobsJson(const Part& part) {
  Json logprobs = Json::array();
  for (const auto& token : part.logprobs()) logprobs.push_back(TokenJson(token));
  return logprobs;
}

Json BlocksJson(const v1::KvBlocks& blocks) {
  return {{"used", blocks.used()},
          {"total", blocks.total()},
          {"max_per_sequence", blocks.max_per_sequence()},
          {"cached", blocks.cached()}};
}

Json RankJson(const v1::Rank& rank) {
  Json layers = Json::array();
  for (const auto& layer : rank.layers()) {
    layers.push_back({{"experts", layer.experts()}, {"load", layer.load()}});
  }
  const v1::Memory& memory = rank.memory();
  return {{"rank", rank.rank()},
          {"dp_rank", rank.dp_rank()},
          {"tp_rank", rank.tp_rank()},
          {"device", rank.device()},
          {"kernel", rank.kernel()},
          {"expert_format", rank.expert_format()},
          {"host", rank.host()},
          {"pid", rank.pid()},
          {"memory",
           {{"weight_bytes", memory.weight_bytes()},
            {"kv_bytes", memory.kv_bytes()},
            {"total_bytes", memory.total_bytes()},
            {"free_bytes", memory.free_bytes()}}},
          {"layers", std::move(layers)},
          {"compute_seconds", rank.compute_seconds()},
          {"exchange_seconds", rank.exchange_seconds()},
          {"wait_seconds", rank.wait_seconds()},
          {"dispatched_copies", rank.dispatched_copies()},
          {"exchange_bytes", rank.exchange_bytes()},
          {"copies_to_rank", rank.copies_to_rank()},
          {"bytes_to_rank", rank.bytes_to_rank()},
          {"loaded_bytes", rank.loaded_bytes()},
          {"mxfp4_launches", rank.mxfp4_launches()}};
}

Json CountersJson(const v1::Counters& counters) {
  return {{"tokens_computed", counters.tokens_computed()},
          {"steps", counters.steps()},
          {"max_plans_in_flight", counters.max_plans_in_flight()},
          {"running", counters.running()},
          {"queued", counters.queued()},
          {"full_blocks", BlocksJson(counters.full_blocks())},
          {"sliding_blocks", BlocksJson(counters.sliding_blocks())},
          {"requests_finished", counters.requests_finished()},
          {"requests_failed", counters.requests_failed()},
          {"requests_cancelled", counters.requests_cancelled()},
          {"overrun_tokens", counters.overrun_tokens()},
          {"preemptions", counters.preemptions()},
          {"requests_refused_early", counters.requests_refused_early()},
          {"max_queue_seconds", counters.max_queue_seconds()},
          {"prefix_cache",
           {{"enabled", counters.prefix_cache().enabled()},
            {"prompt_tokens", counters.prefix_cache().prompt_tokens()},
            {"hit_tokens", counters.prefix_cache().hit_tokens()},
            {"evicted_blocks", counters.prefix_cache().evicted_blocks()}}}};
}

}  // namespace

std::string Dump(const Json& json) {
  return json.dump(/*indent=*/-1, /*indent_char=*/' ', /*ensure_ascii=*/false,
                   Json::error_handler_t::replace);
}

Json ShortFloat(float value) {
  if (!std::isfinite(value)) return nullptr;
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

std::string FinishReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_TOOL_CALLS:
      return "tool_calls";
    default:
      return fmt::format("unknown ({})", static_cast<int>(reason));
  }
}

Json GenerationJson(const v1::GenerateResponse& all, bool with_logprobs) {
  const v1::Usage& usage = all.finish().usage();
  Json json = {{"tokens", all.tokens()},
               {"text", all.text()},
               {"finish_reason", FinishReasonName(all.finish().reason())},
               {"usage",
                {{"prompt_tokens", usage.prompt_tokens()},
                 {"completion_tokens", usage.completion_tokens()},
                 {"cached_tokens", usage.cached_tokens()}}}};
  if (all.finish().has_stop_token()) json["stop_token"] = all.finish().stop_token();
  if (all.finish().has_stop_string()) json["stop_string"] = all.finish().stop_string();
  if (with_logprobs) json["logprobs"] = LogprobsJson(all);
  const v1::PromptEcho& prompt = all.prompt();
  if (!prompt.tokens().empty()) {
    json["prompt"] = {{"tokens", prompt.tokens()}, {"text", prompt.text()}};
  }
  if (!prompt.logprobs().empty()) json["prompt_logprobs"] = LogprobsJson(prompt);
  return json;
}

Json ChatJson(const v1::ChatMessage& reply, const v1::ChatFinish& finish) {
  Json calls = Json::array();
  for (const v1::ToolCall& call : reply.tool_calls()) {
    calls.push_back({{"id", call.id()}, {"name", call.name()}, {"arguments", call.arguments()}});
  }
  return {{"reasoning", reply.reasoning()},
          {"text", reply.content()},
          {"tool_calls", std::move(calls)},
          {"finish_reason", FinishReasonName(finish.reason())},
          {"malformed", finish.malformed()},
          {"usage",
           {{"prompt_tokens", finish.usage().prompt_tokens()},
            {"completion_tokens", finish.usage().completion_tokens()}}}};
}

Json LabelsJson(const v1::LabelScoring& result) {
  Json labels = Json::array();
  for (const v1::LabelLikelihood& label : result.labels()) {
    labels.push_back({{"label", label.label()},
                      {"score", label.score()},
                      {"logprob_sum", label.logprob_sum()},
                      {"logprob_mean", label.logprob_mean()},
                      {"null_logprob_sum", label.null_logprob_sum()},
                      {"null_logprob_mean", label.null_logprob_mean()},
                      {"tokens", label.tokens()}});
  }
  return {{"labels", std::move(labels)},
          {"usage",
           {{"prompt_tokens", result.usage().prompt_tokens()},
            {"completion_tokens", result.usage().completion_tokens()}}}};
}

Json SequenceJson(const v1::SequenceClassification& result) {
  Json labels = Json::array();
  for (const auto& label : result.labels()) {
    labels.push_back({{"label", label.label()},
                      {"score", ShortFloat(label.score())},
                      {"logit", ShortFloat(label.logit())}});
  }
  return {{"labels", std::move(labels)}, {"truncated", result.truncated()}};
}

Json TokensJson(const v1::TokenClassification& result) {
  Json tokens = Json::array();
  for (const auto& token : result.tokens()) {
    Json logits = Json::array();
    for (const float logit : token.logits()) logits.push_back(ShortFloat(logit));
    tokens.push_back({{"token", token.token()},
                      {"label", token.label()},
                      {"score", ShortFloat(token.score())},
                      {"logits", std::move(logits)},
                      {"start_byte", token.start_byte()},
                      {"end_byte", token.end_byte()}});
  }
  Json spans = Json::array();
  for (const auto& span : result.spans()) {
    spans.push_back({{"label", span.label()},
                     {"score", ShortFloat(span.score())},
                     {"start_byte", span.start_byte()},
                     {"end_byte", span.end_byte()},
                     {"start_char", span.start_char()},
                     {"end_char", span.end_char()},
                     {"text", span.text()}});
  }
  return {{"tokens", std::move(tokens)},
          {"spans", std::move(spans)},
          {"truncated", result.truncated()}};
}

Json RebalanceJson(const v1::RebalanceResponse& response) {
  Json layers = Json::array();
  for (const auto& layer : response.layers()) {
    layers.push_back({{"imbalance_before", layer.imbalance_before()},
                      {"imbalance_after", layer.imbalance_after()}});
  }
  Json ranks = Json::array();
  for (const auto& moves : response.ranks()) {
    ranks.push_back({{"held", moves.held()},
                     {"gained", moves.gained()},
                     {"dropped", moves.dropped()},
                     {"loaded_bytes", moves.loaded_bytes()}});
  }
  return {{"epoch", response.epoch()},
          {"seconds", response.seconds()},
          {"layers", std::move(layers)},
          {"ranks", std::move(ranks)}};
}

Json DrainJson(const v1::DrainResponse& response) {
  return {{"draining", response.draining()},
          {"calls", response.calls()},
          {"cut", response.cut()},
          {"seconds", response.seconds()}};
}

Json ClusterJson(const v1::GetClusterResponse& cluster) {
  Json ranks = Json::array();
  for (const auto& rank : cluster.ranks()) ranks.push_back(RankJson(rank));
  return {{"state", v1::ClusterState_Name(cluster.state())},
          {"epoch", cluster.epoch()},
          {"dp", cluster.dp()},
          {"tp", cluster.tp()},
          {"load_progress", cluster.load_progress()},
          {"problem", cluster.problem()},
          {"draining", cluster.draining()},
          {"ranks", std::move(ranks)},
          {"counters", CountersJson(cluster.counters())}};
}

}  // namespace conclave::client
