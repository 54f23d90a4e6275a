// Peers that never come, stop or die, each a process on one GPU; and a library that is missing.

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "worker/nccl_api.h"
#include "worker/nccl_testing.h"

namespace conclave::worker {
namespace {

// What a hang may last: after Abort, or after a peer's death.
constexpr absl::Duration kNoHang = absl::Seconds(2);

// Aborts from another thread while this one waits for the stream.
void ExpectAbortEndsTheWait(const Stream& stream, Communicator& group) {
  EXPECT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady) << "nothing waits for the peer";
  absl::Time aborted_at;
  std::thread aborter([&] {
    aborted_at = absl::Now();
    group.Abort();
  });
  stream.Wait();
  const absl::Time ended_at = absl::Now();
  aborter.join();
  EXPECT_LT(ended_at - aborted_at, kNoHang);
  fmt::print("abort: {} until the stream was free\n", absl::FormatDuration(ended_at - aborted_at));
  ExpectUnavailable(group.Check(), "aborted");
}

void AbortWithoutPeer(RankProcess& self) {
  const Stream stream;
  const bool direct = std::getenv("CONCLAVE_TEST_DIRECT") != nullptr;
  auto group = Connect(self, stream, "world", int64_t{1} << 20, direct ? 1 << 16 : 0);
  if (group == nullptr) return;
  const DeviceArray<int32_t> send(2000), recv(2000);
  if (self.rank == 1) {  // never comes
    EXPECT_OK(self.rendezvous.Get("done", absl::Seconds(30)).status());
    return;
  }
  EXPECT_OK(group->AllToAll(send.data(), recv.data(), 4000));
  ExpectAbortEndsTheWait(stream, *group);
  ExpectUnavailable(group->AllToAll(send.data(), recv.data(), 4), "aborted");
  ExpectUnavailable(group->AllReduceSum({send.data(), DType::kF32, 1, 5}), "aborted");
  const absl::Time start = absl::Now();
  group = nullptr;
  EXPECT_LT(absl::Now() - start, kNoHang) << "the end of an aborted group";
  EXPECT_OK(self.rendezvous.Put("done", ""));
}

void AbortInGraph(RankProcess& self) {
  const Stream stream;
  auto group = Connect(self, stream);
  if (group == nullptr) return;
  const DeviceArray<int32_t> send(2000), recv(2000);
  {
    Graph graph(stream);
    graph.Capture([&] { EXPECT_OK(group->AllToAll(send.data(), recv.data(), 4000)); });
    graph.Launch();  // with the peer
    stream.Wait();
    EXPECT_OK(group->Check());
    if (self.rank == 1) {
      EXPECT_OK(self.rendezvous.Get("done", absl::Seconds(30)).status());
      return;
    }
    graph.Launch();  // without
    ExpectAbortEndsTheWait(stream, *group);
    graph.Launch();  // a step that did not know yet
    const absl::Time start = absl::Now();
    stream.Wait();
    EXPECT_LT(absl::Now() - start, kNoHang) << "a replay after the abort";
  }
  const absl::Time start = absl::Now();
  group = nullptr;
  EXPECT_LT(absl::Now() - start, kNoHang) << "the end of an aborted group, its graph gone";
  EXPECT_OK(self.rendezvous.Put("done", ""));
}

void AbortWithStoppedPeer(RankProcess& self) {
  const Stream stream;
  auto group = Connect(self, stream);
  if (group == nullptr) return;
  const DeviceArray<int32_t> send(2000), recv(2000);
  if (self.rank == 1) raise(SIGSTOP);  // the test kills it
  EXPECT_OK(group->AllToAll(send.data(), recv.data(), 4000));
  ExpectAbortEndsTheWait(stream, *group);
  const absl::Time start = absl::Now();
  group = nullptr;
  EXPECT_LT(absl::Now() - start, kNoHang);
}

// Rank 1 dies between two rounds. Nobody aborts: over sockets NCCL notices.
void KilledPeer(RankProcess& self) {
  const Stream stream;
  auto group = Connect(self, stream);
  if (group == nullptr) return;
  const DeviceArray<int32_t> send(self.size * 1000), recv(self.size * 1000);
  absl::Time last = absl::Now();
  for (int round = 0;; ++round) {
    if (round == 20 && self.rank == 1) kill(getpid(), SIGKILL);
    const absl::Status enqueued = group->AllToAll(send.data(), recv.data(), 4000);
    stream.Wait();
    const absl::Status status = enqueued.ok() ? group->Check() : enqueued;
    if (!status.ok()) {
      ExpectUnavailable(status);
      EXPECT_GE(round, 20) << status;
      fmt::print("killed peer: {} until {}\n", absl::FormatDuration(absl::Now() - last),
                 std::string(status.message()));
      break;
    }
    ASSERT_LT(round, 1000) << "nobody noticed";
    last = absl::Now();
  }
  EXPECT_LT(absl::Now() - last, kNoHang);
  group = nullptr;
  EXPECT_LT(absl::Now() - last, 2 * kNoHang) << "the group's end";
}

// Rank 0 of two, and there is no other.
void ConnectsAlone(RankProcess& self) {
  const Stream stream;
  NcclOptions options;
  options.stream = stream.get();
  options.connect_timeout = absl::Seconds(1);
  absl::Time start = absl::Now();
  ExpectUnavailable(ConnectNccl("alone", 0, 2, self.rendezvous, options).status(), "out of time");
  EXPECT_LT(absl::Now() - start, options.connect_timeout + kNoHang);

  options.connect_timeout = absl::Seconds(300);
  absl::Time cancelled_at = absl::InfiniteFuture();
  int asked = 0;
  options.cancelled = [&] {
    if (++asked <= 100) return false;
    cancelled_at = std::min(cancelled_at, absl::Now());
    return true;
  };
  ExpectUnavailable(ConnectNccl("cancelled", 0, 2, self.rendezvous, options).status(), "cancelled");
  EXPECT_LT(absl::Now() - cancelled_at, kNoHang);

  // No id of rank 0.
  options.connect_timeout = absl::Milliseconds(300);
  options.cancelled = nullptr;
  start = absl::Now();
  ExpectUnavailable(ConnectNccl("nobody", 1, 2, self.rendezvous, options).status());
  EXPECT_LT(absl::Now() - start, kNoHang);
}

// --- The tests. ---

class NcclFailureTest : public NcclTest {};

TEST_F(NcclFailureTest, AbortEndsWhatWaitsForAPeerThatNeverComes) {
  RankProcesses("AbortWithoutPeer", 2).ExpectSuccess();
  RankProcesses("AbortWithoutPeer", 2, {"CONCLAVE_TEST_DIRECT=1"}).ExpectSuccess();
}

TEST_F(NcclFailureTest, AbortEndsAReplayThatWaits) {
  RankProcesses("AbortInGraph", 2).ExpectSuccess();
}

TEST_F(NcclFailureTest, AbortLeavesAGroupWhosePeerIsStopped) {
  RankProcesses ranks("AbortWithStoppedPeer", 2);
  EXPECT_EQ(ranks.Await(0, absl::Seconds(30)), 0);
}

TEST_F(NcclFailureTest, AKilledPeerFailsTheOthersWithinTwoSeconds) {
  RankProcesses ranks("KilledPeer", 3, {"NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1"});
  EXPECT_EQ(ranks.Await(1, absl::Seconds(30)), -SIGKILL);
  ranks.ExpectSuccess();
}

TEST_F(NcclFailureTest, ConnectingGivesUpAfterTheTimeoutOrWhenCancelled) {
  RankProcesses("ConnectsAlone", 1).ExpectSuccess();
}

TEST(NcclLibrary, AMissingLibraryIsNamedWithWhatToDo) {
  const absl::Status status = LoadNcclFrom("libnccl-missing.so.2").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(status.message());
  EXPECT_THAT(message, testing::StartsWith("nccl_missing: "));
  EXPECT_THAT(message, testing::HasSubstr("libnccl-missing.so.2"));
  EXPECT_THAT(message, testing::HasSubstr("LD_LIBRARY_PATH"));
}

TEST(NcclLibrary, ALibraryThatIsNotNcclIsTooOld) {
  const absl::Status status = LoadNcclFrom("libc.so.6").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("nccl_too_old: "));
}

TEST(NcclLibrary, TheVersionIsThatOfTheLibraryThatWasFound) {
  const absl::StatusOr<std::string> version = NcclVersion();
  if (!version.ok()) GTEST_SKIP() << std::string(version.status().message());
  EXPECT_THAT(*version, testing::MatchesRegex("2\\.[0-9]+\\.[0-9]+"));
}

TEST(NcclLibrary, TheInterfaceOfTheEnvironmentComesFirst) {
  unsetenv("NCCL_SOCKET_IFNAME");
  SetNcclInterface("eth7");
  EXPECT_STREQ(getenv("NCCL_SOCKET_IFNAME"), "=eth7");
  SetNcclInterface("eth8");
  EXPECT_STREQ(getenv("NCCL_SOCKET_IFNAME"), "=eth7");
  unsetenv("NCCL_SOCKET_IFNAME");
}

}  // namespace
}  // namespace conclave::worker

int main(int argc, char** argv) {
  using namespace conclave::worker;
  return RunTests(argc, argv,
                  {{"AbortWithoutPeer", AbortWithoutPeer},
                   {"AbortInGraph", AbortInGraph},
                   {"AbortWithStoppedPeer", AbortWithStoppedPeer},
                   {"KilledPeer", KilledPeer},
                   {"ConnectsAlone", ConnectsAlone}});
}
