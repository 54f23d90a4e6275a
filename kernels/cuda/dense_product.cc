#include "kernels/cuda/dense_product.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/norm.h"

namespace conclave::kernels::cuda {
namespace {

struct Merged {
  std::array<DenseSegment, kMaxDenseSegments> segments;
  int count = 0;
};

// Whether `next` continues `first` in memory, weights and biases alike.
bool Continues(const DenseSegment& first, const DenseSegment& next) {
  const bool weights = first.row_stride == next.row_stride &&
                       first.weight + first.rows * first.row_stride == next.weight;
  const bool biases =
      first.bias == nullptr ? next.bias == nullptr : first.bias + first.rows == next.bias;
  return weights && biases;
}

Merged Merge(std::span<const DenseSegment> segments) {
  Merged out;
  for (const DenseSegment& segment : segments) {
    if (out.count > 0 && Continues(out.segments[out.count - 1], segment)) {
      DenseSegment& whole = out.segments[out.count - 1];
      whole.rows += segment.rows;
      whole.bias_f32 = nullptr;  // those of the parts need not be side by side
    } else {
      CONCLAVE_CHECK(out.count < kMaxDenseSegments);
      out.segments[out.count++] = segment;
    }
  }
  return out;
}

// The table in dense.h.
int MaxStreamRows(std::span<const DenseSegment> segments, const DenseInput& input) {
  int64_t weights = 0;
  for (const DenseSegment& segment : segments) weights += segment.rows * input.cols;
  return input.norm == nullptr || weights >= kManyWeights ? kStreamRows : kStreamNormRows;
}

DenseOutput Columns(const DenseOutput& output, int64_t first) {
  DenseOutput out = output;
  out.data = static_cast<std::byte*>(output.data) + first * SizeOf(output.dtype);
  return out;
}

DenseOutput Rows(const DenseOutput& output, int64_t first) {
  return Columns(output, first * output.row_stride);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DenseProduct>> DenseProduct::Create(int max_rows, int64_t hidden) {
  std::unique_ptr<DenseProduct> out(new DenseProduct);
  out->max_rows_ = max_rows;
  out->hidden_ = hidden;
  ASSIGN_OR_RETURN(out->lt_, DenseLt::Create());
  ASSIGN_OR_RETURN(out->normed_, AllocateDevice(max_rows * hidden * SizeOf(DType::kBf16)));
  return out;
}

absl::Status DenseProduct::Run(std::span<const DenseSegment> segments, const DenseInput& input,
                               const DenseOutput& output, cudaStream_t stream) {
  if (input.rows == 0) return absl::OkStatus();
  const Merged merged = Merge(segments);
  const std::span<const DenseSegment> parts(merged.segments.data(), merged.count);
  if (input.rows <= MaxStreamRows(parts, input) && CanStream(parts, input)) {
    StreamDense(parts, input, output, stream);
    return absl::OkStatus();
  }
  DenseInput plain = input;
  CONCLAVE_CHECK(input.gather == nullptr || input.norm != nullptr);
  if (input.norm != nullptr) {
    CONCLAVE_CHECK(input.rows <= max_rows_ && input.cols == hidden_);
    auto* normed = static_cast<__nv_bfloat16*>(normed_.memory.get());
    NormRows(input.x, input.gather, input.norm, input.epsilon, input.rows, hidden_, normed, stream);
    plain.x = normed;
    plain.gather = nullptr;
    plain.norm = nullptr;
  }
  int64_t column = 0;
  for (const DenseSegment& part : parts) {
    if (part.rows > 0) RETURN_IF_ERROR(RunMany(part, plain, Columns(output, column), stream));
    column += part.rows;
  }
  return absl::OkStatus();
}

absl::Status DenseProduct::RunMany(const DenseSegment& segment, const DenseInput& input,
                                   const DenseOutput& output, cudaStream_t stream) {
  if (input.rows > kStreamNormRows) {
    ASSIGN_OR_RETURN(const bool done, lt_->Multiply(segment, input, output, stream));
    if (done) return absl::OkStatus();
  }
  const std::span<const DenseSegment> segments(&segment, 1);
  if (!CanStream(segments, input)) {
    GenericDense(segments, input, output, stream);
    return absl::OkStatus();
  }
  for (int first = 0; first < input.rows; first += kStreamRows) {
    DenseInput tile = input;
    tile.x += first * input.cols;
    tile.rows = std::min(kStreamRows, input.rows - first);
    StreamDense(segments, tile, Rows(output, first), stream);
  }
  return absl::OkStatus();
}

}  // namespace conclave::kernels::cuda
