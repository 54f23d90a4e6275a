#ifndef CONCLAVE_CLIENT_BENCH_REPORT_H_
#define CONCLAVE_CLIENT_BENCH_REPORT_H_

// What `conclave bench` prints, as docs/cli.md lists it field by field.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/bench_statistics.h"
#include "client/json_shapes.h"
#include "proto/conclave/v1/cluster.pb.h"
#include "proto/conclave/v1/model.pb.h"

namespace conclave::client {

struct BenchSettings {
  std::string server;
  uint32_t input_len = 0;
  uint32_t output_len = 0;
  std::optional<uint32_t> requests;  // of each run
  std::optional<double> duration_seconds;
  std::optional<uint32_t> warmup;
  float temperature = 1;
  uint64_t seed = 0;
};

struct BenchRun {
  RunStatistics statistics;
  int64_t warmup = 0;  // requests before it
  absl::Status error;  // of the first request that failed
};

struct BenchReport {
  BenchSettings settings;
  v1::GetModelResponse model;
  std::optional<v1::GetClusterResponse> cluster;  // where the server tells
  std::vector<BenchRun> runs;
  bool interrupted = false;
};

Json BenchJson(const BenchReport& report);

// Lines that end in '\n': the server, a row of rates for each run, a row for each of its latencies.
std::string BenchText(const BenchReport& report);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BENCH_REPORT_H_
