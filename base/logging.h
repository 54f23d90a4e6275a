#ifndef CONCLAVE_BASE_LOGGING_H_
#define CONCLAVE_BASE_LOGGING_H_

// Structured logs on stderr, one line each:
//
//   base::InitLogging("worker", "info");
//   base::Log().info("event=epoch_ready epoch={} rank={}", epoch, rank);
//
// key=value pairs, `event` first. Quiet by default: info is for changes of state, never per step.

#include <spdlog/spdlog.h>

#include <string>

#include "absl/status/status.h"

namespace conclave::base {

// `level`: trace, debug, info, warn, error or off. Call once, before other threads start.
absl::Status InitLogging(const std::string& process, const std::string& level);

// Thread-safe.
spdlog::logger& Log();

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_LOGGING_H_
