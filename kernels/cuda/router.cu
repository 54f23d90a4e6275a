// A cluster of 8 blocks routes a group of up to 8 rows. Every block adds the residual and the norm
// for all rows of the group (cheaper than passing them on), multiplies them with its eighth of the
// router's rows by tensor cores, and sends each row's logits to the block of that row, which
// chooses. The router's weights are on their way to shared memory before PdlWait().
//
// x is updated in place: blocks write their eighth of the columns only after the whole cluster has
// read the rows.

#include "kernels/cuda/router.h"

#include <algorithm>
#include <mutex>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/stage_rows.cuh"
#include "kernels/cuda/top_experts.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kCluster = 8;
constexpr int kMaxGroup = 8;                                  // rows of a cluster
constexpr int kBlockExperts = kFusedRouteExperts / kCluster;  // 16: one tensor-core tile
constexpr int kWarps = kStageWarps;
constexpr int kThreads = kStageThreads;
constexpr int kStepBytes = 64;  // 32 values
constexpr int64_t kSharedBytes = 227 * 1024;

struct Header {
  uint64_t weights_here;
  uint64_t norm_here;
  float sums[kWarps];                // of squares
  float logits[kFusedRouteExperts];  // of the row this block chooses for
  float reduce[kWarps][kBlockExperts][kMaxGroup];
};
constexpr int64_t kHeaderBytes = (sizeof(Header) + 127) / 128 * 128;

struct RouteParameters {
  RouteArguments a;
  int group;  // rows of a cluster
  int pitch;  // bytes between rows in shared memory
};

__device__ uint4 AddPartial(const uint4& x, const float4& low, const float4& high) {
  float values[kVec];
  Unpack(x, values);
  const float add[kVec] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] += add[i];
  return Pack(values);
}

// reduce[warp][expert][row] = this warp's share of k.
__device__ void MultiplyRows(const unsigned char* weights, int experts, const unsigned char* rows,
                             int num_rows, int pitch, int steps, Header& header) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  // Lanes past the last expert or row repeat it; their products are dropped.
  const unsigned char* low = weights + min(g, experts - 1) * pitch + t * 16;
  const unsigned char* high = weights + min(g + 8, experts - 1) * pitch + t * 16;
  const unsigned char* row = rows + min(g, num_rows - 1) * pitch + t * 16;
  constexpr uint4 kZero = {0, 0, 0, 0};
  constexpr int kBatch = 4;  // steps whose operands are loaded together
  float acc[4][4] = {};
  for (int begin = warp; begin < steps; begin += kBatch * kWarps) {
    uint4 a[kBatch];
    uint4 b[kBatch];
    uint4 c[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int offset = (begin + i * kWarps) * kStepBytes;
      const bool valid = begin + i * kWarps < steps;
      a[i] = valid ? *reinterpret_cast<const uint4*>(low + offset) : kZero;
      c[i] = valid ? *reinterpret_cast<const uint4*>(high + offset) : kZero;
      b[i] = valid ? *reinterpret_cast<const uint4*>(row + offset) : kZero;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      MmaBf16(acc[i % 2 * 2], a[i].x, c[i].x, a[i].y, c[i].y, b[i].x, b[i].y);
      MmaBf16(acc[i % 2 * 2 + 1], a[i].z, c[i].z, a[i].w, c[i].w, b[i].z, b[i].w);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    header.reduce[warp][g][2 * t + i] = (acc[0][i] + acc[1][i]) + (acc[2][i] + acc[3][i]);
    header.reduce[warp][g + 8][2 * t + i] =
        (acc[0][2 + i] + acc[1][2 + i]) + (acc[2][2 + i] + acc[3][2 + i]);
  }
}

// x + partial of the cluster's rows, for StageRows; kept in `updated` too.
struct ResidualRows {
  struct Raw {
    uint4 x;
    float4 low, high;
  };
  const uint4* x;
  const float4* partial;
  int vectors;
  unsigned char* updated;
  int pitch;
  __device__ Raw Load(int row, int vector) const {
    const int64_t at = int64_t{row} * vectors + vector;
    return {x[at], partial[2 * at], partial[2 * at + 1]};
  }
  __device__ uint4 Finish(const Raw& raw, int row, int vector) const {
    const uint4 sum = AddPartial(raw.x, raw.low, raw.high);
    *reinterpret_cast<uint4*>(updated + row * pitch + vector * 16) = sum;
    return sum;
  }
};

// This block's eighth of the columns of x and the normed rows, by all warps but the first.
__device__ void WriteColumns(const RouteArguments& a, int rank, int first_row, int rows,
                             const unsigned char* updated, const unsigned char* normed, int pitch) {
  const int vectors = static_cast<int>(a.hidden) / kVec;
  const int begin = vectors * rank / kCluster;
  const int end = vectors * (rank + 1) / kCluster;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(threadIdx.x) / 32 - 1; row < rows; row += kWarps - 1) {
    const int64_t to = int64_t{first_row + row} * vectors;
    for (int i = begin + lane; i < end; i += 32) {
      reinterpret_cast<uint4*>(a.x)[to + i] =
          *reinterpret_cast<const uint4*>(updated + row * pitch + i * 16);
      reinterpret_cast<uint4*>(a.normed)[to + i] =
          *reinterpret_cast<const uint4*>(normed + row * pitch + i * 16);
    }
  }
}

__global__ void __launch_bounds__(kThreads) RouteKernel(const __grid_constant__ RouteParameters p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const RouteArguments& a = p.a;
  auto& header = *reinterpret_cast<Header*>(shared);
  const int rank = static_cast<int>(ClusterRank());
  const int thread = static_cast<int>(threadIdx.x);
  const int vectors = static_cast<int>(a.hidden) / kVec;
  const int first_expert = a.experts * rank / kCluster;
  const int experts = a.experts * (rank + 1) / kCluster - first_expert;
  const int first_row = static_cast<int>(blockIdx.x) / kCluster * p.group;
  const int rows = min(p.group, a.rows - first_row);
  unsigned char* norm = shared + kHeaderBytes;                         // [hidden]
  unsigned char* weights = norm + NormBytes(a.hidden);                 // [16, hidden]
  unsigned char* normed = weights + kBlockExperts * int64_t{p.pitch};  // [group, hidden]
  unsigned char* updated = normed + p.group * int64_t{p.pitch};        // x + partial, likewise

  PdlTrigger();
  if (thread == 0) {
    BarrierInit(&header.weights_here, 1);
    BarrierInit(&header.norm_here, 1);
    BarrierInitFence();
    BarrierArriveExpect(&header.norm_here, static_cast<uint32_t>(a.hidden) * 2);
    BulkCopy(norm, a.norm, static_cast<uint32_t>(a.hidden) * 2, &header.norm_here);
    BarrierArriveExpect(&header.weights_here, experts * static_cast<uint32_t>(a.hidden) * 2);
  }
  __syncthreads();
  if (thread < experts) {
    BulkCopy(weights + thread * int64_t{p.pitch}, a.weight + (first_expert + thread) * a.hidden,
             static_cast<uint32_t>(a.hidden) * 2, &header.weights_here);
  }
  const int logit_row = thread % rows;  // of the logit that this thread adds up, if any
  const int logit_expert = thread / rows;
  float bias = 0;
  if (logit_expert < experts && a.bias != nullptr) {
    bias = ToFloat(a.bias[first_expert + logit_expert]);
  }
  PdlWait();

  const ResidualRows source = {
      reinterpret_cast<const uint4*>(a.x) + int64_t{first_row} * vectors,
      reinterpret_cast<const float4*>(a.partial) + int64_t{first_row} * vectors * 2, vectors,
      updated, p.pitch};
  StageRows<true>(rows, vectors, reinterpret_cast<const uint4*>(norm), &header.norm_here, a.epsilon,
                  normed, p.pitch, header.sums, source);
  ClusterArriveRelaxed();  // has read x
  if (experts > 0) {
    BarrierWait(&header.weights_here, 0);
    MultiplyRows(weights, experts, normed, rows, p.pitch, static_cast<int>(a.hidden) / 32, header);
  }
  __syncthreads();
  ClusterWait();  // all have read x, and all have started: their shared memory may be written
  if (logit_expert < experts) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += header.reduce[i][logit_expert][logit_row];
    StoreToCluster(&header.logits[first_expert + logit_expert], logit_row, sum + bias);
  }
  ClusterArrive();  // has sent its logits
  if (thread >= 32) WriteColumns(a, rank, first_row, rows, updated, normed, p.pitch);
  ClusterWait();
  if (rank >= rows || thread >= 32) return;
  const int64_t row = first_row + rank;
  TopExperts<kFusedRouteExperts / 32>(header.logits,
                                      a.forced == nullptr ? nullptr : a.forced + row * a.k,
                                      a.run_of_row == nullptr || a.run_of_row[row] >= 0, a.experts,
                                      a.k, a.expert_ids + row * a.k, a.weights + row * a.k);
}

constexpr int kChooseWarps = 8;

__global__ void __launch_bounds__(kChooseWarps * 32)
    ChooseKernel(const float* logits, const int32_t* forced, const int32_t* run_of_row, int rows,
                 int experts, int k, int32_t* expert_ids, float* weights) {
  PdlTrigger();
  PdlWait();
  const int64_t row = int64_t{blockIdx.x} * kChooseWarps + threadIdx.x / 32;
  if (row >= rows) return;
  TopExperts<kMaxRoutedExperts / 32>(logits + row * experts,
                                     forced == nullptr ? nullptr : forced + row * k,
                                     run_of_row == nullptr || run_of_row[row] >= 0, experts, k,
                                     expert_ids + row * k, weights + row * k);
}

// At most 8 clusters: twice as many do not all find room at once.
int GroupOf(int rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : kMaxGroup; }

int64_t SharedBytesOf(int group, int64_t hidden) {
  return kHeaderBytes + NormBytes(hidden) + (kBlockExperts + 2 * group) * SharedPitch(hidden * 2);
}

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool CanFuseRoute(const RouteArguments& a) {
  return a.rows <= kFusedRouteRows && a.experts <= kFusedRouteExperts && a.hidden % 32 == 0 &&
         SharedBytesOf(GroupOf(a.rows), a.hidden) <= kSharedBytes && Aligned(a.partial) &&
         Aligned(a.x) && Aligned(a.norm) && Aligned(a.weight) && Aligned(a.normed);
}

void FusedRoute(const RouteArguments& arguments, cudaStream_t stream) {
  if (arguments.rows == 0) return;
  static std::once_flag once;
  std::call_once(once, [] {
    cudaFuncSetAttribute(RouteKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  RouteParameters p;
  p.a = arguments;
  p.group = GroupOf(arguments.rows);
  p.pitch = static_cast<int>(SharedPitch(arguments.hidden * 2));
  const int clusters = (arguments.rows + p.group - 1) / p.group;
  LaunchDependent(RouteKernel,
                  {dim3(clusters * kCluster), dim3(kThreads),
                   static_cast<size_t>(SharedBytesOf(p.group, arguments.hidden)), kCluster},
                  stream, p);
}

void ChooseExperts(const float* logits, const int32_t* forced, const int32_t* run_of_row, int rows,
                   int experts, int k, int32_t* expert_ids, float* weights, cudaStream_t stream) {
  if (rows == 0) return;
  LaunchDependent(ChooseKernel,
                  {dim3((rows + kChooseWarps - 1) / kChooseWarps), dim3(kChooseWarps * 32)}, stream,
                  logits, forced, run_of_row, rows, experts, k, expert_ids, weights);
}

}  // namespace conclave::kernels::cuda
