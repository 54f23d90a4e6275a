#ifndef CONCLAVE_CLIENT_PROMPT_FLAGS_H_
#define CONCLAVE_CLIENT_PROMPT_FLAGS_H_

// The input of generate and classify: text, or token ids.

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/flags.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::client {

struct PromptFlags {
  std::string text_flag;  // as AddPromptFlags was given it
  std::optional<std::string> text;
  std::optional<std::string> tokens;  // "1,2,3"
};

// Adds `text_flag` (such as "--prompt") and --tokens. `flags` must outlive the parse.
void AddPromptFlags(base::FlagSet& command, const std::string& text_flag, PromptFlags* flags);

// Text "-" is read from standard input, without the newline at its end. FAILED_PRECONDITION for
// wrong usage: not exactly one of the two, or something that is not a list of ids. INVALID_ARGUMENT
// for text that is not UTF-8, which gRPC cannot carry. What an empty input or an id out of range
// means is for the server to say.
absl::StatusOr<v1::Prompt> ToPrompt(const PromptFlags& flags);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_PROMPT_FLAGS_H_
