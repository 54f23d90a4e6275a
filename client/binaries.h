#ifndef CONCLAVE_CLIENT_BINARIES_H_
#define CONCLAVE_CLIENT_BINARIES_H_

// Where the other programs of this build are.

#include <string>

#include "absl/status/statusor.h"

namespace conclave::client {

inline constexpr char kCoordinatorBinary[] = "conclave-coordinator";
inline constexpr char kWorkerBinary[] = "conclave-worker";

// Path of `name`: in $CONCLAVE_BIN_DIR when that is set; else beside this program, as installed;
// else in ../coordinator or ../worker, as Bazel builds them. NOT_FOUND says where it looked and how
// to build it.
absl::StatusOr<std::string> FindBinary(const std::string& name);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BINARIES_H_
