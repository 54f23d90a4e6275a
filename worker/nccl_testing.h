#ifndef CONCLAVE_WORKER_NCCL_TESTING_H_
#define CONCLAVE_WORKER_NCCL_TESTING_H_

// What tests of the NCCL communicator share: a rank's stream, graphs of it, and its group.

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/device_test.h"
#include "worker/nccl_communicator.h"
#include "worker/rank_processes.h"

namespace conclave::worker {

using kernels::DType;
using kernels::cuda::DeviceArray;

// A stream, as of a rank's ops.
class Stream {
 public:
  Stream() { EXPECT_CUDA_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { EXPECT_CUDA_OK(cudaStreamDestroy(stream_)); }
  cudaStream_t get() const { return stream_; }
  void Wait() const { EXPECT_CUDA_OK(cudaStreamSynchronize(stream_)); }

  template <typename T>
  void Upload(const std::vector<T>& host, const DeviceArray<T>& to) const {
    EXPECT_CUDA_OK(cudaMemcpyAsync(to.data(), host.data(), host.size() * sizeof(T),
                                   cudaMemcpyHostToDevice, stream_));
  }
  template <typename T>
  std::vector<T> Download(const DeviceArray<T>& from) const {
    std::vector<T> host(from.size());
    EXPECT_CUDA_OK(cudaMemcpyAsync(host.data(), from.data(), host.size() * sizeof(T),
                                   cudaMemcpyDeviceToHost, stream_));
    Wait();
    return host;
  }

 private:
  cudaStream_t stream_ = nullptr;
};

// What a stream does, captured once.
class Graph {
 public:
  explicit Graph(const Stream& stream) : stream_(stream) {}
  ~Graph() {
    EXPECT_CUDA_OK(cudaGraphExecDestroy(exec_));
    EXPECT_CUDA_OK(cudaGraphDestroy(graph_));
  }
  template <typename Body>
  void Capture(const Body& body) {
    EXPECT_CUDA_OK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    body();
    EXPECT_CUDA_OK(cudaStreamEndCapture(stream_.get(), &graph_));
    EXPECT_CUDA_OK(cudaGraphInstantiate(&exec_, graph_, 0));
  }
  void Launch() const { EXPECT_CUDA_OK(cudaGraphLaunch(exec_, stream_.get())); }

 private:
  const Stream& stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

inline std::unique_ptr<Communicator> Connect(RankProcess& self, const Stream& stream,
                                             const std::string& group = "world",
                                             int64_t scratch_bytes = int64_t{32} << 20,
                                             int64_t direct_bytes = 0) {
  NcclOptions options;
  options.stream = stream.get();
  options.scratch_bytes = scratch_bytes;
  options.direct_bytes = direct_bytes;
  auto group_or = ConnectNccl(group, self.rank, self.size, self.rendezvous, options);
  EXPECT_TRUE(group_or.ok()) << group_or.status();
  return group_or.ok() ? *std::move(group_or) : nullptr;
}

#define EXPECT_OK(expression)                    \
  do {                                           \
    const absl::Status expect_ok = (expression); \
    EXPECT_TRUE(expect_ok.ok()) << expect_ok;    \
  } while (false)

inline void ExpectUnavailable(const absl::Status& status, const std::string& why = "") {
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(why));
}

// Skips, with the reason, where there is no GPU or no NCCL.
class NcclTest : public kernels::cuda::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    if (const auto version = NcclVersion(); !version.ok()) {
      GTEST_SKIP() << std::string(version.status().message());
    }
  }
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_NCCL_TESTING_H_
