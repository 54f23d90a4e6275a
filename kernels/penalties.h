#ifndef CONCLAVE_KERNELS_PENALTIES_H_
#define CONCLAVE_KERNELS_PENALTIES_H_

// How tokens are counted for penalties and what these do to a logit, shared by all backends so that
// they agree to the bit.

#include <cstdint>

#include "kernels/philox.h"

namespace conclave::kernels {

// A token's occurrences in one sequence: how often it was generated, up to kMaxGenerated, and
// whether it stands in the prompt.
using TokenCount = uint16_t;
inline constexpr TokenCount kInPrompt = 0x8000;
inline constexpr TokenCount kMaxGenerated = 0x7FFF;

CONCLAVE_HOST_DEVICE inline TokenCount CountGenerated(TokenCount count) {
  return (count & kMaxGenerated) == kMaxGenerated ? count : static_cast<TokenCount>(count + 1);
}

struct Penalties {
  float repetition = 1;
  float presence = 0;
  float frequency = 0;
};

// The logit of a token that occurred: repetition, then frequency, then presence, each rounded to
// float32 (a product is not fused with the difference after it).
CONCLAVE_HOST_DEVICE inline float Penalized(float logit, TokenCount count,
                                            const Penalties& penalties) {
  const float repeated = logit > 0 ? logit / penalties.repetition : logit * penalties.repetition;
  const int generated = count & kMaxGenerated;
  if (generated == 0) return repeated;
#if defined(__CUDA_ARCH__)
  const float taken = __fmul_rn(penalties.frequency, static_cast<float>(generated));
  return __fsub_rn(__fsub_rn(repeated, taken), penalties.presence);
#else
  const volatile float rounded = repeated;
  const volatile float taken = penalties.frequency * static_cast<float>(generated);
  return rounded - taken - penalties.presence;
#endif
}

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_PENALTIES_H_
