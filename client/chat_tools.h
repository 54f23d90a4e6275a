#ifndef CONCLAVE_CLIENT_CHAT_TOOLS_H_
#define CONCLAVE_CLIENT_CHAT_TOOLS_H_

#include <string>

#include "absl/status/status.h"
#include "proto/conclave/v1/chat.pb.h"

namespace conclave::client {

// Adds the functions of a file: a JSON list of {"name", "description", "parameters"}, the latter a
// JSON schema, or of {"type": "function", "function": {...}} around such. INVALID_ARGUMENT names
// the file.
absl::Status AddToolsFrom(const std::string& path, v1::Conversation* conversation);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CHAT_TOOLS_H_
