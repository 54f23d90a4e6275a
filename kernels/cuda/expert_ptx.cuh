#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_PTX_CUH_
#define CONCLAVE_KERNELS_CUDA_EXPERT_PTX_CUH_

// More PTX instructions, beside ptx.cuh, that only the expert kernels need.

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace conclave::kernels::cuda {

// Orders this thread's accesses to shared memory, and those it has seen complete, before what the
// copy engine and the tensor cores do next.
__device__ inline void FenceProxyAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Copies 16 bytes, or writes 16 zero bytes if not `valid` (`global` is not read then).
__device__ inline void CopyAsync16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

// Arrives (one of the expected arrivals) when this thread's CopyAsync16 so far are complete.
__device__ inline void CopyAsyncArrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}

__device__ inline uint4 LoadShared16(const void* shared) {
  uint4 out;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(SharedAddress(shared)));
  return out;
}

// By all threads of a warpgroup.
template <int registers>
__device__ inline void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ inline void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Four 8 x 8 bf16 matrices; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void LoadMatrix4(uint32_t shared, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_PTX_CUH_
