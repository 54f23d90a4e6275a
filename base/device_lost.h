#ifndef CONCLAVE_BASE_DEVICE_LOST_H_
#define CONCLAVE_BASE_DEVICE_LOST_H_

// Marks the errors after which this process can use its device no more, and another process can:
// a CUDA context that a kernel has corrupted fails every call until its process ends.

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace conclave::base {

inline constexpr char kDeviceLostPayload[] = "conclave/device-lost";

inline absl::Status DeviceLostError(absl::string_view message) {
  absl::Status status = absl::InternalError(message);
  status.SetPayload(kDeviceLostPayload, absl::Cord());
  return status;
}

inline bool IsDeviceLost(const absl::Status& status) {
  return status.GetPayload(kDeviceLostPayload).has_value();
}

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_DEVICE_LOST_H_
