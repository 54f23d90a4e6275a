#ifndef CONCLAVE_COORDINATOR_CALL_RECORD_H_
#define CONCLAVE_COORDINATOR_CALL_RECORD_H_

// One call of a public service from its arrival to its status: its request id and trace, what the
// account and the log are told of it.
//
//   CallRecord record(Method::kGenerate, *context, engine.calls());
//   ... record.Admit();  record.Add(outcome);  ...
//   record.End(status);   // then Finish(status)

#include <grpcpp/server_context.h>

#include <atomic>
#include <string>

#include "absl/time/time.h"
#include "coordinator/call_account.h"
#include "coordinator/engine.h"
#include "coordinator/trace_context.h"

namespace conclave::coordinator {

// Lives as long as its call. Admit, Add and End are called one at a time, by any threads.
class CallRecord {
 public:
  // The trailing metadata of the call gets x-request-id, and traceparent if the caller sent one.
  CallRecord(Method method, grpc::CallbackServerContext& context, CallAccount& account);
  ~CallRecord();
  CallRecord(const CallRecord&) = delete;
  CallRecord& operator=(const CallRecord&) = delete;

  // The engine has taken something of it. Calls after the first change nothing.
  void Admit();
  bool admitted() const { return admitted_; }
  // How a part of it ended.
  void Add(const Outcome& outcome);
  // Once, before gRPC is told.
  void End(const grpc::Status& status);

  const std::string& request_id() const { return request_id_; }

 private:
  void Log(const grpc::Status& status) const;

  const Method method_;
  CallAccount& account_;
  const std::string request_id_;
  const TraceContext trace_;
  const std::string key_;  // name of the caller's API key, where requests are logged
  const std::string peer_;
  const absl::Time began_;

  bool admitted_ = false;
  bool ended_ = false;
  int parts_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  absl::Duration queue_time_;                                   // the longest of the parts
  absl::Duration first_token_time_ = absl::InfiniteDuration();  // the shortest
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CALL_RECORD_H_
