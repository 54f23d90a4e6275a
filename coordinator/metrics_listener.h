#ifndef CONCLAVE_COORDINATOR_METRICS_LISTENER_H_
#define CONCLAVE_COORDINATOR_METRICS_LISTENER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace conclave::coordinator {

// Plain HTTP for Prometheus: GET /metrics, and nothing else but a page at / that says so.
class MetricsListener {
 public:
  // Listens at HOST:PORT; port 0 takes a free one. `render` is called on threads of the listener,
  // several at once. UNAVAILABLE when the address cannot be had, INVALID_ARGUMENT when it is none.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const std::string& address, std::function<std::string()> render);
  virtual ~MetricsListener() = default;

  // HOST:PORT with the port that was bound.
  virtual const std::string& address() const = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_METRICS_LISTENER_H_
