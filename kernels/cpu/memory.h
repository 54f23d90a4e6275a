#ifndef CONCLAVE_KERNELS_CPU_MEMORY_H_
#define CONCLAVE_KERNELS_CPU_MEMORY_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace conclave::kernels {

// Zeroed pages of their own; a page takes memory when it is first written. RESOURCE_EXHAUSTED when
// the machine has not that much left.
absl::StatusOr<Buffer> AllocatePages(int64_t bytes);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_MEMORY_H_
