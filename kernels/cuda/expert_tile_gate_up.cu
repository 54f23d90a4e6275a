#include "kernels/cuda/device.h"
#include "kernels/cuda/expert_tile.cuh"

namespace conclave::kernels::cuda {

void TileGateUp(const TokenArgs& tokens, const MatrixArgs& gate_up, const GroupArgs& groups,
                const SwiGluArgs& swiglu, __nv_bfloat16* activations, cudaStream_t stream) {
  tile::TileArgs args = {};
  args.tokens = tokens;
  args.matrix = gate_up;
  args.groups = groups;
  args.swiglu = swiglu;
  args.activations = activations;
  tile::Launch<true>(args, NumMultiprocessors(), stream);
}

}  // namespace conclave::kernels::cuda
