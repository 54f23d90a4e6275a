// The float64 references of device_test.h, as simple as can be.

#include <cuda_bf16.h>

#include <cstdint>

namespace conclave::kernels::cuda {
namespace {

__device__ double Wide(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ uint32_t Mix(uint32_t value) {
  value = (value ^ (value >> 16)) * 0x7FEB352Du;
  value = (value ^ (value >> 15)) * 0x846CA68Bu;
  return value ^ (value >> 16);
}

// The sum of four uniform numbers has variance 1/3.
__device__ float Normal(int64_t index, uint32_t seed) {
  uint32_t state =
      Mix(static_cast<uint32_t>(index) ^ Mix(static_cast<uint32_t>(index >> 32) ^ seed));
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    state = Mix(state + 0x9E3779B9u);
    sum += static_cast<float>(state) * 0x1p-32f - 0.5f;
  }
  return sum * 1.7320508f;
}

template <typename T>
__global__ void FillKernel(T* data, int64_t size, uint32_t seed, float deviation) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) data[i] = static_cast<T>(Normal(i, seed) * deviation);
}

template <typename T>
void Fill(T* data, int64_t size, uint32_t seed, float deviation) {
  if (size == 0) return;
  FillKernel<<<static_cast<unsigned>((size + 255) / 256), 256>>>(data, size, seed, deviation);
}

constexpr int kTile = 16;

__global__ void ProductKernel(const __nv_bfloat16* x, const __nv_bfloat16* weight,
                              const __nv_bfloat16* bias, int64_t rows, int64_t n, int64_t k,
                              double* out) {
  __shared__ float xs[kTile][kTile + 1];
  __shared__ float ws[kTile][kTile + 1];
  const int64_t t = int64_t{blockIdx.y} * kTile + threadIdx.y;
  const int64_t column = int64_t{blockIdx.x} * kTile + threadIdx.x;
  const int64_t loaded = int64_t{blockIdx.x} * kTile + threadIdx.y;
  double sum = 0;
  for (int64_t first = 0; first < k; first += kTile) {
    const int64_t at = first + threadIdx.x;
    const bool valid = at < k;
    xs[threadIdx.y][threadIdx.x] = valid && t < rows ? __bfloat162float(x[t * k + at]) : 0;
    ws[threadIdx.y][threadIdx.x] =
        valid && loaded < n ? __bfloat162float(weight[loaded * k + at]) : 0;
    __syncthreads();
    for (int i = 0; i < kTile; ++i) sum += double{xs[threadIdx.y][i]} * ws[threadIdx.x][i];
    __syncthreads();
  }
  if (t >= rows || column >= n) return;
  out[t * n + column] = sum + (bias == nullptr ? 0.0 : Wide(bias[column]));
}

__global__ void NormKernel(const __nv_bfloat16* x, const int32_t* gather,
                           const __nv_bfloat16* weight, double epsilon, int64_t hidden,
                           __nv_bfloat16* out) {
  __shared__ double sums[256];
  const int64_t row = gather == nullptr ? blockIdx.x : gather[blockIdx.x];
  x += row * hidden;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < hidden; i += 256) sum += Wide(x[i]) * Wide(x[i]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < 256; ++i) sum += sums[i];
  const double scale = 1 / sqrt(sum / static_cast<double>(hidden) + epsilon);
  for (int64_t i = threadIdx.x; i < hidden; i += 256) {
    out[blockIdx.x * hidden + i] = __double2bfloat16(Wide(x[i]) * scale * Wide(weight[i]));
  }
}

}  // namespace

void FillRandom(__nv_bfloat16* data, int64_t size, uint32_t seed, float deviation) {
  Fill(data, size, seed, deviation);
}
void FillRandom(float* data, int64_t size, uint32_t seed, float deviation) {
  Fill(data, size, seed, deviation);
}

void ReferenceProduct(const __nv_bfloat16* x, const __nv_bfloat16* weight,
                      const __nv_bfloat16* bias, int64_t rows, int64_t n, int64_t k, double* out) {
  const dim3 grid(static_cast<unsigned>((n + kTile - 1) / kTile),
                  static_cast<unsigned>((rows + kTile - 1) / kTile));
  ProductKernel<<<grid, dim3(kTile, kTile)>>>(x, weight, bias, rows, n, k, out);
}

void ReferenceNorm(const __nv_bfloat16* x, const int32_t* gather, const __nv_bfloat16* weight,
                   double epsilon, int64_t rows, int64_t hidden, __nv_bfloat16* out) {
  NormKernel<<<static_cast<unsigned>(rows), 256>>>(x, gather, weight, epsilon, hidden, out);
}

}  // namespace conclave::kernels::cuda
