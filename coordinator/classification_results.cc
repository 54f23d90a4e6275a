#include "coordinator/classification_results.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/utf8.h"
#include "coordinator/scores.h"

namespace conclave::coordinator {
namespace {

// `bytes` as valid UTF-8; only token inputs can decode to anything else.
std::string WholeCharacters(const std::string& bytes) {
  std::string text;
  if (base::AppendUtf8Lossy(bytes, text) < bytes.size()) text.append(base::kReplacementCharacter);
  return text;
}

// Label ids in the order of the result.
std::vector<size_t> Order(const std::vector<float>& scores, std::optional<uint32_t> top_k) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (!top_k.has_value()) return order;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  order.resize(std::min<size_t>(order.size(), *top_k));
  return order;
}

v1::Aggregation ToProto(Aggregation aggregation) {
  switch (aggregation) {
    case Aggregation::kNone:
      return v1::AGGREGATION_NONE;
    case Aggregation::kSimple:
      return v1::AGGREGATION_SIMPLE;
    case Aggregation::kFirst:
      return v1::AGGREGATION_FIRST;
    case Aggregation::kAverage:
      return v1::AGGREGATION_AVERAGE;
    case Aggregation::kMax:
      return v1::AGGREGATION_MAX;
  }
  return v1::AGGREGATION_UNSPECIFIED;
}

std::optional<Aggregation> FromProto(v1::Aggregation aggregation) {
  switch (aggregation) {
    case v1::AGGREGATION_NONE:
      return Aggregation::kNone;
    case v1::AGGREGATION_UNSPECIFIED:
    case v1::AGGREGATION_SIMPLE:
      return Aggregation::kSimple;
    case v1::AGGREGATION_FIRST:
      return Aggregation::kFirst;
    case v1::AGGREGATION_AVERAGE:
      return Aggregation::kAverage;
    case v1::AGGREGATION_MAX:
      return Aggregation::kMax;
    default:
      return std::nullopt;
  }
}

std::optional<LabelScheme> FromProto(v1::LabelScheme scheme, const model::HeadConfig& head) {
  switch (scheme) {
    case v1::LABEL_SCHEME_UNSPECIFIED:
      return SchemeOf(head.labels);
    case v1::LABEL_SCHEME_BIO:
      return LabelScheme::kBio;
    case v1::LABEL_SCHEME_BIOES:
      return LabelScheme::kBioes;
    default:
      return std::nullopt;
  }
}

// Scores of every token with their byte ranges.
std::vector<ScoredToken> ScoreTokens(const ServingModel& model, const model::HeadConfig& head,
                                     const std::vector<int32_t>& tokens,
                                     std::span<const float> logits,
                                     v1::TokenClassification& result) {
  const size_t labels = head.labels.size();
  std::vector<ScoredToken> scored;
  size_t byte = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::span<const float> row = logits.subspan(i * labels, labels);
    const size_t bytes = model.tokenizer ? model.tokenizer->TokenBytes(tokens[i]).size() : 0;
    scored.push_back({Scores(v1::SCORE_FUNCTION_SOFTMAX, row), byte, byte + bytes});
    byte += bytes;
    const std::vector<float>& scores = scored.back().scores;
    const auto best = std::max_element(scores.begin(), scores.end());
    v1::TokenLabel* label = result.add_tokens();
    label->set_token(static_cast<uint32_t>(tokens[i]));
    label->set_label(head.labels[static_cast<size_t>(best - scores.begin())]);
    label->set_score(*best);
    label->mutable_logits()->Add(row.begin(), row.end());
    label->set_start_byte(static_cast<uint32_t>(scored.back().start_byte));
    label->set_end_byte(static_cast<uint32_t>(scored.back().end_byte));
  }
  return scored;
}

}  // namespace

absl::StatusOr<SequenceOptions> TranslateOptions(const v1::ClassifySequenceRequest& request,
                                                 const model::HeadConfig& head) {
  SequenceOptions options;
  options.function = request.function_to_apply();
  if (!v1::ScoreFunction_IsValid(options.function)) {
    return absl::InvalidArgumentError("function_to_apply is not a known function");
  }
  if (options.function == v1::SCORE_FUNCTION_UNSPECIFIED) options.function = ScoreFunctionOf(head);
  if (!request.has_top_k()) return options;
  if (request.top_k() == 0) return absl::InvalidArgumentError("top_k is 0: at least 1");
  options.top_k = request.top_k();
  return options;
}

absl::StatusOr<SpanRules> TranslateOptions(const v1::ClassifyTokensRequest& request,
                                           const model::HeadConfig& head) {
  const std::optional<Aggregation> aggregation = FromProto(request.aggregation());
  if (!aggregation.has_value()) {
    return absl::InvalidArgumentError("aggregation is not a known strategy");
  }
  const std::optional<LabelScheme> scheme = FromProto(request.scheme(), head);
  if (!scheme.has_value()) return absl::InvalidArgumentError("scheme is not a known scheme");
  SpanRules rules;
  rules.aggregation = *aggregation;
  rules.scheme = *scheme;
  if (request.ignore_labels_size() > 0) {
    rules.ignored.assign(request.ignore_labels().begin(), request.ignore_labels().end());
  }
  return rules;
}

v1::SequenceClassification ClassifySequence(const SequenceOptions& options,
                                            const model::HeadConfig& head,
                                            std::span<const float> logits) {
  v1::SequenceClassification result;
  const std::vector<float> scores = Scores(options.function, logits);
  for (const size_t i : Order(scores, options.top_k)) {
    v1::LabelScore* label = result.add_labels();
    label->set_label(head.labels[i]);
    label->set_score(scores[i]);
    label->set_logit(logits[i]);
  }
  return result;
}

v1::TokenClassification ClassifyTokens(const ServingModel& model, const SpanRules& rules,
                                       const model::HeadConfig& head,
                                       const ClassificationInput& input,
                                       std::span<const float> logits) {
  v1::TokenClassification result;
  const auto scored = ScoreTokens(model, head, input.tokens, logits, result);
  for (const LabelledSpan& span : MakeSpans(rules, head.labels, scored, input.text)) {
    v1::TokenSpan* out = result.add_spans();
    out->set_label(span.label);
    out->set_score(span.score);
    out->set_start_byte(static_cast<uint32_t>(span.start_byte));
    out->set_end_byte(static_cast<uint32_t>(span.end_byte));
    out->set_start_char(static_cast<uint32_t>(span.start_char));
    out->set_end_char(static_cast<uint32_t>(span.end_char));
    out->set_text(
        WholeCharacters(input.text.substr(span.start_byte, span.end_byte - span.start_byte)));
  }
  result.set_truncated(input.truncated);
  result.set_aggregation(ToProto(rules.aggregation));
  result.set_scheme(rules.scheme == LabelScheme::kBioes ? v1::LABEL_SCHEME_BIOES
                                                        : v1::LABEL_SCHEME_BIO);
  return result;
}

}  // namespace conclave::coordinator
