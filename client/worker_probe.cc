#include "client/worker_probe.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <string_view>

#include "client/format.h"
#include "client/process.h"

namespace conclave::client {
namespace {

std::string StringOr(const Json& json, const char* field, const std::string& fallback) {
  const auto it = json.find(field);
  return it != json.end() && it->is_string() ? it->get<std::string>() : fallback;
}

uint64_t NumberOr0(const Json& json, const char* field) {
  const auto it = json.find(field);
  return it != json.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

const Json& Cuda(const Json& probe) {
  static const Json kNone = Json::object();
  const auto it = probe.find("cuda");
  return it != probe.end() && it->is_object() ? *it : kNone;
}

bool CudaAvailable(const Json& probe) {
  const auto it = Cuda(probe).find("available");
  return it != Cuda(probe).end() && it->is_boolean() && it->get<bool>();
}

// The probe's reason codes, in words.
std::string Explain(const std::string& reason) {
  if (reason == "no_gpu") return "no NVIDIA GPU was found on this machine";
  if (reason == "kernel_not_built") return "this build has no CUDA backend";
  if (reason == "arch_unsupported") return "the GPU's architecture has no kernels in this build";
  if (reason == "forced_dequantize") return "dequantization was asked for";
  if (reason == "shape_unsupported") return "the model's shape has no native kernel";
  return reason;
}

std::string Line(std::string_view name, const std::string& value) {
  return fmt::format("{:<16}{}\n", name, value);
}

std::string Mxfp4Text(const Json& probe) {
  std::string text = StringOr(probe, "mxfp4", "unknown");
  const std::string reason = StringOr(probe, "fallback_reason", "");
  return reason.empty() ? text : fmt::format("{}, because {}", text, Explain(reason));
}

std::string CudaText(const Json& cuda, bool available) {
  if (!available) {
    return Line("CUDA", "not available: " + Explain(StringOr(cuda, "reason", "")));
  }
  return Line("CUDA", fmt::format("available: {} x {}", NumberOr0(cuda, "devices"),
                                  StringOr(cuda, "device_name", "unknown"))) +
         Line("CUDA kernel", fmt::format("{}, MXFP4 native", StringOr(cuda, "kernel", "unknown"))) +
         Line("CUDA memory", FormatBytes(NumberOr0(cuda, "memory_bytes"))) +
         Line("NCCL", StringOr(cuda, "nccl", "unknown"));
}

}  // namespace

absl::Status CheckCudaWorkers(const Json& probe, int workers) {
  const uint64_t devices = NumberOr0(Cuda(probe), "devices");
  if (static_cast<uint64_t>(workers) > devices) {
    return absl::FailedPreconditionError(fmt::format(
        "--device cuda with {} workers needs as many GPUs, {} are seen; use fewer --workers",
        workers, devices));
  }
  // A version, or a reason code with a sentence.
  const std::string nccl = StringOr(Cuda(probe), "nccl", "");
  if (workers > 1 && nccl.find(':') != std::string::npos) {
    return absl::FailedPreconditionError(
        fmt::format("--device cuda with {} workers needs NCCL: {}", workers, nccl));
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> ProbeWorker(const std::string& worker_binary) {
  const auto finished = RunProcess({worker_binary, "--probe"}, absl::Seconds(30));
  if (!finished.ok()) return finished.status();
  if (!WIFEXITED(finished->wait_status) || WEXITSTATUS(finished->wait_status) != 0) {
    return absl::InternalError(fmt::format("{} --probe ended with {}: {}", worker_binary,
                                           DescribeExit(finished->wait_status), finished->err));
  }
  Json probe = Json::parse(finished->out, nullptr, /*allow_exceptions=*/false);
  if (!probe.is_object()) {
    return absl::InternalError(fmt::format(
        "{} --probe did not print a JSON object: is it of the same build?", worker_binary));
  }
  return probe;
}

std::string ProbeText(const Json& probe) {
  std::string text = Line("device", fmt::format("{}: {}", StringOr(probe, "device", "cpu"),
                                                StringOr(probe, "device_name", "unknown")));
  text += Line("instructions", StringOr(probe, "instruction_set", "unknown"));
  text += Line("kernel", StringOr(probe, "kernel", "unknown"));
  text += Line("MXFP4", Mxfp4Text(probe));
  text += Line("threads", std::to_string(NumberOr0(probe, "threads")));
  text += Line("memory", FormatBytes(NumberOr0(probe, "memory_bytes")));
  if (const std::string gloo = StringOr(probe, "gloo", ""); !gloo.empty()) {
    text += Line("gloo", gloo);
  }
  return text + CudaText(Cuda(probe), CudaAvailable(probe));
}

absl::Status CheckDevice(const Json& probe, const std::string& device) {
  if (device != "cuda" || CudaAvailable(probe)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("--device cuda cannot run here: {}; use --device cpu, or see 'conclave doctor'",
                  Explain(StringOr(Cuda(probe), "reason", "no reason was given"))));
}

}  // namespace conclave::client
