#ifndef CONCLAVE_COORDINATOR_TRACE_CONTEXT_H_
#define CONCLAVE_COORDINATOR_TRACE_CONTEXT_H_

// Who a call is, in its caller's words: the request id and the W3C trace context that come and go
// as metadata.

#include <string>
#include <string_view>

namespace conclave::coordinator {

inline constexpr char kRequestIdKey[] = "x-request-id";
inline constexpr char kTraceParentKey[] = "traceparent";

// The caller's request id if it has one that can stand in a log: 1 to 128 letters, digits and
// "-_.:/+=@". Else a new one of 32 hexadecimal digits.
std::string RequestIdOf(std::string_view given);

// This call's place in a trace. All in lower-case hexadecimal; empty where there is no trace.
struct TraceContext {
  std::string trace_id;   // 32 digits
  std::string parent_id;  // 16: the caller's span
  std::string span_id;    // 16: ours
  std::string flags;      // 2

  bool empty() const { return trace_id.empty(); }
  // For whoever is told next.
  std::string ToHeader() const;
};

// Of a `traceparent` header (W3C Trace Context, version 00 or a later one that begins like it). One
// that is not valid is as none, as the standard says.
TraceContext ParseTraceParent(std::string_view header);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_TRACE_CONTEXT_H_
