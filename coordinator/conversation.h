#ifndef CONCLAVE_COORDINATOR_CONVERSATION_H_
#define CONCLAVE_COORDINATOR_CONVERSATION_H_

// Conversations of the public API to Harmony messages and prompts.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/serving_model.h"
#include "model/harmony.h"
#include "proto/conclave/v1/chat.pb.h"

namespace conclave::coordinator {

// INVALID_ARGUMENT names the field below `field` that is wrong. `size_limit`: bytes of text, all
// together, that are worth rendering.
absl::StatusOr<std::vector<model::HarmonyMessage>> ToHarmony(const v1::Conversation& conversation,
                                                             const std::string& field,
                                                             size_t size_limit);

// Tokens up to the beginning of the assistant's reply: "<|start|>assistant", and on through
// <|message|> where `reply_channel` (the conversation's own, or that of the caller) is not empty.
// FAILED_PRECONDITION when the model's tokenizer has no Harmony tokens.
absl::StatusOr<std::vector<int32_t>> RenderConversation(const ServingModel& model,
                                                        const v1::Conversation& conversation,
                                                        const std::string& field, int max_tokens,
                                                        std::string_view reply_channel);

// Names of functions and authors: 1 to 64 of A-Z a-z 0-9 _ - . so that they cannot be mistaken for
// another part of a message's header.
bool IsHarmonyName(std::string_view name);

// Whether a call to `name` is one to a built-in tool, unless a function has that name.
bool IsBuiltinCall(std::string_view name);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CONVERSATION_H_
