#ifndef CONCLAVE_MODEL_ROW_BUCKET_H_
#define CONCLAVE_MODEL_ROW_BUCKET_H_

// Rows that a GPU computes for a decode step of `rows`: it runs as a recorded graph, of which there
// is one for each of these sizes. The coordinator counts with it when it gives the ranks room for
// their exchange.
//
//   rows    0..8   9..64   65..128   129..256   more
//   bucket  rows   by 8    by 16     by 32      by 64

namespace conclave::model {

constexpr int RowBucket(int rows) {
  if (rows <= 8) return rows;
  const int unit = rows <= 64 ? 8 : rows <= 128 ? 16 : rows <= 256 ? 32 : 64;
  return (rows + unit - 1) / unit * unit;
}

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_ROW_BUCKET_H_
