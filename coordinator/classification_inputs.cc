#include "coordinator/classification_inputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/status_macros.h"
#include "coordinator/translate.h"

namespace conclave::coordinator {
namespace {

// What is cut may have any length: the size of a message bounds it.
constexpr int kNoLimit = std::numeric_limits<int>::max();

std::string Concatenate(const model::Tokenizer* tokenizer, const std::vector<int32_t>& tokens) {
  std::string text;
  if (tokenizer == nullptr) return text;
  for (int32_t token : tokens) text.append(tokenizer->TokenBytes(token));
  return text;
}

}  // namespace

absl::StatusOr<ClassificationInput> TranslateInput(const ServingModel& model,
                                                   const v1::Prompt& prompt, bool truncate,
                                                   const std::string& field) {
  const int longest = model.longest_prompt(/*room=*/0);
  ClassificationInput input;
  ASSIGN_OR_RETURN(input.tokens,
                   TranslatePrompt(model, prompt, field, truncate ? kNoLimit : longest));
  if (input.tokens.size() > static_cast<size_t>(longest)) {
    input.tokens.resize(static_cast<size_t>(longest));
    input.truncated = true;
  }
  input.text = prompt.has_text() ? prompt.text() : Concatenate(model.tokenizer.get(), input.tokens);
  return input;
}

absl::StatusOr<ClassificationInput> TranslatePair(const ServingModel& model,
                                                  const v1::Prompt& first, const v1::Prompt& second,
                                                  bool truncate, const std::string& first_field,
                                                  const std::string& second_field) {
  const int longest = model.longest_prompt(/*room=*/0);
  const int limit = truncate ? kNoLimit : longest;
  ClassificationInput input;
  ASSIGN_OR_RETURN(input.tokens, TranslatePrompt(model, first, first_field, limit));
  ASSIGN_OR_RETURN(std::vector<int32_t> rest, TranslatePrompt(model, second, second_field, limit));
  if (input.tokens.size() + rest.size() > static_cast<size_t>(longest)) {
    if (!truncate) {
      return absl::InvalidArgumentError(
          fmt::format("{} and {} have {} tokens together: at most {} {}", first_field, second_field,
                      input.tokens.size() + rest.size(), longest, model.prompt_bound()));
    }
    TruncatePair(input.tokens, rest, static_cast<size_t>(longest));
    input.truncated = true;
  }
  input.tokens.insert(input.tokens.end(), rest.begin(), rest.end());
  return input;
}

void TruncatePair(std::vector<int32_t>& first, std::vector<int32_t>& second, size_t limit) {
  const bool first_longer = first.size() > second.size();
  std::vector<int32_t>& shorter = first_longer ? second : first;
  std::vector<int32_t>& longer = first_longer ? first : second;
  size_t keep = shorter.size();
  size_t rest = keep > limit ? keep : std::max(keep, limit - keep);
  if (keep + rest > limit) {
    keep = limit / 2;
    rest = limit - keep;
  }
  shorter.resize(std::min(shorter.size(), keep));
  longer.resize(std::min(longer.size(), rest));
}

int PooledPosition(const model::Config& config, const std::vector<int32_t>& tokens) {
  int position = static_cast<int>(tokens.size()) - 1;
  if (!config.pad_token_id.has_value()) return position;
  while (position > 0 && tokens[position] == *config.pad_token_id) --position;
  return position;
}

}  // namespace conclave::coordinator
