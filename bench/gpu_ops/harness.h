#ifndef CONCLAVE_BENCH_GPU_OPS_HARNESS_H_
#define CONCLAVE_BENCH_GPU_OPS_HARNESS_H_

// Times GPU ops as a step runs them, inside a CUDA graph, and prints them beside their floor.
//
//   GpuTimer timer;
//   const double us = timer.Median(16, [&](int call, cudaStream_t s) { Op(weights[call % 4], s);
//   }); PrintHeader("dense"); PrintRow("o_proj", "1 row", us, {.bytes = 23.6e6, .flops = 23.6e6});
//
// The calls of one graph should use different weights, together several times the L2 cache (50 MB):
// a step never finds its weights there.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace conclave::bench {

// What one H100 80GB HBM3 was measured to reach: read bandwidth, bf16 matrix product.
inline constexpr double kPeakGigabytes = 3087;
inline constexpr double kPeakTeraflops = 798;

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class GpuTimer {
 public:
  GpuTimer() {
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    for (cudaEvent_t& event : events_) CheckCuda(cudaEventCreate(&event), "cudaEventCreate");
  }
  ~GpuTimer() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }
  GpuTimer(const GpuTimer&) = delete;
  GpuTimer& operator=(const GpuTimer&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Median over replays of a graph of `calls` calls, microseconds per call. `enqueue` gets the
  // call's number, and enqueues on the stream given.
  double Median(int calls, const std::function<void(int call, cudaStream_t)>& enqueue) {
    enqueue(0, stream_);  // what is done at first use stays out of the graph
    CheckCuda(cudaStreamSynchronize(stream_), "first call");
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int call = 0; call < calls; ++call) enqueue(call, stream_);
    CheckCuda(cudaStreamEndCapture(stream_, &graph), "capture");
    CheckCuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    std::vector<double> times;
    constexpr int kWarmUps = 3;
    constexpr int kReplays = 21;
    for (int replay = 0; replay < kWarmUps + kReplays; ++replay) {
      CheckCuda(cudaEventRecord(events_[0], stream_), "cudaEventRecord");
      CheckCuda(cudaGraphLaunch(exec, stream_), "cudaGraphLaunch");
      CheckCuda(cudaEventRecord(events_[1], stream_), "cudaEventRecord");
      CheckCuda(cudaStreamSynchronize(stream_), "replay");
      float milliseconds = 0;
      CheckCuda(cudaEventElapsedTime(&milliseconds, events_[0], events_[1]), "elapsed");
      if (replay >= kWarmUps) times.push_back(milliseconds * 1e3 / calls);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
    return times[kReplays / 2];
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t events_[2] = {};
};

// What an op cannot do without: bytes through device memory, floating-point operations.
struct OpCost {
  double bytes = 0;
  double flops = 0;
  double floor_us() const {
    return std::max(bytes / (kPeakGigabytes * 1e3), flops / (kPeakTeraflops * 1e6));
  }
};

// The card, and the columns of PrintRow.
inline void PrintHeader(const char* title) {
  int device = 0;
  cudaDeviceProp properties;
  CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
  CheckCuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  std::printf("%s on %s; floor: %.0f GB/s, %.0f TFLOP/s\n", title, properties.name, kPeakGigabytes,
              kPeakTeraflops);
  std::printf("%-28s %-18s %10s %9s %9s %10s %7s\n", "op", "size", "us", "GB/s", "TFLOP/s",
              "floor us", "ratio");
}

inline void PrintRow(const std::string& op, const std::string& size, double us,
                     const OpCost& cost) {
  std::printf("%-28s %-18s %10.2f %9.0f %9.1f %10.2f %7.2f\n", op.c_str(), size.c_str(), us,
              cost.bytes / us * 1e-3, cost.flops / us * 1e-6, cost.floor_us(),
              us / cost.floor_us());
  std::fflush(stdout);
}

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_GPU_OPS_HARNESS_H_
