// Groups of GPU ranks at the shape of 120b, four layers with weights that are made up: what they
// compute with the routing forced, how long an exchange takes by the bytes it moves, and whether
// memory stays flat over many steps. A process for each rank; they share the GPU.

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "model/model_source.h"
#include "tests/goldens/goldens.h"
#include "tests/gpu/group_files.h"
#include "tests/gpu/group_rank.h"
#include "worker/expert_exchange.h"
#include "worker/nccl_communicator.h"
#include "worker/rank_processes.h"

namespace conclave::gpu {
namespace {

using internal::v1::ExchangeMode;
using kernels::DType;
using worker::RankProcess;
using worker::RankProcesses;
using worker::TestRequest;
using worker::TestResult;

constexpr int kLayers = 4;
constexpr char kShape[] = "CONCLAVE_GROUP_SHAPE";

// Where the configuration lies beside the built tests, or in the checkout.
std::string ConfigDir() {
  for (const char* dir : {"configs/gpt_oss_120b", "bench/configs/gpt_oss_120b"}) {
    if (std::filesystem::exists(std::string(dir) + "/config.json")) return dir;
  }
  return "bench/configs/gpt_oss_120b";
}

model::ModelSource WideSource() {
  return {.dir = ConfigDir(), .random = model::RandomWeights{.seed = 1, .layers = kLayers}};
}

model::ParallelShape ShapeFromEnvironment() {
  const std::string shape = std::getenv(kShape);
  return {.dp = shape[0] - '0', .tp = shape[1] - '0'};
}

std::string ShapeVariable(const model::ParallelShape& shape) {
  return fmt::format("{}={}{}", kShape, shape.dp, shape.tp);
}

std::string WhyNot() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return "no CUDA device";
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  if (major != 9) return "no Hopper GPU";
  const auto nccl = worker::NcclVersion();
  return nccl.ok() ? "" : std::string(nccl.status().message());
}

// --- With the routing forced. ---

// Ragged prompts; every position, those generated too, asks for experts drawn at random.
std::vector<TestRequest> ForcedRequests(const model::Config& config) {
  std::mt19937 random(5);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  std::vector<TestRequest> requests;
  for (const int length : {1, 3, 17, 33, 48, 5, 2, 24}) {
    TestRequest& request = requests.emplace_back();
    request.max_tokens = 8;
    request.sampling.set_logprobs(kernels::kMaxLogprobs);
    for (int i = 0; i < length; ++i) request.prompt.push_back(below(200'000));
    const int choices = (length + request.max_tokens) * config.num_layers;
    for (int i = 0; i < choices; ++i) {
      const int first = below(config.num_experts);
      for (int j = 0; j < config.experts_per_token; ++j) {
        request.forced_expert_ids.push_back((first + 29 * j) % config.num_experts);
      }
    }
  }
  return requests;
}

void RunForced(RankProcess& self) {
  GroupRankOptions options;
  options.dir = WideSource().dir;
  options.random = WideSource().random;
  options.shape = ShapeFromEnvironment();
  options.rank = self.rank;
  const auto rank = GroupRank::Create(options, self.rendezvous);
  ASSERT_TRUE(rank.ok()) << rank.status();
  Json results;
  for (const ExchangeMode mode : ModesOf(options.shape)) {
    const auto got = (*rank)->Run(ForcedRequests((*rank)->config()), 32, mode);
    ASSERT_TRUE(got.ok()) << got.status();
    results[NameOf(mode)] = ToJson(*got);
  }
  if (options.shape.tp_rank(self.rank) != 0) return;
  const int group = options.shape.dp_rank(self.rank);
  std::ofstream(self.folder / fmt::format("results{}.json", group)) << results.dump();
}

using Runs = std::map<std::string, std::vector<TestResult>>;  // by mode

Runs RunShape(const model::ParallelShape& shape) {
  RankProcesses ranks("RunForced", shape.world(), {ShapeVariable(shape)});
  ranks.ExpectSuccess(absl::Seconds(150));
  Runs runs;
  for (const ExchangeMode mode : ModesOf(shape)) {
    std::vector<std::vector<TestResult>> parts;
    size_t count = 0;
    for (int group = 0; group < shape.dp; ++group) {
      const Json file = ReadJson(ranks.folder() / fmt::format("results{}.json", group));
      if (file.is_discarded()) return {};
      parts.push_back(ResultsFrom(file.at(NameOf(mode))));
      count += parts.back().size();
    }
    for (size_t i = 0; i < count; ++i) {
      runs[NameOf(mode)].push_back(parts[i % shape.dp][i / shape.dp]);
    }
  }
  return runs;
}

// Sums are rounded in other places; logits have a standard deviation of about 1.
constexpr double kWorstLogprob = 0.15;
// Below this, the best two may change places, and what follows is another text.
constexpr double kTokenMargin = 0.15;

TEST(GroupWideTest, EveryShapeAndModeAgreesWithOneRankWhenRoutingIsForced) {
  if (const std::string why = WhyNot(); !why.empty()) GTEST_SKIP() << why;
  Runs one = RunShape({1, 1});
  ASSERT_EQ(one.size(), 1u);
  const std::vector<TestResult>& want = one.begin()->second;
  for (const model::ParallelShape& shape : {model::ParallelShape{2, 1}, {8, 1}, {1, 4}, {2, 2}}) {
    for (const auto& [mode, got] : RunShape(shape)) {
      SCOPED_TRACE(fmt::format("dp {} tp {} {}", shape.dp, shape.tp, mode));
      ASSERT_EQ(got.size(), want.size());
      double worst = 0;
      int compared = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(got[i].tokens.size(), want[i].tokens.size());
        for (size_t step = 0; step < want[i].tokens.size(); ++step) {
          const std::map<int, float> reference(want[i].top[step].begin(), want[i].top[step].end());
          for (const auto& [id, logprob] : got[i].top[step]) {
            if (const auto found = reference.find(id); found != reference.end()) {
              worst = std::max(worst, std::fabs(double{logprob} - found->second));
            }
          }
          ++compared;
          if (got[i].tokens[step] == want[i].tokens[step]) continue;
          EXPECT_LT(want[i].top[step][0].second - want[i].top[step][1].second, kTokenMargin)
              << "request " << i << ", step " << step;
          break;
        }
      }
      EXPECT_LE(worst, kWorstLogprob);
      EXPECT_GT(compared, 20);
      fmt::print(
          "120b shape, {} layers, dp {} tp {} {}: {} steps, log-probabilities worst {:.3f}\n",
          kLayers, shape.dp, shape.tp, mode, compared, worst);
    }
  }
}

// --- Time of an exchange. ---

struct Timed {
  double dispatch_us = 0;
  double combine_us = 0;
  int64_t dispatch_bytes = 0;  // to other ranks
  int64_t combine_bytes = 0;
};

// One layer's exchange of `rows` rows on each rank, random routing: the median of some rounds.
class ExchangeTimer {
 public:
  ExchangeTimer(const model::Config& config, kernels::cuda::CudaOps& ops, int max_rows)
      : config_(config), ops_(ops) {
    const int k = config.experts_per_token;
    normed_ = Allocate(DType::kBf16, max_rows, config.hidden_size);
    x_ = Allocate(DType::kBf16, max_rows, config.hidden_size);
    routing_ = {Allocate(DType::kI32, max_rows, k), Allocate(DType::kF32, max_rows, k)};
    for (cudaEvent_t& event : events_) EXPECT_EQ(cudaEventCreate(&event), cudaSuccess);
  }
  ~ExchangeTimer() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  Timed Run(worker::ExpertExchange& exchange, int rows, int rank) {
    constexpr int kWarmUp = 3;
    constexpr int kRounds = 15;
    exchange.SetBucket(rows);
    WriteRouting(rows, rank);
    const kernels::Tensor partial =
        Allocate(DType::kF32, exchange.max_output_rows(), config_.hidden_size);
    const kernels::Routing routing = {routing_.expert_ids.Rows(0, rows),
                                      routing_.weights.Rows(0, rows)};
    std::vector<double> dispatch, combine;
    Timed timed;
    for (int round = 0; round < kWarmUp + kRounds; ++round) {
      EXPECT_EQ(cudaStreamSynchronize(ops_.stream()), cudaSuccess);
      const int64_t before = Sent(exchange);
      cudaEventRecord(events_[0], ops_.stream());
      const auto tokens = exchange.Dispatch(0, normed_.Rows(0, rows), routing);
      EXPECT_TRUE(tokens.ok()) << tokens.status();
      if (!tokens.ok()) return timed;
      cudaEventRecord(events_[1], ops_.stream());
      const int64_t between = Sent(exchange);
      const absl::Status combined = exchange.Combine(partial, x_.Rows(0, rows));
      EXPECT_TRUE(combined.ok()) << combined;
      if (!combined.ok()) return timed;
      cudaEventRecord(events_[2], ops_.stream());
      EXPECT_EQ(cudaStreamSynchronize(ops_.stream()), cudaSuccess);
      timed.dispatch_bytes = between - before;
      timed.combine_bytes = Sent(exchange) - between;
      if (round < kWarmUp) continue;
      dispatch.push_back(Microseconds(0));
      combine.push_back(Microseconds(1));
    }
    timed.dispatch_us = Median(dispatch);
    timed.combine_us = Median(combine);
    return timed;
  }

 private:
  kernels::Tensor Allocate(DType dtype, int64_t rows, int64_t cols) {
    auto buffer = ops_.Allocate(rows * cols * kernels::SizeOf(dtype));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    memory_.push_back(*std::move(buffer));
    return memory_.back().AsTensor(dtype, rows, cols);
  }
  void WriteRouting(int rows, int rank) {
    std::mt19937 random(static_cast<uint32_t>(100 * rank + rows));
    std::vector<int32_t> ids;
    for (int row = 0; row < rows; ++row) {
      const int first = static_cast<int>(random() % config_.num_experts);
      for (int j = 0; j < config_.experts_per_token; ++j) {
        ids.push_back((first + 29 * j) % config_.num_experts);
      }
    }
    ops_.Write(routing_.expert_ids.Rows(0, rows), ids.data());
  }
  static int64_t Sent(const worker::ExpertExchange& exchange) {
    int64_t sum = 0;
    for (const int64_t bytes : exchange.stats().bytes_to) sum += bytes;
    return sum;
  }
  double Microseconds(int phase) const {
    float ms = 0;
    EXPECT_EQ(cudaEventElapsedTime(&ms, events_[phase], events_[phase + 1]), cudaSuccess);
    return 1000.0 * ms;
  }
  static double Median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  }

  const model::Config& config_;
  kernels::cuda::CudaOps& ops_;
  kernels::Tensor normed_, x_;
  kernels::Routing routing_;
  std::vector<kernels::Buffer> memory_;
  cudaEvent_t events_[3];
};

constexpr int kTimedRows[] = {1, 8, 64, 256};

void TimeExchange(RankProcess& self) {
  const auto config = model::LoadConfig(WideSource());
  ASSERT_TRUE(config.ok()) << config.status();
  const int most = *std::max_element(std::begin(kTimedRows), std::end(kTimedRows));
  kernels::CudaOptions cuda;
  cuda.max_step_tokens = most;
  cuda.max_step_blocks = 64;
  cuda.max_expert_copies = most * self.size;
  auto ops = kernels::cuda::CudaOps::Create(*config, config->num_kv_heads, cuda);
  ASSERT_TRUE(ops.ok()) << ops.status();
  worker::NcclOptions nccl;
  nccl.stream = (*ops)->stream();
  auto world = worker::ConnectNccl("world", self.rank, self.size, self.rendezvous, nccl);
  ASSERT_TRUE(world.ok()) << world.status();
  const model::Placement placement = model::BalancedPlacement(*config, self.size);
  auto exchanges =
      worker::MakeExpertExchanges(*config, placement, **world, **ops, {.max_rows = most});
  ASSERT_TRUE(exchanges.ok()) << exchanges.status();
  Json out;
  for (const int rows : kTimedRows) {
    for (const bool fixed : {true, false}) {
      ExchangeTimer timer(*config, **ops, most);
      const Timed timed = timer.Run(fixed ? *exchanges->fixed : *exchanges->exact, rows, self.rank);
      out.push_back({{"rows", rows},
                     {"mode", fixed ? "fixed" : "exact"},
                     {"dispatch_us", timed.dispatch_us},
                     {"combine_us", timed.combine_us},
                     {"dispatch_bytes", timed.dispatch_bytes},
                     {"combine_bytes", timed.combine_bytes}});
    }
  }
  EXPECT_TRUE((*ops)->Finish().ok());
  std::ofstream(self.folder / fmt::format("times{}.json", self.rank)) << out.dump();
}

// A table for people: bytes are what a rank sends to others in one layer, the mean over the ranks;
// times are the slowest rank's.
TEST(GroupWideTest, TimesOfDispatchAndCombineByTheBytesTheyMove) {
  if (const std::string why = WhyNot(); !why.empty()) GTEST_SKIP() << why;
  fmt::print("| ranks | mode | rows a rank | dispatch KiB | us | combine KiB | us | MB/s |\n");
  for (const int size : {2, 4, 8}) {
    RankProcesses ranks("TimeExchange", size);
    ranks.ExpectSuccess(absl::Seconds(90));
    std::vector<Json> files;
    for (int rank = 0; rank < size; ++rank) {
      files.push_back(ReadJson(ranks.folder() / fmt::format("times{}.json", rank)));
      ASSERT_FALSE(files.back().is_discarded());
    }
    for (size_t row = 0; row < files[0].size(); ++row) {
      double dispatch_us = 0, combine_us = 0, dispatch_bytes = 0, combine_bytes = 0;
      for (const Json& file : files) {
        dispatch_us = std::max(dispatch_us, file[row]["dispatch_us"].get<double>());
        combine_us = std::max(combine_us, file[row]["combine_us"].get<double>());
        dispatch_bytes += file[row]["dispatch_bytes"].get<double>() / size;
        combine_bytes += file[row]["combine_bytes"].get<double>() / size;
      }
      EXPECT_GT(dispatch_bytes, 0);
      EXPECT_GT(dispatch_us, 0);
      fmt::print("| {} | {} | {} | {:.1f} | {:.0f} | {:.1f} | {:.0f} | {:.0f} |\n", size,
                 files[0][row]["mode"].get<std::string>(), files[0][row]["rows"].get<int>(),
                 dispatch_bytes / 1024, dispatch_us, combine_bytes / 1024, combine_us,
                 (dispatch_bytes + combine_bytes) / (dispatch_us + combine_us));
    }
  }
}

// --- Many steps. ---

constexpr int64_t kSteps = 10'000;
constexpr int64_t kSettled = 4'000;  // by then every batch size has been recorded
constexpr int64_t kSlackBytes = int64_t{16} << 20;

int64_t DeviceBytesUsed() {
  size_t free = 0;
  size_t total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return static_cast<int64_t>(total - free);
}

int64_t HostBytesUsed() {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0;
  file >> pages >> pages;
  return pages * 4096;
}

// Requests of random lengths, few at a time, in either mode: the same on every rank.
void RunManySteps(RankProcess& self) {
  GroupRankOptions options;
  options.dir = goldens::TinyModelDir();
  options.shape = ShapeFromEnvironment();
  options.rank = self.rank;
  const auto rank = GroupRank::Create(options, self.rendezvous);
  ASSERT_TRUE(rank.ok()) << rank.status();
  std::mt19937 random(11);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  const std::vector<ExchangeMode> modes = ModesOf(options.shape);
  int64_t device = 0, host = 0, next = 0;
  while ((*rank)->steps() < kSteps) {
    std::vector<TestRequest> requests(1 + below(12));
    for (TestRequest& request : requests) {
      for (int i = below(40); i >= 0; --i) request.prompt.push_back(1 + below(400));
      request.max_tokens = 1 + below(40);
      if (below(2) == 0) request.sampling.set_temperature(0.8f);
      request.sampling.set_seed(below(1000));
    }
    const auto got = (*rank)->Run(requests, 16, modes[below(static_cast<int>(modes.size()))]);
    ASSERT_TRUE(got.ok()) << got.status();
    const int64_t steps = (*rank)->steps();
    if (steps < next) continue;
    next = steps + 1'000;
    const int64_t device_now = DeviceBytesUsed();
    const int64_t host_now = HostBytesUsed();
    if (self.rank == 0) {
      fmt::print("{} steps: device {:.1f} MiB, host {:.1f} MiB\n", steps, device_now / 1048576.0,
                 host_now / 1048576.0);
    }
    if (steps >= kSettled && device == 0) {
      device = device_now;
      host = host_now;
    }
    if (device == 0) continue;
    EXPECT_LE(device_now, device + kSlackBytes) << "after " << steps << " steps";
    EXPECT_LE(host_now, host + kSlackBytes) << "after " << steps << " steps";
  }
  EXPECT_GT(device, 0);
}

TEST(GroupLeakTest, TenThousandStepsOfRandomRaggedBatchesLeaveMemoryFlat) {
  if (const std::string why = WhyNot(); !why.empty()) GTEST_SKIP() << why;
  for (const model::ParallelShape& shape : {model::ParallelShape{2, 1}, {2, 2}}) {
    SCOPED_TRACE(fmt::format("dp {} tp {}", shape.dp, shape.tp));
    RankProcesses ranks("RunManySteps", shape.world(), {ShapeVariable(shape)});
    ranks.ExpectSuccess(absl::Seconds(250));
  }
}

}  // namespace
}  // namespace conclave::gpu

int main(int argc, char** argv) {
  return conclave::worker::RunTests(argc, argv,
                                    {{"RunForced", conclave::gpu::RunForced},
                                     {"TimeExchange", conclave::gpu::TimeExchange},
                                     {"RunManySteps", conclave::gpu::RunManySteps}});
}
