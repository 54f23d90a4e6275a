#ifndef CONCLAVE_KERNELS_CPU_SIMD_TARGETS_H_
#define CONCLAVE_KERNELS_CPU_SIMD_TARGETS_H_

// Which instruction sets the kernels are compiled for; the machine's best is chosen at run time.
// Include before any header of Highway. Left out: sets that bring these kernels nothing over a
// listed one, and scalable vectors, which cannot be members of a struct. On x86-64 that leaves
// AVX-512, AVX2, SSE4 and plain C++.

// NOLINTNEXTLINE(bugprone-macro-parentheses): evaluated by Highway
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#endif  // CONCLAVE_KERNELS_CPU_SIMD_TARGETS_H_
