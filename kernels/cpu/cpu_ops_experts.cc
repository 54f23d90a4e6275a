// The expert half of a layer and the exchange's packing.

#include "base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/expert_groups.h"
#include "kernels/cpu/lane_order.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/router.h"

namespace conclave::kernels {
namespace {

// x += partial for `size` values, one rounding each.
void AddRow(const double* partial, int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] = static_cast<float>(double{x[i]} + partial[i]);
}

}  // namespace

void CpuOps::ResidualNormRoute(const RouterWeights& weights, int /*first_row*/, Tensor partial,
                               Tensor x, const int32_t* forced, Tensor normed,
                               const Routing& routing) {
  const auto* norm = static_cast<const uint16_t*>(weights.norm.data);
  packed_.Fill(x.rows, PackedSize(hidden_), pool_, [&](int64_t row, float* packed) {
    float* x_row = x.as<float>() + row * hidden_;
    float* normed_row = normed.as<float>() + row * hidden_;
    AddRow(partial.as<double>() + row * hidden_, hidden_, x_row);
    RmsNorm(x_row, norm, hidden_, epsilon_, normed_row);
    PackRow(normed_row, hidden_, packed);
  });
  router_logits_.resize(x.rows * num_experts_);
  const DensePart parts[] = {{&weights.weight, &weights.bias}};
  MultiplyDense(parts, packed_.rows(), pool_, router_logits_.data(), num_experts_);
  const int64_t k = expert_shape_.k;
  for (int64_t row = 0; row < x.rows; ++row) {
    ChooseExperts(router_logits_.data() + row * num_experts_, num_experts_, static_cast<int>(k),
                  forced == nullptr ? nullptr : forced + row * k,
                  routing.expert_ids.as<int32_t>() + row * k,
                  routing.weights.as<float>() + row * k);
  }
}

void CpuOps::ExpertGateUp(const ExpertWeights& experts, const ExpertTokens& tokens,
                          Tensor activations) {
  const ExpertGroups groups =
      GroupByExpert(tokens, num_experts_, static_cast<int>(expert_shape_.k));
  const auto& weights = static_cast<const CpuExperts&>(experts);
  RunGateUp(weights, groups, expert_shape_, pool_, packed_experts_, activations.as<float>());
  CountLaunch(weights, tokens);
}

void CpuOps::ExpertDown(const ExpertWeights& experts, const ExpertTokens& tokens,
                        Tensor activations, Tensor partial) {
  const ExpertGroups groups =
      GroupByExpert(tokens, num_experts_, static_cast<int>(expert_shape_.k));
  const auto& weights = static_cast<const CpuExperts&>(experts);
  RunDown(weights, groups, expert_shape_, pool_, packed_experts_, activations.as<float>(),
          partial.as<double>());
  CountLaunch(weights, tokens);
  if (tokens.load == nullptr) return;
  for (const ExpertGroup& group : groups.groups) tokens.load[group.local] += group.jobs.size();
}

void CpuOps::CountLaunch(const CpuExperts& experts, const ExpertTokens& tokens) {
  if (experts.format() == "mxfp4" && experts.num_local() > 0 && tokens.max_copies > 0) {
    ++mxfp4_launches_;
  }
}

void CpuOps::AddResidual(Tensor partial, Tensor x) {
  CONCLAVE_CHECK(partial.rows == x.rows && partial.cols == x.cols);
  pool_.ParallelFor(x.rows * x.cols, GrainOf(1), [&](int64_t begin, int64_t end) {
    AddRow(partial.as<double>() + begin, end - begin, x.as<float>() + begin);
  });
}

void CpuOps::PackDispatch(const DispatchTables& tables, const SlotLayout& layout, Tensor normed,
                          const Routing& routing, int64_t block_slots, Tensor send,
                          Tensor send_index, Tensor counts) {
  PackCopies(tables, layout, normed, routing, block_slots, send, send_index, counts);
}

void CpuOps::CombineResidual(Tensor partials, const int32_t* first_row, Tensor send_index,
                             Tensor x) {
  AddPartials(partials, first_row, send_index, pool_, x);
}

}  // namespace conclave::kernels
