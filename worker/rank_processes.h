#ifndef CONCLAVE_WORKER_RANK_PROCESSES_H_
#define CONCLAVE_WORKER_RANK_PROCESSES_H_

// Tests whose ranks are processes, as NCCL wants them: this test binary once more for each rank.
// Each sees one GPU: its own where there are enough, and NCCL takes what joins them (NVLink). Else
// they share the GPUs, on which NCCL must take them for ranks of several hosts.
//
//   void Greet(RankProcess& self) { EXPECT_EQ(...); }
//   TEST(...) {
//     RankProcesses ranks("Greet", 4);
//     ranks.ExpectSuccess();
//   }
//   int main(int argc, char** argv) { return RunTests(argc, argv, {{"Greet", Greet}}); }
//
// The test itself must not fork in any other way: CUDA does not survive it.

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/communicator.h"

namespace conclave::worker {

// A folder that the processes of one test share.
class FolderRendezvous final : public Rendezvous {
 public:
  explicit FolderRendezvous(std::filesystem::path folder) : folder_(std::move(folder)) {}
  absl::Status Put(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

 private:
  std::filesystem::path Path(std::string key) const;
  const std::filesystem::path folder_;
};

// What a rank's body is given.
struct RankProcess {
  int rank = 0;
  int size = 0;
  std::filesystem::path folder;  // the same for all ranks, gone when the test is
  FolderRendezvous rendezvous;   // in that folder
  bool own_gpu = false;          // no other rank is on this one's GPU
};
using RankBody = void(RankProcess& self);

// Runs the tests, or in a rank's process its body: it succeeds when no expectation failed.
int RunTests(int argc, char** argv, const std::map<std::string, RankBody*>& bodies);

// GPUs for ranks: those of CUDA_VISIBLE_DEVICES, without it all of this machine.
std::vector<std::string> GpusForRanks();

class RankProcesses {
 public:
  // Starts the ranks, with `environment` (NAME=value) beside ours.
  RankProcesses(const std::string& body, int size,
                const std::vector<std::string>& environment = {});
  // Kills those that still run.
  ~RankProcesses();
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  pid_t pid(int rank) const { return pids_[rank]; }
  // Exit code, or minus the signal that ended it; none when it still runs after `timeout`.
  std::optional<int> Await(int rank, absl::Duration timeout);
  // Expects that every rank succeeds within `timeout` from now.
  void ExpectSuccess(absl::Duration timeout = absl::Seconds(60));

 private:
  void Start(const std::string& body, int rank, int size,
             const std::vector<std::string>& environment);

  std::filesystem::path folder_;
  std::vector<pid_t> pids_;  // 0: it has ended
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_RANK_PROCESSES_H_
