#include "worker/rank_processes.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace conclave::worker {
namespace {

constexpr char kBody[] = "CONCLAVE_RANK_BODY";
constexpr char kRank[] = "CONCLAVE_RANK";
constexpr char kSize[] = "CONCLAVE_RANK_SIZE";
constexpr char kFolder[] = "CONCLAVE_RANK_FOLDER";
constexpr char kOwnGpu[] = "CONCLAVE_RANK_OWN_GPU";
constexpr char kVisible[] = "CUDA_VISIBLE_DEVICES";
constexpr pid_t kEnded = 0;

std::string Setting(const char* name, const std::string& value) { return name + ("=" + value); }

}  // namespace

std::filesystem::path FolderRendezvous::Path(std::string key) const {
  for (char& c : key) c = c == '/' ? '_' : c;
  return folder_ / key;
}

absl::Status FolderRendezvous::Put(const std::string& key, const std::string& value) {
  const std::filesystem::path file = Path(key);
  std::ofstream(file.string() + ".tmp", std::ios::binary) << value;
  std::filesystem::rename(file.string() + ".tmp", file);
  return absl::OkStatus();
}

absl::StatusOr<std::string> FolderRendezvous::Get(const std::string& key, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!std::filesystem::exists(Path(key))) {
    if (absl::Now() > deadline) return absl::DeadlineExceededError(key);
    std::this_thread::yield();
  }
  std::ifstream file(Path(key), std::ios::binary);
  return std::string{std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> GpusForRanks() {
  if (const char* const visible = std::getenv(kVisible); visible != nullptr && *visible != '\0') {
    return absl::StrSplit(visible, ',');
  }
  std::vector<std::string> gpus;
  while (std::filesystem::exists(absl::StrCat("/dev/nvidia", gpus.size()))) {
    gpus.push_back(absl::StrCat(gpus.size()));
  }
  return gpus;
}

int RunTests(int argc, char** argv, const std::map<std::string, RankBody*>& bodies) {
  testing::InitGoogleTest(&argc, argv);
  const char* const body = std::getenv(kBody);
  if (body == nullptr) return RUN_ALL_TESTS();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::filesystem::path folder = std::getenv(kFolder);
  RankProcess self = {.rank = std::atoi(std::getenv(kRank)),
                      .size = std::atoi(std::getenv(kSize)),
                      .folder = folder,
                      .rendezvous = FolderRendezvous(folder),
                      .own_gpu = std::getenv(kOwnGpu) != nullptr};
  bodies.at(body)(self);
  return testing::UnitTest::GetInstance()->ad_hoc_test_result().Failed() ? 1 : 0;
}

RankProcesses::RankProcesses(const std::string& body, int size,
                             const std::vector<std::string>& environment) {
  std::string folder = testing::TempDir() + "/ranks_XXXXXX";
  folder_ = mkdtemp(folder.data());
  for (int rank = 0; rank < size; ++rank) Start(body, rank, size, environment);
}

void RankProcesses::Start(const std::string& body, int rank, int size,
                          const std::vector<std::string>& environment) {
  std::vector<std::string> settings = environment;
  settings.push_back(Setting(kBody, body));
  settings.push_back(Setting(kRank, std::to_string(rank)));
  settings.push_back(Setting(kSize, std::to_string(size)));
  settings.push_back(Setting(kFolder, folder_));
  const std::vector<std::string> gpus = GpusForRanks();
  if (!gpus.empty()) settings.push_back(Setting(kVisible, gpus[rank % gpus.size()]));
  if (static_cast<size_t>(size) <= gpus.size()) {
    settings.push_back(Setting(kOwnGpu, "1"));
  } else {  // a host for every rank
    settings.push_back(Setting("NCCL_HOSTID", folder_.string() + "/" + std::to_string(rank)));
  }
  settings.push_back(Setting("NCCL_SOCKET_IFNAME", "lo"));  // the network that all machines have
  settings.push_back(Setting("NCCL_IB_DISABLE", "1"));
  std::vector<char*> pointers;
  for (std::string& setting : settings) pointers.push_back(setting.data());
  for (char** inherited = environ; *inherited != nullptr; ++inherited) {
    const std::string name(*inherited, std::string(*inherited).find('=') + 1);
    const bool replaced = std::any_of(settings.begin(), settings.end(),
                                      [&](const auto& s) { return s.starts_with(name); });
    if (!replaced) pointers.push_back(*inherited);
  }
  pointers.push_back(nullptr);
  std::string program = "/proc/self/exe";
  char* const arguments[] = {program.data(), nullptr};
  pid_t pid = kEnded;
  const int error =
      posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments, pointers.data());
  EXPECT_EQ(error, 0);
  pids_.push_back(error == 0 ? pid : kEnded);
}

RankProcesses::~RankProcesses() {
  for (const pid_t pid : pids_) {
    if (pid == kEnded) continue;
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  std::filesystem::remove_all(folder_);
}

std::optional<int> RankProcesses::Await(int rank, absl::Duration timeout) {
  pid_t& pid = pids_[rank];
  const int handle = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  pollfd end = {.fd = handle, .events = POLLIN, .revents = 0};
  const int ended = poll(&end, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  close(handle);
  if (ended != 1) return std::nullopt;
  int status = 0;
  waitpid(std::exchange(pid, kEnded), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void RankProcesses::ExpectSuccess(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (size_t rank = 0; rank < pids_.size(); ++rank) {
    if (pids_[rank] == kEnded) continue;
    const auto code =
        Await(static_cast<int>(rank), std::max(absl::ZeroDuration(), deadline - absl::Now()));
    if (!code.has_value()) {
      ADD_FAILURE() << "rank " << rank << " still runs";
    } else {
      EXPECT_EQ(*code, 0) << "rank " << rank;
    }
  }
}

}  // namespace conclave::worker
