#ifndef CONCLAVE_KERNELS_CPU_MATMUL_H_
#define CONCLAVE_KERNELS_CPU_MATMUL_H_

// Weights times activations, both formats in the order of lane_order.h: an MXFP4 matrix and its
// bf16 expansion give the same bits. All functions are pure and may run on any thread.

#include <cstdint>
#include <span>

namespace conclave::kernels {

// bf16, `row_stride` values from row to row.
struct Bf16Matrix {
  const uint16_t* data = nullptr;
  int64_t cols = 0;
  int64_t row_stride = 0;
};

// MXFP4: per row cols / 32 blocks of 16 bytes and as many scale bytes, none above
// model::kMaxMxfp4Scale: all products are finite.
struct Mxfp4Matrix {
  const uint8_t* blocks = nullptr;
  const uint8_t* scales = nullptr;
  int64_t cols = 0;
};

// out[t * out_stride + row - begin] = row . x[t] for rows [begin, end) and every packed token t.
void MatmulBf16(const Bf16Matrix& matrix, int64_t begin, int64_t end,
                std::span<const float* const> x, float* out, int64_t out_stride);
void MatmulMxfp4(const Mxfp4Matrix& matrix, int64_t begin, int64_t end,
                 std::span<const float* const> x, float* out, int64_t out_stride);

// As MatmulBf16 for a row of `segments` equal parts, each packed on its own in x: float32 within a
// part, float64 over the parts in ascending order.
void MatmulBf16Segments(const Bf16Matrix& matrix, int segments, int64_t begin, int64_t end,
                        std::span<const float* const> x, double* out, int64_t out_stride);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_MATMUL_H_
