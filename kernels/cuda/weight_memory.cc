#include "kernels/cuda/weight_memory.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;
constexpr int64_t kAlignment = 256;
// The first slab is small for small models; then they double.
constexpr int64_t kFirstSlabBytes = int64_t{32} << 20;
constexpr int64_t kMaxSlabBytes = int64_t{256} << 20;
constexpr int64_t kVectorSlabValues = int64_t{256} << 10;

int64_t Align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

// The vectors' slab holds `capacity` bytes of bf16 values, then twice as many for the same values,
// at the same places, in float32.
struct WeightMemory::Slab {
  Buffer memory;
  int64_t capacity = 0;
  int64_t used = 0;
  std::byte* data() const { return static_cast<std::byte*>(memory.memory.get()); }
};

absl::StatusOr<std::unique_ptr<WeightMemory>> WeightMemory::Create(cudaStream_t stream) {
  std::unique_ptr<WeightMemory> out(new WeightMemory(stream));
  out->next_slab_bytes_ = kFirstSlabBytes;
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(out->pieces_[i], AllocatePinned(kPieceBytes));
    RETURN_IF_ERROR(ToStatus(cudaEventCreateWithFlags(&out->sent_[i], cudaEventDisableTiming),
                             "cudaEventCreate"));
  }
  return out;
}

WeightMemory::~WeightMemory() {
  for (cudaEvent_t event : sent_) {
    if (event == nullptr) continue;
    cudaEventSynchronize(event);
    cudaEventDestroy(event);
  }
}

absl::StatusOr<std::byte*> WeightMemory::Take(int64_t bytes, int64_t with_next) {
  const int64_t wanted = Align(bytes) + Align(with_next);
  if (matrices_ == nullptr || matrices_->capacity - matrices_->used < wanted) {
    auto slab = std::make_shared<Slab>();
    slab->capacity = std::max(next_slab_bytes_, wanted);
    // A matrix that fills a slab alone (the embedding) does not open a large one for the others.
    if (wanted > next_slab_bytes_) slab->capacity = wanted;
    ASSIGN_OR_RETURN(slab->memory, AllocateDevice(slab->capacity));
    if (wanted <= next_slab_bytes_) {
      next_slab_bytes_ = std::min(2 * next_slab_bytes_, kMaxSlabBytes);
    }
    matrices_ = std::move(slab);
  }
  std::byte* out = matrices_->data() + matrices_->used;
  matrices_->used += Align(bytes);
  return out;
}

absl::StatusOr<std::byte*> WeightMemory::NextPiece() {
  piece_ ^= 1;
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(sent_[piece_]), "uploading weights"));
  return static_cast<std::byte*>(pieces_[piece_].memory.get());
}

absl::Status WeightMemory::Send(void* device, int64_t bytes) {
  RETURN_IF_ERROR(ToStatus(
      cudaMemcpyAsync(device, pieces_[piece_].memory.get(), bytes, cudaMemcpyHostToDevice, stream_),
      "uploading weights"));
  return ToStatus(cudaEventRecord(sent_[piece_], stream_), "uploading weights");
}

absl::Status WeightMemory::UploadRows(const HostMatrix& matrix, std::byte* device) {
  const int64_t row_bytes = matrix.cols * static_cast<int64_t>(sizeof(uint16_t));
  if (matrix.row_stride == matrix.cols) {
    const auto* from = reinterpret_cast<const std::byte*>(matrix.data);
    const int64_t total = matrix.rows * row_bytes;
    for (int64_t at = 0; at < total; at += kPieceBytes) {
      const int64_t bytes = std::min(kPieceBytes, total - at);
      ASSIGN_OR_RETURN(std::byte * piece, NextPiece());
      std::memcpy(piece, from + at, bytes);
      RETURN_IF_ERROR(Send(device + at, bytes));
    }
    return absl::OkStatus();
  }
  CONCLAVE_CHECK(row_bytes <= kPieceBytes);
  const int64_t piece_rows = kPieceBytes / std::max<int64_t>(row_bytes, 1);
  for (int64_t row = 0; row < matrix.rows; row += piece_rows) {
    const int64_t rows = std::min(piece_rows, matrix.rows - row);
    ASSIGN_OR_RETURN(std::byte * piece, NextPiece());
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(piece + i * row_bytes, matrix.data + (row + i) * matrix.row_stride, row_bytes);
    }
    RETURN_IF_ERROR(Send(device + row * row_bytes, rows * row_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<DenseWeight> WeightMemory::LoadMatrix(const HostMatrix& matrix, int64_t with_next) {
  const int64_t bytes = matrix.rows * matrix.cols * static_cast<int64_t>(sizeof(uint16_t));
  ASSIGN_OR_RETURN(std::byte * device, Take(bytes, with_next));
  RETURN_IF_ERROR(UploadRows(matrix, device));
  return DenseWeight{device, matrix.rows, matrix.cols, matrix.cols, matrices_};
}

absl::StatusOr<VectorWeight> WeightMemory::LoadVector(std::span<const uint16_t> values) {
  if (values.empty()) return VectorWeight{};
  const auto size = static_cast<int64_t>(values.size());
  const int64_t bytes = size * static_cast<int64_t>(sizeof(uint16_t));
  if (vectors_ == nullptr || vectors_->capacity - vectors_->used < Align(bytes)) {
    auto slab = std::make_shared<Slab>();
    slab->capacity = std::max(kVectorSlabValues * 2, Align(bytes));
    ASSIGN_OR_RETURN(slab->memory, AllocateDevice(3 * slab->capacity));
    vectors_ = std::move(slab);
  }
  std::byte* device = vectors_->data() + vectors_->used;
  vectors_->used += Align(bytes);
  const VectorWeight out{device, size, vectors_};
  const HostMatrix row{values.data(), 1, size, size};
  RETURN_IF_ERROR(UploadRows(row, device));
  auto* wide = reinterpret_cast<std::byte*>(const_cast<float*>(Float32(out)));
  constexpr int64_t kPieceFloats = kPieceBytes / static_cast<int64_t>(sizeof(float));
  for (int64_t at = 0; at < size; at += kPieceFloats) {
    const int64_t count = std::min(kPieceFloats, size - at);
    ASSIGN_OR_RETURN(std::byte * piece, NextPiece());
    for (int64_t i = 0; i < count; ++i) {
      const auto value = std::bit_cast<float>(uint32_t{values[at + i]} << 16);
      std::memcpy(piece + i * sizeof(float), &value, sizeof(value));
    }
    RETURN_IF_ERROR(Send(wide + at * sizeof(float), count * sizeof(float)));
  }
  return out;
}

const float* WeightMemory::Float32(const VectorWeight& vector) {
  if (vector.data == nullptr) return nullptr;
  const auto* slab = static_cast<const Slab*>(vector.owner.get());
  CONCLAVE_CHECK(slab != nullptr);
  const int64_t at = static_cast<const std::byte*>(vector.data) - slab->data();
  return reinterpret_cast<const float*>(slab->data() + slab->capacity + 2 * at);
}

DenseSegment SegmentOf(const DenseWeight& weight, const VectorWeight& bias) {
  return {.weight = static_cast<const __nv_bfloat16*>(weight.data),
          .bias = static_cast<const __nv_bfloat16*>(bias.data),
          .bias_f32 = WeightMemory::Float32(bias),
          .rows = weight.rows,
          .row_stride = weight.row_stride};
}

}  // namespace conclave::kernels::cuda
