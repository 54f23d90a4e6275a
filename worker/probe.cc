#include "worker/probe.h"

#include <fmt/format.h>
#include <gloo/config.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "kernels/ops.h"
#include "worker/host_memory.h"

namespace conclave::worker {

std::string CudaUnavailableReason() {
  std::error_code error;
  const bool gpu =
      std::filesystem::exists("/dev/nvidia0", error) || std::filesystem::exists("/dev/dxg", error);
  return gpu ? "kernel_not_built" : "no_gpu";
}

std::string ProbeJson() {
  const kernels::KernelInfo cpu = kernels::DescribeCpu();
  nlohmann::ordered_json probe;
  probe["device"] = cpu.device;
  probe["device_name"] = cpu.device_name;
  probe["kernel"] = cpu.kernel;
  probe["instruction_set"] = cpu.instruction_set;
  probe["mxfp4"] = "native";
  probe["fallback_reason"] = "";
  probe["threads"] = std::max(1u, std::thread::hardware_concurrency());
  probe["memory_bytes"] = ReadHostMemory().total_bytes;
  probe["gloo"] =
      fmt::format("{}.{}.{}", GLOO_VERSION_MAJOR, GLOO_VERSION_MINOR, GLOO_VERSION_PATCH);
  probe["cuda"] = {{"available", false}, {"reason", CudaUnavailableReason()}};
  return probe.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace conclave::worker
