#ifndef CONCLAVE_CLIENT_BENCH_SESSION_H_
#define CONCLAVE_CLIENT_BENCH_SESSION_H_

// The runs of one `conclave bench`, one after the other, each after its warm-up, with progress on a
// stream for people.

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/bench_load.h"
#include "client/bench_report.h"
#include "client/client.h"

namespace conclave::client {

// Tells on `out` how far a run is: one line that is rewritten on a terminal, elsewhere a line every
// 10 s.
class BenchProgress {
 public:
  BenchProgress(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}

  void Show(const std::string& what, const LoadProgress& progress);
  // The run has ended: leaves nothing on a terminal.
  void End();

 private:
  std::FILE* const out_;
  const bool terminal_;
  bool drawn_ = false;
  absl::Duration shown_;  // elapsed time of the run when it was last told
};

struct BenchPlan {
  std::vector<int> concurrency;
  // Without a count: four for each stream.
  std::optional<uint32_t> requests;
  std::optional<double> duration_seconds;  // in place of a count
  // Before each run, with as many streams as it has. Without a count: one for each stream.
  std::optional<uint32_t> warmup;
  RequestShape shape;
  absl::Duration timeout = absl::InfiniteDuration();
};

// Appends to `runs` what each has measured; stops when `cancellation` is cancelled and after a run
// with a failed request, whose error is in the run. The error of a warm-up is returned.
absl::Status RunBench(Client& client, const BenchPlan& plan, Cancellation& cancellation,
                      BenchProgress& progress, std::vector<BenchRun>* runs);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BENCH_SESSION_H_
