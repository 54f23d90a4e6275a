// Names the machine and the instruction set that the kernels run with.

#include "kernels/cpu/simd_targets.h"
// After the targets.

#include <fstream>
#include <string>

#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/describe_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels {
namespace HWY_NAMESPACE {

int64_t CompiledTarget() { return HWY_TARGET; }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels {
namespace {

HWY_EXPORT(CompiledTarget);

struct TargetNames {
  const char* kernel;
  const char* instruction_set;
};

TargetNames NamesOf(int64_t target) {
  switch (target) {
    case HWY_AVX3:
      return {"cpu_mxfp4_avx512", "AVX-512"};
    case HWY_AVX2:
      return {"cpu_mxfp4_avx2", "AVX2"};
    case HWY_SSE4:
      return {"cpu_mxfp4_sse4", "SSE4"};
    case HWY_NEON:
      return {"cpu_mxfp4_neon", "NEON"};
    default:
      return {"cpu_mxfp4_portable", "none"};
  }
}

// `model name` of /proc/cpuinfo, or the architecture's word for "some CPU".
std::string CpuModelName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

}  // namespace

KernelInfo DescribeCpu() {
  const TargetNames names = NamesOf(HWY_DYNAMIC_DISPATCH(CompiledTarget)());
  return {.device = "cpu",
          .device_name = CpuModelName(),
          .kernel = names.kernel,
          .instruction_set = names.instruction_set};
}

}  // namespace conclave::kernels
#endif  // HWY_ONCE
