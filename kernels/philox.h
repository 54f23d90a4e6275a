#ifndef CONCLAVE_KERNELS_PHILOX_H_
#define CONCLAVE_KERNELS_PHILOX_H_

// The counter-based generator of sampling, shared by all backends:
//
//   double u = UniformAt(params.seed, params.position);  // in [0, 1)
//
// Philox4x32-10 of J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011); multipliers and key increments are those of that paper and of its Random123
// library, whose known answers the test checks. A pure function: no state, so a draw depends on
// nothing but the request's seed and the position.

#include <cstdint>

#if defined(__CUDACC__)
#define CONCLAVE_HOST_DEVICE __host__ __device__
#else
#define CONCLAVE_HOST_DEVICE
#endif

namespace conclave::kernels {

struct Philox4x32 {
  uint32_t words[4];
};

CONCLAVE_HOST_DEVICE inline Philox4x32 PhiloxRound(Philox4x32 counter, uint32_t key0,
                                                   uint32_t key1) {
  const uint64_t product0 = uint64_t{0xD2511F53u} * counter.words[0];
  const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.words[2];
  return {{static_cast<uint32_t>(product1 >> 32) ^ counter.words[1] ^ key0,
           static_cast<uint32_t>(product1),
           static_cast<uint32_t>(product0 >> 32) ^ counter.words[3] ^ key1,
           static_cast<uint32_t>(product0)}};
}

CONCLAVE_HOST_DEVICE inline Philox4x32 Philox(Philox4x32 counter, uint32_t key0, uint32_t key1) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    counter = PhiloxRound(counter, key0, key1);
    key0 += 0x9E3779B9u;  // the golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// Uniform in [0, 1) with 53 bits: key = seed, counter = position.
CONCLAVE_HOST_DEVICE inline double UniformAt(uint64_t seed, uint64_t position) {
  const Philox4x32 counter = {
      {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0}};
  const Philox4x32 random =
      Philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = uint64_t{random.words[0]} << 32 | random.words[1];
  return static_cast<double>(bits >> 11) * (1.0 / (uint64_t{1} << 53));
}

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_PHILOX_H_
