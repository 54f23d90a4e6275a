#include "base/logging.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>

namespace conclave::base {
namespace {

std::shared_ptr<spdlog::logger> MakeLogger(const std::string& process) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>(process, std::move(sink));
  logger->set_pattern("ts=%Y-%m-%dT%H:%M:%S.%e level=%^%l%$ process=%n pid=%P %v");
  logger->flush_on(spdlog::level::info);
  return logger;
}

std::shared_ptr<spdlog::logger>& Instance() {
  static std::shared_ptr<spdlog::logger> logger = MakeLogger("conclave");
  return logger;
}

}  // namespace

absl::Status InitLogging(const std::string& process, const std::string& level) {
  const spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    return absl::InvalidArgumentError(fmt::format(
        "--log-level '{}' is unknown: use trace, debug, info, warn, error or off", level));
  }
  Instance() = MakeLogger(process);
  Instance()->set_level(parsed);
  return absl::OkStatus();
}

spdlog::logger& Log() { return *Instance(); }

}  // namespace conclave::base
