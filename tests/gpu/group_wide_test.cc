// Groups of GPU ranks at the shape of 120b, four layers with weights that are made up: what they
// compute with the routing forced, how long an exchange takes by the bytes it moves, and whether
// memory stays flat over many steps. A process for each rank; they share the GPU.

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <string_view>
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
// Blocks of up to so many bytes go past NCCL where each rank has a GPU of its own.
constexpr int64_t kDirectBytes = int64_t{1} << 20;

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
  if (self.own_gpu) options.direct_bytes = kDirectBytes;
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
  const int gpus = static_cast<int>(worker::GpusForRanks().size());
  for (const model::ParallelShape& shape :
       {model::ParallelShape{2, 1}, {4, 1}, {8, 1}, {1, 4}, {2, 2}}) {
    if (gpus > 1 && shape.world() > gpus) continue;  // one GPU shows that many share it well
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
  double dispatch_us = 0;  // launched from the host
  double combine_us = 0;
  double recorded_dispatch_us = 0;  // as nodes of a graph; 0: not measured
  double recorded_combine_us = 0;
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

  // The same of the fixed mode within a recorded step, after Run with as many rows.
  void RunRecorded(worker::ExpertExchange& exchange, int rows, Timed& timed) {
    const kernels::Tensor partial =
        Allocate(DType::kF32, exchange.max_output_rows(), config_.hidden_size);
    const kernels::Routing routing = {routing_.expert_ids.Rows(0, rows),
                                      routing_.weights.Rows(0, rows)};
    const auto dispatch = [&] {
      const auto tokens = exchange.Dispatch(0, normed_.Rows(0, rows), routing);
      EXPECT_TRUE(tokens.ok()) << tokens.status();
    };
    timed.recorded_dispatch_us = Recorded(dispatch);
    timed.recorded_combine_us = Recorded([&] {
      dispatch();
      const absl::Status combined = exchange.Combine(partial, x_.Rows(0, rows));
      EXPECT_TRUE(combined.ok()) << combined;
    });
    timed.recorded_combine_us -= timed.recorded_dispatch_us;
  }

  // One of the two sums over all ranks that a layer takes in the replicated mode, recorded.
  double RunSum(worker::Communicator& world, int rows) {
    const kernels::Tensor sum = Allocate(DType::kF32, rows, config_.hidden_size);
    return Recorded([&] {
      const absl::Status summed = world.AllReduceSum(sum);
      EXPECT_TRUE(summed.ok()) << summed;
    });
  }

 private:
  // Microseconds of what `enqueue` enqueues when a graph holds it many times.
  double Recorded(const std::function<void()>& enqueue) {
    constexpr int kRepeats = 20;
    constexpr int kWarmUp = 2;
    constexpr int kRounds = 9;
    const cudaStream_t stream = ops_.stream();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    for (int i = 0; i < kRepeats; ++i) enqueue();
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&ready, graph, 0), cudaSuccess);
    std::vector<double> rounds;
    for (int round = 0; round < kWarmUp + kRounds; ++round) {
      cudaEventRecord(events_[0], stream);
      EXPECT_EQ(cudaGraphLaunch(ready, stream), cudaSuccess);
      cudaEventRecord(events_[1], stream);
      EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      if (round >= kWarmUp) rounds.push_back(Microseconds(0) / kRepeats);
    }
    cudaGraphExecDestroy(ready);
    cudaGraphDestroy(graph);
    return Median(rounds);
  }

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

constexpr int kTimedRows[] = {1, 8, 32, 64, 128, 256, 512};

struct TimedGroup {
  const char* name;
  int64_t direct_bytes;
};

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
  const model::Placement placement = model::BalancedPlacement(*config, self.size);
  std::vector<TimedGroup> groups = {{"nccl", 0}};
  if (self.own_gpu) groups.push_back({"direct", int64_t{8} << 20});
  Json out;
  for (const TimedGroup& group : groups) {
    worker::NcclOptions nccl;
    nccl.stream = (*ops)->stream();
    nccl.direct_bytes = group.direct_bytes;
    auto world = worker::ConnectNccl(group.name, self.rank, self.size, self.rendezvous, nccl);
    ASSERT_TRUE(world.ok()) << world.status();
    auto exchanges =
        worker::MakeExpertExchanges(*config, placement, **world, **ops, {.max_rows = most});
    ASSERT_TRUE(exchanges.ok()) << exchanges.status();
    for (const int rows : kTimedRows) {
      for (const bool fixed : {true, false}) {
        if (!self.own_gpu && rows > 256) continue;
        if (!fixed && group.direct_bytes > 0) continue;  // never direct
        ExchangeTimer timer(*config, **ops, most);
        Timed timed = timer.Run(fixed ? *exchanges->fixed : *exchanges->exact, rows, self.rank);
        double sum_us = 0;
        if (self.own_gpu && fixed) {
          timer.RunRecorded(*exchanges->fixed, rows, timed);
          sum_us = timer.RunSum(**world, rows);
        }
        out.push_back({{"rows", rows},
                       {"mode", fmt::format("{}, {}", fixed ? "fixed" : "exact", group.name)},
                       {"dispatch_us", timed.dispatch_us},
                       {"combine_us", timed.combine_us},
                       {"recorded_dispatch_us", timed.recorded_dispatch_us},
                       {"recorded_combine_us", timed.recorded_combine_us},
                       {"sum_us", sum_us},
                       {"dispatch_bytes", timed.dispatch_bytes},
                       {"combine_bytes", timed.combine_bytes}});
      }
    }
    EXPECT_TRUE((*ops)->Finish().ok());
  }
  std::ofstream(self.folder / fmt::format("times{}.json", self.rank)) << out.dump();
}

// What a rank sends to others in one layer, the mean over the ranks, takes at least as long as
// NVLink 4 needs for it: 450 GB/s each way.
constexpr double kLinkBytesPerUs = 450e3;

// Tables for people: bytes are the mean over the ranks, times the slowest rank's.
TEST(GroupWideTest, TimesOfDispatchAndCombineByTheBytesTheyMove) {
  if (const std::string why = WhyNot(); !why.empty()) GTEST_SKIP() << why;
  const int gpus = static_cast<int>(worker::GpusForRanks().size());
  fmt::print(
      "| ranks | mode | rows a rank | dispatch KiB | us | in a graph | combine KiB | us | in a "
      "graph "
      "| both in a graph / floor | a sum over the ranks, in a graph |\n");
  for (const int size : {2, 4, 8}) {
    if (gpus > 1 && size > gpus) continue;  // one GPU shows what sharing costs
    RankProcesses ranks("TimeExchange", size);
    ranks.ExpectSuccess(absl::Seconds(90));
    std::vector<Json> files;
    for (int rank = 0; rank < size; ++rank) {
      files.push_back(ReadJson(ranks.folder() / fmt::format("times{}.json", rank)));
      ASSERT_FALSE(files.back().is_discarded());
    }
    for (size_t row = 0; row < files[0].size(); ++row) {
      const auto mean = [&](const char* field) {
        double sum = 0;
        for (const Json& file : files) sum += file[row][field].get<double>();
        return sum / size;
      };
      const auto most = [&](const char* field) {
        double found = 0;
        for (const Json& file : files) found = std::max(found, file[row][field].get<double>());
        return found;
      };
      const double bytes = mean("dispatch_bytes") + mean("combine_bytes");
      EXPECT_GT(bytes, 0);
      EXPECT_GT(most("dispatch_us"), 0);
      const double recorded = most("recorded_dispatch_us") + most("recorded_combine_us");
      const auto or_none = [&](double value) {
        return recorded > 0 ? fmt::format("{:.1f}", value) : std::string("-");
      };
      fmt::print("| {} | {} | {} | {:.1f} | {:.0f} | {} | {:.1f} | {:.0f} | {} | {} | {} |\n", size,
                 files[0][row]["mode"].get<std::string>(), files[0][row]["rows"].get<int>(),
                 mean("dispatch_bytes") / 1024, most("dispatch_us"),
                 or_none(most("recorded_dispatch_us")), mean("combine_bytes") / 1024,
                 most("combine_us"), or_none(most("recorded_combine_us")),
                 or_none(recorded * kLinkBytesPerUs / bytes), or_none(most("sum_us")));
    }
  }
}

// --- Many steps. ---

constexpr int64_t kSteps = 10'000;
constexpr int kGroupSequences = 6;  // at most, at once
constexpr int kChunk = 16;

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

// Requests of two groups in turn: `prompt` and `tokens` of each group's i-th.
struct Batch {
  std::vector<TestRequest> requests;
  void Add(int prompt, int tokens) {
    TestRequest& request = requests.emplace_back();
    request.prompt.assign(prompt, 1 + static_cast<int>(requests.size()) % 400);
    request.max_tokens = tokens;
  }
};

// Every kind of step that random requests can make, often enough to be recorded: what a rank has to
// decode, beside what the other group decodes or has of a prompt, which sizes the exchange.
std::vector<Batch> EveryKind() {
  constexpr int kUntilRecorded = 4;
  std::vector<Batch> all;
  for (int first = 0; first <= kGroupSequences; ++first) {
    for (int second = 0; second <= kGroupSequences; ++second) {
      Batch& decode = all.emplace_back();
      for (int i = 0; i < std::max(first, second); ++i) {
        decode.Add(1, i < first ? kUntilRecorded : 1);
        decode.Add(1, i < second ? kUntilRecorded : 1);
      }
    }
  }
  for (const int swapped : {0, 1}) {
    for (int decoding = 0; decoding <= kGroupSequences; ++decoding) {
      for (int prompts = 1; prompts <= kGroupSequences; ++prompts) {
        Batch& mixed = all.emplace_back();
        for (int i = 0; i < std::max(decoding, prompts); ++i) {
          const int tokens = i < decoding ? kUntilRecorded : 1;
          const int prompt = i < prompts ? kUntilRecorded * kChunk : 1;
          mixed.Add(swapped ? prompt : 1, swapped ? 1 : tokens);
          mixed.Add(swapped ? 1 : prompt, swapped ? tokens : 1);
        }
      }
    }
  }
  return all;
}

class ManySteps {
 public:
  ManySteps(RankProcess& self, GroupRank& rank) : self_(self), rank_(rank) {}

  // In rounds: every kind of step is recorded; then random batches, of which none may be new; then
  // all graphs are destroyed. The first round also loads what libraries load late.
  void Run(const std::vector<ExchangeMode>& modes) {
    const std::vector<Batch> every_kind = EveryKind();
    while (rank_.steps() < kSteps && !testing::Test::HasFailure()) {
      rank_.ForgetRecorded();
      for (const ExchangeMode mode : modes) {
        for (const Batch& batch : every_kind) RunBatch(batch.requests, mode);
      }
      const int recorded = rank_.recorded();
      EXPECT_GT(recorded, kGroupSequences);
      Compare(recorded, "after every kind of step");
      const int64_t end = rank_.steps() + 1'000;
      while (rank_.steps() < end && !testing::Test::HasFailure()) {
        RunBatch(RandomRequests(), modes[Below(static_cast<int>(modes.size()))]);
      }
      EXPECT_EQ(rank_.recorded(), recorded) << "a step that was not among every kind";
      Compare(recorded, "after random batches");
    }
    EXPECT_GT(rounds_, 4);
  }

 private:
  int Below(int limit) { return static_cast<int>(random_() % limit); }

  void RunBatch(const std::vector<TestRequest>& requests, ExchangeMode mode) {
    const auto got = rank_.Run(requests, kChunk, mode);
    ASSERT_TRUE(got.ok()) << got.status();
  }

  // Ragged, the same on every rank.
  std::vector<TestRequest> RandomRequests() {
    std::vector<TestRequest> requests(1 + Below(2 * kGroupSequences));
    for (TestRequest& request : requests) {
      for (int i = Below(40); i >= 0; --i) request.prompt.push_back(1 + Below(400));
      request.max_tokens = 1 + Below(40);
      if (Below(2) == 0) request.sampling.set_temperature(0.8f);
      request.sampling.set_seed(Below(1000));
    }
    return requests;
  }

  // Device memory (of all ranks on this GPU) never passes what it was at the end of the second
  // round, the first whose graphs took the place of others. The host's allocator may keep a little.
  void Compare(int recorded, std::string_view when) {
    constexpr int64_t kHostSlackBytes = int64_t{4} << 20;
    // Ranks are within a step of each other: all have made what the slowest has.
    const int64_t device = DeviceBytesUsed();
    const int64_t host = HostBytesUsed();
    if (self_.rank == 0) {
      fmt::print("{} steps: device {:.2f} MiB, host {:.2f} MiB, {} graphs, {}\n", rank_.steps(),
                 device / 1048576.0, host / 1048576.0, recorded, when);
    }
    if (++rounds_ <= 4) {
      device_ = std::max(device_, device);
      host_ = host;
      return;
    }
    EXPECT_LE(device, device_) << "after " << rank_.steps() << " steps";
    EXPECT_LE(host, host_ + kHostSlackBytes) << "after " << rank_.steps() << " steps";
  }

  RankProcess& self_;
  GroupRank& rank_;
  std::mt19937 random_{11};
  int rounds_ = 0;  // halves of them
  int64_t device_ = 0;
  int64_t host_ = 0;
};

void RunManySteps(RankProcess& self) {
  GroupRankOptions options;
  options.dir = goldens::TinyModelDir();
  options.shape = ShapeFromEnvironment();
  options.rank = self.rank;
  const auto rank = GroupRank::Create(options, self.rendezvous);
  ASSERT_TRUE(rank.ok()) << rank.status();
  ManySteps(self, **rank).Run(ModesOf(options.shape));
}

TEST(GroupLeakTest, TenThousandStepsOfRandomRaggedBatchesLeaveMemoryFlat) {
  if (const std::string why = WhyNot(); !why.empty()) GTEST_SKIP() << why;
  for (const model::ParallelShape& shape : {model::ParallelShape{2, 1}, {2, 2}}) {
    SCOPED_TRACE(fmt::format("dp {} tp {}", shape.dp, shape.tp));
    fmt::print("dp {} tp {}, {} GPUs\n", shape.dp, shape.tp, worker::GpusForRanks().size());
    std::fflush(stdout);
    RankProcesses ranks("RunManySteps", shape.world(), {ShapeVariable(shape)});
    ranks.ExpectSuccess(absl::Seconds(400));
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
