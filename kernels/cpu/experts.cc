#include "kernels/cpu/experts.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/lane_order.h"
#include "kernels/cpu/parallel.h"

namespace conclave::kernels {
namespace {

// What one thread needs while it works on a range of rows of an expert.
struct RangeScratch {
  std::vector<const float*> x;  // [jobs] packed inputs
  std::vector<float> products;  // [jobs, rows of the range]
};

RangeScratch& ThreadScratch() {
  static thread_local RangeScratch scratch;
  return scratch;
}

int64_t MostJobs(const ExpertGroups& groups) {
  size_t most = 0;
  for (const ExpertGroup& group : groups.groups) most = std::max(most, group.jobs.size());
  return static_cast<int64_t>(most);
}

void GateUpRange(const CpuExperts& experts, const ExpertGroups& groups, const ExpertGroup& group,
                 const ExpertShape& shape, const float* packed, int64_t begin, int64_t end,
                 float* activations) {
  RangeScratch& scratch = ThreadScratch();
  const int64_t rows = 2 * (end - begin);
  scratch.x.clear();
  for (const ExpertJob& job : group.jobs) {
    scratch.x.push_back(packed + job.copy * PackedSize(shape.hidden));
  }
  scratch.products.resize(group.jobs.size() * rows);
  experts.GateUp(group.local, 2 * begin, 2 * end, scratch.x, scratch.products.data(), rows);
  const uint16_t* bias = experts.gate_up_bias(group.local) + 2 * begin;
  for (size_t t = 0; t < group.jobs.size(); ++t) {
    const ExpertJob& job = group.jobs[t];
    const float* product = scratch.products.data() + static_cast<int64_t>(t) * rows;
    float* out = activations +
                 (groups.copies[job.copy].output_row * shape.k + job.choice) * shape.intermediate +
                 begin;
    for (int64_t i = 0; i < end - begin; ++i) {
      const float gate = product[2 * i] + Bf16ToFloat(bias[2 * i]);
      const float up = product[2 * i + 1] + Bf16ToFloat(bias[2 * i + 1]);
      out[i] = ClampedSwiGlu(gate, up, shape.swiglu);
    }
  }
}

// Adds weight * (product + bias) of one expert to rows [begin, end) of the partials.
void DownRange(const CpuExperts& experts, const ExpertGroups& groups, const ExpertGroup& group,
               const ExpertShape& shape, const float* packed, int64_t begin, int64_t end,
               double* partial) {
  RangeScratch& scratch = ThreadScratch();
  const int64_t rows = end - begin;
  scratch.x.clear();
  for (size_t t = 0; t < group.jobs.size(); ++t) {
    scratch.x.push_back(packed + static_cast<int64_t>(t) * PackedSize(shape.intermediate));
  }
  scratch.products.resize(group.jobs.size() * rows);
  experts.Down(group.local, begin, end, scratch.x, scratch.products.data(), rows);
  const uint16_t* bias = experts.down_bias(group.local) + begin;
  for (size_t t = 0; t < group.jobs.size(); ++t) {
    const ExpertJob& job = group.jobs[t];
    const float* product = scratch.products.data() + static_cast<int64_t>(t) * rows;
    double* out = partial + groups.copies[job.copy].output_row * shape.hidden + begin;
    for (int64_t i = 0; i < rows; ++i) {
      const float y = product[i] + Bf16ToFloat(bias[i]);
      out[i] += double{job.weight} * double{y};
    }
  }
}

}  // namespace

float ClampedSwiGlu(float gate, float up, const SwiGlu& swiglu) {
  gate = std::min(gate, swiglu.limit);
  up = std::clamp(up, -swiglu.limit, swiglu.limit);
  return (up + 1) * (gate / (1 + std::exp(-swiglu.alpha * gate)));
}

void RunGateUp(const CpuExperts& experts, const ExpertGroups& groups, const ExpertShape& shape,
               base::ThreadPool& pool, std::vector<float>& packed, float* activations) {
  const int64_t stride = PackedSize(shape.hidden);
  const auto copies = static_cast<int64_t>(groups.copies.size());
  packed.resize(std::max<size_t>(packed.size(), copies * stride));
  pool.ParallelFor(copies, GrainOf(stride), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      PackRow(groups.copies[i].hidden, shape.hidden, packed.data() + i * stride);
    }
  });
  // The rows of all experts one after the other, so that threads share few experts evenly too.
  const auto experts_used = static_cast<int64_t>(groups.groups.size());
  const int64_t grain = GrainOf(2 * shape.hidden * MostJobs(groups));
  ForEachPiece(pool, experts_used, shape.intermediate, grain,
               [&](int64_t expert, int64_t begin, int64_t end) {
                 GateUpRange(experts, groups, groups.groups[expert], shape, packed.data(), begin,
                             end, activations);
               });
}

void RunDown(const CpuExperts& experts, const ExpertGroups& groups, const ExpertShape& shape,
             base::ThreadPool& pool, std::vector<float>& packed, const float* activations,
             double* partial) {
  const int64_t stride = PackedSize(shape.intermediate);
  std::vector<int64_t> first_packed;  // by group
  std::vector<const float*> inputs;   // of all jobs, by group
  for (const ExpertGroup& group : groups.groups) {
    first_packed.push_back(static_cast<int64_t>(inputs.size()) * stride);
    for (const ExpertJob& job : group.jobs) {
      inputs.push_back(activations + (groups.copies[job.copy].output_row * shape.k + job.choice) *
                                         shape.intermediate);
    }
  }
  packed.resize(std::max<size_t>(packed.size(), inputs.size() * stride));
  pool.ParallelFor(static_cast<int64_t>(inputs.size()), GrainOf(stride),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       PackRow(inputs[i], shape.intermediate, packed.data() + i * stride);
                     }
                   });
  // A thread owns rows of H and adds the experts to them in ascending id.
  const int64_t per_row = shape.intermediate * static_cast<int64_t>(inputs.size());
  pool.ParallelFor(shape.hidden, GrainOf(per_row), [&](int64_t begin, int64_t end) {
    for (const ExpertCopy& copy : groups.copies) {
      double* out = partial + copy.output_row * shape.hidden;
      std::fill(out + begin, out + end, 0.0);
    }
    for (size_t g = 0; g < groups.groups.size(); ++g) {
      DownRange(experts, groups, groups.groups[g], shape, packed.data() + first_packed[g], begin,
                end, partial);
    }
  });
}

}  // namespace conclave::kernels
