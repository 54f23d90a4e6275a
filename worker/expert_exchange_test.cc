#include "worker/expert_exchange.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "gtest/gtest.h"

namespace conclave::worker {
namespace {

using kernels::DType;
using kernels::Tensor;

constexpr int kHidden = 40;
constexpr int kExperts = 16;
constexpr int kTopK = 4;
constexpr int kLayers = 2;
constexpr int64_t kPartialRowBytes = kHidden * sizeof(double);
// hidden, ids and weights, up to a multiple of 16.
constexpr int64_t kSlotBytes = (kHidden * 4 + kTopK * 4 + kTopK * 4 + 15) / 16 * 16;

model::Config TestConfig() {
  model::Config config;
  config.num_layers = kLayers;
  config.num_experts = kExperts;
  config.experts_per_token = kTopK;
  config.hidden_size = kHidden;
  config.intermediate_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 64;
  config.sliding_window = 16;
  config.context_length = 64;
  config.layer_types = {model::LayerType::kSliding, model::LayerType::kFull};
  return config;
}

enum class Mode { kFixed, kExact };

// Which ranks hold what, and how many tokens each dispatches.
struct Scenario {
  std::string name;
  model::Placement placement;
  std::vector<int> rows;
  int world() const { return placement.world; }
  int first_token(int rank) const { return std::accumulate(rows.begin(), rows.begin() + rank, 0); }
  int tokens() const { return first_token(world()); }
};

// Contiguous and as even as they get, written down independently of model/placement.
model::Placement Contiguous(int world) {
  model::Placement placement;
  placement.world = world;
  placement.layers.resize(kLayers);
  for (auto& layer : placement.layers) {
    for (int rank = 0; rank < world; ++rank) {
      const int count = kExperts / world + (rank < kExperts % world ? 1 : 0);
      for (int i = 0; i < count; ++i) layer.ranks_of_expert.push_back({rank});
    }
  }
  return placement;
}

std::vector<Scenario> Scenarios() {
  std::vector<Scenario> all = {
      {"one rank", Contiguous(1), {13}},
      {"two ranks", Contiguous(2), {7, 6}},
      {"16 experts over 3 ranks, one idle", Contiguous(3), {9, 0, 4}},
      {"four ranks, one busy", Contiguous(4), {0, 0, 13, 0}},
      {"nobody has tokens", Contiguous(2), {0, 0}},
  };
  Scenario replicas = {"replicas, and layers that differ", Contiguous(4), {5, 3, 4, 1}};
  replicas.placement.layers[0].ranks_of_expert[0] = {0, 1, 2, 3};
  replicas.placement.layers[0].ranks_of_expert[5] = {1, 3};
  replicas.placement.layers[0].ranks_of_expert[9] = {0, 2};
  std::reverse(replicas.placement.layers[1].ranks_of_expert.begin(),
               replicas.placement.layers[1].ranks_of_expert.end());
  all.push_back(replicas);
  return all;
}

// What a token is, whichever rank it is on.
struct Token {
  std::vector<float> hidden;
  std::vector<float> residual;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Token MakeToken(int layer, int index) {
  std::mt19937 random(layer * 1000 + index);
  std::uniform_real_distribution<float> value(-2, 2);
  Token token;
  for (int i = 0; i < kHidden; ++i) {
    token.hidden.push_back(value(random));
    token.residual.push_back(value(random));
  }
  std::vector<int32_t> experts(kExperts);
  std::iota(experts.begin(), experts.end(), 0);
  std::shuffle(experts.begin(), experts.end(), random);
  token.ids.assign(experts.begin(), experts.begin() + kTopK);
  for (int i = 0; i < kTopK; ++i) token.weights.push_back(std::abs(value(random)));
  return token;
}

float ExpertOutput(int expert, float hidden) {
  return hidden * (1.0f + 0.37f * static_cast<float>(expert)) - static_cast<float>(expert);
}

// sum over the chosen experts, ascending, of weight * y, rounded once onto the residual.
std::vector<float> Expected(const Token& token) {
  std::vector<int> order(kTopK);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return token.ids[a] < token.ids[b]; });
  std::vector<float> result = token.residual;
  for (int i = 0; i < kHidden; ++i) {
    double sum = 0;
    for (int j : order) {
      sum += static_cast<double>(token.weights[j]) * ExpertOutput(token.ids[j], token.hidden[i]);
    }
    result[i] = static_cast<float>(static_cast<double>(token.residual[i]) + sum);
  }
  return result;
}

// The expert ops, on plain memory. Fails when a copy asks for an expert that is not here.
void RunExperts(const kernels::ExpertTokens& tokens, const std::vector<int>& held, double* partial,
                int64_t max_rows) {
  int total = 0;
  for (int source = 0; source < tokens.num_sources; ++source) {
    total += tokens.count(source);
    for (int i = 0; i < tokens.count(source); ++i) {
      const int64_t slot = tokens.first_slot[source] + i;
      const int64_t row = tokens.first_output[source] + i;
      ASSERT_LT(row, max_rows);
      const auto* hidden =
          reinterpret_cast<const float*>(tokens.hidden + slot * tokens.hidden_stride);
      const auto* ids =
          reinterpret_cast<const int32_t*>(tokens.expert_ids + slot * tokens.expert_ids_stride);
      const auto* weights =
          reinterpret_cast<const float*>(tokens.weights + slot * tokens.weights_stride);
      double* out = partial + row * kHidden;
      std::fill(out, out + kHidden, 0.0);
      int computed = 0;
      for (size_t local = 0; local < held.size(); ++local) {
        for (int j = 0; j < kTopK; ++j) {
          if (ids[j] != held[local]) continue;
          ASSERT_EQ(tokens.local_index[ids[j]], static_cast<int32_t>(local));
          ++computed;
          for (int c = 0; c < kHidden; ++c) {
            out[c] += static_cast<double>(weights[j]) * ExpertOutput(held[local], hidden[c]);
          }
        }
      }
      ASSERT_GT(computed, 0) << "a copy was sent to a rank that computes nothing for it";
      ASSERT_EQ(std::count(ids, ids + kTopK, -1), kTopK - computed)
          << "a choice was sent to a rank that does not hold it";
    }
  }
  ASSERT_LE(total, tokens.max_copies);
}

// One rank of a scenario: every layer twice, then the totals.
class RankRun {
 public:
  RankRun(const Scenario& scenario, Mode mode, int bucket, Communicator& world)
      : scenario_(scenario), bucket_(bucket), world_(world), rows_(scenario.rows[world.rank()]) {
    ops_ = kernels::MakeCpuOps(config_, 2, {.threads = 1, .max_sequences = 1, .block_tokens = 16});
    const ExchangeOptions options = {.max_rows = 16};
    auto exchanges = MakeExpertExchanges(config_, scenario.placement, world, *ops_, options);
    EXPECT_TRUE(exchanges.ok()) << exchanges.status();
    exchange_ = std::move(mode == Mode::kFixed ? exchanges->fixed : exchanges->exact);
    copies_ = exchanges->copies;
  }

  void Run() {
    for (int round = 0; round < 2; ++round) {
      for (int layer = 0; layer < kLayers; ++layer) RunLayer(layer);
    }
  }
  ExchangeStats stats() const { return exchange_->stats(); }
  std::vector<uint64_t> copies() {
    std::vector<uint64_t> copies(copies_.rows);
    ops_->Read(copies_, copies.data());
    return copies;
  }

 private:
  void RunLayer(int layer) {
    std::vector<float> hidden, x, weights;
    std::vector<int32_t> ids;
    const int first = scenario_.first_token(world_.rank());
    for (int t = first; t < first + rows_; ++t) {
      const Token token = MakeToken(layer, t);
      hidden.insert(hidden.end(), token.hidden.begin(), token.hidden.end());
      x.insert(x.end(), token.residual.begin(), token.residual.end());
      ids.insert(ids.end(), token.ids.begin(), token.ids.end());
      weights.insert(weights.end(), token.weights.begin(), token.weights.end());
    }
    exchange_->SetBucket(bucket_);
    auto tokens = exchange_->Dispatch(
        layer, {hidden.data(), DType::kF32, rows_, kHidden},
        {{ids.data(), DType::kI32, rows_, kTopK}, {weights.data(), DType::kF32, rows_, kTopK}});
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    std::vector<double> partial(exchange_->max_output_rows() * kHidden, 1e300);
    RunExperts(*tokens, scenario_.placement.layers[layer].ExpertsOf(world_.rank()), partial.data(),
               exchange_->max_output_rows());
    absl::Status combined =
        exchange_->Combine({partial.data(), DType::kF64, exchange_->max_output_rows(), kHidden},
                           {x.data(), DType::kF32, rows_, kHidden});
    ASSERT_TRUE(combined.ok()) << combined;
    for (int t = 0; t < rows_; ++t) {
      const std::vector<float> expected = Expected(MakeToken(layer, first + t));
      ASSERT_EQ(std::memcmp(expected.data(), x.data() + t * kHidden, kHidden * sizeof(float)), 0)
          << scenario_.name << ", layer " << layer << ", token " << first + t;
    }
  }

  const model::Config config_ = TestConfig();
  const Scenario& scenario_;
  const int bucket_;
  Communicator& world_;
  const int rows_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<ExpertExchange> exchange_;
  kernels::Tensor copies_;
};

// Copies from rank `from` to rank `to` in one pass over the layers, counted token by token.
int64_t CopiesBetween(const Scenario& scenario, int from, int to) {
  int64_t copies = 0;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int t = 0; t < scenario.rows[from]; ++t) {
      std::set<int> destinations;
      for (int32_t id : MakeToken(layer, scenario.first_token(from) + t).ids) {
        const std::vector<int>& holders = scenario.placement.layers[layer].ranks_of_expert[id];
        const bool here = std::find(holders.begin(), holders.end(), from) != holders.end();
        destinations.insert(here ? from : holders[from % holders.size()]);
      }
      copies += destinations.count(to);
    }
  }
  return copies;
}

void CheckCounts(const Scenario& scenario, Mode mode, int bucket, int rank,
                 const ExchangeStats& stats, const std::vector<uint64_t>& copies) {
  const int64_t calls = 2 * kLayers;
  for (int peer = 0; peer < scenario.world(); ++peer) {
    SCOPED_TRACE(fmt::format("{}, rank {} to {}", scenario.name, rank, peer));
    const int64_t sent = 2 * CopiesBetween(scenario, rank, peer);  // two rounds
    const int64_t received = 2 * CopiesBetween(scenario, peer, rank);
    EXPECT_EQ(copies[peer], static_cast<uint64_t>(sent));
    if (peer == rank) {
      EXPECT_EQ(stats.bytes_to[peer], 0);
    } else if (mode == Mode::kExact) {
      EXPECT_EQ(stats.bytes_to[peer], sent * kSlotBytes + received * kPartialRowBytes + calls * 4);
    } else {
      EXPECT_EQ(stats.bytes_to[peer],
                calls * ((1 + bucket) * kSlotBytes + bucket * kPartialRowBytes));
    }
  }
}

void RunScenario(const Scenario& scenario, Mode mode, int bucket) {
  auto rendezvous = MakeLocalRendezvous();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < scenario.world(); ++rank) {
    ranks.emplace_back([&, rank] {
      const GlooOptions options = {.interface = "lo", .hostname = "", .cancelled = {}};
      auto world = ConnectGloo("world", rank, scenario.world(), *rendezvous, options);
      ASSERT_TRUE(world.ok()) << world.status();
      RankRun run(scenario, mode, bucket, **world);
      run.Run();
      CheckCounts(scenario, mode, bucket, rank, run.stats(), run.copies());
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

TEST(ExpertExchange, FixedModeGivesTheSingleRankResultWithOneCopyPerDestination) {
  for (const Scenario& scenario : Scenarios()) {
    for (int bucket : {13, 16}) RunScenario(scenario, Mode::kFixed, bucket);
  }
}

TEST(ExpertExchange, ExactModeGivesTheSingleRankResultWithOneCopyPerDestination) {
  for (const Scenario& scenario : Scenarios()) RunScenario(scenario, Mode::kExact, 0);
}

TEST(ExpertExchange, MoreRowsThanTheBucketAreAnError) {
  auto rendezvous = MakeLocalRendezvous();
  auto world =
      ConnectGloo("world", 0, 1, *rendezvous, {.interface = "lo", .hostname = "", .cancelled = {}});
  ASSERT_TRUE(world.ok()) << world.status();
  const model::Config config = TestConfig();
  auto ops = kernels::MakeCpuOps(config, 2, {.threads = 1, .max_sequences = 1, .block_tokens = 16});
  const auto exchanges = MakeExpertExchanges(config, Contiguous(1), **world, *ops, {.max_rows = 8});
  ASSERT_TRUE(exchanges.ok()) << exchanges.status();
  ExpertExchange& exchange = *exchanges->fixed;
  std::vector<float> hidden(5 * kHidden);
  std::vector<int32_t> ids(5 * kTopK);
  std::vector<float> weights(5 * kTopK);
  const kernels::Routing routing = {{ids.data(), DType::kI32, 5, kTopK},
                                    {weights.data(), DType::kF32, 5, kTopK}};
  for (int bucket : {4, 9}) {
    exchange.SetBucket(bucket);
    EXPECT_EQ(
        exchange.Dispatch(0, {hidden.data(), DType::kF32, 5, kHidden}, routing).status().code(),
        absl::StatusCode::kInternal);
  }
}

}  // namespace
}  // namespace conclave::worker
