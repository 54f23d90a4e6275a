#ifndef CONCLAVE_CLIENT_CHAT_COMMAND_H_
#define CONCLAVE_CLIENT_CHAT_COMMAND_H_

// conclave chat: a conversation with the model, at a terminal or in one call.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddChatCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CHAT_COMMAND_H_
