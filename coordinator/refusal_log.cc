#include "coordinator/refusal_log.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "base/logging.h"
#include "coordinator/call_account.h"

namespace conclave::coordinator {
namespace {

constexpr double kLinesAtOnce = 10;
constexpr double kLinesPerSecond = 1;

}  // namespace

void RefusalLog::Note(std::string_view method, const absl::Status& status) {
  const std::optional<std::string> line = Line(method, status, base::SteadyNow());
  if (line.has_value()) base::Log().log(spdlog::level::warn, *line);
}

std::optional<std::string> RefusalLog::Line(std::string_view method, const absl::Status& status,
                                            absl::Time now) {
  absl::MutexLock lock(&mutex_);
  lines_ =
      std::min(kLinesAtOnce, lines_ + kLinesPerSecond * absl::ToDoubleSeconds(now - refilled_));
  refilled_ = now;
  if (lines_ < 1) {
    ++left_out_;
    return std::nullopt;
  }
  --lines_;
  std::string line = fmt::format("event=call_refused port={} method={} code={} error={}", port_,
                                 base::Quoted(method), CodeName(static_cast<size_t>(status.code())),
                                 base::Quoted(std::string(status.message())));
  if (const int64_t left_out = std::exchange(left_out_, 0); left_out > 0) {
    line += fmt::format(" left_out={}", left_out);
  }
  return line;
}

}  // namespace conclave::coordinator
