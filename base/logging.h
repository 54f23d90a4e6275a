#ifndef CONCLAVE_BASE_LOGGING_H_
#define CONCLAVE_BASE_LOGGING_H_

// Structured logs on stderr, one line each:
//
//   base::InitLogging("worker", "info", "text");
//   base::Log().info("event=epoch_ready epoch={} rank={}", epoch, rank);
//
// key=value pairs, `event` first, values that may hold spaces as key="value" (Quoted, where anybody
// else chose them). In JSON the pairs are an object's members (base/log_json.h). Quiet by default:
// info is for changes of state, never per step; in JSON it is for requests, too.

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace conclave::base {

// `level`: trace, debug, info, warn, error or off; `format`: text or json. Call once, before other
// threads start.
absl::Status InitLogging(const std::string& process, const std::string& level,
                         const std::string& format = "text");

// Thread-safe.
spdlog::logger& Log();

// Requests get a line each.
bool LogsRequests();

// `text` as one line (base/one_line.h), in quotation marks, with those in it escaped.
std::string Quoted(std::string_view text);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_LOGGING_H_
