#ifndef CONCLAVE_KERNELS_CPU_DISPATCH_H_
#define CONCLAVE_KERNELS_CPU_DISPATCH_H_

// Packing of the expert exchange's send buffer and the sum of what comes back; the contracts are
// those of Ops::PackDispatch and Ops::CombineResidual.

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/ops.h"

namespace conclave::kernels {

void PackCopies(const DispatchTables& tables, const SlotLayout& layout, const Tensor& normed,
                const Routing& routing, int64_t block_slots, const Tensor& send,
                const Tensor& send_index, const Tensor& counts);

void AddPartials(const Tensor& partials, const int32_t* first_row, const Tensor& send_index,
                 base::ThreadPool& pool, const Tensor& x);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_DISPATCH_H_
