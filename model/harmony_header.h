#ifndef CONCLAVE_MODEL_HARMONY_HEADER_H_
#define CONCLAVE_MODEL_HARMONY_HEADER_H_

// What the words of a message header mean. Private to harmony_parser.

#include <optional>
#include <string>
#include <string_view>

#include "model/harmony.h"

namespace conclave::model {

struct ParsedHeader {
  HarmonyHeader header;
  std::string surplus;  // words without a meaning, separated by spaces
  bool malformed = false;
};

// `text` is a header from behind <|start|> to before <|message|>, special tokens by name.
// `channel_at`: where its channel marker is. `role`: known from the prompt; else it is the first
// word. `only_named`: take only recipients spelled "to=...", and marked content types.
ParsedHeader ParseHarmonyHeader(std::string_view text, std::optional<size_t> channel_at,
                                std::optional<HarmonyRole> role, bool only_named);

// A header that never came to <|message|>, as a beginning that is understood (role, channel) and
// the rest, which is content.
struct BrokenHeader {
  HarmonyHeader header;
  size_t content_at = 0;  // in `text`
};
BrokenHeader SplitBrokenHeader(std::string_view text, std::optional<size_t> channel_at,
                               std::optional<HarmonyRole> role);

inline constexpr std::string_view kChannelMarker = "<|channel|>";

// White space in headers is ASCII's.
bool IsHeaderSpace(char c);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_HARMONY_HEADER_H_
