#include "worker/ordered_sum.h"

#include <cstring>

#include "base/check.h"

namespace conclave::worker {
namespace {

template <typename T>
void Sum(const T* parts, int count, int64_t values, T* out) {
  std::memcpy(out, parts, values * sizeof(T));
  for (int part = 1; part < count; ++part) {
    const T* addend = parts + part * values;
    for (int64_t i = 0; i < values; ++i) out[i] += addend[i];
  }
}

}  // namespace

void OrderedSum(kernels::DType dtype, const std::byte* parts, int count, int64_t values,
                void* out) {
  if (values == 0) return;
  if (dtype == kernels::DType::kF64) {
    Sum(reinterpret_cast<const double*>(parts), count, values, static_cast<double*>(out));
    return;
  }
  CONCLAVE_CHECK(dtype == kernels::DType::kF32);
  Sum(reinterpret_cast<const float*>(parts), count, values, static_cast<float*>(out));
}

}  // namespace conclave::worker
