// Loading: file map -> page-locked slot (by the pool's threads) -> device slot -> repacked, with
// one slot being filled while the device works on the other.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/mxfp4_layout.h"
#include "kernels/cuda/mxfp4_repack.h"
#include "model/mxfp4.h"

namespace conclave::kernels::cuda {
namespace {

struct MatrixShape {
  std::string_view name;
  int64_t rows;
  int64_t cols;
  bool gate_up;
  bool dense;

  int64_t weight_bytes() const { return dense ? rows * cols * 2 : rows * cols / 2; }
  int64_t scale_bytes() const { return dense ? 0 : rows * (cols / kBlockCols); }
  int64_t bias_bytes() const { return rows * 2; }
  // Parts stay 16-byte aligned: rows and cols are multiples of 32.
  int64_t scales_offset() const { return weight_bytes(); }
  int64_t bias_offset() const { return (weight_bytes() + scale_bytes() + 15) / 16 * 16; }
  int64_t raw_bytes() const { return bias_offset() + bias_bytes(); }
  int64_t packed_bytes() const {
    return dense ? DenseMatrixBytes(rows, cols) : MatrixBytes(rows, cols);
  }
  MatrixArgs Args(const std::byte* data, int64_t expert_bytes) const {
    MatrixArgs args = {};
    args.data = data;
    args.expert_bytes = expert_bytes;
    args.tile_bytes = dense ? DenseTileBytes(cols) : TileBytes(cols);
    args.tiles = static_cast<int>(NumTiles(rows));
    args.groups = dense ? 0 : static_cast<int>(NumGroups(cols));
    args.cols = static_cast<int>(cols);
    return args;
  }
};

MatrixShape GateUpShape(const ExpertShape& shape, bool dense) {
  return {"gate_up", 2 * int64_t{shape.intermediate}, shape.hidden, true, dense};
}
MatrixShape DownShape(const ExpertShape& shape, bool dense) {
  return {"down", shape.hidden, shape.intermediate, false, dense};
}

// Where one matrix lies in host memory.
struct HostParts {
  const void* weights;
  const uint8_t* scales;
  const uint16_t* bias;
};

HostParts PartsOf(const HostExpert& expert, bool gate_up, bool dense) {
  if (gate_up) {
    return {dense ? static_cast<const void*>(expert.gate_up_dense) : expert.gate_up_blocks,
            expert.gate_up_scales, expert.gate_up_bias};
  }
  return {dense ? static_cast<const void*>(expert.down_dense) : expert.down_blocks,
          expert.down_scales, expert.down_bias};
}

absl::Status CheckScales(const uint8_t* scales, const MatrixShape& shape, int64_t expert) {
  const uint8_t* end = scales + shape.scale_bytes();
  const uint8_t* bad =
      std::find_if(scales, end, [](uint8_t scale) { return scale > model::kMaxMxfp4Scale; });
  if (bad == end) return absl::OkStatus();
  const int64_t blocks = shape.cols / kBlockCols;
  return absl::InvalidArgumentError(fmt::format(
      "local expert {}, {} row {}, block {}: MXFP4 scale byte {}, at most {} keeps weights finite",
      expert, shape.name, (bad - scales) / blocks, (bad - scales) % blocks, *bad,
      model::kMaxMxfp4Scale));
}

void CopyShared(const void* from, std::byte* to, int64_t bytes, base::ThreadPool& pool) {
  constexpr int64_t kGrain = 1 << 20;
  pool.ParallelFor(bytes, kGrain, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, static_cast<const std::byte*>(from) + begin, end - begin);
  });
}

absl::Status LoadMatrix(const MatrixShape& shape, const HostParts& parts, int64_t expert,
                        std::byte* packed, base::ThreadPool& pool, ExpertStaging::Slot& slot,
                        cudaStream_t stream) {
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(slot.free), "loading experts"));
  auto* host = static_cast<std::byte*>(slot.host.memory.get());
  CopyShared(parts.weights, host, shape.weight_bytes(), pool);
  if (!shape.dense) {
    RETURN_IF_ERROR(CheckScales(parts.scales, shape, expert));
    std::memcpy(host + shape.scales_offset(), parts.scales, shape.scale_bytes());
  }
  std::memcpy(host + shape.bias_offset(), parts.bias, shape.bias_bytes());
  auto* raw = static_cast<std::byte*>(slot.device.memory.get());
  RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(raw, host, shape.raw_bytes(), cudaMemcpyHostToDevice, stream),
               "uploading experts"));
  const auto* bias = reinterpret_cast<const uint16_t*>(raw + shape.bias_offset());
  if (shape.dense) {
    RepackDense(
        {reinterpret_cast<const uint16_t*>(raw), bias, shape.rows, shape.cols, shape.gate_up},
        packed, stream);
  } else {
    RepackMxfp4({reinterpret_cast<const uint8_t*>(raw),
                 reinterpret_cast<const uint8_t*>(raw + shape.scales_offset()), bias, shape.rows,
                 shape.cols, shape.gate_up},
                packed, stream);
  }
  RETURN_IF_ERROR(ToStatus(cudaGetLastError(), "repacking experts"));
  return ToStatus(cudaEventRecord(slot.free, stream), "repacking experts");
}

// From another set on this device.
absl::Status CopyMatrix(const CudaExpertWeights& from, bool gate_up, int local, std::byte* packed,
                        cudaStream_t stream) {
  const MatrixArgs& matrix = gate_up ? from.gate_up() : from.down();
  CONCLAVE_CHECK(local < from.num_local());
  return ToStatus(
      cudaMemcpyAsync(packed, matrix.data + local * matrix.expert_bytes,
                      static_cast<size_t>(matrix.expert_bytes), cudaMemcpyDeviceToDevice, stream),
      "copying experts");
}

void CheckExpert(const HostExpert& expert, bool dense) {
  for (const bool gate_up : {true, false}) {
    const HostParts parts = PartsOf(expert, gate_up, dense);
    CONCLAVE_CHECK(parts.weights != nullptr && parts.bias != nullptr);
    CONCLAVE_CHECK(dense || parts.scales != nullptr);
  }
}

}  // namespace

ExpertStaging::~ExpertStaging() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (Slot& slot : slots_) {
    if (slot.free != nullptr) cudaEventDestroy(slot.free);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status ExpertStaging::Reserve(int64_t bytes) {
  if (stream_ == nullptr) {
    RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                             "creating a stream for loading"));
  }
  for (Slot& slot : slots_) {
    if (slot.free == nullptr) {
      RETURN_IF_ERROR(ToStatus(cudaEventCreateWithFlags(&slot.free, cudaEventDisableTiming),
                               "creating an event for loading"));
    }
    if (slot.host.bytes >= bytes) continue;
    RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream_), "loading experts"));
    ASSIGN_OR_RETURN(slot.host, AllocatePinned(bytes));
    ASSIGN_OR_RETURN(slot.device, AllocateDevice(bytes));
  }
  return absl::OkStatus();
}

int64_t ExpertBytes(const ExpertShape& shape, bool dense) {
  return GateUpShape(shape, dense).packed_bytes() + DownShape(shape, dense).packed_bytes();
}

absl::StatusOr<std::unique_ptr<CudaExpertWeights>> LoadExpertWeights(
    const ExpertShape& shape, std::span<const HostExpert> experts, const KeptExperts& kept,
    base::ThreadPool& pool, ExpertStaging& staging) {
  const bool dense = !experts.empty() && experts.front().gate_up_dense != nullptr;
  const MatrixShape shapes[] = {GateUpShape(shape, dense), DownShape(shape, dense)};
  const auto count = static_cast<int64_t>(experts.size());
  ASSIGN_OR_RETURN(Buffer memory, AllocateDevice(count * ExpertBytes(shape, dense)));
  auto* gate_up = static_cast<std::byte*>(memory.memory.get());
  std::byte* down = gate_up + count * shapes[0].packed_bytes();
  RETURN_IF_ERROR(staging.Reserve(std::max(shapes[0].raw_bytes(), shapes[1].raw_bytes())));
  int64_t turn = 0;
  for (int64_t expert = 0; expert < count; ++expert) {
    const int from = kept.of(expert);
    if (from < 0) CheckExpert(experts[expert], dense);
    for (const MatrixShape& matrix : shapes) {
      std::byte* packed = (matrix.gate_up ? gate_up : down) + expert * matrix.packed_bytes();
      const absl::Status loaded =
          from >= 0 ? CopyMatrix(static_cast<const CudaExpertWeights&>(*kept.from), matrix.gate_up,
                                 from, packed, staging.stream())
                    : LoadMatrix(matrix, PartsOf(experts[expert], matrix.gate_up, dense), expert,
                                 packed, pool, staging.slot(turn++), staging.stream());
      if (!loaded.ok()) {
        cudaStreamSynchronize(staging.stream());  // it may still write to `memory`
        return loaded;
      }
    }
  }
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(staging.stream()), "loading experts"));
  return std::make_unique<CudaExpertWeights>(
      static_cast<int>(count), dense, shapes[0].Args(gate_up, shapes[0].packed_bytes()),
      shapes[1].Args(down, shapes[1].packed_bytes()), std::move(memory));
}

}  // namespace conclave::kernels::cuda
