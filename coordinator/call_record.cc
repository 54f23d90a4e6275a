#include "coordinator/call_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "base/clock.h"
#include "base/logging.h"
#include "base/one_line.h"

namespace conclave::coordinator {
namespace {

std::string Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto entry = context.client_metadata().find(key);
  if (entry == context.client_metadata().end()) return "";
  return std::string(entry->second.data(), entry->second.size());
}

}  // namespace

CallRecord::CallRecord(Method method, grpc::CallbackServerContext& context, CallAccount& account)
    : method_(method),
      account_(account),
      request_id_(RequestIdOf(Metadata(context, kRequestIdKey))),
      trace_(ParseTraceParent(Metadata(context, kTraceParentKey))),
      key_(base::LogsRequests() ? account.KeyName(Metadata(context, "authorization")) : ""),
      peer_(context.peer()),
      began_(base::SteadyNow()) {
  account_.Begin(method_);
  // Trailing: a call that is refused must be a status and nothing else, or clients do not retry it.
  context.AddTrailingMetadata(kRequestIdKey, request_id_);
  if (!trace_.empty()) context.AddTrailingMetadata(kTraceParentKey, trace_.ToHeader());
}

CallRecord::~CallRecord() {
  if (!ended_) End(grpc::Status(grpc::StatusCode::CANCELLED, "the call was abandoned"));
}

void CallRecord::Admit() {
  if (admitted_ || ended_) return;
  admitted_ = true;
  account_.Admit();
}

void CallRecord::Add(const Outcome& outcome) {
  ++parts_;
  prompt_tokens_ += outcome.prompt_tokens;
  cached_tokens_ += outcome.cached_tokens;
  completion_tokens_ += outcome.completion_tokens;
  queue_time_ = std::max(queue_time_, outcome.queue_time);
  if (outcome.completion_tokens > 0) {
    first_token_time_ = std::min(first_token_time_, outcome.first_token_time);
  }
}

void CallRecord::End(const grpc::Status& status) {
  ended_ = true;
  Log(status);
  account_.End(method_, static_cast<absl::StatusCode>(status.error_code()));
  if (admitted_) account_.Leave();
}

// Polls of the state would be most of the log.
void CallRecord::Log(const grpc::Status& status) const {
  const bool poll = method_ == Method::kGetCluster && status.ok();
  if (poll ? !base::Log().should_log(spdlog::level::debug) : !base::LogsRequests()) return;
  std::string line =
      fmt::format("event=request method={} code={} request_id=\"{}\"", MethodName(method_),
                  CodeName(static_cast<size_t>(status.error_code())), request_id_);
  const auto out = std::back_inserter(line);
  if (!trace_.empty()) {
    fmt::format_to(out, " trace_id={} parent_span_id={} span_id={}", trace_.trace_id,
                   trace_.parent_id, trace_.span_id);
  }
  if (!key_.empty()) fmt::format_to(out, " key={}", base::Quoted(key_));
  fmt::format_to(out, " peer={} seconds={:.6f}", peer_,
                 absl::ToDoubleSeconds(base::SteadyNow() - began_));
  if (parts_ > 0) {
    fmt::format_to(out,
                   " sequences={} prompt_tokens={} cached_tokens={} completion_tokens={} "
                   "queue_seconds={:.6f}",
                   parts_, prompt_tokens_, cached_tokens_, completion_tokens_,
                   absl::ToDoubleSeconds(queue_time_));
  }
  if (completion_tokens_ > 0) {
    fmt::format_to(out, " first_token_seconds={:.6f}", absl::ToDoubleSeconds(first_token_time_));
  }
  if (!status.ok()) fmt::format_to(out, " error={}", base::Quoted(status.error_message()));
  base::Log().log(poll ? spdlog::level::debug : spdlog::level::info, line);
}

}  // namespace conclave::coordinator
