#include "client/label_prompts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace conclave::client {
namespace {

constexpr char kPlaceholder[] = "{text}";
// What stands for a text that says nothing, when scores are calibrated.
constexpr char kNoText[] = "N/A";

std::string Fill(std::string pattern, const std::string& text) {
  const std::string placeholder = kPlaceholder;
  for (size_t at = pattern.find(placeholder); at != std::string::npos;
       at = pattern.find(placeholder, at + text.size())) {
    pattern.replace(at, placeholder.size(), text);
  }
  return pattern;
}

std::string Question(const LabelQuestion& question, bool can_chat) {
  if (!question.template_text.empty()) return question.template_text;
  const std::string labels = fmt::format("{}", fmt::join(question.labels, ", "));
  if (can_chat) {
    return fmt::format(
        "Which one of these labels fits the text best: {}? Answer with the label alone.\n\n"
        "Text: {}",
        labels, kPlaceholder);
  }
  return fmt::format("Label the text with one of: {}.\n\nText: {}\nLabel:", labels, kPlaceholder);
}

void SetPrompt(const std::string& text, bool chat, v1::Prompt* prompt) {
  if (!chat) {
    prompt->set_text(text);
    return;
  }
  v1::ChatMessage* message = prompt->mutable_conversation()->add_messages();
  message->set_role(v1::ChatMessage::USER);
  message->set_content(text);
}

}  // namespace

v1::ScoreLabelsRequest AskForLabel(const LabelQuestion& question, bool can_chat) {
  // A template is the whole prompt, word for word.
  const bool chat = can_chat && question.template_text.empty();
  const std::string pattern = Question(question, chat);
  v1::ScoreLabelsRequest request;
  SetPrompt(Fill(pattern, question.text), chat, request.add_inputs());
  if (question.calibrate) SetPrompt(Fill(pattern, kNoText), chat, request.mutable_null_prompt());
  for (const std::string& label : question.labels) {
    request.add_labels(chat ? label : " " + label);
  }
  return request;
}

std::vector<std::string> SplitLabels(const std::string& list) {
  std::vector<std::string> labels;
  size_t begin = 0;
  while (begin <= list.size()) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const size_t first = list.find_first_not_of(' ', begin);
    if (first < end) {
      const size_t last = list.find_last_not_of(' ', end - 1);
      labels.push_back(list.substr(first, last - first + 1));
    }
    begin = end + 1;
  }
  return labels;
}

}  // namespace conclave::client
