#ifndef CONCLAVE_CLIENT_STATUS_TABLE_H_
#define CONCLAVE_CLIENT_STATUS_TABLE_H_

// A group of workers as `conclave status` shows it: whole lines.

#include <string>

#include "absl/time/time.h"
#include "proto/conclave/v1/cluster.pb.h"

namespace conclave::client {

std::string StatusText(const v1::GetClusterResponse& cluster);

// What was done between two looks. 0 across a restart of the coordinator.
std::string RatesText(const v1::GetClusterResponse& before, const v1::GetClusterResponse& now,
                      absl::Duration between);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_STATUS_TABLE_H_
