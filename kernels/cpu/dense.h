#ifndef CONCLAVE_KERNELS_CPU_DENSE_H_
#define CONCLAVE_KERNELS_CPU_DENSE_H_

// Linear layers with bf16 weights on all threads.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/weights.h"

namespace conclave::kernels {

// Packed activations (lane_order.h) of the tokens of one product; reused from op to op.
class PackedTokens {
 public:
  // Calls fill(token, packed row) for every token, on all threads; a row is `size` floats, a
  // multiple of 32.
  void Fill(int64_t tokens, int64_t size, base::ThreadPool& pool,
            const std::function<void(int64_t token, float* packed)>& fill);
  std::span<const float* const> rows() const { return rows_; }

 private:
  std::vector<float> memory_;
  std::vector<const float*> rows_;
};

struct DensePart {
  const DenseWeight* weight;
  const VectorWeight* bias;  // null, or data null: none
};

// out[t * out_stride + ...] = the parts' rows times token t plus bias, part after part.
void MultiplyDense(std::span<const DensePart> parts, std::span<const float* const> x,
                   base::ThreadPool& pool, float* out, int64_t out_stride);

// out[t * out_stride + row] = float64 sum over `segments` equal column ranges, plus bias.
void MultiplySegments(const DenseWeight& weight, const VectorWeight& bias, int segments,
                      std::span<const float* const> x, base::ThreadPool& pool, double* out,
                      int64_t out_stride);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_DENSE_H_
