#ifndef CONCLAVE_BENCH_GPU_OPS_ATTENTION_STEP_H_
#define CONCLAVE_BENCH_GPU_OPS_ATTENTION_STEP_H_

// A made-up step of attention at the shapes of gpt-oss, with the caches of enough layers.

#include <algorithm>
#include <memory>
#include <vector>

#include "bench/gpu_ops/harness.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_fixture.h"
#include "kernels/cuda/rope.h"

namespace conclave::bench {

using namespace kernels::cuda;  // NOLINT(google-build-using-namespace)

inline constexpr AttentionShape kShape = {
    .heads = 64, .kv_heads = 8, .head_dim = 64, .window = 128};
inline constexpr int kRowBytes = kShape.row_values() * 2;
inline constexpr int kOutputBytes = kShape.heads * kShape.head_dim * 2;
inline constexpr int kTokenBytes = 2 * kShape.kv_heads * kShape.head_dim * 2;  // of keys and values
inline constexpr double kRotatingBytes = 200e6;  // several times the L2 cache

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) {
    void* memory = nullptr;
    CheckCuda(cudaMalloc(&memory, size * sizeof(T)), "cudaMalloc");
    CheckCuda(cudaMemset(memory, 0, size * sizeof(T)), "cudaMemset");
    memory_.reset(memory, [](void* p) { cudaFree(p); });
  }
  explicit DeviceArray(const std::vector<T>& host)
      : DeviceArray(static_cast<int64_t>(host.size())) {
    CheckCuda(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyDefault),
              "cudaMemcpy");
  }
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  std::shared_ptr<void> memory_;
};

using Bf16Array = DeviceArray<__nv_bfloat16>;

// A step and caches of as many layers as it takes to find none in the L2 cache.
class AttentionStep {
 public:
  AttentionStep(const std::vector<RunSpec>& runs, bool sliding)
      : host_(MakeHostStep(runs, kShape.window, 0, 0, 1)),
        sliding_(sliding),
        positions_(host_.positions),
        run_of_row_(host_.run_of_row),
        run_(host_.run),
        blocks_(host_.blocks),
        qkv_(Rows() * kShape.row_values()),
        out_(Rows() * kShape.heads * kShape.head_dim),
        sinks_(kShape.heads),
        workspace_(AttentionWorkspaceBytes(kShape, static_cast<int>(Rows()), Runs())) {
    const int64_t values =
        int64_t{CacheBlocks()} * kShape.kv_heads * kKvBlockTokens * kShape.head_dim;
    layers_ = std::max(1, std::min(24, static_cast<int>(kRotatingBytes / (4.0 * values)) + 1));
    for (int layer = 0; layer < layers_; ++layer) {
      keys_.emplace_back(values);
      values_.emplace_back(values);
      FillVisible(View(), kShape, Cache(layer), false, layer, 1, nullptr);
    }
    // Queries like keys: rows of a made-up cache.
    FillQueries();
    CheckCuda(cudaDeviceSynchronize(), "filling");
  }

  int64_t Rows() const { return static_cast<int64_t>(host_.positions.size()); }
  int Runs() const { return static_cast<int>(host_.run.size()); }
  int layers() const { return layers_; }
  int CacheBlocks() const { return sliding_ ? host_.sliding_blocks : host_.full_blocks; }
  __nv_bfloat16* qkv() const { return qkv_.data(); }
  StepView View() const {
    return {static_cast<int>(Rows()), Runs(),      host_.max_context,
            host_.max_run_rows,       nullptr,     positions_.data(),
            run_of_row_.data(),       run_.data(), blocks_.data()};
  }
  KvPages Cache(int layer) const {
    const int i = layer % static_cast<int>(keys_.size());
    return {keys_[i].data(), values_[i].data(), CacheBlocks(), sliding_};
  }
  AttentionWorkspace Workspace() const {
    return LayOutAttention(kShape, static_cast<int>(Rows()), Runs(), workspace_.data());
  }
  void Plan(const AttentionTuning& tuning, cudaStream_t stream) const {
    PlanAttention(kShape, View(), Workspace(), stream, tuning);
  }
  double Time(const AttentionTuning& tuning, int calls) const {
    GpuTimer timer;
    Plan(tuning, timer.stream());
    CheckCuda(cudaStreamSynchronize(timer.stream()), "plan");
    return timer.Median(calls,
                        [&](int call, cudaStream_t stream) { Attend(call, tuning, stream); });
  }
  void Attend(int layer, const AttentionTuning& tuning, cudaStream_t stream) const {
    Attention(kShape, View(), Cache(layer), sinks_.data(), qkv_.data(), out_.data(), Workspace(),
              stream, tuning);
  }

 private:
  void FillQueries() {
    std::vector<__nv_bfloat16> host(Rows() * kShape.row_values());
    uint32_t state = 1;
    for (__nv_bfloat16& value : host) {
      state = state * 1664525u + 1013904223u;
      value = __float2bfloat16(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    }
    CheckCuda(cudaMemcpy(qkv_.data(), host.data(), host.size() * 2, cudaMemcpyDefault), "queries");
  }

  HostStep host_;
  bool sliding_;
  int layers_ = 1;
  DeviceArray<int32_t> positions_;
  DeviceArray<int32_t> run_of_row_;
  DeviceArray<RunView> run_;
  DeviceArray<int32_t> blocks_;
  Bf16Array qkv_;
  Bf16Array out_;
  Bf16Array sinks_;
  DeviceArray<char> workspace_;
  std::vector<Bf16Array> keys_;
  std::vector<Bf16Array> values_;
};

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_GPU_OPS_ATTENTION_STEP_H_
