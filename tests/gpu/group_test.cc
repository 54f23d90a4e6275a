// The tiny checkpoint over several GPU ranks, a process each, which share one GPU and exchange over
// NCCL: what they compute is what one rank computes.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/goldens/goldens.h"
#include "tests/gpu/agreement.h"
#include "tests/gpu/group_files.h"
#include "tests/gpu/group_rank.h"
#include "tests/gpu/offline_model.h"
#include "worker/nccl_communicator.h"
#include "worker/rank_processes.h"

namespace conclave::gpu {
namespace {

using internal::v1::EXCHANGE_MODE_UNSPECIFIED;
using internal::v1::ExchangeMode;
using worker::RankProcess;
using worker::RankProcesses;

// Two bf16 engines with routing forced may differ by 7 % and half a standard deviation; these
// differ in where a sum is rounded alone (measured: 0.4 %, 0.03).
constexpr double kRelativeLimit = 0.02;
constexpr double kWorstLimit = 0.15;  // standard deviations
// Below this, the best two logits may change places.
constexpr double kTokenMargin = 0.5;

constexpr int kChunk = 16;
constexpr int kSequenceHead = 0;
constexpr int kTokenHead = 1;
constexpr char kShape[] = "CONCLAVE_GROUP_SHAPE";
constexpr char kRequests[] = "CONCLAVE_GROUP_REQUESTS";

// --- A rank. ---

// Name of a run: which requests, in which mode, with steps recorded as graphs or not.
std::string RunName(bool forced, ExchangeMode mode, bool record) {
  return fmt::format("{} {} {}", forced ? "forced" : "free", NameOf(mode),
                     record ? "recorded" : "eager");
}

std::string ResultFile(int group) { return fmt::format("results{}.json", group); }

// All requests in all modes; the tp rank 0 of each group writes what it got.
void RunModes(RankProcess& self) {
  GroupRankOptions options;
  const std::string dir = goldens::TinyModelDir();
  options.dir = dir;
  options.heads = {{"sequence", dir + "/head_sequence"}, {"token", dir + "/head_token"}};
  const std::string shape = std::getenv(kShape);
  options.shape = {.dp = shape[0] - '0', .tp = shape[1] - '0'};
  options.rank = self.rank;
  const Json requests = ReadJson(std::getenv(kRequests));
  const std::vector<TestRequest> forced = RequestsFrom(requests.at("forced"));
  const std::vector<TestRequest> free = RequestsFrom(requests.at("free"));
  Json results;
  for (const bool record : {false, true}) {
    options.record_steps = record;
    options.epoch = record ? "recorded/" : "eager/";
    const auto rank = GroupRank::Create(options, self.rendezvous);
    ASSERT_TRUE(rank.ok()) << rank.status();
    for (const ExchangeMode mode : ModesOf(options.shape)) {
      const auto run = [&](const std::vector<TestRequest>& wanted, bool is_forced) {
        const auto got = (*rank)->Run(wanted, kChunk, mode);
        EXPECT_TRUE(got.ok()) << got.status();
        if (got.ok()) results[RunName(is_forced, mode, record)] = ToJson(*got);
        return got.ok();
      };
      if (!record && !run(forced, true)) return;
      if (!run(free, false)) return;
    }
  }
  if (options.shape.tp_rank(self.rank) != 0) return;
  std::ofstream(self.folder / ResultFile(options.shape.dp_rank(self.rank))) << results.dump();
}

// --- The tests. ---

// The prompt, then the golden's own continuation.
std::vector<int> WithContinuation(const goldens::Generation& golden) {
  std::vector<int> ids = golden.prompt;
  ids.insert(ids.end(), golden.greedy.begin(), golden.greedy.end() - 1);
  return ids;
}

// [positions, layers, k], as a plan carries it.
std::vector<uint32_t> ForPlan(const Trace& trace, size_t rows, int k) {
  std::vector<uint32_t> out;
  for (size_t row = 0; row < rows; ++row) {
    for (const std::vector<int32_t>& layer : trace.expert_ids) {
      out.insert(out.end(), layer.begin() + row * k, layer.begin() + (row + 1) * k);
    }
  }
  return out;
}

// With the routing of the CPU's float32: continuations, and heads at every position.
std::vector<TestRequest> ForcedRequests(const std::vector<goldens::Generation>& goldens) {
  const std::string dir = goldens::TinyModelDir();
  const auto cpu = OfflineModel::Create({.dir = dir, .max_tokens = 1024});
  EXPECT_TRUE(cpu.ok()) << cpu.status();
  std::vector<TestRequest> out;
  if (!cpu.ok()) return out;
  for (const goldens::Generation& golden : goldens) {
    const std::vector<int> ids = WithContinuation(golden);
    const auto trace = (*cpu)->Run({.ids = ids});
    EXPECT_TRUE(trace.ok()) << trace.status();
    if (!trace.ok()) return {};
    const auto routing = ForPlan(*trace, ids.size(), (*cpu)->config().experts_per_token);
    TestRequest& generate =
        out.emplace_back(TestRequest{.prompt = golden.prompt,
                                     .max_tokens = static_cast<int>(golden.greedy.size()),
                                     .forced_expert_ids = routing});
    generate.sampling.set_logprobs(kernels::kMaxLogprobs);
    out.push_back({.prompt = ids, .head = kTokenHead, .forced_expert_ids = routing});
  }
  return out;
}

// Greedy and with everything on, and of few tokens, so that most steps are decode steps.
std::vector<TestRequest> FreeRequests(const std::vector<goldens::Generation>& goldens) {
  std::vector<TestRequest> out;
  for (size_t i = 0; i < 5; ++i) {
    TestRequest& request = out.emplace_back();
    const std::vector<int>& ids = goldens[i % goldens.size()].prompt;
    request.prompt.assign(ids.begin(), ids.begin() + std::min(ids.size(), 3 + 2 * i));
    request.max_tokens = 12 + static_cast<int>(i);
    if (i % 2 == 0) continue;
    request.sampling.set_temperature(1.1f);
    request.sampling.set_top_p(0.95f);
    request.sampling.set_top_k(100);
    request.sampling.set_seed(i);
    request.sampling.set_logprobs(static_cast<int>(i));
  }
  out.push_back({.prompt = goldens[0].prompt, .head = kSequenceHead});
  return out;
}

using Runs = std::map<std::string, std::vector<TestResult>>;

class GroupTest : public testing::TestWithParam<model::ParallelShape> {
 protected:
  static void SetUpTestSuite() {
    if (!WhyNot().empty()) return;
    goldens_ = new std::vector<goldens::Generation>(goldens::LoadGenerations());
    const std::string file = RequestFile();
    const Json requests = {{"forced", ToJson(ForcedRequests(*goldens_))},
                           {"free", ToJson(FreeRequests(*goldens_))}};
    std::ofstream(file) << requests.dump();
    one_ = new Runs(Run({1, 1}));
  }
  static void TearDownTestSuite() {
    std::filesystem::remove(RequestFile());
    delete one_;
    delete goldens_;
  }
  void SetUp() override {
    if (const std::string why = WhyNot(); !why.empty()) GTEST_SKIP() << why;
    ASSERT_FALSE(one_->empty());
  }

  static std::string WhyNot() {
    if (std::string why = WhyNoGpu(); !why.empty()) return why;
    const auto nccl = worker::NcclVersion();
    return nccl.ok() ? "" : std::string(nccl.status().message());
  }
  static std::string RequestFile() {
    return fmt::format("{}/group_requests_{}.json", testing::TempDir(), getpid());
  }
  static Runs Run(const model::ParallelShape& shape);

  static std::vector<goldens::Generation>* goldens_;
  static Runs* one_;  // of one rank
};
std::vector<goldens::Generation>* GroupTest::goldens_ = nullptr;
Runs* GroupTest::one_ = nullptr;

Runs GroupTest::Run(const model::ParallelShape& shape) {
  RankProcesses ranks("RunModes", shape.world(),
                      {fmt::format("{}={}{}", kShape, shape.dp, shape.tp),
                       fmt::format("{}={}", kRequests, RequestFile())});
  ranks.ExpectSuccess(absl::Seconds(120));
  std::vector<Json> groups;
  for (int group = 0; group < shape.dp; ++group) {
    groups.push_back(ReadJson(ranks.folder() / ResultFile(group)));
    if (groups.back().is_discarded()) return {};
  }
  Runs runs;
  for (const auto& [name, first] : groups[0].items()) {
    std::vector<std::vector<TestResult>> parts;
    size_t count = 0;
    for (const Json& group : groups) {
      parts.push_back(ResultsFrom(group.at(name)));
      count += parts.back().size();
    }
    for (size_t i = 0; i < count; ++i) {
      runs[name].push_back(parts[i % shape.dp][i / shape.dp]);
    }
  }
  return runs;
}

double Deviation(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (const float value : values) {
    sum += value;
    squares += double{value} * value;
  }
  const double mean = sum / static_cast<double>(values.size());
  return std::sqrt(squares / static_cast<double>(values.size()) - mean * mean);
}

// Greedy tokens, and the log-probabilities of the best, as long as both went the same way.
void ExpectSameContinuation(const TestResult& got, const TestResult& want,
                            const goldens::Generation& golden, double& worst, int& compared) {
  const double deviation = Deviation(golden.last_logits);
  ASSERT_EQ(got.tokens.size(), want.tokens.size());
  for (size_t step = 0; step < want.tokens.size(); ++step) {
    const std::map<int, float> reference(want.top[step].begin(), want.top[step].end());
    for (const auto& [id, logprob] : got.top[step]) {
      const auto found = reference.find(id);
      if (found == reference.end()) continue;
      worst = std::max(worst, std::fabs(double{logprob} - found->second) / deviation);
    }
    ++compared;
    const double margin = want.top[step][0].second - want.top[step][1].second;
    if (got.tokens[step] == want.tokens[step]) continue;
    EXPECT_LT(margin, kTokenMargin) << "step " << step;
    return;
  }
}

bool SameResult(const TestResult& a, const TestResult& b) {
  return a.tokens == b.tokens && a.logprobs == b.logprobs && a.top == b.top &&
         a.head_logits == b.head_logits;
}

bool SameResults(const std::vector<TestResult>& a, const std::vector<TestResult>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), SameResult);
}

TEST_P(GroupTest, RanksAgreeWithOneRankInEveryModeAndGraphsChangeNoBit) {
  Runs runs = Run(GetParam());
  ASSERT_FALSE(runs.empty());
  const std::vector<TestResult>& want = (*one_)[RunName(true, EXCHANGE_MODE_UNSPECIFIED, false)];
  for (const ExchangeMode mode : ModesOf(GetParam())) {
    SCOPED_TRACE(NameOf(mode));
    const std::vector<TestResult>& got = runs[RunName(true, mode, false)];
    ASSERT_EQ(got.size(), want.size());
    std::vector<float> head_got, head_want;
    double worst = 0;
    int compared = 0;
    for (size_t i = 0; i < want.size(); i += 2) {
      SCOPED_TRACE(testing::Message() << "prompt of " << (*goldens_)[i / 2].prompt.size());
      ExpectSameContinuation(got[i], want[i], (*goldens_)[i / 2], worst, compared);
      head_got.insert(head_got.end(), got[i + 1].head_logits.begin(), got[i + 1].head_logits.end());
      head_want.insert(head_want.end(), want[i + 1].head_logits.begin(),
                       want[i + 1].head_logits.end());
    }
    EXPECT_LE(worst, kWorstLimit) << "log-probabilities, in standard deviations";
    EXPECT_GT(compared, 40);
    ASSERT_EQ(head_got.size(), head_want.size());
    const Agreement heads = Compare(head_got, head_want, static_cast<int64_t>(head_want.size()));
    EXPECT_LE(heads.relative_rms, kRelativeLimit);
    EXPECT_LE(heads.worst, kWorstLimit);
    fmt::print(
        "dp {} tp {} {}: heads at every position {:.2e} relative RMS, worst {:.3f} sd; {} "
        "steps, log-probabilities worst {:.3f} sd{}\n",
        GetParam().dp, GetParam().tp, NameOf(mode), heads.relative_rms, heads.worst, compared,
        worst, SameResults(got, want) ? "; bits of one rank" : "");
    const std::vector<TestResult>& recorded = runs[RunName(false, mode, true)];
    EXPECT_EQ(recorded.size(), FreeRequests(*goldens_).size());
    EXPECT_TRUE(SameResults(recorded, runs[RunName(false, mode, false)]))
        << "steps recorded as graphs gave other bits than eager ones";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GroupTest,
                         testing::Values(model::ParallelShape{1, 1}, model::ParallelShape{2, 1},
                                         model::ParallelShape{4, 1}, model::ParallelShape{1, 2},
                                         model::ParallelShape{2, 2}),
                         [](const auto& shape) {
                           return fmt::format("Dp{}Tp{}", shape.param.dp, shape.param.tp);
                         });

}  // namespace
}  // namespace conclave::gpu

int main(int argc, char** argv) {
  return conclave::worker::RunTests(argc, argv, {{"RunModes", conclave::gpu::RunModes}});
}
