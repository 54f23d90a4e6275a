#include "coordinator/cluster.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "coordinator/cluster_report.h"
#include "coordinator/cluster_testing.h"
#include "coordinator/rank_assignment.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Group {
  explicit Group(ClusterOptions options) : cluster(options, rendezvous, clock) {}
  explicit Group(int dp, int tp = 1) : Group(SmallClusterOptions({.dp = dp, .tp = tp})) {}

  WorkerId Join(std::optional<uint32_t> previous_rank = std::nullopt,
                void (*change)(internal::v1::Register&) = nullptr) {
    const WorkerId worker = ++last;
    links[worker] = std::make_shared<RecordingLink>();
    cluster.Open(worker, links[worker]);
    internal::v1::WorkerMessage message = RegisterMessage(100 + static_cast<int>(worker));
    if (previous_rank) message.mutable_register_()->set_previous_rank(*previous_rank);
    if (change != nullptr) change(*message.mutable_register_());
    cluster.OnMessage(worker, message);
    return worker;
  }

  void Ready(WorkerId worker) { cluster.OnMessage(worker, ReadyMessage(cluster.epoch())); }

  // Everyone with a rank says Ready.
  void AllReady() {
    for (const ClusterMember* member : cluster.Ranked()) Ready(member->id);
  }

  int RankOf(WorkerId worker) { return links[worker]->assignment()->rank(); }

  base::FakeClock clock;
  Rendezvous rendezvous;
  Cluster cluster;
  std::map<WorkerId, std::shared_ptr<RecordingLink>> links;
  WorkerId last = 0;
};

TEST(RankAssignment, WorkersKeepTheirRanksAndOthersFillTheGaps) {
  const auto assign = [](std::vector<std::optional<int>> previous, int world) {
    std::vector<RankCandidate> workers;
    for (const auto& rank : previous) workers.push_back({.previous = rank, .host = "a"});
    return AssignRanks(workers, {.dp = world, .tp = 1});
  };
  EXPECT_THAT(assign({{}, {}, {}}, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(assign({2, {}, 0}, 3), ElementsAre(2, 1, 0));
  // A rank claimed twice goes to the one that came first; claims outside the world count for
  // nothing.
  EXPECT_THAT(assign({1, 1, 7}, 3), ElementsAre(1, 0, 2));
  // Who has a rank goes before who has none.
  EXPECT_THAT(assign({{}, {}, 1}, 2), ElementsAre(0, -1, 1));
}

TEST(RankAssignment, TheRanksOfATpGroupShareAHostWhereTheyCan) {
  const auto assign = [](const std::string& hosts, std::vector<std::optional<int>> previous, int dp,
                         int tp) {
    std::vector<RankCandidate> workers;
    for (size_t i = 0; i < hosts.size(); ++i) {
      workers.push_back({.previous = i < previous.size() ? previous[i] : std::nullopt,
                         .host = std::string_view(hosts).substr(i, 1)});
    }
    return AssignRanks(workers, {.dp = dp, .tp = tp});
  };
  EXPECT_THAT(assign("abab", {}, 2, 2), ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(assign("abba", {}, 4, 1), ElementsAre(0, 1, 2, 3));
  // A host with too few waits for a group that has no better.
  EXPECT_THAT(assign("abbcca", {}, 3, 2), ElementsAre(0, 2, 3, 4, 5, 1));
  EXPECT_THAT(assign("abbc", {}, 2, 2), ElementsAre(2, 0, 1, 3));
  // Beside whoever has a rank already; spares stay where there are more than ranks.
  EXPECT_THAT(assign("ababb", {{}, {}, {}, 0}, 2, 2), ElementsAre(2, 1, 3, 0, -1));
}

TEST(Cluster, FormsWhenAllWorkersAreThereAndIsReadyWhenAllAre) {
  Group group(2, 2);
  std::vector<WorkerId> workers;
  for (int i = 0; i < 3; ++i) workers.push_back(group.Join());
  EXPECT_EQ(group.cluster.state(), v1::FORMING);
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("3 of 4 workers"));
  workers.push_back(group.Join());
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
  EXPECT_EQ(group.cluster.epoch(), 1u);
  for (int i = 0; i < 3; ++i) group.Ready(workers[i]);
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
  group.Ready(workers[3]);
  EXPECT_EQ(group.cluster.state(), v1::READY);
  EXPECT_THAT(group.cluster.Problem(), IsEmpty());
}

TEST(Cluster, TheAssignmentSaysEverythingARankNeeds) {
  ClusterOptions options = SmallClusterOptions({.dp = 1, .tp = 2});
  options.heads = {
      {.name = "topic", .dir = "/heads/topic", .config = {}, .backbone_verified = false}};
  options.require_mxfp4 = true;
  Group group(options);
  group.Join();
  const WorkerId second = group.Join();
  const internal::v1::Assignment assignment = *group.links[second]->assignment();
  EXPECT_EQ(assignment.epoch(), 1u);
  EXPECT_EQ(assignment.rank(), 1u);
  EXPECT_EQ(assignment.dp(), 1u);
  EXPECT_EQ(assignment.tp(), 2u);
  EXPECT_EQ(assignment.model_dir(), "/models/small");
  ASSERT_EQ(assignment.heads_size(), 1);
  EXPECT_EQ(assignment.heads(0).name(), "topic");
  ASSERT_EQ(assignment.placement().layers_size(), 2);
  EXPECT_THAT(assignment.placement().layers(1).experts(3).ranks(), ElementsAre(1u));
  EXPECT_EQ(assignment.max_step_tokens(), 64u);
  EXPECT_EQ(assignment.cache().max_sequences(), 8u);
  EXPECT_EQ(assignment.cache().full_blocks(), 8u * 16);
  EXPECT_TRUE(assignment.require_mxfp4());
  EXPECT_FALSE(assignment.allow_forced_routing());
}

TEST(Cluster, ALostRankEndsTheEpochForAllAndAnotherWorkerTakesItsRank) {
  Group group(3);
  const WorkerId first = group.Join();
  const WorkerId second = group.Join();
  const WorkerId third = group.Join();
  group.AllReady();
  group.cluster.Gone(second, "its stream ended");
  EXPECT_EQ(group.cluster.state(), v1::RECOVERING);
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("rank 1 (a pid 102) was lost"));
  EXPECT_THAT(group.links[first]->ended_epochs(), ElementsAre(1u));
  EXPECT_THAT(group.links[third]->ended_epochs(), ElementsAre(1u));
  const WorkerId fourth = group.Join();
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
  EXPECT_EQ(group.cluster.epoch(), 2u);
  EXPECT_EQ(group.RankOf(first), 0);
  EXPECT_EQ(group.RankOf(third), 2);
  EXPECT_EQ(group.RankOf(fourth), 1);
  // What is left of the old epoch changes nothing.
  group.cluster.OnMessage(first, ReadyMessage(1));
  group.Ready(third);
  group.Ready(fourth);
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
  group.Ready(first);
  EXPECT_EQ(group.cluster.state(), v1::READY);
}

TEST(Cluster, ALossExplainsTheFaultThatAPeerReportedFirst) {
  Group group(2);
  const WorkerId first = group.Join();
  const WorkerId second = group.Join();
  group.AllReady();
  group.cluster.OnMessage(first, FaultMessage(1, "connection reset by peer"));
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("connection reset"));
  group.cluster.Gone(second, "its stream ended");
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("rank 1 (a pid 102) was lost"));
  EXPECT_THAT(group.links[first]->ended_epochs(), ElementsAre(1u));
}

TEST(Cluster, ASpareReplacesALostRankAtOnce) {
  Group group(2);
  const WorkerId first = group.Join();
  group.Join();
  const WorkerId spare = group.Join();
  group.AllReady();
  EXPECT_EQ(group.cluster.state(), v1::READY);
  EXPECT_FALSE(group.links[spare]->assignment().has_value());
  group.cluster.Gone(first, "its stream ended");
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
  EXPECT_EQ(group.cluster.epoch(), 2u);
  EXPECT_EQ(group.RankOf(spare), 0);
  EXPECT_THAT(group.cluster.last_end(), HasSubstr("rank 0"));
}

TEST(Cluster, LosingASpareOrAStrangerDisturbsNobody) {
  Group group(1);
  group.Join();
  const WorkerId spare = group.Join();
  group.AllReady();
  group.cluster.Gone(spare, "its stream ended");
  group.cluster.Gone(999, "never seen");
  EXPECT_EQ(group.cluster.state(), v1::READY);
  EXPECT_EQ(group.cluster.epoch(), 1u);
}

TEST(Cluster, WorkersThatDoNotFitAreRefusedWithTheReason) {
  Group group(1);
  const auto reason = [&](WorkerId worker) {
    const auto messages = group.links[worker]->messages();
    EXPECT_TRUE(group.links[worker]->closed());
    EXPECT_EQ(messages.size(), 1u);
    return messages.empty() ? "" : messages[0].refuse().reason();
  };
  EXPECT_THAT(reason(group.Join({}, [](internal::v1::Register& r) { r.set_protocol_version(77); })),
              HasSubstr("protocol version 77"));
  EXPECT_THAT(reason(group.Join({}, [](internal::v1::Register& r) { r.set_device("abacus"); })),
              HasSubstr("'abacus'"));
  group.Join();
  EXPECT_THAT(reason(group.Join({}, [](internal::v1::Register& r) { r.set_device("cuda"); })),
              HasSubstr("device cuda in a group of cpu"));
  group.Join();
  EXPECT_THAT(reason(group.Join()), HasSubstr("complete"));

  const WorkerId rude = 1000;
  group.links[rude] = std::make_shared<RecordingLink>();
  group.cluster.Open(rude, group.links[rude]);
  group.cluster.OnMessage(rude, ReadyMessage(1));
  EXPECT_THAT(reason(rude), HasSubstr("Register"));
}

TEST(Cluster, ASilentWorkerIsLostAfterTheHeartbeatLimitAndItsStreamCut) {
  Group group(2);
  const WorkerId silent = group.Join();
  const WorkerId alive = group.Join();
  group.AllReady();
  const int ticks = static_cast<int>(Cluster::kHeartbeatLimit * base::TimeScale() / Cluster::kTick);
  for (int i = 0; i < ticks; ++i) {
    group.clock.Advance(Cluster::kTick);
    group.cluster.OnMessage(alive, HeartbeatMessage(1));
    group.cluster.Tick();
    ASSERT_EQ(group.cluster.state(), v1::READY) << "after " << i + 1 << " ticks";
  }
  group.clock.Advance(Cluster::kTick);
  group.cluster.OnMessage(alive, HeartbeatMessage(1));
  group.cluster.Tick();
  EXPECT_EQ(group.cluster.state(), v1::RECOVERING);
  EXPECT_TRUE(group.links[silent]->aborted());
  EXPECT_FALSE(group.links[alive]->aborted());
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("silent"));
}

TEST(Cluster, OurOwnPauseIsNotTheWorkersSilence) {
  Group group(1);
  group.Join();
  group.AllReady();
  group.cluster.Tick();
  group.clock.Advance(absl::Minutes(5));
  group.cluster.Tick();
  EXPECT_EQ(group.cluster.state(), v1::READY);
}

TEST(Cluster, AStreamThatNeverRegistersIsCut) {
  Group group(1);
  auto link = std::make_shared<RecordingLink>();
  group.cluster.Open(5, link);
  for (int i = 0; i < 500 && !link->aborted(); ++i) {
    group.clock.Advance(Cluster::kTick);
    group.cluster.Tick();
  }
  EXPECT_TRUE(link->aborted());
}

TEST(Cluster, AFaultEndsTheEpochAndTheNextOnesWaitLongerEachTime) {
  Group group(2);
  const WorkerId first = group.Join();
  group.Join();
  absl::Duration last_wait;
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    ASSERT_EQ(group.cluster.state(), v1::LOADING);
    ASSERT_EQ(group.cluster.epoch(), epoch);
    group.cluster.OnMessage(first, FaultMessage(epoch, "model-2.safetensors is short"));
    ASSERT_EQ(group.cluster.state(), v1::RECOVERING);
    EXPECT_THAT(group.cluster.Problem(), HasSubstr("model-2.safetensors is short"));
    absl::Duration wait;
    while (group.cluster.state() == v1::RECOVERING) {
      group.clock.Advance(Cluster::kTick);
      wait += Cluster::kTick;
      for (const ClusterMember* member : group.cluster.Ranked()) {
        group.cluster.OnMessage(member->id, HeartbeatMessage(epoch));
      }
      group.cluster.Tick();
    }
    EXPECT_GT(wait, last_wait);
    last_wait = wait;
  }
  group.cluster.OnMessage(first, FaultMessage(1, "late"));
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
}

TEST(Cluster, AModelThatDoesNotFitIsRefusedBeforeLoadingWithTheNumbers) {
  ClusterOptions options = SmallClusterOptions({.dp = 2, .tp = 1});
  options.weight_bytes = {int64_t{20} << 30, int64_t{20} << 30};
  options.model_bytes = int64_t{30} << 30;
  Group group(options);
  const WorkerId first = group.Join();
  group.Join();
  EXPECT_EQ(group.cluster.state(), v1::FORMING);
  EXPECT_THAT(group.links[first]->messages(), IsEmpty());
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("8.00 GiB of memory"));
  EXPECT_THAT(group.cluster.Problem(), HasSubstr("30.00 GiB of weights"));
  base::FakeClock clock;
  SchedulerOptions scheduler_options;
  scheduler_options.shape = options.shape;
  const Scheduler scheduler(scheduler_options, clock);
  EXPECT_EQ(ReportCluster(group.cluster, scheduler).problem(), group.cluster.Problem());
}

TEST(Cluster, MemoryThatBecomesFreeLetsTheGroupForm) {
  ClusterOptions options = SmallClusterOptions({.dp = 1, .tp = 1});
  options.kv_cache_bytes = 1 << 20;
  Group group(options);
  const WorkerId worker =
      group.Join({}, [](internal::v1::Register& r) { r.set_free_memory_bytes(1000); });
  EXPECT_EQ(group.cluster.state(), v1::FORMING);
  group.cluster.OnMessage(worker, HeartbeatMessage(0));
  group.cluster.Tick();
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
}

TEST(Cluster, OnlyMemoryThatIsStillHeldCountsAsTheNextEpochs) {
  ClusterOptions options = SmallClusterOptions({.dp = 1, .tp = 1});
  options.kv_cache_bytes = 1 << 20;
  Group group(options);
  const WorkerId worker = group.Join();
  group.cluster.OnMessage(worker, ReadyMessage(1));
  ASSERT_EQ(group.cluster.state(), v1::READY);
  internal::v1::WorkerMessage report = HeartbeatMessage(1);
  report.mutable_heartbeat()->set_free_memory_bytes(1000);
  group.cluster.OnMessage(worker, report);
  group.cluster.OnMessage(worker, FaultMessage(1, "a fault"));
  group.clock.Advance(absl::Seconds(8));
  group.cluster.OnMessage(worker, report);
  group.cluster.Tick();
  EXPECT_EQ(group.cluster.state(), v1::RECOVERING) << "its cache is gone, others took the memory";
  report.mutable_heartbeat()->mutable_stats()->set_kv_bytes(uint64_t{1} << 30);
  group.cluster.OnMessage(worker, report);
  group.cluster.Tick();
  EXPECT_EQ(group.cluster.state(), v1::LOADING);
}

TEST(Cluster, RendezvousValuesLiveAsLongAsTheirEpoch) {
  Group group(2);
  const WorkerId first = group.Join();
  EXPECT_EQ(group.rendezvous.Put(1, "a", "x").code(), absl::StatusCode::kAborted);
  group.Join();
  EXPECT_TRUE(group.rendezvous.Put(1, "a", "x").ok());
  absl::Status waiting;
  group.rendezvous.Get(1, "b", [&](const auto& value) { waiting = value.status(); });
  group.cluster.Gone(first, "its stream ended");
  EXPECT_EQ(waiting.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(group.rendezvous.Put(1, "a", "x").code(), absl::StatusCode::kAborted);
}

TEST(Cluster, PlansGoToTheRanksOfTheirGroupOnly) {
  Group group(2, 2);
  std::vector<WorkerId> workers;
  for (int i = 0; i < 5; ++i) workers.push_back(group.Join());
  group.AllReady();
  WorldPlan plan{.step = 0, .groups = std::vector<internal::v1::StepPlan>(2)};
  plan.groups[0].set_bucket(10);
  plan.groups[1].set_bucket(11);
  group.cluster.Send(plan);
  for (int i = 0; i < 4; ++i) {
    const auto last_message = group.links[workers[i]]->messages().back();
    EXPECT_EQ(last_message.step_plan().bucket(), i < 2 ? 10u : 11u);
    EXPECT_EQ(group.cluster.RankOf(workers[i], 1), i);
    EXPECT_EQ(group.cluster.RankOf(workers[i], 2), std::nullopt);
  }
  EXPECT_THAT(group.links[workers[4]]->messages(), IsEmpty());
  EXPECT_EQ(group.cluster.RankOf(workers[4], 1), std::nullopt);
}

TEST(ClusterReport, ShowsRanksExpertsLoadAndProgress) {
  Group group(2);
  const WorkerId first = group.Join();
  const WorkerId second = group.Join();
  base::FakeClock clock;
  SchedulerOptions options;
  options.shape = {.dp = 2, .tp = 1};
  Scheduler scheduler(options, clock);

  internal::v1::WorkerMessage progress;
  progress.mutable_load_progress()->set_epoch(1);
  progress.mutable_load_progress()->set_total_bytes(100);
  progress.mutable_load_progress()->set_loaded_bytes(25);
  group.cluster.OnMessage(first, progress);
  progress.mutable_load_progress()->set_loaded_bytes(50);
  group.cluster.OnMessage(second, progress);
  EXPECT_EQ(ReportCluster(group.cluster, scheduler).load_progress(), 0.25);

  group.AllReady();
  internal::v1::WorkerMessage heartbeat = HeartbeatMessage(1);
  internal::v1::RankStats& stats = *heartbeat.mutable_heartbeat()->mutable_stats();
  for (int i = 0; i < 4; ++i) stats.add_expert_load(10 + i);
  stats.set_dispatched_copies(7);
  for (const int part : {7, 0}) stats.add_copies_to_rank(part);
  for (const int part : {700, 0}) stats.add_bytes_to_rank(part);
  group.cluster.OnMessage(second, heartbeat);
  scheduler.BeginEpoch(1, group.cluster.cache());

  const v1::GetClusterResponse report = ReportCluster(group.cluster, scheduler);
  EXPECT_EQ(report.state(), v1::READY);
  EXPECT_EQ(report.load_progress(), 1);
  EXPECT_THAT(report.problem(), IsEmpty());
  ASSERT_EQ(report.ranks_size(), 2);
  const v1::Rank& rank = report.ranks(1);
  EXPECT_EQ(rank.rank(), 1u);
  EXPECT_EQ(rank.pid(), 102);
  EXPECT_EQ(rank.device(), "cpu");
  EXPECT_EQ(rank.expert_format(), "mxfp4");
  EXPECT_EQ(rank.memory().kv_bytes(), 1u << 16);
  EXPECT_EQ(rank.dispatched_copies(), 7u);
  EXPECT_THAT(rank.copies_to_rank(), ElementsAre(7u, 0u));
  EXPECT_THAT(rank.bytes_to_rank(), ElementsAre(700u, 0u));
  ASSERT_EQ(rank.layers_size(), 2);
  EXPECT_THAT(rank.layers(0).experts(), ElementsAre(2u, 3u));
  EXPECT_THAT(rank.layers(0).load(), ElementsAre(10u, 11u));
  EXPECT_THAT(rank.layers(1).load(), ElementsAre(12u, 13u));
  EXPECT_EQ(report.counters().full_blocks().total(), 2 * group.cluster.cache().full_blocks());
}

}  // namespace
}  // namespace conclave::coordinator
