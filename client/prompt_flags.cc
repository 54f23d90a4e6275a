#include "client/prompt_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iostream>
#include <iterator>
#include <string_view>

#include "base/utf8.h"

namespace conclave::client {
namespace {

absl::Status ParseIds(std::string_view list, v1::TokenIds* out) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view item = list.substr(0, comma);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    uint32_t id = 0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (error != std::errc() || end != item.data() + item.size()) {
      return absl::FailedPreconditionError(
          fmt::format("--tokens holds '{}', which is not a token id: write ids with commas between "
                      "them, such as 1,2,3",
                      item));
    }
    out->add_ids(id);
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return absl::OkStatus();
}

}  // namespace

void AddPromptFlags(base::FlagSet& command, const std::string& text_flag, PromptFlags* flags) {
  flags->text_flag = text_flag;
  command
      .Add(text_flag, &flags->text,
           "Input as text, - for that of standard input; special tokens in it are text")
      .Type("TEXT");
  command.Add("--tokens", &flags->tokens, "Input as token ids instead, such as 1,2,3").Type("IDS");
}

absl::StatusOr<v1::Prompt> ToPrompt(const PromptFlags& flags) {
  if (flags.text.has_value() == flags.tokens.has_value()) {
    return absl::FailedPreconditionError(
        fmt::format("give exactly one of {} TEXT and --tokens 1,2,3", flags.text_flag));
  }
  v1::Prompt prompt;
  if (flags.tokens.has_value()) {
    if (auto status = ParseIds(*flags.tokens, prompt.mutable_tokens()); !status.ok()) return status;
    return prompt;
  }
  std::string text = *flags.text;
  if (text == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (text.ends_with('\n')) text.pop_back();
  }
  if (const size_t valid = base::ValidUtf8Prefix(text); valid != text.size()) {
    return absl::InvalidArgumentError(fmt::format(
        "{} is not UTF-8 at byte {}: convert it, or send --tokens", flags.text_flag, valid));
  }
  prompt.set_text(text);
  return prompt;
}

}  // namespace conclave::client
