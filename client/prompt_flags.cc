#include "client/prompt_flags.h"

#include <fmt/format.h>

#include <charconv>
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

void AddPromptFlags(CLI::App& command, const std::string& text_flag, PromptFlags* flags) {
  flags->text_option =
      command.add_option(text_flag, flags->text, "Input as text; special tokens in it are text")
          ->type_name("TEXT");
  flags->tokens_option =
      command.add_option("--tokens", flags->tokens, "Input as token ids instead, such as 1,2,3")
          ->type_name("IDS");
}

absl::StatusOr<v1::Prompt> ToPrompt(const PromptFlags& flags) {
  const std::string text_flag = flags.text_option->get_name();
  if ((flags.text_option->count() > 0) == (flags.tokens_option->count() > 0)) {
    return absl::FailedPreconditionError(
        fmt::format("give exactly one of {} TEXT and --tokens 1,2,3", text_flag));
  }
  v1::Prompt prompt;
  if (flags.tokens_option->count() > 0) {
    if (auto status = ParseIds(flags.tokens, prompt.mutable_tokens()); !status.ok()) return status;
    return prompt;
  }
  if (const size_t valid = base::ValidUtf8Prefix(flags.text); valid != flags.text.size()) {
    return absl::InvalidArgumentError(
        fmt::format("{} is not UTF-8 at byte {}: convert it, or send --tokens", text_flag, valid));
  }
  prompt.set_text(flags.text);
  return prompt;
}

}  // namespace conclave::client
