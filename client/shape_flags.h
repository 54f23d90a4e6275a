#ifndef CONCLAVE_CLIENT_SHAPE_FLAGS_H_
#define CONCLAVE_CLIENT_SHAPE_FLAGS_H_

// --workers, --dp and --tp, of serve and plan.

#include "absl/status/statusor.h"
#include "base/flags.h"
#include "model/placement.h"

namespace conclave::client {

struct ShapeFlags {
  int workers = 1;
  int dp = 0;  // 0: not given
  int tp = 0;
};

// `flags` must outlive the parse.
void AddShapeFlags(base::FlagSet& command, ShapeFlags* flags);

// INVALID_ARGUMENT says which flags contradict each other: a usage error.
absl::StatusOr<model::ParallelShape> Resolve(const ShapeFlags& flags);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SHAPE_FLAGS_H_
