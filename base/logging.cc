#include "base/logging.h"

#include <fmt/format.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include <memory>
#include <string_view>
#include <utility>

#include "absl/time/time.h"
#include "base/log_json.h"
#include "base/one_line.h"

namespace conclave::base {
namespace {

// One JSON object for each line.
class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string time = absl::FormatTime("%Y-%m-%d%ET%H:%M:%E3SZ",
                                              absl::FromChrono(message.time), absl::UTCTimeZone());
    const auto level = spdlog::level::to_string_view(message.level);
    const std::string members = JsonMembers({message.payload.data(), message.payload.size()});
    fmt::format_to(std::back_inserter(out),
                   "{{\"ts\":\"{}\",\"level\":\"{}\",\"process\":\"{}\",\"pid\":{}{}{}}}\n", time,
                   std::string_view(level.data(), level.size()),
                   std::string_view(message.logger_name.data(), message.logger_name.size()),
                   getpid(), members.empty() ? "" : ",", members);
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

std::shared_ptr<spdlog::logger> MakeLogger(const std::string& process, bool json) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>(process, std::move(sink));
  if (json) {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    logger->set_pattern("ts=%Y-%m-%dT%H:%M:%S.%e level=%^%l%$ process=%n pid=%P %v");
  }
  logger->flush_on(spdlog::level::info);
  return logger;
}

std::shared_ptr<spdlog::logger>& Instance() {
  static std::shared_ptr<spdlog::logger> logger = MakeLogger("conclave", false);
  return logger;
}

bool logs_json = false;

}  // namespace

absl::Status InitLogging(const std::string& process, const std::string& level,
                         const std::string& format) {
  const spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    return absl::InvalidArgumentError(fmt::format(
        "--log-level '{}' is unknown: use trace, debug, info, warn, error or off", level));
  }
  if (format != "text" && format != "json") {
    return absl::InvalidArgumentError(
        fmt::format("--log-format '{}' is unknown: use text or json", format));
  }
  logs_json = format == "json";
  Instance() = MakeLogger(process, logs_json);
  Instance()->set_level(parsed);
  return absl::OkStatus();
}

spdlog::logger& Log() { return *Instance(); }

bool LogsRequests() {
  return Log().should_log(logs_json ? spdlog::level::info : spdlog::level::debug);
}

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : OneLine(text)) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

}  // namespace conclave::base
