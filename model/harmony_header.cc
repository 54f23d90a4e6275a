#include "model/harmony_header.h"

#include <vector>

namespace conclave::model {
namespace {

constexpr std::string_view kTo = "to=";

std::vector<std::string_view> Words(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size();) {
    if (IsHeaderSpace(text[i])) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < text.size() && !IsHeaderSpace(text[end])) ++end;
    words.push_back(text.substr(i, end - i));
    i = end;
  }
  return words;
}

// Where the word ends that begins at `begin`: at white space, or a special token.
size_t WordEnd(std::string_view text, size_t begin) {
  size_t end = begin;
  while (end < text.size() && !IsHeaderSpace(text[end]) && text[end] != '<') ++end;
  return end;
}

// "user", or "user:name" of an author with a name.
bool TakeRole(std::string_view word, HarmonyHeader* header) {
  const size_t colon = word.find(':');
  const std::optional<HarmonyRole> role = HarmonyRoleOf(word.substr(0, colon));
  if (!role.has_value()) return false;
  header->role = *role;
  if (colon != std::string_view::npos) header->name = std::string(word.substr(colon + 1));
  return true;
}

// Removes the words that name the author.
void TakeAuthor(std::optional<HarmonyRole> role, std::vector<std::string_view>& words,
                ParsedHeader& parsed) {
  HarmonyHeader& header = parsed.header;
  if (role.has_value()) {
    header.role = *role;
    if (!words.empty() && words.front() == HarmonyRoleName(*role)) words.erase(words.begin());
    return;
  }
  header.role = HarmonyRole::kAssistant;
  if (words.empty()) {
    parsed.malformed = true;
  } else if (TakeRole(words.front(), &header)) {
    words.erase(words.begin());
  } else {  // tools speak under their own name
    header.role = HarmonyRole::kTool;
    header.name = std::string(words.front());
    words.erase(words.begin());
  }
}

std::string Join(const std::vector<std::string_view>& words) {
  std::string joined;
  for (const std::string_view word : words) {
    if (!joined.empty()) joined += ' ';
    joined += word;
  }
  return joined;
}

// Takes what is spelled out beyond doubt; the rest is surplus.
void TakeNamed(const std::vector<std::string_view>& words, ParsedHeader& parsed) {
  std::vector<std::string_view> rest;
  for (const std::string_view word : words) {
    if (word.starts_with(kTo) && !parsed.header.recipient.has_value()) {
      parsed.header.recipient = std::string(word.substr(kTo.size()));
    } else if (word.starts_with(kConstrainMarker) && !parsed.header.content_type.has_value()) {
      parsed.header.content_type = std::string(word);
    } else {
      rest.push_back(word);
    }
  }
  parsed.surplus = Join(rest);
  parsed.malformed = parsed.malformed || !rest.empty();
}

// [recipient] [content type]. A lone word is a recipient, with "to=" or without.
void TakeRecipientAndType(std::vector<std::string_view>& words, ParsedHeader& parsed) {
  if (words.empty()) return;
  const std::string_view last = words.back();
  const std::string_view first = words.front();
  const bool is_type = words.size() == 2 && !last.starts_with(kTo);
  if (is_type) parsed.header.content_type = std::string(last);
  parsed.header.recipient = std::string(first.starts_with(kTo) ? first.substr(kTo.size()) : first);
}

}  // namespace

bool IsHeaderSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r'; }

ParsedHeader ParseHarmonyHeader(std::string_view text, std::optional<size_t> channel_at,
                                std::optional<HarmonyRole> role, bool only_named) {
  ParsedHeader parsed;
  std::string rest(text);
  if (channel_at.has_value()) {
    const size_t begin = *channel_at + kChannelMarker.size();
    const size_t end = WordEnd(text, begin);
    if (end == begin) {
      parsed.malformed = true;
    } else {
      parsed.header.channel = std::string(text.substr(begin, end - begin));
    }
    rest = std::string(text.substr(0, *channel_at)) + std::string(text.substr(end));
  }
  // The marker begins a word, whatever stands before it.
  for (size_t at = rest.find(kConstrainMarker); at != std::string::npos;
       at = rest.find(kConstrainMarker, at + kConstrainMarker.size())) {
    rest.insert(at++, " ");
  }
  std::vector<std::string_view> words = Words(rest);
  TakeAuthor(role, words, parsed);
  const bool fits = words.size() < 2 || (words.size() == 2 && !words.back().starts_with(kTo));
  if (fits && !only_named) {
    TakeRecipientAndType(words, parsed);
  } else {
    TakeNamed(words, parsed);
  }
  return parsed;
}

BrokenHeader SplitBrokenHeader(std::string_view text, std::optional<size_t> channel_at,
                               std::optional<HarmonyRole> role) {
  BrokenHeader broken;
  broken.header.role = role.value_or(HarmonyRole::kAssistant);
  const auto skip_space = [text](size_t at) {
    while (at < text.size() && IsHeaderSpace(text[at])) ++at;
    return at;
  };
  size_t at = 0;
  if (!role.has_value()) {
    const size_t end = WordEnd(text, 0);
    if (TakeRole(text.substr(0, end), &broken.header)) at = skip_space(end);
  }
  const size_t marker = skip_space(at);
  if (channel_at == marker) {
    const size_t begin = marker + kChannelMarker.size();
    const size_t end = WordEnd(text, begin);
    if (end > begin) broken.header.channel = std::string(text.substr(begin, end - begin));
    at = skip_space(end);
  }
  broken.content_at = at;
  return broken;
}

}  // namespace conclave::model
