#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_WGMMA_CUH_
#define CONCLAVE_KERNELS_CUDA_EXPERT_WGMMA_CUH_

// wgmma with A (64 weight rows x 16 columns) from registers and B ([n tokens, 16 columns], rows of
// 64 columns, 128-byte swizzle) from shared memory: d[64, n] += A B^T in float32.
//
// Fragments are those of MmaBf16 (ptx.cuh), a warp of the warpgroup to each 16 rows: d[4 i ..] is
// the 16 x 8 piece of tokens 8 i ...

#include <cstdint>

namespace conclave::kernels::cuda {

// Orders register accesses before the products that follow.
__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void WgmmaWaitAll() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
// Keeps the compiler from moving uses of the sums before the wait, and the making of operands after
// it.
template <int size>
__device__ inline void WgmmaTouch(float (&d)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ inline void WgmmaTouch(uint32_t (&a)[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

// Of B at `shared` (1024-byte aligned, rows of 128 bytes). 16 columns further is + 2.
__device__ inline uint64_t WgmmaDescriptor(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | (shared & 0x3FFFF) >> 4;
}

// d += A B^T. The sums are valid after WgmmaWaitAll. (They start as explicit zeros: sums that the
// first product overwrites would, to the compiler, live on from the unit before.)
template <int n>
__device__ void WgmmaBf16(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b);

// Operand lists, in eights.
#define CONCLAVE_REGS_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define CONCLAVE_REGS_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define CONCLAVE_REGS_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define CONCLAVE_REGS_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define CONCLAVE_REGS_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define CONCLAVE_REGS_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define CONCLAVE_REGS_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define CONCLAVE_REGS_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define CONCLAVE_REGS_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define CONCLAVE_REGS_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define CONCLAVE_SUMS(i)                                                                          \
  "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), \
      "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define CONCLAVE_LIST_1 CONCLAVE_REGS_0
#define CONCLAVE_SUMS_1 CONCLAVE_SUMS(0)
#define CONCLAVE_LIST_2 CONCLAVE_LIST_1 ", " CONCLAVE_REGS_1
#define CONCLAVE_SUMS_2 CONCLAVE_SUMS_1, CONCLAVE_SUMS(1)
#define CONCLAVE_LIST_3 CONCLAVE_LIST_2 ", " CONCLAVE_REGS_2
#define CONCLAVE_SUMS_3 CONCLAVE_SUMS_2, CONCLAVE_SUMS(2)
#define CONCLAVE_LIST_4 CONCLAVE_LIST_3 ", " CONCLAVE_REGS_3
#define CONCLAVE_SUMS_4 CONCLAVE_SUMS_3, CONCLAVE_SUMS(3)
#define CONCLAVE_LIST_5 CONCLAVE_LIST_4 ", " CONCLAVE_REGS_4
#define CONCLAVE_SUMS_5 CONCLAVE_SUMS_4, CONCLAVE_SUMS(4)
#define CONCLAVE_LIST_6 CONCLAVE_LIST_5 ", " CONCLAVE_REGS_5
#define CONCLAVE_SUMS_6 CONCLAVE_SUMS_5, CONCLAVE_SUMS(5)
#define CONCLAVE_LIST_7 CONCLAVE_LIST_6 ", " CONCLAVE_REGS_6
#define CONCLAVE_SUMS_7 CONCLAVE_SUMS_6, CONCLAVE_SUMS(6)
#define CONCLAVE_LIST_8 CONCLAVE_LIST_7 ", " CONCLAVE_REGS_7
#define CONCLAVE_SUMS_8 CONCLAVE_SUMS_7, CONCLAVE_SUMS(7)
#define CONCLAVE_LIST_9 CONCLAVE_LIST_8 ", " CONCLAVE_REGS_8
#define CONCLAVE_SUMS_9 CONCLAVE_SUMS_8, CONCLAVE_SUMS(8)
#define CONCLAVE_LIST_10 CONCLAVE_LIST_9 ", " CONCLAVE_REGS_9
#define CONCLAVE_SUMS_10 CONCLAVE_SUMS_9, CONCLAVE_SUMS(9)

// a0..a3 and b number the operands that follow the sums.
#define CONCLAVE_WGMMA(n, eights, a0, a1, a2, a3, b_operand)                                   \
  template <>                                                                                  \
  __device__ inline void WgmmaBf16<n>(float(&d)[n / 2], const uint32_t(&a)[4], uint64_t b) {   \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n                                        \
                 "k16.f32.bf16.bf16 {" CONCLAVE_LIST_##eights                                  \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_operand ", 1, 1, 1, 0;\n" \
                 : CONCLAVE_SUMS_##eights                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
  }
CONCLAVE_WGMMA(16, 1, 8, 9, 10, 11, 12)
CONCLAVE_WGMMA(32, 2, 16, 17, 18, 19, 20)
CONCLAVE_WGMMA(48, 3, 24, 25, 26, 27, 28)
CONCLAVE_WGMMA(64, 4, 32, 33, 34, 35, 36)
CONCLAVE_WGMMA(80, 5, 40, 41, 42, 43, 44)
CONCLAVE_WGMMA(96, 6, 48, 49, 50, 51, 52)
CONCLAVE_WGMMA(112, 7, 56, 57, 58, 59, 60)
CONCLAVE_WGMMA(128, 8, 64, 65, 66, 67, 68)
CONCLAVE_WGMMA(144, 9, 72, 73, 74, 75, 76)
CONCLAVE_WGMMA(160, 10, 80, 81, 82, 83, 84)

#undef CONCLAVE_REGS_0
#undef CONCLAVE_REGS_1
#undef CONCLAVE_REGS_2
#undef CONCLAVE_REGS_3
#undef CONCLAVE_REGS_4
#undef CONCLAVE_REGS_5
#undef CONCLAVE_REGS_6
#undef CONCLAVE_REGS_7
#undef CONCLAVE_REGS_8
#undef CONCLAVE_REGS_9
#undef CONCLAVE_LIST_1
#undef CONCLAVE_SUMS_1
#undef CONCLAVE_LIST_2
#undef CONCLAVE_SUMS_2
#undef CONCLAVE_LIST_3
#undef CONCLAVE_SUMS_3
#undef CONCLAVE_LIST_4
#undef CONCLAVE_SUMS_4
#undef CONCLAVE_LIST_5
#undef CONCLAVE_SUMS_5
#undef CONCLAVE_LIST_6
#undef CONCLAVE_SUMS_6
#undef CONCLAVE_LIST_7
#undef CONCLAVE_SUMS_7
#undef CONCLAVE_LIST_8
#undef CONCLAVE_SUMS_8
#undef CONCLAVE_LIST_9
#undef CONCLAVE_SUMS_9
#undef CONCLAVE_LIST_10
#undef CONCLAVE_SUMS_10
#undef CONCLAVE_SUMS
#undef CONCLAVE_WGMMA

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_WGMMA_CUH_
