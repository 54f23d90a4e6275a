#ifndef CONCLAVE_WORKER_GROUP_DRIVER_H_
#define CONCLAVE_WORKER_GROUP_DRIVER_H_

// Plans of one data-parallel group for tests: every sequence advances by one chunk a step, blocks
// come from free lists, sliding blocks are released as soon as they are out of sight.

#include <cstdint>
#include <utility>
#include <vector>

#include "model/config.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/harness_options.h"
#include "worker/transformer.h"

namespace conclave::worker {

struct TestRequest {
  std::vector<int> prompt;
  int max_tokens = 0;  // sampled tokens
  internal::v1::Sampling sampling = Greedy();
  int head = -1;  // read at every position of the prompt
  std::vector<uint32_t> forced_expert_ids = {};
  // Entries of the top list of each of the prompt's tokens but the first; -1: not asked for.
  int prompt_logprobs = -1;

  static internal::v1::Sampling Greedy();
};

struct TestResult {
  std::vector<int> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<std::pair<int, float>>> top;
  std::vector<float> head_logits;  // [positions, labels]
  std::vector<float> prompt_logprobs;
  std::vector<int32_t> prompt_top;  // [prompt - 1, prompt_logprobs] tokens
};

class GroupDriver {
 public:
  GroupDriver(const model::Config& config, const HarnessOptions& options, int chunk);

  void Add(const TestRequest& request);
  bool Done() const;
  // Plan of the next step; without chunks when there is nothing to do.
  internal::v1::StepPlan Next();
  // Takes the output of the step planned last.
  void Absorb(const StepOutput& output);

  const std::vector<TestResult>& results() const { return results_; }
  // The most sliding blocks that one sequence held in a step.
  int most_sliding_blocks() const { return most_sliding_blocks_; }

 private:
  struct State {
    TestRequest request;
    int position = 0;
    int sampled = 0;
    bool announced = false;
    bool finished = false;
    bool freed = false;
    std::vector<uint32_t> full;
    std::vector<uint32_t> sliding;
    int sliding_first = 0;
  };
  void Announce(int slot, internal::v1::StepPlan& plan);
  void PlanChunk(int slot, int rows, internal::v1::StepPlan& plan);
  void PlanBlocks(State& state, int end, internal::v1::Chunk& chunk);
  void Free(int slot, internal::v1::StepPlan& plan);

  const model::Config& config_;
  const int max_step_tokens_;
  const int chunk_;
  std::vector<State> states_;  // slot = index
  std::vector<TestResult> results_;
  std::vector<uint32_t> free_full_;
  std::vector<uint32_t> free_sliding_;
  int most_sliding_blocks_ = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_GROUP_DRIVER_H_
