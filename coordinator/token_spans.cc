#include "coordinator/token_spans.h"

#include <algorithm>

namespace conclave::coordinator {
namespace {

struct Tag {
  bool begins = false;
  std::string_view name;
};

Tag Split(std::string_view label) {
  if (label.starts_with("B-")) return {true, label.substr(2)};
  if (label.starts_with("I-")) return {false, label.substr(2)};
  return {false, label};
}

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

size_t FloorToCharacter(std::string_view text, size_t at) {
  while (at > 0 && at < text.size() && IsContinuation(text[at])) --at;
  return at;
}

size_t CeilToCharacter(std::string_view text, size_t at) {
  while (at < text.size() && IsContinuation(text[at])) ++at;
  return at;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char byte) { return !IsContinuation(byte); }));
}

LabelledSpan MakeSpan(std::span<const LabelledToken> tokens, std::string_view name,
                      std::string_view text) {
  LabelledSpan span;
  span.label = name;
  for (const LabelledToken& token : tokens) span.score += token.score;
  span.score /= static_cast<float>(tokens.size());
  span.start_byte = FloorToCharacter(text, tokens.front().start_byte);
  span.end_byte = CeilToCharacter(text, tokens.back().end_byte);
  return span;
}

// Fills the character offsets; spans are in order and do not overlap by more than one character.
void CountOffsets(std::string_view text, std::vector<LabelledSpan>& spans) {
  size_t byte = 0;
  size_t character = 0;
  for (LabelledSpan& span : spans) {
    if (span.start_byte < byte) {  // shares a character with the span before
      character -= CountCharacters(text.substr(span.start_byte, byte - span.start_byte));
    } else {
      character += CountCharacters(text.substr(byte, span.start_byte - byte));
    }
    span.start_char = character;
    character += CountCharacters(text.substr(span.start_byte, span.end_byte - span.start_byte));
    span.end_char = character;
    byte = span.end_byte;
  }
}

}  // namespace

std::vector<LabelledSpan> GroupSpans(std::span<const LabelledToken> tokens, std::string_view text) {
  std::vector<LabelledSpan> spans;
  for (size_t first = 0; first < tokens.size();) {
    const std::string_view name = Split(tokens[first].label).name;
    size_t end = first + 1;
    while (end < tokens.size()) {
      const Tag tag = Split(tokens[end].label);
      if (tag.begins || tag.name != name) break;
      ++end;
    }
    if (name != "O") spans.push_back(MakeSpan(tokens.subspan(first, end - first), name, text));
    first = end;
  }
  CountOffsets(text, spans);
  return spans;
}

}  // namespace conclave::coordinator
