#ifndef CONCLAVE_CLIENT_EXIT_CODE_H_
#define CONCLAVE_CLIENT_EXIT_CODE_H_

// How a subcommand ends. An error is one line on stderr that says what to do:
//
//   if (!model.ok()) return Fail("plan", model.status());
//   if (prompts != 1) return FailUsage("generate", "give --prompt TEXT or --tokens 1,2,3");

#include <string_view>

#include "absl/status/status.h"

namespace conclave::client {

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;  // 128 + SIGINT, as shells report it

// Prints `conclave COMMAND: CODE: MESSAGE`; returns kExitError.
int Fail(std::string_view command, const absl::Status& status);

// The same for a call to `server`: one that could not be reached says how to start one.
int FailCall(std::string_view command, std::string_view server, const absl::Status& status);

// Prints `conclave COMMAND: MESSAGE; see 'conclave COMMAND --help'`; returns kExitUsage. `command`
// may be empty.
int FailUsage(std::string_view command, std::string_view message);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_EXIT_CODE_H_
