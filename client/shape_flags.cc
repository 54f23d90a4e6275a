#include "client/shape_flags.h"

namespace conclave::client {
namespace {

constexpr int kMaxWorkers = 4096;

}  // namespace

void AddShapeFlags(CLI::App& command, ShapeFlags* flags) {
  command.add_option("--workers", flags->workers, "Worker processes: dp x tp of them")
      ->type_name("N")
      ->check(CLI::Range(1, kMaxWorkers))
      ->capture_default_str();
  command.add_option("--dp", flags->dp, "Groups with requests of their own [workers / tp]")
      ->type_name("D")
      ->check(CLI::Range(1, kMaxWorkers));
  command.add_option("--tp", flags->tp, "Ranks that split the attention of one group [1]")
      ->type_name("T")
      ->check(CLI::Range(1, kMaxWorkers));
}

absl::StatusOr<model::ParallelShape> Resolve(const ShapeFlags& flags) {
  return model::ResolveShape(flags.workers, flags.dp, flags.tp);
}

}  // namespace conclave::client
