#include "kernels/cuda/device.h"
#include "kernels/cuda/expert_tile.cuh"

namespace conclave::kernels::cuda {

void TileDown(const TokenArgs& tokens, const MatrixArgs& down, const GroupArgs& groups,
              const __nv_bfloat16* activations, int hidden, const PartialArgs& y,
              cudaStream_t stream) {
  tile::TileArgs args = {};
  args.tokens = tokens;
  args.matrix = down;
  args.groups = groups;
  args.activations = const_cast<__nv_bfloat16*>(activations);
  args.hidden = hidden;
  args.y = y;
  tile::Launch<false>(args, NumMultiprocessors(), stream);
}

}  // namespace conclave::kernels::cuda
