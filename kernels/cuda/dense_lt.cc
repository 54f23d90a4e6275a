#include "kernels/cuda/dense_lt.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

absl::Status LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(fmt::format("{}: {}", what, cublasLtGetStatusName(status)));
}

// The largest power of two, up to 256, that divides the address.
int AlignmentOf(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<int>(address & -address);
}

}  // namespace

// cuBLASLt is column-major, so it is asked for out^T [n, rows] = weight x^T: both operands have k
// contiguous.
struct DenseLt::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t out = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  bool found = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {weight, x, out}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }

  absl::Status Describe(const Key& key);
  absl::Status Choose(cublasLtHandle_t handle, const Key& key);
  template <typename T>
  absl::Status Set(cublasLtMatmulDescAttributes_t attribute, T value) {
    return LtStatus(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
                    "cublasLtMatmulDescSetAttribute");
  }
};

absl::Status DenseLt::Plan::Describe(const Key& key) {
  const auto [n, rows, k, weight_stride, out_stride, dtype, bias, a, b, d] = key;
  const cudaDataType_t out_type = dtype == static_cast<int>(DType::kF32) ? CUDA_R_32F : CUDA_R_16BF;
  RETURN_IF_ERROR(LtStatus(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                           "cublasLtMatmulDescCreate"));
  RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
  if (bias) {
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS));
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, out_type));
  }
  RETURN_IF_ERROR(LtStatus(cublasLtMatrixLayoutCreate(&weight, CUDA_R_16BF, k, n, weight_stride),
                           "cublasLtMatrixLayoutCreate"));
  RETURN_IF_ERROR(LtStatus(cublasLtMatrixLayoutCreate(&x, CUDA_R_16BF, k, rows, k),
                           "cublasLtMatrixLayoutCreate"));
  return LtStatus(cublasLtMatrixLayoutCreate(&out, out_type, n, rows, out_stride),
                  "cublasLtMatrixLayoutCreate");
}

absl::Status DenseLt::Plan::Choose(cublasLtHandle_t handle, const Key& key) {
  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_ERROR(
      LtStatus(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<size_t>(kWorkspaceBytes));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(std::get<7>(key)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(std::get<8>(key)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(std::get<9>(key)));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(std::get<9>(key)));
  cublasLtMatmulHeuristicResult_t result = {};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, operation, weight, x, out,
                                                               out, preference, 1, &result, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  found = status == CUBLAS_STATUS_SUCCESS && count == 1 && result.state == CUBLAS_STATUS_SUCCESS;
  algorithm = result.algo;
  if (found || status == CUBLAS_STATUS_NOT_SUPPORTED || count == 0) return absl::OkStatus();
  return LtStatus(status, "cublasLtMatmulAlgoGetHeuristic");
}

absl::StatusOr<std::unique_ptr<DenseLt>> DenseLt::Create() {
  std::unique_ptr<DenseLt> out(new DenseLt);
  RETURN_IF_ERROR(LtStatus(cublasLtCreate(&out->handle_), "cublasLtCreate"));
  ASSIGN_OR_RETURN(out->workspace_, AllocateDevice(kWorkspaceBytes));
  return out;
}

DenseLt::~DenseLt() {
  plans_.clear();
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

absl::StatusOr<const DenseLt::Plan*> DenseLt::FindPlan(const Key& key) {
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second.get();
  auto plan = std::make_unique<Plan>();
  RETURN_IF_ERROR(plan->Describe(key));
  RETURN_IF_ERROR(plan->Choose(handle_, key));
  return plans_.emplace(key, std::move(plan)).first->second.get();
}

absl::StatusOr<bool> DenseLt::Multiply(const DenseSegment& segment, const DenseInput& input,
                                       const DenseOutput& output, cudaStream_t stream) {
  CONCLAVE_CHECK(input.norm == nullptr && input.gather == nullptr);
  const bool f32 = output.dtype == DType::kF32;
  const void* bias = f32 ? static_cast<const void*>(segment.bias_f32) : segment.bias;
  if (segment.bias != nullptr && bias == nullptr) return false;
  const Key key(segment.rows, input.rows, input.cols, segment.row_stride, output.row_stride,
                static_cast<int>(output.dtype), bias != nullptr, AlignmentOf(segment.weight),
                AlignmentOf(input.x), AlignmentOf(output.data));
  ASSIGN_OR_RETURN(const Plan* plan, FindPlan(key));
  if (!plan->found) return false;
  if (bias != nullptr) {
    RETURN_IF_ERROR(
        LtStatus(cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                &bias, sizeof(bias)),
                 "cublasLtMatmulDescSetAttribute"));
  }
  const float one = 1;
  const float zero = 0;
  RETURN_IF_ERROR(
      LtStatus(cublasLtMatmul(handle_, plan->operation, &one, segment.weight, plan->weight, input.x,
                              plan->x, &zero, output.data, plan->out, output.data, plan->out,
                              &plan->algorithm, workspace_.memory.get(), kWorkspaceBytes, stream),
               "cublasLtMatmul"));
  return true;
}

}  // namespace conclave::kernels::cuda
