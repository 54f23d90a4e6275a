#include "client/worker_probe.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::HasSubstr;

Json CpuProbe(const std::string& reason) {
  return {{"device", "cpu"},
          {"device_name", "Some CPU"},
          {"kernel", "cpu_mxfp4_avx2"},
          {"instruction_set", "AVX2"},
          {"mxfp4", "native"},
          {"fallback_reason", ""},
          {"threads", 8},
          {"memory_bytes", uint64_t{1} << 34},
          {"gloo", "1.0"},
          {"cuda", {{"available", false}, {"reason", reason}}}};
}

TEST(WorkerProbeTest, TextSaysWhatRunsAndWhyNotCuda) {
  const std::string text = ProbeText(CpuProbe("no_gpu"));
  EXPECT_THAT(text, HasSubstr("Some CPU"));
  EXPECT_THAT(text, HasSubstr("cpu_mxfp4_avx2"));
  EXPECT_THAT(text, HasSubstr("16.0 GiB"));
  EXPECT_THAT(text, HasSubstr("gloo            1.0"));
  EXPECT_THAT(text, HasSubstr("not available: no NVIDIA GPU was found"));
}

TEST(WorkerProbeTest, AFallbackIsExplained) {
  Json probe = CpuProbe("no_gpu");
  probe["mxfp4"] = "dequantized";
  probe["fallback_reason"] = "shape_unsupported";
  EXPECT_THAT(ProbeText(probe), HasSubstr("dequantized, because the model's shape"));
}

TEST(WorkerProbeTest, FieldsOfTheWrongKindAreUnknown) {
  EXPECT_THAT(ProbeText(Json{{"kernel", 3}, {"threads", "many"}, {"cuda", "yes"}}),
              HasSubstr("unknown"));
}

TEST(WorkerProbeTest, CudaWithoutABackendIsRefused) {
  const auto status = CheckDevice(CpuProbe("kernel_not_built"), "cuda");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("this build has no CUDA backend"));
}

TEST(WorkerProbeTest, AnAvailableDeviceIsAccepted) {
  EXPECT_TRUE(CheckDevice(CpuProbe("no_gpu"), "cpu").ok());
  Json probe = CpuProbe("");
  probe["cuda"] = {{"available", true},
                   {"reason", ""},
                   {"devices", 2u},
                   {"device_name", "Some GPU"},
                   {"kernel", "cuda_mxfp4_sm90a"}};
  EXPECT_TRUE(CheckDevice(probe, "cuda").ok());
  EXPECT_TRUE(CheckCudaWorkers(probe, 2).ok());
  EXPECT_THAT(std::string(CheckCudaWorkers(probe, 3).message()),
              HasSubstr("3 workers needs as many GPUs, 2 are seen"));
  probe["cuda"]["nccl"] = "nccl_missing: no libnccl.so.2";
  EXPECT_TRUE(CheckCudaWorkers(probe, 1).ok());
  EXPECT_THAT(std::string(CheckCudaWorkers(probe, 2).message()), HasSubstr("nccl_missing"));
  EXPECT_THAT(ProbeText(probe), HasSubstr("available: 2 x Some GPU"));
  EXPECT_THAT(ProbeText(probe), HasSubstr("cuda_mxfp4_sm90a, MXFP4 native"));
}

TEST(WorkerProbeTest, AProgramThatDoesNotPrintAnObjectIsAnError) {
  EXPECT_EQ(ProbeWorker("/bin/false").status().code(), absl::StatusCode::kInternal);
  const auto not_json = ProbeWorker("/bin/echo");
  EXPECT_THAT(std::string(not_json.status().message()), HasSubstr("did not print a JSON object"));
}

}  // namespace
}  // namespace conclave::client
