#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/communicator.h"
#include "worker/rank_processes.h"

namespace conclave::worker {
namespace {

using kernels::DType;
using kernels::Tensor;

GlooOptions Loopback() { return {.interface = "lo", .hostname = "", .cancelled = {}}; }

// Runs `body` as every rank of a group, a thread each.
void RunRanks(int size, const std::function<void(Communicator&)>& body) {
  auto rendezvous = MakeLocalRendezvous();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      auto communicator = ConnectGloo("world", rank, size, *rendezvous, Loopback());
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      body(**communicator);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A value that is different for every (from, to, index).
int32_t Mark(int from, int to, int64_t index) {
  return static_cast<int32_t>(from * 1000003 + to * 10007 + index);
}

TEST(GlooCommunicator, AllToAllDeliversEachBlockToItsRank) {
  for (int size : {1, 2, 3, 5}) {
    for (int64_t values : {1, 1000, 100'000}) {
      RunRanks(size, [&](Communicator& group) {
        std::vector<int32_t> send(size * values);
        std::vector<int32_t> recv(size * values, -1);
        for (int to = 0; to < size; ++to) {
          for (int64_t i = 0; i < values; ++i) send[to * values + i] = Mark(group.rank(), to, i);
        }
        ASSERT_TRUE(group.AllToAll(send.data(), recv.data(), values * 4).ok());
        for (int from = 0; from < size; ++from) {
          for (int64_t i = 0; i < values; ++i) {
            ASSERT_EQ(recv[from * values + i], Mark(from, group.rank(), i));
          }
        }
        EXPECT_EQ(group.bytes_sent(), (size - 1) * values * 4) << "own block crossed the wire";
      });
    }
  }
}

TEST(GlooCommunicator, AllToAllVTakesUnevenAndEmptyBlocksAtAnyOffset) {
  const int size = 4;
  // Values from rank `a` to rank `b`: some nothing, some several chunks.
  auto count = [](int a, int b) -> int64_t { return (a * 7 + b * 3) % 4 * 13'001 * (a + 1); };
  RunRanks(size, [&](Communicator& group) {
    const int me = group.rank();
    std::vector<int64_t> send_bytes, send_offsets, recv_bytes, recv_offsets;
    int64_t send_end = 8;
    int64_t recv_end = 4;
    for (int r = 0; r < size; ++r) {
      send_bytes.push_back(count(me, r) * 4);
      recv_bytes.push_back(count(r, me) * 4);
      send_offsets.push_back(send_end);
      recv_offsets.push_back(recv_end);
      send_end += send_bytes.back() + 16;
      recv_end += recv_bytes.back() + 32;
    }
    std::vector<int32_t> send(send_end / 4, -7);
    std::vector<int32_t> recv(recv_end / 4, -7);
    std::vector<int32_t> expected = recv;
    for (int r = 0; r < size; ++r) {
      for (int64_t i = 0; i < count(me, r); ++i) send[send_offsets[r] / 4 + i] = Mark(me, r, i);
      for (int64_t i = 0; i < count(r, me); ++i) expected[recv_offsets[r] / 4 + i] = Mark(r, me, i);
    }
    for (int round = 0; round < 20; ++round) {
      ASSERT_TRUE(group
                      .AllToAllV(send.data(), send_bytes, send_offsets, recv.data(), recv_bytes,
                                 recv_offsets)
                      .ok());
      ASSERT_EQ(recv, expected);
    }
  });
}

// Magnitudes that make the sum depend on its order.
template <typename T>
std::vector<T> Addends(int rank, int64_t values) {
  std::mt19937 random(rank + 1);
  std::vector<T> result(values);
  for (T& value : result) {
    value = static_cast<T>(std::ldexp(static_cast<double>(random()) - 2e9, random() % 60));
  }
  return result;
}

template <typename T>
std::vector<T> AscendingSum(int size, int64_t values) {
  std::vector<T> sum = Addends<T>(0, values);
  for (int rank = 1; rank < size; ++rank) {
    const std::vector<T> addend = Addends<T>(rank, values);
    for (int64_t i = 0; i < values; ++i) sum[i] += addend[i];
  }
  return sum;
}

template <typename T>
void ExpectSameBits(const T* actual, const T* expected, int64_t values) {
  ASSERT_EQ(std::memcmp(actual, expected, values * sizeof(T)), 0);
}

template <typename T>
void CheckAllReduce(DType dtype) {
  for (int size : {1, 2, 3, 4}) {
    for (int64_t rows : {1, 3, 701}) {  // below and above the direct form
      const int64_t cols = 67;
      const std::vector<T> expected = AscendingSum<T>(size, rows * cols);
      RunRanks(size, [&](Communicator& group) {
        std::vector<T> data = Addends<T>(group.rank(), rows * cols);
        ASSERT_TRUE(group.AllReduceSum({data.data(), dtype, rows, cols}).ok());
        ExpectSameBits(data.data(), expected.data(), rows * cols);
      });
    }
  }
}

TEST(GlooCommunicator, AllReduceAddsInAscendingRankWithTheSameBitsEverywhere) {
  CheckAllReduce<double>(DType::kF64);
  CheckAllReduce<float>(DType::kF32);
}

TEST(GlooCommunicator, ReduceScatterGivesEachRankTheOrderedSumOfItsRows) {
  const std::vector<int64_t> row_begin = {0, 5, 5, 205};  // rank 1 has none
  const int64_t cols = 97;
  const std::vector<double> expected = AscendingSum<double>(3, 205 * cols);
  RunRanks(3, [&](Communicator& group) {
    std::vector<double> data = Addends<double>(group.rank(), 205 * cols);
    const int64_t first = row_begin[group.rank()];
    const int64_t rows = row_begin[group.rank() + 1] - first;
    std::vector<double> out(rows * cols + 1);
    ASSERT_TRUE(group
                    .ReduceScatterSum({data.data(), DType::kF64, 205, cols}, row_begin,
                                      {out.data(), DType::kF64, rows, cols})
                    .ok());
    ExpectSameBits(out.data(), expected.data() + first * cols, rows * cols);
  });
}

TEST(GlooCommunicator, AllGatherGivesAllRowsToAll) {
  const std::vector<int64_t> row_begin = {0, 0, 30'000, 30'001, 30'013};
  RunRanks(4, [&](Communicator& group) {
    std::vector<int32_t> data(30'013 * 3, -1);
    for (int64_t i = row_begin[group.rank()] * 3; i < row_begin[group.rank() + 1] * 3; ++i) {
      data[i] = static_cast<int32_t>(i);
    }
    ASSERT_TRUE(group.AllGatherRows({data.data(), DType::kI32, 30'013, 3}, row_begin).ok());
    for (size_t i = 0; i < data.size(); ++i) ASSERT_EQ(data[i], static_cast<int32_t>(i));
  });
}

// --- Failures, inside one process. ---

// Waits until the thread sleeps in the kernel.
void AwaitSleeping(const std::string& stat_file) {
  for (;;) {
    std::ifstream file(stat_file);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    const size_t end_of_name = text.rfind(')');
    if (end_of_name != std::string::npos && text.compare(end_of_name, 3, ") S") == 0) return;
    std::this_thread::yield();
  }
}

absl::Duration Scaled(absl::Duration duration) { return duration * base::TimeScale(); }

TEST(GlooCommunicator, AbortEndsABlockedCallAndAllLaterOnes) {
  absl::Notification in_call;
  absl::Notification done;
  std::atomic<pid_t> thread_id = 0;
  RunRanks(2, [&](Communicator& group) {
    std::vector<char> send(2 << 20);
    std::vector<char> recv(2 << 20);
    if (group.rank() == 1) {  // never answers
      done.WaitForNotification();
      EXPECT_EQ(group.AllToAll(send.data(), recv.data(), 4).code(), absl::StatusCode::kUnavailable)
          << "the peer of an aborted rank must fail too";
      return;
    }
    absl::Time aborted_at;
    std::thread aborter([&] {
      in_call.WaitForNotification();
      AwaitSleeping("/proc/self/task/" + std::to_string(thread_id) + "/stat");
      aborted_at = absl::Now();
      group.Abort();
    });
    thread_id = static_cast<pid_t>(syscall(SYS_gettid));
    in_call.Notify();
    absl::Status status = group.AllToAll(send.data(), recv.data(), 1 << 20);
    const absl::Time returned_at = absl::Now();
    aborter.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), testing::HasSubstr("aborted"));
    EXPECT_LT(returned_at - aborted_at, Scaled(absl::Seconds(1)));
    EXPECT_EQ(group.AllToAll(send.data(), recv.data(), 1).code(), absl::StatusCode::kUnavailable);
    done.Notify();
  });
}

TEST(GlooCommunicator, APeerThatDoesNotAnswerFailsTheCallByTheTimeout) {
  auto rendezvous = MakeLocalRendezvous();
  GlooOptions options = Loopback();
  options.timeout = Scaled(absl::Seconds(1));
  absl::Notification done;
  std::thread silent([&] {
    auto peer = ConnectGloo("world", 1, 2, *rendezvous, options);
    ASSERT_TRUE(peer.ok()) << peer.status();
    done.WaitForNotification();
  });
  auto group = ConnectGloo("world", 0, 2, *rendezvous, options);
  ASSERT_TRUE(group.ok()) << group.status();
  int32_t send[2] = {};
  int32_t recv[2] = {};
  const absl::Time start = absl::Now();
  EXPECT_EQ((*group)->AllToAll(send, recv, 4).code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, options.timeout + Scaled(absl::Milliseconds(200)));
  done.Notify();
  silent.join();
}

TEST(GlooCommunicator, ConnectingGivesUpAfterTheTimeoutOrWhenCancelled) {
  auto rendezvous = MakeLocalRendezvous();
  GlooOptions options = Loopback();
  options.connect_timeout = absl::Milliseconds(300);
  EXPECT_EQ(ConnectGloo("alone", 0, 2, *rendezvous, options).status().code(),
            absl::StatusCode::kUnavailable);

  // A peer that published its addresses and is gone: the survivor waits for its call.
  options.connect_timeout = absl::Seconds(300);
  std::atomic<int> asked = 0;
  options.cancelled = [&] { return ++asked > 3; };
  ASSERT_TRUE(rendezvous->Put("gloo/ghost/1", *rendezvous->Get("gloo/alone/0", {})).ok());
  EXPECT_EQ(ConnectGloo("ghost", 0, 2, *rendezvous, options).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(GlooCommunicator, AnAddressOfAnotherMachineIsRefusedWithOurs) {
  auto rendezvous = MakeLocalRendezvous();
  GlooOptions options = Loopback();
  options.interface = "nosuch0";
  absl::Status status = ConnectGloo("world", 0, 1, *rendezvous, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), testing::HasSubstr("lo 127.0.0.1"));
  options.interface = "lo";
  for (const char* hostname : {"203.0.113.9", "no such host", "::2"}) {
    options.hostname = hostname;
    EXPECT_EQ(ConnectGloo("world", 0, 1, *rendezvous, options).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  options.hostname = "127.0.0.1";
  EXPECT_TRUE(ConnectGloo("world", 0, 1, *rendezvous, options).ok());
}

// --- Failures of processes. ---

constexpr int kUnavailableExit = 7;
constexpr int kRounds = 20;
constexpr pid_t kCollected = 0;

// A group of forked ranks that exchange until something fails.
class ProcessGroup {
 public:
  ProcessGroup() {
    std::string folder = testing::TempDir() + "/gloo_XXXXXX";
    folder_ = mkdtemp(folder.data());
    EXPECT_EQ(pipe(abort_pipe_), 0);
  }
  ~ProcessGroup() {
    for (pid_t pid : pids_) {
      if (pid == kCollected) continue;
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    close(abort_pipe_[0]);
    close(abort_pipe_[1]);
    std::filesystem::remove_all(folder_);
  }

  // `lost` is called by rank 1 after kRounds. A byte in the abort pipe makes rank 0 abort.
  void Start(int size, int64_t block_bytes, const std::function<void()>& lost) {
    for (int rank = 0; rank < size; ++rank) {
      const pid_t pid = fork();
      ASSERT_GE(pid, 0);
      if (pid == 0) _exit(Rank(rank, size, block_bytes, lost));
      pids_.push_back(pid);
    }
  }

  pid_t pid(int rank) const { return pids_[rank]; }
  void Abort() { ASSERT_EQ(write(abort_pipe_[1], "x", 1), 1); }

  int ExitCode(int rank) {
    int status = 0;
    waitpid(pids_[rank], &status, 0);
    pids_[rank] = kCollected;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  int Rank(int rank, int size, int64_t block_bytes, const std::function<void()>& lost) {
    FolderRendezvous rendezvous(folder_);
    auto group = ConnectGloo("world", rank, size, rendezvous, Loopback());
    if (!group.ok()) return 1;
    std::thread aborter;
    if (rank == 0) {
      aborter = std::thread([&] {
        char byte;
        if (read(abort_pipe_[0], &byte, 1) == 1) (*group)->Abort();
      });
    }
    std::vector<char> send(size * block_bytes);
    std::vector<char> recv(size * block_bytes);
    absl::Status status;
    for (int round = 0; status.ok(); ++round) {
      if (rank == 1 && round == kRounds) lost();
      status = (*group)->AllToAll(send.data(), recv.data(), block_bytes);
    }
    if (aborter.joinable()) aborter.detach();
    return status.code() == absl::StatusCode::kUnavailable ? kUnavailableExit : 2;
  }

  std::filesystem::path folder_;
  int abort_pipe_[2];
  std::vector<pid_t> pids_;
};

TEST(GlooCommunicator, AKilledPeerFailsTheOthersWithinASecond) {
  for (int64_t block_bytes : {64, 8 << 20}) {
    ProcessGroup group;
    // The large blocks: killed by a thread in the middle of one.
    group.Start(3, block_bytes, [&] {
      if (block_bytes == 64) kill(getpid(), SIGKILL);
      std::thread([] { kill(getpid(), SIGKILL); }).detach();
    });
    siginfo_t info = {};
    ASSERT_EQ(waitid(P_PID, group.pid(1), &info, WEXITED | WNOWAIT), 0);
    ASSERT_EQ(info.si_status, SIGKILL);
    const absl::Time killed_at = absl::Now();
    EXPECT_EQ(group.ExitCode(0), kUnavailableExit);
    EXPECT_EQ(group.ExitCode(2), kUnavailableExit);
    EXPECT_LT(absl::Now() - killed_at, Scaled(absl::Seconds(1)));
  }
}

TEST(GlooCommunicator, AbortLeavesAGroupWhosePeerIsStopped) {
  for (int64_t block_bytes : {64, 8 << 20}) {
    ProcessGroup group;
    group.Start(2, block_bytes, [] { raise(SIGSTOP); });
    siginfo_t info = {};
    ASSERT_EQ(waitid(P_PID, group.pid(1), &info, WSTOPPED | WNOWAIT), 0);
    AwaitSleeping("/proc/" + std::to_string(group.pid(0)) + "/stat");
    const absl::Time aborted_at = absl::Now();
    group.Abort();
    EXPECT_EQ(group.ExitCode(0), kUnavailableExit);
    EXPECT_LT(absl::Now() - aborted_at, Scaled(absl::Seconds(2)));
  }
}

}  // namespace
}  // namespace conclave::worker
