#include "worker/weights_slice.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/status_macros.h"

namespace conclave::worker {
namespace {

constexpr int64_t kBf16Bytes = 2;

absl::Status CheckBf16(const model::TensorView& view) {
  if (view.type != model::TensorType::kBf16) {
    return absl::InvalidArgumentError(fmt::format("{}: tensor {} is {}, wanted BF16", view.file,
                                                  view.name, model::TensorTypeName(view.type)));
  }
  if (reinterpret_cast<uintptr_t>(view.bytes.data()) % alignof(uint16_t) != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: BF16 tensor {} starts at an odd byte of the file; save it with an even header length",
        view.file, view.name));
  }
  return absl::OkStatus();
}

const uint16_t* AsBf16(const std::byte* data) { return reinterpret_cast<const uint16_t*>(data); }

// Bytes of one element of the first dimension.
int64_t EntryBytes(const model::TensorView& view) {
  return static_cast<int64_t>(view.bytes.size()) / view.shape[0];
}

}  // namespace

int64_t WeightSlicer::bytes() const {
  int64_t sum = 0;
  for (const MappedRegion& region : regions_) sum += region.bytes();
  return sum;
}

absl::StatusOr<kernels::HostMatrix> WeightSlicer::Rows(const model::TensorView& view, int64_t begin,
                                                       int64_t rows) {
  RETURN_IF_ERROR(CheckBf16(view));
  CONCLAVE_CHECK(view.shape.size() == 2 && begin >= 0 && begin + rows <= view.shape[0]);
  const int64_t cols = view.shape[1];
  const std::byte* data = view.bytes.data() + begin * cols * kBf16Bytes;
  const int64_t bytes = rows * cols * kBf16Bytes;
  regions_.push_back({data, 1, bytes, bytes, view.file});
  return kernels::HostMatrix{AsBf16(data), rows, cols, cols};
}

absl::StatusOr<kernels::HostMatrix> WeightSlicer::Columns(const model::TensorView& view,
                                                          int64_t begin, int64_t cols) {
  RETURN_IF_ERROR(CheckBf16(view));
  CONCLAVE_CHECK(view.shape.size() == 2 && begin >= 0 && begin + cols <= view.shape[1]);
  const int64_t stride = view.shape[1];
  const std::byte* data = view.bytes.data() + begin * kBf16Bytes;
  if (cols == stride) return Rows(view, 0, view.shape[0]);
  regions_.push_back({data, view.shape[0], cols * kBf16Bytes, stride * kBf16Bytes, view.file});
  return kernels::HostMatrix{AsBf16(data), view.shape[0], cols, stride};
}

absl::StatusOr<std::span<const uint16_t>> WeightSlicer::Values(const model::TensorView& view,
                                                               int64_t begin, int64_t size) {
  if (view.bytes.empty()) return std::span<const uint16_t>();
  RETURN_IF_ERROR(CheckBf16(view));
  CONCLAVE_CHECK(view.shape.size() == 1 && begin >= 0 && begin + size <= view.shape[0]);
  const std::byte* data = view.bytes.data() + begin * kBf16Bytes;
  regions_.push_back({data, 1, size * kBf16Bytes, 0, view.file});
  return std::span<const uint16_t>(AsBf16(data), static_cast<size_t>(size));
}

absl::StatusOr<const uint16_t*> WeightSlicer::Bf16Entry(const model::TensorView& view,
                                                        int64_t index) {
  RETURN_IF_ERROR(CheckBf16(view));
  CONCLAVE_CHECK(!view.shape.empty() && index >= 0 && index < view.shape[0]);
  const int64_t bytes = EntryBytes(view);
  const std::byte* data = view.bytes.data() + index * bytes;
  regions_.push_back({data, 1, bytes, 0, view.file});
  return AsBf16(data);
}

absl::StatusOr<const uint8_t*> WeightSlicer::BytesEntry(const model::TensorView& view,
                                                        int64_t index) {
  CONCLAVE_CHECK(view.type == model::TensorType::kU8);
  CONCLAVE_CHECK(!view.shape.empty() && index >= 0 && index < view.shape[0]);
  const int64_t bytes = EntryBytes(view);
  const std::byte* data = view.bytes.data() + index * bytes;
  regions_.push_back({data, 1, bytes, 0, view.file});
  return reinterpret_cast<const uint8_t*>(data);
}

}  // namespace conclave::worker
