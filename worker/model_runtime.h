#ifndef CONCLAVE_WORKER_MODEL_RUNTIME_H_
#define CONCLAVE_WORKER_MODEL_RUNTIME_H_

// The RankRuntime that serves a model on a backend: weights, communicators, sequence table, forward
// pass.

#include <memory>
#include <string>

#include "worker/backend.h"
#include "worker/rank_runtime.h"

namespace conclave::worker {

struct ModelRuntimeOptions {
  int threads = 1;  // that make up random weights
  // Where peers reach this rank.
  std::string interface;
  std::string advertise_address;
  // Instead of the assignment's folder, where it is mounted elsewhere; may be empty.
  std::string model_dir;
};

// `backend` is borrowed.
std::unique_ptr<RankRuntime> MakeModelRuntime(Backend& backend, ModelRuntimeOptions options);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_MODEL_RUNTIME_H_
