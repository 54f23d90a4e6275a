#ifndef CONCLAVE_BENCH_ROUTING_TRACE_H_
#define CONCLAVE_BENCH_ROUTING_TRACE_H_

// Which experts each token chose in each layer: recorded, or drawn from a distribution.
//
// As a file, text:
//
//   conclave-routing 1
//   layers 2 experts 8 experts_per_token 2
//   0,5 7,1        <- one line for each token: a group for each layer, ids in it by falling weight
//   ...

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"

namespace conclave::bench {

struct RoutingTrace {
  int layers = 0;
  int experts = 0;
  int experts_per_token = 0;
  std::vector<uint16_t> ids;  // [tokens, layers, experts_per_token]

  int tokens() const;
  // [experts_per_token], all different.
  std::span<const uint16_t> Of(int token, int layer) const;
};

// INVALID_ARGUMENT with the line's number when the text is not such a file.
absl::StatusOr<RoutingTrace> ParseRoutingTrace(std::string_view text);
std::string FormatRoutingTrace(const RoutingTrace& trace);

// Token-expert pairs, [layers, experts], of tokens [begin, end).
std::vector<uint64_t> LoadOf(const RoutingTrace& trace, int begin, int end);

// `tokens` independent draws in each layer of different experts, the next always by the weight of
// those left. The same arguments give the same trace.
//
// The weights are 1 / rank^exponent, with ranks shuffled anew in each layer; 0: all alike.
RoutingTrace DrawZipf(const model::Config& config, int tokens, double exponent, uint64_t seed);
// The weights are the load, [layers, experts]. A layer without load draws evenly.
RoutingTrace DrawFromLoad(const model::Config& config, std::span<const uint64_t> load, int tokens,
                          uint64_t seed);

// The load of all ranks in what `conclave status --json` prints, [layers, experts].
// INVALID_ARGUMENT when it is not of this config.
absl::StatusOr<std::vector<uint64_t>> LoadFromStatus(const model::Config& config,
                                                     const std::string& json);

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_ROUTING_TRACE_H_
