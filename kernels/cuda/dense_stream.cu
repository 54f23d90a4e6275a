// Few rows against a large weight matrix, bound by the weights' bytes: every multiprocessor keeps
// its shared memory full of weights in flight and does nothing else that takes time.
//
// A unit is 8 rows of weights. Each block owns a contiguous range of units; its producer warp
// copies them in chunks of columns into a ring of stages (one bulk copy per weight row and chunk),
// 8 consumer warps multiply. Within a chunk the warps take turns at steps of 32 columns:
// tensor-core products of the 16 (padded) activation rows with the 8 weight rows. A lane reads 16
// contiguous bytes of each, 8 values of k, and uses them as its four k slots of two instructions:
// the sum over k does not care which slot is which as long as both operands agree. Warps' sums are
// added in order through shared memory, so the result does not depend on timing.
//
// Weights need nothing from earlier kernels: the ring fills before PdlWait().

#include <algorithm>
#include <mutex>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/stage_rows.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kUnitRows = 8;
constexpr int kStepCols = 32;
constexpr int kStepBytes = kStepCols * 2;
constexpr int kMaxChunkCols = 1536;
constexpr int kMaxStages = 16;
constexpr int kWarps = kStageWarps;
constexpr int kThreads = kStageThreads + 32;  // the last warp produces
// Of a block: at most half a multiprocessor's, so that the next kernel's blocks find room and fill
// their ring while this one still runs; all of it where half would leave too short a ring.
constexpr int64_t kHalfSharedBytes = 113 * 1024;
constexpr int64_t kSharedBytes = 227 * 1024;
constexpr int kFewStages = 3;
// With so much, no two blocks of a launch share a multiprocessor while others have none: kernels
// that follow the experts' start as those leave one multiprocessor after the other.
constexpr int64_t kLoneSharedBytes = kHalfSharedBytes + 512;
constexpr int64_t kHeaderBytes = 512;  // barriers, sums of squares
constexpr int kNormBarrierOffset = 2 * kMaxStages * 8;
constexpr int kSumsOffset = kNormBarrierOffset + 8;
static_assert(kSumsOffset + kWarps * 4 <= kHeaderBytes);

struct StreamParameters {
  DenseSegment segments[kMaxDenseSegments];
  int unit_begin[kMaxDenseSegments + 1];  // first unit of each segment, then their number
  int first_column[kMaxDenseSegments];    // of the output
  int num_segments;
  DenseInput input;
  void* out;
  int64_t out_stride;
  int chunks;
  int chunk_cols;   // the last chunk may have fewer
  int chunk_pitch;  // bytes
  int stages;
  int x_pitch;  // bytes
};

// Where unit `unit` lies.
struct Unit {
  const __nv_bfloat16* weight;
  const __nv_bfloat16* bias;
  int64_t row_stride;
  int rows;    // valid ones, 1..8
  int column;  // of the output
};

__device__ Unit FindUnit(const StreamParameters& p, int unit) {
  int s = 0;
  while (s + 1 < p.num_segments && unit >= p.unit_begin[s + 1]) ++s;
  const DenseSegment& segment = p.segments[s];
  const int64_t row = int64_t{unit - p.unit_begin[s]} * kUnitRows;
  return {segment.weight + row * segment.row_stride,
          segment.bias == nullptr ? nullptr : segment.bias + row, segment.row_stride,
          static_cast<int>(min(int64_t{kUnitRows}, segment.rows - row)),
          p.first_column[s] + static_cast<int>(row)};
}

struct Ring {
  uint64_t* full;
  uint64_t* empty;
  unsigned char* memory;
};

// Stages are used round and round; `pass` counts the rounds.
struct RingPosition {
  int stage = 0;
  uint32_t pass = 0;
  __device__ void Next(int stages) {
    if (++stage == stages) {
      stage = 0;
      ++pass;
    }
  }
};

__device__ void Produce(const StreamParameters& p, const Ring& ring, int begin, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int cols = static_cast<int>(p.input.cols);
  RingPosition at;
  for (int index = begin; index < end; ++index) {
    const Unit unit = FindUnit(p, index);
    for (int chunk = 0; chunk < p.chunks; ++chunk, at.Next(p.stages)) {
      const int first = chunk * p.chunk_cols;
      const uint32_t bytes = 2 * min(p.chunk_cols, cols - first);
      // A fresh barrier counts as having completed the phase before its first.
      BarrierWait(&ring.empty[at.stage], (at.pass & 1) ^ 1);
      if (lane == 0) BarrierArriveExpect(&ring.full[at.stage], bytes * unit.rows);
      __syncwarp();
      if (lane < unit.rows) {
        BulkCopyOnce(ring.memory + (int64_t{at.stage} * kUnitRows + lane) * p.chunk_pitch,
                     unit.weight + lane * unit.row_stride + first, bytes, &ring.full[at.stage]);
      }
    }
  }
}

// acc += x rows * weight rows of this warp's steps of one chunk. kHigh: there are more than 8 rows.
// Operands of several steps are loaded before the first is used; the four sums run side by side.
template <bool kHigh>
__device__ void MultiplyChunk(const unsigned char* weights, int chunk_pitch, const unsigned char* x,
                              int x_pitch, int rows, int first_step, int steps,
                              float (&acc)[4][4]) {
  constexpr int kBatch = kHigh ? 4 : 6;
  constexpr uint4 kZero = {0, 0, 0, 0};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4;
  const int t = lane % 4;
  // Lanes past the last row repeat it; their products are dropped.
  const unsigned char* low = x + min(g, rows - 1) * x_pitch + t * 16 + first_step * kStepBytes;
  const unsigned char* high = x + min(g + 8, rows - 1) * x_pitch + t * 16 + first_step * kStepBytes;
  weights += g * chunk_pitch + t * 16;
  for (int begin = (warp - first_step) & (kWarps - 1); begin < steps; begin += kBatch * kWarps) {
    uint4 a[kBatch];
    uint4 b[kBatch];
    uint4 c[kHigh ? kBatch : 1];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int offset = (begin + i * kWarps) * kStepBytes;
      const bool valid = begin + i * kWarps < steps;
      a[i] = valid ? *reinterpret_cast<const uint4*>(low + offset) : kZero;
      b[i] = valid ? *reinterpret_cast<const uint4*>(weights + offset) : kZero;
      if (kHigh) c[i] = valid ? *reinterpret_cast<const uint4*>(high + offset) : kZero;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const uint4 d = kHigh ? c[kHigh ? i : 0] : kZero;
      MmaBf16(acc[i % 2 * 2], a[i].x, d.x, a[i].y, d.y, b[i].x, b[i].y);
      MmaBf16(acc[i % 2 * 2 + 1], a[i].z, d.z, a[i].w, d.w, b[i].z, b[i].w);
    }
  }
}

template <typename Out, bool kHigh>
__device__ void Consume(const StreamParameters& p, const Ring& ring, const unsigned char* x,
                        float* reduce, int begin, int end) {
  constexpr int kRows = kHigh ? 16 : 8;
  constexpr int kSums = kRows * kUnitRows;  // of a warp
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int rows = p.input.rows;
  const int cols = static_cast<int>(p.input.cols);
  RingPosition at;
  for (int index = begin; index < end; ++index) {
    const Unit unit = FindUnit(p, index);
    const int n = thread % kUnitRows;
    const bool stores = thread < rows * kUnitRows && n < unit.rows;
    const float bias = stores && unit.bias != nullptr ? ToFloat(unit.bias[n]) : 0;
    float acc[4][4] = {};
    for (int chunk = 0; chunk < p.chunks; ++chunk, at.Next(p.stages)) {
      const int first = chunk * p.chunk_cols;
      BarrierWait(&ring.full[at.stage], at.pass & 1);
      MultiplyChunk<kHigh>(ring.memory + int64_t{at.stage} * kUnitRows * p.chunk_pitch,
                           p.chunk_pitch, x, p.x_pitch, rows, first / kStepCols,
                           min(p.chunk_cols, cols - first) / kStepCols, acc);
      __syncwarp();
      if (lane == 0) BarrierArrive(&ring.empty[at.stage]);
    }
    // Two buffers: the barrier of the next unit keeps writers of the one after it away.
    float* sums = reduce + (index - begin) % 2 * kWarps * kSums;
    float* mine = sums + warp * kSums + lane / 4 * kUnitRows + lane % 4 * 2;
    float sum[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = (acc[0][i] + acc[1][i]) + (acc[2][i] + acc[3][i]);
    *reinterpret_cast<float2*>(mine) = {sum[0], sum[1]};
    if (kHigh) *reinterpret_cast<float2*>(mine + 8 * kUnitRows) = {sum[2], sum[3]};
    NamedBarrier(kStageBarrier, kStageThreads);
    if (!stores) continue;
    float total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += sums[i * kSums + thread];
    Store(total + bias,
          static_cast<Out*>(p.out) + thread / kUnitRows * p.out_stride + unit.column + n);
  }
}

// For StageRows.
struct InputRows {
  using Raw = uint4;
  const uint4* x;
  const int32_t* gather;
  int vectors;
  __device__ uint4 Load(int row, int vector) const {
    const int64_t from = gather == nullptr ? row : gather[row];
    return x[from * vectors + vector];
  }
  __device__ uint4 Finish(const uint4& raw, int, int) const { return raw; }
};

template <typename Out, bool kNorm, bool kHigh>
__global__ void __launch_bounds__(kThreads, 2)
    StreamKernel(const __grid_constant__ StreamParameters p) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kReduceBytes = 2 * kWarps * (kHigh ? 16 : 8) * kUnitRows * 4;
  auto* reduce = reinterpret_cast<float*>(shared + kHeaderBytes);
  auto* norm_here = reinterpret_cast<uint64_t*>(shared + kNormBarrierOffset);
  unsigned char* norm = shared + kHeaderBytes + kReduceBytes;
  unsigned char* x = norm + (kNorm ? NormBytes(p.input.cols) : 0);
  Ring ring;
  ring.full = reinterpret_cast<uint64_t*>(shared);
  ring.empty = ring.full + kMaxStages;
  ring.memory = x + int64_t{p.input.rows} * p.x_pitch;

  PdlTrigger();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < p.stages; ++stage) {
      BarrierInit(&ring.full[stage], 1);
      BarrierInit(&ring.empty[stage], kWarps);
    }
    if (kNorm) BarrierInit(norm_here, 1);
    BarrierInitFence();
    if (kNorm) {
      const auto bytes = static_cast<uint32_t>(p.input.cols) * 2;
      BarrierArriveExpect(norm_here, bytes);
      BulkCopy(norm, p.input.norm, bytes, norm_here);
    }
  }
  __syncthreads();

  const int64_t units = p.unit_begin[p.num_segments];
  const int begin = static_cast<int>(units * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(units * (blockIdx.x + 1) / gridDim.x);
  if (threadIdx.x >= kStageThreads) {
    Produce(p, ring, begin, end);
    return;
  }
  const int vectors = static_cast<int>(p.input.cols) / kVec;
  PdlWait();
  const InputRows source = {reinterpret_cast<const uint4*>(p.input.x), p.input.gather, vectors};
  StageRows<kNorm>(p.input.rows, vectors, reinterpret_cast<const uint4*>(norm), norm_here,
                   p.input.epsilon, x, p.x_pitch, reinterpret_cast<float*>(shared + kSumsOffset),
                   source);
  Consume<Out, kHigh>(p, ring, x, reduce, begin, end);
}

// How shared memory is divided; stages < 2: the inputs do not fit.
struct StreamLayout {
  int chunks;
  int chunk_cols;
  int64_t chunk_pitch;
  int64_t x_pitch;
  int64_t fixed_bytes;  // all but the ring
  int64_t stage_bytes;
  int stages;
};

StreamLayout LayOut(int rows, int64_t cols, bool norm) {
  StreamLayout out;
  out.chunks = static_cast<int>((cols + kMaxChunkCols - 1) / kMaxChunkCols);
  const int64_t even = (cols + out.chunks - 1) / out.chunks;
  out.chunk_cols = static_cast<int>((even + kStepCols - 1) / kStepCols * kStepCols);
  out.chunks = static_cast<int>((cols + out.chunk_cols - 1) / out.chunk_cols);
  out.chunk_pitch = SharedPitch(int64_t{out.chunk_cols} * 2);
  out.x_pitch = SharedPitch(cols * 2);
  const int64_t reduce_bytes = 2 * kWarps * (rows > 8 ? 16 : 8) * kUnitRows * 4;
  out.fixed_bytes = kHeaderBytes + reduce_bytes + (norm ? NormBytes(cols) : 0) + rows * out.x_pitch;
  out.stage_bytes = kUnitRows * out.chunk_pitch;
  const auto stages = [&](int64_t bytes) {
    return static_cast<int>(
        std::min<int64_t>(kMaxStages, (bytes - out.fixed_bytes) / out.stage_bytes));
  };
  out.stages = stages(kHalfSharedBytes);
  if (out.stages < kFewStages) out.stages = stages(kSharedBytes);
  return out;
}

template <typename Out, bool kNorm, bool kHigh>
void Launch(const StreamParameters& parameters, int grid, int64_t shared_bytes,
            cudaStream_t stream) {
  static std::once_flag once;
  std::call_once(once, [] {
    cudaFuncSetAttribute(StreamKernel<Out, kNorm, kHigh>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  LaunchDependent(StreamKernel<Out, kNorm, kHigh>,
                  {dim3(grid), dim3(kThreads), static_cast<size_t>(shared_bytes)}, stream,
                  parameters);
}

template <typename Out, bool kNorm>
void LaunchRows(const StreamParameters& parameters, int grid, int64_t shared_bytes,
                cudaStream_t stream) {
  if (parameters.input.rows > 8) {
    Launch<Out, kNorm, true>(parameters, grid, shared_bytes, stream);
  } else {
    Launch<Out, kNorm, false>(parameters, grid, shared_bytes, stream);
  }
}

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool CanStream(std::span<const DenseSegment> segments, const DenseInput& input) {
  if (input.cols % kStepCols != 0 || !Aligned(input.x) || !Aligned(input.norm)) return false;
  for (const DenseSegment& segment : segments) {
    if (!Aligned(segment.weight) || segment.row_stride % kVec != 0) return false;
  }
  return LayOut(std::min(input.rows, kStreamRows), input.cols, input.norm != nullptr).stages >= 2;
}

void StreamDense(std::span<const DenseSegment> segments, const DenseInput& input,
                 const DenseOutput& output, cudaStream_t stream) {
  StreamParameters p = {};
  int column = 0;
  for (const DenseSegment& segment : segments) {
    const int s = p.num_segments++;
    p.segments[s] = segment;
    p.first_column[s] = column;
    p.unit_begin[s + 1] =
        p.unit_begin[s] + static_cast<int>((segment.rows + kUnitRows - 1) / kUnitRows);
    column += static_cast<int>(segment.rows);
  }
  const int units = p.unit_begin[p.num_segments];
  if (units == 0 || input.rows == 0) return;
  const int grid = std::min(units, NumMultiprocessors());
  const StreamLayout layout = LayOut(input.rows, input.cols, input.norm != nullptr);
  p.input = input;
  p.out = output.data;
  p.out_stride = output.row_stride;
  p.chunks = layout.chunks;
  p.chunk_cols = layout.chunk_cols;
  p.chunk_pitch = static_cast<int>(layout.chunk_pitch);
  p.x_pitch = static_cast<int>(layout.x_pitch);
  p.stages = std::min(layout.stages, (units + grid - 1) / grid * layout.chunks);
  const bool norm = input.norm != nullptr;
  int64_t shared_bytes = layout.fixed_bytes + p.stages * layout.stage_bytes;
  if (norm) shared_bytes = std::max(shared_bytes, kLoneSharedBytes);
  if (output.dtype == DType::kF32) {
    norm ? LaunchRows<float, true>(p, grid, shared_bytes, stream)
         : LaunchRows<float, false>(p, grid, shared_bytes, stream);
  } else {
    norm ? LaunchRows<__nv_bfloat16, true>(p, grid, shared_bytes, stream)
         : LaunchRows<__nv_bfloat16, false>(p, grid, shared_bytes, stream);
  }
}

}  // namespace conclave::kernels::cuda
