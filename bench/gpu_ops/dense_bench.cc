// The dense ops of a layer and the output at the shapes of gpt-oss-120b, beside their floors:
//
//   bazel build -c opt //bench/gpu_ops:dense_bench && bazel-bin/bench/gpu_ops/dense_bench [ROWS...]

#include <cuda_bf16.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/gpu_ops/harness.h"
#include "kernels/cuda/dense_lt.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/router.h"
#include "kernels/ops.h"

namespace conclave::bench {
namespace {

namespace cuda = kernels::cuda;
using kernels::Buffer;
using kernels::DType;

constexpr int64_t kHidden = 2880;
constexpr int64_t kHeadColumns = 4096;
constexpr int64_t kQkvRows = 5120;
constexpr int64_t kVocab = 201088;
constexpr int kExperts = 128;
constexpr int kChoices = 4;
constexpr int kMaxRows = 2048;
constexpr int kCompared = 64;
constexpr int kLogitRows = 256;  // of a tile
constexpr int kCalls = 16;

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(value);
}

// bf16 [values] in device memory, normal numbers from a table that repeats every million.
Buffer RandomBf16(int64_t values, double deviation) {
  static const std::vector<float> table = [] {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> out((1 << 20) + 13);
    for (float& value : out) value = normal(random);
    return out;
  }();
  const auto size = static_cast<int64_t>(table.size());
  std::vector<__nv_bfloat16> host(std::min(values, size));
  for (size_t i = 0; i < host.size(); ++i) {
    host[i] = __float2bfloat16(table[i] * static_cast<float>(deviation));
  }
  Buffer out = Must(cuda::AllocateDevice(values * 2));
  for (int64_t at = 0; at < values; at += size) {
    CheckCuda(cudaMemcpy(static_cast<__nv_bfloat16*>(out.memory.get()) + at, host.data(),
                         std::min(size, values - at) * 2, cudaMemcpyHostToDevice),
              "upload");
  }
  return out;
}

template <typename T>
T* As(const Buffer& buffer) {
  return static_cast<T*>(buffer.memory.get());
}

class DenseBench {
 public:
  DenseBench()
      : product_(Must(cuda::DenseProduct::Create(kMaxRows, kHidden))),
        library_(Must(cuda::DenseLt::Create())),
        x_(RandomBf16(kMaxRows * kHeadColumns, 1)),
        norm_(RandomBf16(kHidden, 1)),
        bias_(RandomBf16(kVocab, 0.02)),
        bias_f32_(Must(cuda::AllocateDevice(kVocab * 4))),
        out_(Must(cuda::AllocateDevice(int64_t{kLogitRows} * kVocab * 4))) {
    CheckCuda(cudaMemset(bias_f32_.memory.get(), 0, bias_f32_.bytes), "cudaMemset");
  }

  struct Shape {
    std::string name;
    int64_t n;
    int64_t k;
    DType out;
    bool norm;
    bool bias;
    int sets;  // of weights, together well past the L2 cache
    std::vector<int> rows;
  };

  void Run(const Shape& shape) {
    std::vector<Buffer> weights;
    for (int i = 0; i < shape.sets; ++i) weights.push_back(RandomBf16(shape.n * shape.k, 0.02));
    for (const int rows : shape.rows) {
      const double us = timer_.Median(shape.sets == 1 ? 2 : kCalls, [&](int call, cudaStream_t s) {
        const cuda::DenseSegment segment = {.weight = As<__nv_bfloat16>(weights[call % shape.sets]),
                                            .bias = shape.bias ? As<__nv_bfloat16>(bias_) : nullptr,
                                            .bias_f32 = shape.bias ? As<float>(bias_f32_) : nullptr,
                                            .rows = shape.n,
                                            .row_stride = shape.k};
        const cuda::DenseInput input = {.x = As<__nv_bfloat16>(x_),
                                        .rows = rows,
                                        .cols = shape.k,
                                        .norm = shape.norm ? As<__nv_bfloat16>(norm_) : nullptr,
                                        .epsilon = 1e-5f};
        const absl::Status status =
            product_->Run({&segment, 1}, input, {out_.memory.get(), shape.out, shape.n}, s);
        if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
      });
      const double n = static_cast<double>(shape.n);
      const double k = static_cast<double>(shape.k);
      const OpCost cost = {
          .bytes = n * k * 2 + rows * (k * 2 + n * static_cast<double>(SizeOf(shape.out))),
          .flops = 2.0 * rows * n * k};
      PrintRow(shape.name, fmt::format("{} rows", rows), us, cost);
      if (rows <= kCompared) RunLibrary(shape, weights, rows, cost);
    }
  }

  // The product alone by cuBLASLt, where our own kernel is used or near.
  void RunLibrary(const Shape& shape, const std::vector<Buffer>& weights, int rows,
                  const OpCost& cost) {
    const double us = timer_.Median(shape.sets == 1 ? 2 : kCalls, [&](int call, cudaStream_t s) {
      const cuda::DenseSegment segment = {.weight = As<__nv_bfloat16>(weights[call % shape.sets]),
                                          .rows = shape.n,
                                          .row_stride = shape.k};
      const cuda::DenseInput input = {.x = As<__nv_bfloat16>(x_), .rows = rows, .cols = shape.k};
      Must(library_->Multiply(segment, input, {out_.memory.get(), shape.out, shape.n}, s));
    });
    PrintRow("  cuBLASLt, no norm or bias", fmt::format("{} rows", rows), us, cost);
  }

  void RunRouter(const std::vector<int>& all_rows) {
    constexpr int kSets = 16;
    std::vector<Buffer> weights;
    for (int i = 0; i < kSets; ++i) weights.push_back(RandomBf16(kExperts * kHidden, 0.02));
    const Buffer partial = Must(cuda::AllocateDevice(kMaxRows * kHidden * 4));
    CheckCuda(cudaMemset(partial.memory.get(), 0, partial.bytes), "cudaMemset");
    const Buffer normed = Must(cuda::AllocateDevice(kMaxRows * kHidden * 2));
    const Buffer logits = Must(cuda::AllocateDevice(kMaxRows * kExperts * 4));
    const Buffer ids = Must(cuda::AllocateDevice(kMaxRows * kChoices * 4));
    const Buffer choice = Must(cuda::AllocateDevice(kMaxRows * kChoices * 4));
    const auto arguments = [&](int rows, int call) {
      cuda::RouteArguments a;
      a.partial = As<float>(partial);
      a.x = As<__nv_bfloat16>(x_);
      a.norm = As<__nv_bfloat16>(norm_);
      a.epsilon = 1e-5f;
      a.weight = As<__nv_bfloat16>(weights[call % kSets]);
      a.bias = As<__nv_bfloat16>(bias_);
      a.rows = rows;
      a.hidden = kHidden;
      a.experts = kExperts;
      a.k = kChoices;
      a.normed = As<__nv_bfloat16>(normed);
      a.expert_ids = As<int32_t>(ids);
      a.weights = As<float>(choice);
      return a;
    };
    const auto cost = [](int rows) {
      const double n = kExperts;
      const double k = kHidden;
      return OpCost{.bytes = n * k * 2 + rows * k * (2 + 2 + 4 + 2), .flops = 2.0 * rows * n * k};
    };
    for (const int rows : all_rows) {
      if (cuda::CanFuseRoute(arguments(rows, 0))) {
        const double us = timer_.Median(
            kCalls, [&](int call, cudaStream_t s) { cuda::FusedRoute(arguments(rows, call), s); });
        PrintRow("residual+norm+route, fused", fmt::format("{} rows", rows), us, cost(rows));
      }
      const double us = timer_.Median(kCalls, [&](int call, cudaStream_t s) {
        const cuda::RouteArguments a = arguments(rows, call);
        cuda::ResidualNormRows(a.partial, a.norm, a.epsilon, rows, kHidden, a.x, a.normed, s);
        const cuda::DenseSegment segment = {.weight = a.weight,
                                            .bias = a.bias,
                                            .bias_f32 = As<float>(bias_f32_),
                                            .rows = kExperts,
                                            .row_stride = kHidden};
        const cuda::DenseInput input = {.x = a.normed, .rows = rows, .cols = kHidden};
        const absl::Status status =
            product_->Run({&segment, 1}, input, {logits.memory.get(), DType::kF32, kExperts}, s);
        if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
        cuda::ChooseExperts(As<float>(logits), nullptr, nullptr, rows, kExperts, kChoices,
                            a.expert_ids, a.weights, s);
      });
      PrintRow("residual+norm+route, 3", fmt::format("{} rows", rows), us, cost(rows));
    }
  }

  void RunResidual(const std::vector<int>& all_rows) {
    const Buffer partial = Must(cuda::AllocateDevice(kMaxRows * kHidden * 4));
    CheckCuda(cudaMemset(partial.memory.get(), 0, partial.bytes), "cudaMemset");
    for (const int rows : all_rows) {
      const double us = timer_.Median(kCalls, [&](int, cudaStream_t s) {
        cuda::AddResidual(As<float>(partial), rows * kHidden, As<__nv_bfloat16>(x_), s);
      });
      PrintRow("add residual", fmt::format("{} rows", rows), us,
               {.bytes = 8.0 * rows * kHidden, .flops = 0});
    }
  }

 private:
  GpuTimer timer_;
  std::unique_ptr<cuda::DenseProduct> product_;
  std::unique_ptr<cuda::DenseLt> library_;
  Buffer x_, norm_, bias_, bias_f32_, out_;
};

int Main(int argc, char** argv) {
  const kernels::CudaProbe probe = kernels::ProbeCuda(0);
  if (!probe.reason.empty()) {
    std::printf("skipped: %s: %s\n", probe.reason.c_str(), probe.message.c_str());
    return 0;
  }
  PrintHeader("dense ops, 120b shapes");
  DenseBench bench;
  std::vector<int> rows = {1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512, 1024, 2048};
  if (argc > 1) rows.clear();
  for (int i = 1; i < argc; ++i) rows.push_back(std::clamp(std::atoi(argv[i]), 1, kMaxRows));
  std::vector<int> logit_rows;
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(logit_rows),
               [](int count) { return count <= kLogitRows; });
  bench.Run({"norm+qkv", kQkvRows, kHidden, DType::kBf16, true, true, 8, rows});
  bench.Run({"o_proj", kHidden, kHeadColumns, DType::kF32, false, true, 8, rows});
  bench.RunRouter(rows);
  bench.RunResidual(rows);
  bench.Run({"norm+lm_head", kVocab, kHidden, DType::kF32, true, false, 1, logit_rows});
  return 0;
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) { return conclave::bench::Main(argc, argv); }
