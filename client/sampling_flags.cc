#include "client/sampling_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/utf8.h"

namespace conclave::client {
namespace {

constexpr uint32_t kDefaultMaxTokens = 128;

// All of `text`, or nothing.
template <typename Number>
bool ParseAll(std::string_view text, Number* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

void AddSamplingFlags(base::FlagSet& command, SamplingFlags* flags) {
  command.Add("--temperature", &flags->temperature, "0 takes the most likely token [1]");
  command.Add("--top-k", &flags->top_k, "Sample from the k most likely tokens [all]");
  command.Add("--top-p", &flags->top_p, "Sample from the most likely tokens of this total [1]");
  command.Add("--min-p", &flags->min_p, "Drop tokens this much less likely than the best [0]");
  command.Add("--seed", &flags->seed, "The same seed gives the same text [random]");
  command.Add("--repetition-penalty", &flags->repetition_penalty,
              "Above 1, tokens of prompt and text become less likely to come again [1]");
  command.Add("--presence-penalty", &flags->presence_penalty,
              "Taken from the logit of every token of the text [0]");
  command.Add("--frequency-penalty", &flags->frequency_penalty,
              "The same, once for each time that it came [0]");
  command
      .Add("--logit-bias", &flags->logit_bias,
           "Added to the logit of one token, such as 42:-100 (repeatable)")
      .Type("ID:BIAS")
      .Repeatable();
}

void AddStopFlags(base::FlagSet& command, StopFlags* flags) {
  command.Add("--max-tokens", &flags->max_tokens, "Tokens to generate at most [128]");
  command.Add("--min-tokens", &flags->min_tokens,
              "Tokens to generate before an end token or stop string counts [0]");
  command.AddSwitch("--ignore-eos", &flags->ignore_eos, "Go on past the model's end tokens");
  command.Add("--stop-token", &flags->stop_tokens,
              "A further token id that ends the text (repeatable)");
  command
      .Add("--stop-string", &flags->stop_strings,
           "Text that ends the text, and is not part of it (repeatable)")
      .Repeatable();
}

absl::Status SetSampling(const SamplingFlags& flags, v1::SamplingParams* sampling) {
  if (flags.temperature.has_value()) sampling->set_temperature(*flags.temperature);
  if (flags.top_k.has_value()) sampling->set_top_k(*flags.top_k);
  if (flags.top_p.has_value()) sampling->set_top_p(*flags.top_p);
  if (flags.min_p.has_value()) sampling->set_min_p(*flags.min_p);
  if (flags.seed.has_value()) sampling->set_seed(*flags.seed);
  if (flags.repetition_penalty.has_value()) {
    sampling->set_repetition_penalty(*flags.repetition_penalty);
  }
  if (flags.presence_penalty.has_value()) sampling->set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty.has_value()) {
    sampling->set_frequency_penalty(*flags.frequency_penalty);
  }
  for (const std::string& entry : flags.logit_bias) {
    const size_t colon = std::min(entry.find(':'), entry.size());
    const std::string_view text = entry;
    uint32_t token = 0;
    float bias = 0;
    if (colon == entry.size() || !ParseAll(text.substr(0, colon), &token) ||
        !ParseAll(text.substr(colon + 1), &bias)) {
      return absl::FailedPreconditionError(fmt::format(
          "--logit-bias is '{}': write a token id and what to add, such as 42:-100", entry));
    }
    (*sampling->mutable_logit_bias())[token] = bias;
  }
  return absl::OkStatus();
}

absl::Status SetStop(const StopFlags& flags, v1::StopParams* stop) {
  stop->set_max_tokens(flags.max_tokens.value_or(kDefaultMaxTokens));
  if (flags.min_tokens.has_value()) stop->set_min_tokens(*flags.min_tokens);
  if (flags.ignore_eos) stop->set_ignore_eos(true);
  stop->mutable_stop_token_ids()->Add(flags.stop_tokens.begin(), flags.stop_tokens.end());
  for (const std::string& text : flags.stop_strings) {
    if (const size_t valid = base::ValidUtf8Prefix(text); valid != text.size()) {
      return absl::InvalidArgumentError(
          fmt::format("--stop-string is not UTF-8 at byte {}", valid));
    }
    stop->add_stop_strings(text);
  }
  return absl::OkStatus();
}

}  // namespace conclave::client
