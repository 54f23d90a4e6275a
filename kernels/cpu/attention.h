#ifndef CONCLAVE_KERNELS_CPU_ATTENTION_H_
#define CONCLAVE_KERNELS_CPU_ATTENTION_H_

#include <cstdint>
#include <vector>

namespace conclave::kernels {

// One KV head of one layer, paged: the key of position p is row p % block_tokens of block
// blocks[p / block_tokens - first_block], blocks lying block_stride floats apart.
struct PagedHead {
  const float* keys = nullptr;
  const float* values = nullptr;
  int64_t block_stride = 0;
  int block_tokens = 0;
  int head_dim = 0;
  const int32_t* blocks = nullptr;
  int first_block = 0;
};

// Sink softmax of the `heads` query heads of one token that share a KV head, over the keys of
// positions [begin, end):
//
//   z_j = q . k_j / sqrt(head_dim);  p_j = exp(z_j - m) / (sum_j exp(z_j - m) + exp(sink - m))
//
// The order of all sums follows from (begin, end) alone. queries, out [heads, head_dim]; sinks bf16
// [heads]. `scratch` is the calling thread's.
void AttendHeads(const PagedHead& cache, int begin, int end, int heads, const float* queries,
                 const uint16_t* sinks, std::vector<float>& scratch, float* out);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_ATTENTION_H_
