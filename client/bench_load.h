#ifndef CONCLAVE_CLIENT_BENCH_LOAD_H_
#define CONCLAVE_CLIENT_BENCH_LOAD_H_

// A closed loop: a fixed number of streams against a server, each with one request at a time, the
// next as soon as the last has ended.

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/bench_prompts.h"
#include "client/bench_statistics.h"
#include "client/client.h"

namespace conclave::client {

struct LoadOptions {
  int streams = 1;
  // In all, over the streams. 0: streams begin requests for `duration`, one each at least, and let
  // those end that are under way then.
  int64_t requests = 0;
  absl::Duration duration;
  RequestShape shape;
  // Request i of the load is MakeBenchRequest(shape, first_index + i).
  uint64_t first_index = 0;
  absl::Duration timeout = absl::InfiniteDuration();  // of each request
};

struct LoadProgress {
  int64_t completed = 0;
  int64_t output_tokens = 0;
  absl::Duration elapsed;
};

struct LoadResult {
  RunStatistics statistics;
  int64_t begun = 0;   // requests
  absl::Status error;  // of the first request that failed
};

// Returns when all streams have ended. A stream whose request fails begins no other: a server that
// refuses is not flooded. `cancellation` ends requests and streams. `on_progress` is called on
// this thread, twice a second.
LoadResult RunLoad(Client& client, const LoadOptions& options, Cancellation& cancellation,
                   const std::function<void(const LoadProgress&)>& on_progress);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BENCH_LOAD_H_
