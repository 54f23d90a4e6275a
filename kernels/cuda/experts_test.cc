// The expert kernels against float64 from the same weights: every kernel, on every shape of tokens
// that an exchange can deliver.

#include "kernels/cuda/experts.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/experts_fixture.h"
#include "kernels/cuda/mxfp4_layout.h"

namespace conclave::kernels::cuda {
namespace {

using reference::RandomData;
using reference::Vector;
using ::testing::HasSubstr;

class ExpertsTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = NoGpu();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

// The same sums, added to x and rounded once; rows that nobody sums are left alone.
void ExpectResidual(const Result& result, Layer& layer) {
  std::vector<uint16_t> x(result.partial.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(0x3F80 + i * 7 % 256);
  std::vector<uint16_t> expected = x;
  for (size_t i = 0; i < x.size(); ++i) {
    if (result.partial[i] == kPoison32) continue;
    const auto sum = static_cast<float>(reference::FromBf16(x[i])) + AsFloat(result.partial[i]);
    expected[i] = reference::ToBf16(sum);
  }
  EXPECT_EQ(layer.Residual(x), expected);
}

class ExpertCaseTest : public ExpertsTest, public testing::WithParamInterface<Case> {};

TEST_P(ExpertCaseTest, EveryKernelAgreesWithFloat64AndRepeatsItsBits) {
  const Case& test = GetParam();
  const ExpertShape shape = ShapeOf(test);
  const Experts experts(shape, test.num_local, test.dense, 1, test.first_scale);
  Exchange exchange(test, shape, 2);
  const auto weights = Load(experts);
  EXPECT_EQ(weights->format(), test.dense ? "bf16" : "mxfp4");
  EXPECT_EQ(weights->num_local(), test.num_local);
  const Reference reference(experts);
  const Expected expected(shape, exchange, reference);
  Layer layer(shape, exchange, *weights);
  const bool float_results = exchange.rows() * shape.experts_per_token <= 1024;

  std::vector<std::pair<std::string, std::optional<ExpertPlan>>> plans = {{"table", std::nullopt}};
  if (!test.dense) {
    plans.emplace_back("stream 8", Stream(1, 5, 4, 2));
    plans.emplace_back("stream 8, 3 chunks", Stream(1, 3, 3, 1));
    plans.emplace_back("stream 16", Stream(2, 5, 5, 1));
    plans.emplace_back("stream 16, 3 chunks", Stream(2, 3, 8, 1));
    plans.emplace_back("stream 24", Stream(3, 5, 2, 1));
    plans.emplace_back("tile", Tile());
  }
  for (const auto& [name, plan] : plans) {
    layer.kernels().Force(plan);
    const ExpertPlan chosen = layer.kernels().Choose(*weights, exchange.Tokens());
    if (plan.has_value() && plan->kernel != chosen.kernel) continue;  // too large for it
    SCOPED_TRACE(name + ": " + std::string(Name(chosen.kernel)));
    const Result first = layer.Run();
    expected.Check(first, layer.device_activations(), float_results);
    EXPECT_EQ(exchange.TakeLoad(), exchange.ExpectedLoad());
    const Result second = layer.Run();
    EXPECT_EQ(first.activations, second.activations);
    EXPECT_EQ(first.partial, second.partial);
    exchange.TakeLoad();
    ExpectResidual(first, layer);
    EXPECT_EQ(exchange.TakeLoad(), exchange.ExpectedLoad());
    if (HasFailure()) return;
  }
  EXPECT_TRUE(exchange.Unchanged());
}

std::vector<Case> Cases() {
  std::vector<Case> out;
  // Sizes that are multiples of 32 alone, one chunk and less, more than one group.
  out.push_back({.name = "Tiny", .hidden = 32, .intermediate = 32, .counts = {1}});
  out.push_back({.name = "Small", .counts = {13}});
  out.push_back({.name = "OddBlocks", .hidden = 352, .intermediate = 416, .counts = {7, 0, 5}});
  out.push_back({.name = "ThreeAndSixGroups",
                 .hidden = 960,
                 .intermediate = 1888,
                 .num_local = 3,
                 .counts = {2, 19}});
  out.push_back({.name = "Ragged",
                 .hidden = 160,
                 .intermediate = 672,
                 .num_local = 5,
                 .counts = {3, 0, 17, 1, 0}});
  out.push_back({.name = "NothingArrived", .counts = {0, 0}});
  out.push_back({.name = "OneExpertHasAll", .counts = {64}, .one_expert = true});
  out.push_back({.name = "OneExpertHasAllOfMany",
                 .hidden = 320,
                 .intermediate = 192,
                 .counts = {700, 1, 300},
                 .one_expert = true});
  out.push_back({.name = "NoLocalChoices", .num_experts = 64, .num_local = 2, .counts = {40}});
  out.push_back({.name = "ManySources",
                 .num_local = 9,
                 .counts = {0, 3, 1, 0, 2, 5, 0, 0, 1, 4, 0, 2, 1, 1, 1, 0, 2, 3,
                            0, 0, 0, 1, 2, 0, 0, 6, 0, 1, 0, 0, 0, 2, 1, 0, 1, 3}});
  out.push_back({.name = "MoreThan2880Columns",
                 .hidden = 3200,
                 .intermediate = 2912,
                 .num_local = 4,
                 .counts = {9}});
  for (const int rows : {1, 7, 64, 257, 2048}) {
    Case released;
    released.name = "Released" + std::to_string(rows);
    released.hidden = released.intermediate = 2880;
    released.num_experts = 16;
    released.num_local = 5;
    released.counts = {rows};
    out.push_back(released);
  }
  out.push_back({.name = "LargeScales", .hidden = 96, .counts = {30}, .first_scale = 125});
  out.push_back({.name = "SmallScales", .hidden = 96, .counts = {30}, .first_scale = 0});
  out.push_back({.name = "DenseSmall", .counts = {13, 2}, .dense = true});
  // A wrong transpose of `down` fits the shapes.
  out.push_back({.name = "DenseSquare",
                 .hidden = 416,
                 .intermediate = 416,
                 .num_local = 6,
                 .counts = {150, 0, 33},
                 .dense = true});
  out.push_back({.name = "DenseMany", .counts = {600}, .dense = true, .one_expert = true});
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, ExpertCaseTest, testing::ValuesIn(Cases()),
                         [](const auto& param) { return param.param.name; });

// Rows whose scales need lowering, blocks of one row far apart, every byte.
TEST_F(ExpertsTest, PackedMatricesDecodeExactlyAtTheEdgesOfTheScales) {
  ExpertShape shape = ShapeOf({.hidden = 416, .intermediate = 96});
  Experts experts(shape, 1, false, 3, 118);
  const int64_t blocks = shape.hidden / 32;
  RandomData random(4);
  for (int64_t row = 0; row < 2 * shape.intermediate; ++row) {
    const int base = static_cast<int>(row * 248 / (2 * shape.intermediate - 1));
    for (int64_t b = 0; b < blocks; ++b) {
      experts.gate_up_scales[row * blocks + b] = static_cast<uint8_t>(base + random.Below(5));
    }
    if (row % 10 == 0) experts.gate_up_scales[row * blocks] = 252;
    if (row % 10 == 5) experts.gate_up_scales[row * blocks] = 0;
  }
  const auto weights = Load(experts);
  const MatrixArgs& matrix = weights->gate_up();
  const int64_t rows = int64_t{matrix.tiles} * kTileRows;
  const OnDevice out(std::vector<float>(rows * shape.hidden, std::nanf("")));
  UnpackMatrix(matrix, matrix.tiles, out.data());
  const std::vector<float> values = out.Read();
  for (int64_t at = 0; at < rows; ++at) {
    const int64_t row = SourceRow(at / kTileRows, static_cast<int>(at % kTileRows), true);
    const uint8_t* scales = experts.gate_up_scales.data() + row * blocks;
    const int largest = *std::max_element(scales, scales + blocks);
    for (int64_t c = 0; c < shape.hidden; ++c) {
      const double expected =
          reference::Mxfp4Value(experts.gate_up_blocks.data() + row * shape.hidden / 2, scales, c);
      const double actual = values[at * shape.hidden + c];
      if (scales[c / 32] - RowShift(largest) >= -5) {
        ASSERT_EQ(actual, expected) << "row " << row << ", column " << c;
      } else {
        ASSERT_LE(std::abs(actual - expected), std::ldexp(1.0, largest - 127 - 120));
      }
    }
  }
}

// The float64 product on the device, against the definition in plain C++.
TEST_F(ExpertsTest, TheReferenceIsTheDefinition) {
  const ExpertShape shape = ShapeOf({.hidden = 96, .intermediate = 64});
  for (const bool dense : {false, true}) {
    const Experts experts(shape, 3, dense, 5, 118);
    RandomData random(6);
    const std::vector<uint16_t> x = random.Bf16(shape.hidden, 1);
    const OnDevice input(x);
    const std::vector<double> actual = Reference(experts).Product(0, {2}, {input.data()});
    const HostExpert host = experts.Host()[2];
    const int64_t rows = 2 * shape.intermediate;
    const Vector expected = reference::Linear(
        rows,
        [&](int64_t r, int64_t c) {
          if (dense) return reference::FromBf16(host.gate_up_dense[c * rows + r]);
          return reference::Mxfp4Value(host.gate_up_blocks + r * shape.hidden / 2,
                                       host.gate_up_scales + r * shape.hidden / 32, c);
        },
        reference::Bf16ToVector({host.gate_up_bias, static_cast<size_t>(rows)}),
        reference::Bf16ToVector(x));
    EXPECT_LT(reference::RelativeError(actual.data(), expected), 1e-14);
  }
}

// A captured graph finds its numbers in device memory: later steps may have other tokens.
TEST_F(ExpertsTest, ACapturedGraphComputesWhateverTokensArriveNext) {
  for (const int rows : {3, 200, 900}) {
    SCOPED_TRACE(rows);
    const Case test = {.hidden = 352, .intermediate = 320, .counts = {rows, 2 * rows / 3}};
    const ExpertShape shape = ShapeOf(test);
    const Experts experts(shape, test.num_local, false, 7, 118);
    Exchange exchange(test, shape, 8);
    const auto weights = Load(experts);
    const Reference reference(experts);
    Layer layer(shape, exchange, *weights);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(layer.stream(), cudaStreamCaptureModeThreadLocal),
              cudaSuccess);
    layer.Enqueue();
    layer.Enqueue();
    ASSERT_EQ(cudaStreamEndCapture(layer.stream(), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    for (const int left : {rows, rows / 2, 0}) {
      exchange.Shrink(0, left);
      layer.Poison();
      ASSERT_EQ(cudaGraphLaunch(executable, layer.stream()), cudaSuccess);
      Expected(shape, exchange, reference)
          .Check(layer.Results(), layer.device_activations(), exchange.rows() * 4 <= 1024);
      std::vector<uint64_t> twice = exchange.ExpectedLoad();
      for (uint64_t& pairs : twice) pairs *= 2;
      EXPECT_EQ(exchange.TakeLoad(), twice);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

// A set made of kept experts and loaded ones is the set that loads all, and asks nothing of the
// host for those it keeps.
TEST_F(ExpertsTest, KeptExpertsAreCopiedOnTheDevice) {
  for (const bool dense : {false, true}) {
    SCOPED_TRACE(dense ? "dense" : "mxfp4");
    const Case test = {.hidden = 96, .intermediate = 64, .num_local = 3, .counts = {9}};
    const ExpertShape shape = ShapeOf(test);
    const Experts experts(shape, 5, dense, 11, 118);
    const std::vector<HostExpert> all = experts.Host();
    base::ThreadPool pool(2);
    ExpertStaging staging;
    const auto load = [&](const std::vector<HostExpert>& host, const KeptExperts& kept) {
      auto loaded = LoadExpertWeights(shape, host, kept, pool, staging);
      EXPECT_TRUE(loaded.ok()) << loaded.status();
      return *std::move(loaded);
    };
    const auto before = load({all[0], all[1], all[4]}, {});
    std::vector<HostExpert> wanted = {all[1], all[3], all[4]};
    const auto fresh = load(wanted, {});
    // Null but where the format is told.
    for (const int kept : {0, 2}) {
      wanted[kept] = {};
      if (dense) wanted[kept].gate_up_dense = all[0].gate_up_dense;
    }
    const std::vector<int> index = {1, -1, 2};
    const auto moved = load(wanted, {.from = before.get(), .index = index});
    const Exchange exchange(test, shape, 12);
    const Result expected = Layer(shape, exchange, *fresh).Run();
    const Result result = Layer(shape, exchange, *moved).Run();
    EXPECT_EQ(result.activations, expected.activations);
    EXPECT_EQ(result.partial, expected.partial);
  }
}

TEST_F(ExpertsTest, LoadingNamesAScaleThatOverflows) {
  const ExpertShape shape = ShapeOf({.hidden = 96, .intermediate = 64});
  Experts experts(shape, 3, false, 9, 118);
  experts.down_scales[(96 + 5) * 2 + 1] = 253;  // expert 1
  base::ThreadPool pool(1);
  ExpertStaging staging;
  const auto loaded = LoadExpertWeights(shape, experts.Host(), {}, pool, staging);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(loaded.status().message()),
              HasSubstr("local expert 1, down row 5, block 1: MXFP4 scale byte 253"));
}

TEST(ExpertPlanTest, ShapesThatNoKernelTakesAreRefused) {
  ExpertShape shape = ShapeOf({});
  shape.hidden = 48;
  EXPECT_EQ(ExpertKernels::Make(shape, 8).status().code(), absl::StatusCode::kInvalidArgument);
  shape = ShapeOf({});
  shape.experts_per_token = 17;
  EXPECT_EQ(ExpertKernels::Make(shape, 8).status().code(), absl::StatusCode::kInvalidArgument);
  shape = ShapeOf({});
  EXPECT_EQ(ExpertKernels::Make(shape, 40000).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace conclave::kernels::cuda
