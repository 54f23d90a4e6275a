#include "model/harmony_parser.h"

#include <utility>

#include "base/utf8.h"
#include "model/harmony_header.h"

namespace conclave::model {
namespace {

// A header is a role, a channel, a recipient and a content type. What goes on for longer is text,
// and is better shown than kept back.
constexpr int kMaxHeaderWords = 5;
constexpr int kMaxHeaderTokens = 128;

// `bytes` as whole characters.
std::string Whole(std::string_view bytes) {
  std::string text;
  if (base::AppendUtf8Lossy(bytes, text) < bytes.size()) text += base::kReplacementCharacter;
  return text;
}

int CountWords(std::string_view text) {
  int words = 0;
  bool inside = false;
  for (const char c : text) {
    const bool space = IsHeaderSpace(c);
    if (!space && !inside) ++words;
    inside = !space;
  }
  return words;
}

}  // namespace

HarmonyParser::HarmonyParser(const Tokenizer& tokenizer, const HarmonyTokens& tokens,
                             std::optional<HarmonyRole> next_role)
    : tokenizer_(tokenizer), tokens_(tokens) {
  if (next_role.has_value()) BeginHeader(next_role, "");
}

void HarmonyParser::Append(int id, std::vector<HarmonyEvent>& events) {
  switch (state_) {
    case State::kBetween:
      return AppendBetween(id, events);
    case State::kHeader:
      return AppendHeader(id, events);
    case State::kContent:
      return AppendContent(id, events);
  }
}

void HarmonyParser::AppendBetween(int id, std::vector<HarmonyEvent>& events) {
  const std::string_view bytes = tokenizer_.TokenBytes(id);
  if (id == tokens_.start) return BeginHeader(std::nullopt, bytes);
  malformed_ = true;
  if (tokens_.Closes(id)) return Close(id, bytes, events);
  if (id == tokens_.channel || id == tokens_.message) {
    BeginHeader(HarmonyRole::kAssistant, "");
    return AppendHeader(id, events);
  }
  if (bytes == HarmonyRoleName(HarmonyRole::kAssistant)) {
    BeginHeader(std::nullopt, "");
    return AddToHeader(id);
  }
  implicit_ = true;
  HarmonyHeader header;
  header.role = HarmonyRole::kAssistant;
  BeginText("", std::move(header), events);
  AppendContent(id, events);
}

void HarmonyParser::BeginHeader(std::optional<HarmonyRole> role, std::string_view spelled) {
  state_ = State::kHeader;
  role_ = role;
  opening_ = spelled;
  header_.clear();
  header_tokens_ = 0;
  channel_at_.reset();
  stray_special_ = false;
}

void HarmonyParser::AppendHeader(int id, std::vector<HarmonyEvent>& events) {
  if (id == tokens_.message) return EndHeader(events);
  if (tokens_.Closes(id)) {
    malformed_ = true;
    return AbandonHeader(id, tokenizer_.TokenBytes(id), events);
  }
  if (id == tokens_.start) {
    malformed_ = true;
    AbandonHeader(-1, "", events);
    return BeginHeader(std::nullopt, tokenizer_.TokenBytes(id));
  }
  AddToHeader(id);
  if (header_tokens_ > kMaxHeaderTokens || CountWords(header_) > kMaxHeaderWords) {
    malformed_ = true;
    implicit_ = true;
    RecoverHeader(events);
  }
}

void HarmonyParser::AddToHeader(int id) {
  ++header_tokens_;
  if (id == tokens_.channel && !channel_at_.has_value()) {
    channel_at_ = header_.size();
  } else if (id != tokens_.constrain && tokenizer_.IsSpecial(id)) {
    stray_special_ = true;
  }
  header_ += tokenizer_.TokenBytes(id);
}

void HarmonyParser::EndHeader(std::vector<HarmonyEvent>& events) {
  const bool whole = base::ValidUtf8Prefix(header_) == header_.size();
  ParsedHeader parsed = ParseHarmonyHeader(Whole(header_), channel_at_, role_, stray_special_);
  malformed_ = malformed_ || parsed.malformed || stray_special_ || !whole;
  implicit_ = false;
  BeginText(opening_ + Whole(header_) + std::string(tokenizer_.TokenBytes(tokens_.message)),
            std::move(parsed.header), events);
  events.back().surplus = std::move(parsed.surplus);
}

// The header ends without <|message|>, by `token`.
void HarmonyParser::AbandonHeader(int token, std::string_view spelled,
                                  std::vector<HarmonyEvent>& events) {
  if (!header_.empty()) {
    RecoverHeader(events);
    return Close(token, spelled, events);
  }
  Close(token, opening_ + std::string(spelled), events);
}

// The header becomes a message: what can be understood of it, and the rest as content.
void HarmonyParser::RecoverHeader(std::vector<HarmonyEvent>& events) {
  BrokenHeader broken = SplitBrokenHeader(header_, channel_at_, role_);
  BeginText(opening_ + Whole(header_.substr(0, broken.content_at)), std::move(broken.header),
            events);
  AddText(std::string_view(header_).substr(broken.content_at), events);
}

void HarmonyParser::BeginText(std::string spelled, HarmonyHeader header,
                              std::vector<HarmonyEvent>& events) {
  state_ = State::kContent;
  pending_.clear();
  HarmonyEvent event;
  event.kind = HarmonyEvent::Kind::kHeader;
  event.text = std::move(spelled);
  event.header = std::move(header);
  events.push_back(std::move(event));
}

void HarmonyParser::AppendContent(int id, std::vector<HarmonyEvent>& events) {
  const std::string_view bytes = tokenizer_.TokenBytes(id);
  if (tokens_.Closes(id)) return Close(id, bytes, events);
  if (implicit_ && (id == tokens_.start || id == tokens_.channel)) {
    Close(-1, "", events);
    return AppendBetween(id, events);
  }
  if (tokenizer_.IsSpecial(id)) malformed_ = true;
  AddText(bytes, events);
}

void HarmonyParser::AppendBytes(std::string_view bytes, std::vector<HarmonyEvent>& events) {
  if (state_ == State::kContent) AddText(bytes, events);
}

void HarmonyParser::AddText(std::string_view bytes, std::vector<HarmonyEvent>& events) {
  pending_ += bytes;
  std::string text;
  pending_.erase(0, base::AppendUtf8Lossy(pending_, text));
  if (text.empty()) return;
  HarmonyEvent event;
  event.text = std::move(text);
  events.push_back(std::move(event));
}

void HarmonyParser::Close(int token, std::string_view spelled, std::vector<HarmonyEvent>& events) {
  if (!pending_.empty()) {
    HarmonyEvent event;
    event.text = base::kReplacementCharacter;
    events.push_back(std::move(event));
    pending_.clear();
  }
  HarmonyEvent event;
  event.kind = HarmonyEvent::Kind::kEnd;
  event.text = spelled;
  event.token = token;
  events.push_back(std::move(event));
  state_ = State::kBetween;
  implicit_ = false;
}

void HarmonyParser::Finish(std::vector<HarmonyEvent>& events) {
  if (state_ == State::kHeader && header_.empty()) {
    state_ = State::kBetween;
    if (!opening_.empty()) Close(-1, opening_, events);
  } else if (state_ == State::kHeader) {
    // Cut within a header; but a reply that has none is not to be lost.
    const ParsedHeader parsed =
        ParseHarmonyHeader(Whole(header_), channel_at_, role_, /*only_named=*/true);
    const bool is_text = role_.has_value() && !parsed.surplus.empty() &&
                         !parsed.header.recipient.has_value() &&
                         !parsed.header.content_type.has_value();
    if (is_text) {
      malformed_ = true;
      RecoverHeader(events);
    } else {
      BeginText(opening_ + Whole(header_), parsed.header, events);
    }
  }
  if (state_ == State::kContent) Close(-1, "", events);
}

HarmonyParse ParseHarmony(const Tokenizer& tokenizer, const HarmonyTokens& tokens,
                          std::span<const int> ids, std::optional<HarmonyRole> next_role) {
  HarmonyParser parser(tokenizer, tokens, next_role);
  std::vector<HarmonyEvent> events;
  for (const int id : ids) parser.Append(id, events);
  parser.Finish(events);
  HarmonyParse parse;
  parse.malformed = parser.malformed();
  std::string* text = nullptr;
  for (HarmonyEvent& event : events) {
    if (event.kind == HarmonyEvent::Kind::kHeader) {
      parse.messages.push_back({std::move(event.header), {std::string()}});
      text = &std::get<std::string>(parse.messages.back().content.front());
    } else if (event.kind == HarmonyEvent::Kind::kText) {
      *text += event.text;
    }
  }
  return parse;
}

}  // namespace conclave::model
