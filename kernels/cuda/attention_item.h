#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_ITEM_H_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_ITEM_H_

// The plan of a step's attention in device memory: lists of items, and room for the partial results
// of tiles whose keys several items share. Private to attention; attention.h has the interface.

#include <cstdint>

namespace conclave::kernels::cuda {

// Rows of one run over a range of its keys, for each KV head. 48 bytes, three vectors.
struct alignas(16) AttentionItem {
  int32_t row;        // first row in the step
  int32_t rows;       // rows of the tile
  int32_t position;   // of the first row
  int32_t key_begin;  // first key of this piece, a multiple of the block size
  int32_t key_end;    // one past the last key
  int32_t table;      // blocks[table + i] holds positions [16 i, 16 i + 16)
  int32_t pieces;     // items that share the tile's keys
  int32_t piece;      // this one
  int32_t partial;    // if pieces > 1: the tile's partial results are [partial, partial + pieces)
  int32_t unused[3];
};

enum AttentionList : int { kDecodeFull, kDecodeSliding, kPrefillFull, kPrefillSliding };
inline constexpr int kAttentionLists = 4;

// Query rows, a row being one head of one token.
inline constexpr int kDecodeHeads = 8;    // of a decode item, padded
inline constexpr int kPrefillRows = 192;  // of a prefill item at most
inline constexpr int kPrefillKeys = 128;  // of one step of a prefill item
inline constexpr int kFastHeadDim = 64;
inline constexpr int kMaxDecodePieces = 256;
inline constexpr int kDecodeWarpsPerMultiprocessor = 16;

// A partial result is float sums [rows, 64] relative to the rows' maxima, then float maxima [rows]
// (of logits times log2 e), then float weights [rows].
constexpr int64_t PartialFloats(int rows) { return int64_t{rows} * (kFastHeadDim + 2); }

struct AttentionWorkspace {
  int32_t* counts = nullptr;   // [kAttentionLists] items
  int32_t* tickets = nullptr;  // [kAttentionLists, 2] next item, blocks done; 0 between launches
  AttentionItem* items[kAttentionLists] = {};
  float* decode_partials = nullptr;    // [decode_limit * kv_heads, PartialFloats(kDecodeHeads)]
  int32_t* decode_arrivals = nullptr;  // [decode_limit * kv_heads], 0 between launches
  float* prefill_partials = nullptr;   // [prefill_limit * kv_heads, PartialFloats(kPrefillRows)]
  int32_t* prefill_arrivals = nullptr;
  int decode_limit = 0;   // pieces of shared decode tiles
  int prefill_limit = 0;  // pieces of shared prefill tiles
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_ITEM_H_
