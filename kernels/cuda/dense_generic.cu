// The product for sizes and addresses that no fast path takes: a warp per output value, 2 bytes at
// a time.

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kWarps = 8;

template <typename Out>
__global__ void __launch_bounds__(kWarps * 32)
    GenericKernel(DenseSegment segment, DenseInput input, Out* out, int64_t out_stride) {
  PdlTrigger();
  PdlWait();
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (n >= segment.rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t row = input.gather == nullptr ? blockIdx.y : input.gather[blockIdx.y];
  const __nv_bfloat16* x = input.x + row * input.cols;
  const __nv_bfloat16* weight = segment.weight + n * segment.row_stride;
  float sum = 0;
  for (int64_t k = lane; k < input.cols; k += 32) sum += ToFloat(x[k]) * ToFloat(weight[k]);
  sum = WarpSum(sum);
  if (lane != 0) return;
  if (segment.bias != nullptr) sum += ToFloat(segment.bias[n]);
  Store(sum, out + blockIdx.y * out_stride + n);
}

}  // namespace

void GenericDense(std::span<const DenseSegment> segments, const DenseInput& input,
                  const DenseOutput& output, cudaStream_t stream) {
  if (input.rows == 0) return;
  int64_t column = 0;
  for (const DenseSegment& segment : segments) {
    if (segment.rows == 0) continue;
    const LaunchShape shape = {
        dim3(static_cast<unsigned>((segment.rows + kWarps - 1) / kWarps), input.rows),
        dim3(kWarps * 32)};
    if (output.dtype == DType::kF32) {
      LaunchDependent(GenericKernel<float>, shape, stream, segment, input,
                      static_cast<float*>(output.data) + column, output.row_stride);
    } else {
      LaunchDependent(GenericKernel<__nv_bfloat16>, shape, stream, segment, input,
                      static_cast<__nv_bfloat16*>(output.data) + column, output.row_stride);
    }
    column += segment.rows;
  }
}

}  // namespace conclave::kernels::cuda
