#include "coordinator/score_labels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>

#include "base/status_macros.h"
#include "coordinator/conversation.h"
#include "coordinator/raw_request.h"
#include "coordinator/translate.h"

namespace conclave::coordinator {
namespace {

constexpr int kMaxLabels = 1024;  // each is a request of its own for every input

template <typename... Args>
absl::Status Invalid(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}

absl::Status AddLabels(const ServingModel& model, const v1::ScoreLabelsRequest& request,
                       LabelQuestions& out) {
  if (request.labels_size() == 0) return Invalid("labels is empty: at least one");
  if (request.labels_size() > kMaxLabels) {
    return Invalid("labels has {} entries: at most {}", request.labels_size(), kMaxLabels);
  }
  std::set<std::string> seen;
  for (int i = 0; i < request.labels_size(); ++i) {
    const std::string& label = request.labels(i);
    if (label.empty()) return Invalid("labels[{}] is empty", i);
    if (!seen.insert(label).second) return Invalid("labels[{}] is there twice", i);
    if (label.size() >
        model.tokenizer->longest_token() * static_cast<size_t>(model.config.context_length)) {
      return Invalid("labels[{}] has {} bytes: more than the context holds", i, label.size());
    }
    out.labels.push_back(label);
    out.label_tokens.push_back(model.tokenizer->Encode(label));
  }
  return absl::OkStatus();
}

// Leaves room for `label_tokens` after the prompt.
absl::Status AddPrompt(const ServingModel& model, const v1::Prompt& prompt,
                       const std::string& field, int label_tokens, LabelQuestions& out) {
  const int limit = model.longest_prompt(/*room=*/label_tokens);
  if (limit < 1) {
    return Invalid("labels: one has {} tokens, which leaves no room in a context of {}",
                   label_tokens, model.config.context_length);
  }
  if (!prompt.has_conversation()) {
    ASSIGN_OR_RETURN(std::vector<int32_t> tokens, TranslatePrompt(model, prompt, field, limit));
    out.prompts.push_back(std::move(tokens));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                   RenderConversation(model, prompt.conversation(), field + ".conversation", limit,
                                      model::kFinalChannel));
  if (tokens.size() > static_cast<size_t>(limit)) {
    return Invalid("{}.conversation has {} tokens as it is rendered: at most {} with the labels",
                   field, tokens.size(), limit);
  }
  out.prompts.push_back(std::move(tokens));
  return absl::OkStatus();
}

std::vector<double> Softmax(const std::vector<double>& values) {
  const double most = *std::max_element(values.begin(), values.end());
  std::vector<double> scores;
  double sum = 0;
  for (const double value : values) {
    scores.push_back(std::exp(value - most));
    sum += scores.back();
  }
  for (double& score : scores) score /= sum;
  return scores;
}

double Sum(const std::vector<float>& logprobs) {
  return std::accumulate(logprobs.begin(), logprobs.end(), 0.0);
}

uint32_t CountLabelTokens(const LabelQuestions& questions) {
  size_t tokens = 0;
  for (const auto& label : questions.label_tokens) tokens += label.size();
  return static_cast<uint32_t>(tokens);
}

void FillUsage(const LabelQuestions& questions, size_t prompt, v1::Usage* usage) {
  usage->set_prompt_tokens(static_cast<uint32_t>(questions.prompts[prompt].size()));
  usage->set_completion_tokens(CountLabelTokens(questions));
}

// `logprobs` [labels] after the input; `null_logprobs` likewise, or empty.
v1::LabelScoring ScoreOne(const LabelQuestions& questions,
                          std::span<const std::vector<float>> logprobs,
                          std::span<const std::vector<float>> null_logprobs) {
  v1::LabelScoring scoring;
  std::vector<double> compared;
  for (size_t i = 0; i < questions.labels.size(); ++i) {
    const auto tokens = static_cast<double>(questions.label_tokens[i].size());
    v1::LabelLikelihood* label = scoring.add_labels();
    label->set_label(questions.labels[i]);
    label->set_tokens(static_cast<uint32_t>(questions.label_tokens[i].size()));
    label->set_logprob_sum(Sum(logprobs[i]));
    label->set_logprob_mean(label->logprob_sum() / tokens);
    if (!null_logprobs.empty()) {
      label->set_null_logprob_sum(Sum(null_logprobs[i]));
      label->set_null_logprob_mean(label->null_logprob_sum() / tokens);
    }
    compared.push_back(questions.score_by == v1::SCORE_BY_MEAN
                           ? label->logprob_mean() - label->null_logprob_mean()
                           : label->logprob_sum() - label->null_logprob_sum());
  }
  const std::vector<double> scores = Softmax(compared);
  for (size_t i = 0; i < scores.size(); ++i) {
    scoring.mutable_labels(static_cast<int>(i))->set_score(scores[i]);
  }
  return scoring;
}

// What a few inputs and labels of a message multiply to.
absl::Status CheckProducts(const ServingModel& model, const LabelQuestions& questions) {
  const auto size_of_all = [](const auto& lists) {
    int64_t size = 0;
    for (const auto& list : lists) size += static_cast<int64_t>(list.size());
    return size;
  };
  const auto prompts = static_cast<int64_t>(questions.prompts.size());
  const auto labels = static_cast<int64_t>(questions.labels.size());
  RETURN_IF_ERROR(CheckCallTokens(
      model, "inputs, counting labels,",
      size_of_all(questions.prompts) * labels + size_of_all(questions.label_tokens) * prompts));
  const int64_t bytes = size_of_all(questions.labels) * prompts;
  if (bytes <= model.limits.max_reply_bytes) return absl::OkStatus();
  return ReplyTooLarge(fmt::format("the labels, repeated for each input, have {} bytes", bytes),
                       model.limits.max_reply_bytes);
}

}  // namespace

absl::StatusOr<LabelQuestions> TranslateScoreLabels(const ServingModel& model,
                                                    const v1::ScoreLabelsRequest& request,
                                                    const std::string& peer) {
  if (!model.can_generate()) {
    return absl::FailedPreconditionError(
        "this checkpoint has no language-model head: it classifies by its own head");
  }
  if (model.tokenizer == nullptr) {
    return absl::FailedPreconditionError(
        "labels: the model folder has no tokenizer.json to encode them; start the server with "
        "--tokenizer FILE");
  }
  LabelQuestions out;
  out.score_by = request.score_by();
  if (!v1::ScoreBy_IsValid(out.score_by)) return Invalid("score_by is not a known choice");
  if (out.score_by == v1::SCORE_BY_UNSPECIFIED) out.score_by = v1::SCORE_BY_SUM;
  RETURN_IF_ERROR(CheckBatchSize("inputs", request.inputs_size()));
  // Neither number alone is large enough for their product to be too large for an int.
  RETURN_IF_ERROR(CheckBatchSize(
      "inputs, counting labels,",
      request.inputs_size() * std::max(1, std::min(kMaxLabels, request.labels_size()))));
  RETURN_IF_ERROR(TranslateClaim(request.priority(), request.user(), "", peer, out.claim));
  RETURN_IF_ERROR(AddLabels(model, request, out));
  size_t longest = 0;
  for (const auto& label : out.label_tokens) longest = std::max(longest, label.size());
  for (int i = 0; i < request.inputs_size(); ++i) {
    RETURN_IF_ERROR(AddPrompt(model, request.inputs(i), fmt::format("inputs[{}]", i),
                              static_cast<int>(longest), out));
  }
  out.calibrated = request.has_null_prompt();
  if (out.calibrated) {
    RETURN_IF_ERROR(
        AddPrompt(model, request.null_prompt(), "null_prompt", static_cast<int>(longest), out));
  }
  RETURN_IF_ERROR(CheckProducts(model, out));
  return out;
}

std::vector<std::vector<Request>> LabelRequests(const LabelQuestions& questions) {
  std::vector<std::vector<Request>> requests;
  for (const std::vector<int32_t>& prompt : questions.prompts) {
    std::vector<Request>& forks = requests.emplace_back();
    for (const std::vector<int32_t>& label : questions.label_tokens) {
      Request& request = forks.emplace_back(questions.claim);
      request.tokens = prompt;
      request.tokens.insert(request.tokens.end(), label.begin(), label.end());
      request.sampling.set_logprobs(-1);
      request.prompt_logprobs = 0;
      request.first_prompt_logprob = static_cast<int>(prompt.size());
    }
  }
  return requests;
}

v1::ScoreLabelsResponse ScoreLabels(const LabelQuestions& questions,
                                    std::span<const std::vector<float>> logprobs) {
  const size_t labels = questions.labels.size();
  const size_t inputs = questions.prompts.size() - (questions.calibrated ? 1 : 0);
  std::span<const std::vector<float>> null_logprobs;
  v1::ScoreLabelsResponse response;
  if (questions.calibrated) {
    null_logprobs = logprobs.subspan(inputs * labels, labels);
    FillUsage(questions, inputs, response.mutable_null_usage());
  }
  for (size_t i = 0; i < inputs; ++i) {
    v1::LabelScoring* result = response.add_results();
    *result = ScoreOne(questions, logprobs.subspan(i * labels, labels), null_logprobs);
    FillUsage(questions, i, result->mutable_usage());
  }
  response.set_score_by(questions.score_by);
  return response;
}

}  // namespace conclave::coordinator
