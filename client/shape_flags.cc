#include "client/shape_flags.h"

namespace conclave::client {
namespace {

constexpr int kMaxWorkers = 4096;

}  // namespace

void AddShapeFlags(base::FlagSet& command, ShapeFlags* flags) {
  command.Add("--workers", &flags->workers, "Worker processes: dp x tp of them")
      .Type("N")
      .Range(1, kMaxWorkers)
      .ShowDefault();
  command.Add("--dp", &flags->dp, "Groups with requests of their own [workers / tp]")
      .Type("D")
      .Range(1, kMaxWorkers);
  command.Add("--tp", &flags->tp, "Ranks that split the attention of one group [1]")
      .Type("T")
      .Range(1, kMaxWorkers);
}

absl::StatusOr<model::ParallelShape> Resolve(const ShapeFlags& flags) {
  return model::ResolveShape(flags.workers, flags.dp, flags.tp);
}

}  // namespace conclave::client
