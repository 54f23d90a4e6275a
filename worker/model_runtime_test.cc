#include "worker/model_runtime.h"

#include <atomic>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/memory_plan.h"
#include "model/placement.h"
#include "worker/communicator.h"

namespace conclave::worker {
namespace {

constexpr char kModel[] = "demo/tiny_gpt_oss";
constexpr int kBlockTokens = 16;

internal::v1::Assignment MakeAssignment(int dp, int tp, int rank) {
  internal::v1::Assignment assignment;
  assignment.set_rank(rank);
  assignment.set_dp(dp);
  assignment.set_tp(tp);
  assignment.set_model_dir(kModel);
  assignment.set_max_step_tokens(32);
  assignment.mutable_cache()->set_block_tokens(kBlockTokens);
  assignment.mutable_cache()->set_full_blocks(16);
  assignment.mutable_cache()->set_sliding_blocks(16);
  assignment.mutable_cache()->set_max_sequences(4);
  const absl::StatusOr<model::Config> config = model::LoadConfig(kModel);
  EXPECT_TRUE(config.ok()) << config.status();
  for (const auto& layer : model::BalancedPlacement(*config, dp * tp).layers) {
    internal::v1::LayerPlacement& experts = *assignment.mutable_placement()->add_layers();
    for (const std::vector<int>& ranks : layer.ranks_of_expert) {
      internal::v1::ExpertRanks& out = *experts.add_experts();
      out.mutable_ranks()->Add(ranks.begin(), ranks.end());
    }
  }
  return assignment;
}

// A prompt in slot 0, then decode; idle groups get the same plan without the chunk.
internal::v1::StepPlan MakePlan(int step, bool busy) {
  internal::v1::StepPlan plan;
  plan.set_step(step);
  plan.set_exchange_mode(step == 0 ? internal::v1::EXCHANGE_MODE_EXACT
                                   : internal::v1::EXCHANGE_MODE_FIXED);
  plan.set_bucket(step == 0 ? 8 : 1);
  if (!busy) return plan;
  internal::v1::Chunk& chunk = *plan.add_chunks();
  chunk.set_sample(true);
  if (step > 0) {
    chunk.set_start_position(7 + step);
    return plan;
  }
  internal::v1::NewSequence& sequence = *plan.add_new_sequences();
  sequence.mutable_sampling()->set_top_p(1);
  sequence.mutable_sampling()->set_logprobs(-1);
  for (uint32_t token : {5, 17, 3, 40, 8, 21, 33, 2}) chunk.add_tokens(token);
  chunk.add_new_full_blocks(0);
  chunk.add_new_sliding_blocks(0);
  return plan;
}

// One worker: its runtime, and a thread like the agent's step thread.
struct Worker {
  std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  std::unique_ptr<RankRuntime> runtime = MakeModelRuntime(
      *backend, {.threads = 1, .interface = "lo", .advertise_address = "", .model_dir = ""});
  int64_t loaded = 0;
  std::vector<uint32_t> tokens;

  RankRuntime::Progress Count() {
    return [this](int64_t bytes, int64_t) { loaded = bytes; };
  }
};

constexpr int kSteps = 6;

void RunEpoch(std::vector<Worker>& workers, int dp, int tp, Generation generation) {
  auto rendezvous = MakeLocalRendezvous();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < dp * tp; ++rank) {
    threads.emplace_back([&, rank] {
      Worker& worker = workers[rank];
      worker.tokens.clear();
      worker.loaded = 0;
      auto ready = worker.runtime->Begin(generation, MakeAssignment(dp, tp, rank), *rendezvous,
                                         worker.Count());
      ASSERT_TRUE(ready.ok()) << ready.status();
      EXPECT_EQ(ready->resident_format(), "mxfp4");
      EXPECT_GT(ready->weight_bytes(), 0u);
      EXPECT_GT(ready->kv_bytes(), 0u);
      // It has made steps, of which its totals say nothing.
      EXPECT_GT(ready->warm_up_seconds(), 0);
      const internal::v1::RankStats fresh = worker.runtime->Stats();
      EXPECT_EQ(fresh.mxfp4_launches(), 0u);
      EXPECT_EQ(fresh.compute_seconds(), 0);
      EXPECT_EQ(fresh.exchange_bytes(), 0u);
      for (const uint64_t pairs : fresh.expert_load()) EXPECT_EQ(pairs, 0u);
      for (int step = 0; step < kSteps; ++step) {
        auto result = worker.runtime->Step(MakePlan(step, rank / tp == 0));
        ASSERT_TRUE(result.ok()) << result.status();
        for (const auto& sampled : result->sampled()) {
          EXPECT_EQ(sampled.position(), static_cast<uint32_t>(8 + step));
          worker.tokens.push_back(sampled.token());
        }
      }
      // Two products to a layer and step at most: none where no copy can arrive.
      EXPECT_GT(worker.runtime->Stats().mxfp4_launches(), 0u);
      EXPECT_LE(worker.runtime->Stats().mxfp4_launches(), 2u * 4 * kSteps);
      worker.runtime->End(false);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ModelRuntime, ServesTheSameTokensInEveryShapeFromTheFirstTpRank) {
  std::vector<Worker> single(1);
  RunEpoch(single, 1, 1, 1);
  ASSERT_EQ(single[0].tokens.size(), static_cast<size_t>(kSteps));
  for (auto [dp, tp] : {std::pair(2, 1), std::pair(3, 1), std::pair(1, 2), std::pair(2, 2)}) {
    std::vector<Worker> workers(dp * tp);
    RunEpoch(workers, dp, tp, 1);
    EXPECT_EQ(workers[0].tokens, single[0].tokens) << "dp " << dp << " tp " << tp;
    for (size_t rank = 1; rank < workers.size(); ++rank) EXPECT_TRUE(workers[rank].tokens.empty());
  }
}

TEST(ModelRuntime, WeightsStayWhileTheAssignmentDoes) {
  std::vector<Worker> workers(2);
  RunEpoch(workers, 2, 1, 1);
  const std::vector<uint32_t> tokens = workers[0].tokens;
  EXPECT_GT(workers[0].loaded, 0);
  RunEpoch(workers, 2, 1, 2);
  EXPECT_EQ(workers[0].loaded, 0) << "weights that were resident were loaded again";
  EXPECT_EQ(workers[0].tokens, tokens);
  RunEpoch(workers, 1, 2, 3);
  EXPECT_GT(workers[0].loaded, 0) << "weights of another shape were kept";
  EXPECT_EQ(workers[0].tokens, tokens);
}

// Moves `expert` of every layer to `ranks`.
void Place(internal::v1::Assignment& assignment, int expert, const std::vector<uint32_t>& ranks) {
  for (auto& layer : *assignment.mutable_placement()->mutable_layers()) {
    auto& holders = *layer.mutable_experts(expert)->mutable_ranks();
    holders.Clear();
    holders.Add(ranks.begin(), ranks.end());
  }
}

TEST(ModelRuntime, AnEpochThatContinuesKeepsItsSequencesAndLoadsOnlyWhatMoved) {
  constexpr int kLayers = 4;
  std::vector<Worker> uninterrupted(2);
  RunEpoch(uninterrupted, 2, 1, 1);
  const model::Config config = *model::LoadConfig(kModel);
  const int64_t expert_bytes = model::ExpertBytes(**model::Checkpoint::Open(kModel, config));
  std::vector<Worker> workers(2);
  auto rendezvous = MakeLocalRendezvous();
  auto next_rendezvous = MakeLocalRendezvous();
  std::vector<std::thread> threads;
  for (int rank : {0, 1}) {
    threads.emplace_back([&, rank] {
      Worker& worker = workers[rank];
      const auto step = [&](int number) {
        auto result = worker.runtime->Step(MakePlan(number, rank == 0));
        ASSERT_TRUE(result.ok()) << result.status();
        for (const auto& sampled : result->sampled()) worker.tokens.push_back(sampled.token());
      };
      internal::v1::Assignment assignment = MakeAssignment(2, 1, rank);
      assignment.set_epoch(7);
      auto ready = worker.runtime->Begin(1, assignment, *rendezvous, worker.Count());
      ASSERT_TRUE(ready.ok()) << ready.status();
      EXPECT_EQ(ready->loaded_bytes(), ready->weight_bytes());
      const uint64_t all = ready->weight_bytes();
      for (int number = 0; number < 3; ++number) step(number);
      const internal::v1::RankStats before = worker.runtime->Stats();
      EXPECT_EQ(before.expert_load_size(), kLayers * 8);
      worker.runtime->End(true);

      // Experts 2 and 3 go to rank 1, 9 comes to rank 0, and both have 12.
      assignment.set_epoch(8);
      assignment.set_continues(true);
      for (const int expert : {2, 3}) Place(assignment, expert, {1});
      Place(assignment, 9, {0});
      Place(assignment, 12, {0, 1});
      worker.loaded = 0;
      ready = worker.runtime->Begin(2, assignment, *next_rendezvous, worker.Count());
      ASSERT_TRUE(ready.ok()) << ready.status();
      const int64_t moved = kLayers * 2 * expert_bytes;  // two to each rank
      EXPECT_EQ(worker.loaded, moved);
      EXPECT_EQ(ready->loaded_bytes(), static_cast<uint64_t>(moved));
      const int64_t more = rank == 0 ? 0 : kLayers * expert_bytes;
      EXPECT_EQ(ready->weight_bytes(), all + static_cast<uint64_t>(more));
      EXPECT_EQ(worker.runtime->Stats().exchange_bytes(), 0u) << "totals of an epoch";
      for (int number = 3; number < kSteps; ++number) step(number);
      const internal::v1::RankStats after = worker.runtime->Stats();
      EXPECT_EQ(after.expert_load_size(), kLayers * (rank == 0 ? 8 : 9));
      EXPECT_EQ(after.copies_to_rank_size(), 2);
      EXPECT_EQ(after.bytes_to_rank(rank), 0u);
      EXPECT_EQ(after.exchange_bytes(), after.bytes_to_rank(1 - rank));
      EXPECT_GT(after.exchange_bytes(), 0u);
      worker.runtime->End(false);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(workers[0].tokens, uninterrupted[0].tokens);
}

TEST(ModelRuntime, NothingIsContinuedThatIsNotThere) {
  Worker worker;
  auto rendezvous = MakeLocalRendezvous();
  internal::v1::Assignment assignment = MakeAssignment(1, 1, 0);
  assignment.set_epoch(1);
  const auto begin = [&](uint64_t epoch, bool continues) {
    assignment.set_epoch(epoch);
    assignment.set_continues(continues);
    const absl::Status status =
        worker.runtime->Begin(epoch, assignment, *rendezvous, worker.Count()).status();
    return status.code();
  };
  EXPECT_EQ(begin(1, true), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(begin(2, false), absl::StatusCode::kOk);
  worker.runtime->End(false);
  EXPECT_EQ(begin(3, true), absl::StatusCode::kFailedPrecondition) << "they were forgotten";
  EXPECT_EQ(begin(4, false), absl::StatusCode::kOk);
  worker.runtime->End(true);
  EXPECT_EQ(begin(6, true), absl::StatusCode::kFailedPrecondition) << "of another epoch";
  EXPECT_EQ(begin(7, false), absl::StatusCode::kOk);
  worker.runtime->End(true);
  EXPECT_EQ(begin(8, true), absl::StatusCode::kOk);
  worker.runtime->End(false);
}

TEST(ModelRuntime, FilesThatChangedAreLoadedAgain) {
  namespace fs = std::filesystem;
  const std::string dir = testing::TempDir() + "/changing_model";
  fs::copy(kModel, dir, fs::copy_options::recursive);
  Worker worker;
  const auto loaded_by_an_epoch = [&](Generation generation) {
    auto rendezvous = MakeLocalRendezvous();
    internal::v1::Assignment assignment = MakeAssignment(1, 1, 0);
    assignment.set_model_dir(dir);
    worker.loaded = 0;
    EXPECT_TRUE(worker.runtime->Begin(generation, assignment, *rendezvous, worker.Count()).ok());
    worker.runtime->End(false);
    return worker.loaded;
  };
  EXPECT_GT(loaded_by_an_epoch(1), 0);
  EXPECT_EQ(loaded_by_an_epoch(2), 0);
  for (const auto& entry : fs::directory_iterator(dir)) {
    fs::last_write_time(entry, fs::file_time_type::clock::now() + std::chrono::seconds(5));
  }
  EXPECT_GT(loaded_by_an_epoch(3), 0);
  fs::remove_all(dir);
}

TEST(ModelRuntime, AbortLeavesTheWaitForPeers) {
  Worker worker;
  auto rendezvous = MakeLocalRendezvous();
  absl::Notification dialled;
  // Answers in the name of a peer that is gone: the runtime then waits for its call.
  struct Ghost final : Rendezvous {
    explicit Ghost(absl::Notification& notification) : dialled(notification) {}
    absl::Status Put(const std::string&, const std::string& value) override {
      addresses = value;
      return absl::OkStatus();
    }
    absl::StatusOr<std::string> Get(const std::string&, absl::Duration) override {
      dialled.Notify();
      return addresses;
    }
    absl::Notification& dialled;
    std::string addresses;
  } ghost(dialled);
  std::thread aborter([&] {
    dialled.WaitForNotification();
    worker.runtime->Abort(1);
  });
  EXPECT_FALSE(worker.runtime->Begin(1, MakeAssignment(2, 1, 0), ghost, worker.Count()).ok());
  aborter.join();
  worker.runtime->End(false);
}

TEST(ModelRuntime, AbortFailsTheStepThatWaitsForAPeerAndTheNextEpochWorks) {
  std::vector<Worker> workers(2);
  auto rendezvous = MakeLocalRendezvous();
  std::vector<std::thread> threads;
  absl::Notification begun;
  for (int rank : {0, 1}) {
    threads.emplace_back([&, rank] {
      RankRuntime& runtime = *workers[rank].runtime;
      auto ready = runtime.Begin(1, MakeAssignment(2, 1, rank), *rendezvous, workers[rank].Count());
      ASSERT_TRUE(ready.ok()) << ready.status();
      if (rank == 1) return;  // never steps
      begun.Notify();
      EXPECT_EQ(runtime.Step(MakePlan(0, true)).status().code(), absl::StatusCode::kUnavailable);
    });
  }
  begun.WaitForNotification();
  workers[0].runtime->Abort(1);
  for (std::thread& thread : threads) thread.join();
  workers[0].runtime->End(false);
  workers[1].runtime->End(false);
  RunEpoch(workers, 2, 1, 2);
  EXPECT_EQ(workers[0].tokens.size(), static_cast<size_t>(kSteps));
}

TEST(ModelRuntime, RefusesAMissingModelAndForcedRoutingThatWasNotAllowed) {
  Worker worker;
  auto rendezvous = MakeLocalRendezvous();
  internal::v1::Assignment assignment = MakeAssignment(1, 1, 0);
  assignment.set_model_dir("/nonexistent");
  const absl::Status missing =
      worker.runtime->Begin(1, assignment, *rendezvous, worker.Count()).status();
  EXPECT_FALSE(missing.ok());
  EXPECT_THAT(std::string(missing.message()), testing::HasSubstr("/nonexistent"));
  ASSERT_TRUE(worker.runtime->Begin(2, MakeAssignment(1, 1, 0), *rendezvous, worker.Count()).ok());
  internal::v1::StepPlan plan = MakePlan(0, true);
  plan.mutable_new_sequences(0)->add_forced_expert_ids(1);
  EXPECT_THAT(std::string(worker.runtime->Step(plan).status().message()),
              testing::HasSubstr("forces expert ids"));
}

}  // namespace
}  // namespace conclave::worker
