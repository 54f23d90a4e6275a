#include "worker/probe.h"

#include <fmt/format.h>
#include <gloo/config.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/ops.h"
#include "worker/backend.h"
#include "worker/host_memory.h"

namespace conclave::worker {
namespace {

using Json = nlohmann::ordered_json;

Json CudaJson(int device) {
  const CudaReport report = ReportCuda(device);
  Json cuda = {{"available", report.reason.empty()}, {"reason", report.reason}};
  cuda["message"] = report.message;
  cuda["devices"] = report.devices;
  if (!report.nccl.empty()) cuda["nccl"] = report.nccl;
  if (report.devices == 0) return cuda;
  cuda["device_name"] = report.info.device_name;
  cuda["compute_capability"] = report.compute_capability;
  cuda["memory_bytes"] = report.memory_bytes;
  cuda["kernel"] = report.info.kernel;
  return cuda;
}

}  // namespace

std::string ProbeJson(int cuda_device) {
  const kernels::KernelInfo cpu = kernels::DescribeCpu();
  Json probe;
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
  probe["cuda"] = CudaJson(cuda_device);
  return probe.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace conclave::worker
