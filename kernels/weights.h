#ifndef CONCLAVE_KERNELS_WEIGHTS_H_
#define CONCLAVE_KERNELS_WEIGHTS_H_

// Weights as the worker finds them in the files (Host*, in the file map) and as the ops use them.
// The CPU backend serves bf16 and MXFP4 from the map, in place; a GPU backend uploads and repacks.
// H hidden, I intermediate, D head_dim; `heads` and `kv_heads` are those of this tp rank.

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace conclave::kernels {

// bf16 [rows, cols] in host memory, `row_stride` values from row to row (a column slice has
// row_stride > cols). The memory must outlive what is loaded from it.
struct HostMatrix {
  const uint16_t* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
};

// One expert in host memory. MXFP4: blocks and scales set, row-major, 32 inputs to a block, low
// nibble first. Dense bf16 in the transposed layout of save_pretrained: the *_dense pointers set.
struct HostExpert {
  const uint8_t* gate_up_blocks = nullptr;  // [2I, H/32, 16], rows interleaved gate, up
  const uint8_t* gate_up_scales = nullptr;  // [2I, H/32]
  const uint16_t* gate_up_dense = nullptr;  // [H, 2I], columns interleaved gate, up
  const uint16_t* gate_up_bias = nullptr;   // [2I]
  const uint8_t* down_blocks = nullptr;     // [H, I/32, 16]
  const uint8_t* down_scales = nullptr;     // [H, I/32]
  const uint16_t* down_dense = nullptr;     // [I, H]
  const uint16_t* down_bias = nullptr;      // [H]
};

// bf16 [rows, cols] in device memory, `row_stride` values from row to row.
struct DenseWeight {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  std::shared_ptr<void> owner;  // null when served from the file map
};

// bf16 [size] in device memory; data is null when the model has none.
struct VectorWeight {
  const void* data = nullptr;
  int64_t size = 0;
  std::shared_ptr<void> owner;
};

struct AttentionWeights {
  VectorWeight input_norm;  // [H]
  DenseWeight q, k, v;      // [heads*D, H], [kv_heads*D, H], [kv_heads*D, H]
  VectorWeight q_bias, k_bias, v_bias;
  DenseWeight o;        // [H, heads*D]
  VectorWeight o_bias;  // [H] on tp rank 0, null on the others
  VectorWeight sinks;   // [heads]
};

struct RouterWeights {
  VectorWeight norm;   // [H] post-attention norm
  DenseWeight weight;  // [experts, H]
  VectorWeight bias;   // [experts]
};

// The experts of one layer that this rank holds, in the backend's own packing.
class ExpertWeights {
 public:
  virtual ~ExpertWeights() = default;
  virtual int num_local() const = 0;
  // "mxfp4" or "bf16".
  virtual std::string_view format() const = 0;
};

// Experts of a layer that are resident already, for loading the layer's next set: where index[i] is
// not negative, expert i is that one of `from` and is copied from there. What the host says of it
// must name its memory (the CPU serves MXFP4 from there), which is not read. `from` stays as it is.
struct KeptExperts {
  const ExpertWeights* from = nullptr;
  std::span<const int> index = {};  // [experts] or empty: none is

  int of(size_t expert) const { return index.empty() ? -1 : index[expert]; }
};

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_WEIGHTS_H_
