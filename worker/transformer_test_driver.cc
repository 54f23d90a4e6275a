#include "worker/transformer_test_driver.h"

#include <algorithm>

#include "base/status_macros.h"

namespace conclave::worker {
namespace {

// The most rows that a rank dispatches.
int BucketOf(const std::vector<internal::v1::StepPlan>& plans, int tp) {
  int most = 0;
  for (const internal::v1::StepPlan& plan : plans) {
    int rows = 0;
    for (const auto& chunk : plan.chunks()) rows += std::max(1, chunk.tokens_size());
    most = std::max(most, rows);
  }
  return (most + tp - 1) / tp;
}

}  // namespace

absl::StatusOr<std::vector<TestResult>> RunRequests(TransformerHarness& harness,
                                                    const std::vector<TestRequest>& requests,
                                                    int chunk, internal::v1::ExchangeMode mode) {
  const int dp = harness.options().shape.dp;
  std::vector<GroupDriver> groups(dp, GroupDriver(harness.config(), harness.options(), chunk));
  for (size_t i = 0; i < requests.size(); ++i) groups[i % dp].Add(requests[i]);
  while (true) {
    const bool done =
        std::all_of(groups.begin(), groups.end(), [](const auto& g) { return g.Done(); });
    std::vector<internal::v1::StepPlan> plans;  // after the last token: what frees the slots
    for (GroupDriver& group : groups) plans.push_back(group.Next());
    ASSIGN_OR_RETURN(const std::vector<StepOutput> outputs,
                     harness.Step(plans, mode, BucketOf(plans, harness.options().shape.tp)));
    for (int group = 0; group < dp; ++group) groups[group].Absorb(outputs[group]);
    if (done) break;
  }
  std::vector<TestResult> results;
  for (size_t i = 0; i < requests.size(); ++i) results.push_back(groups[i % dp].results()[i / dp]);
  return results;
}

absl::StatusOr<std::vector<std::vector<float>>> TraceLogits(
    TransformerHarness& harness, const std::vector<std::vector<int>>& prompts, int chunk) {
  GroupDriver group(harness.config(), harness.options(), chunk);
  for (const std::vector<int>& prompt : prompts) group.Add({.prompt = prompt});
  std::vector<std::vector<float>> logits(prompts.size());
  while (true) {
    const bool done = group.Done();
    ResolvedStep step;
    ASSIGN_OR_RETURN(const Transformer::Trace trace, harness.Trace(group.Next(), step));
    const int64_t vocab = harness.config().vocab_size;
    for (const kernels::SequenceRun& run : step.runs) {
      const auto begin = trace.logits.begin() + run.first_row * vocab;
      logits[run.slot].insert(logits[run.slot].end(), begin, begin + run.rows * vocab);
    }
    if (done) break;
  }
  return logits;
}

}  // namespace conclave::worker
