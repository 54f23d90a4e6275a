#ifndef CONCLAVE_CLIENT_JSON_SHAPES_H_
#define CONCLAVE_CLIENT_JSON_SHAPES_H_

// The objects that --json prints, as docs/cli.md lists them field by field.

#include <nlohmann/json.hpp>
#include <string>

#include "proto/conclave/v1/classification.pb.h"
#include "proto/conclave/v1/cluster.pb.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::client {

using Json = nlohmann::ordered_json;

// One line without the newline. Text that is not UTF-8 appears as U+FFFD.
std::string Dump(const Json& json);

// The number with the fewest digits that reads back as `value`; null for NaN and infinities.
Json ShortFloat(float value);

// stop, length, cancelled or tool_calls.
std::string FinishReasonName(v1::FinishReason reason);

// `all` holds the tokens, text and logprobs of the whole stream, and its finish.
Json GenerationJson(const v1::GenerateResponse& all, bool with_logprobs);
// `reply` is the assistant's message.
Json ChatJson(const v1::ChatMessage& reply, const v1::ChatFinish& finish);
Json LabelsJson(const v1::LabelScoring& result);
Json SequenceJson(const v1::SequenceClassification& result);
Json TokensJson(const v1::TokenClassification& result);
Json ClusterJson(const v1::GetClusterResponse& cluster);
Json RebalanceJson(const v1::RebalanceResponse& response);
Json DrainJson(const v1::DrainResponse& response);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_JSON_SHAPES_H_
