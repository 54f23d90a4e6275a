#include "tests/gpu/offline_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/status_macros.h"
#include "model/checkpoint.h"

namespace conclave::gpu {
namespace {

constexpr int kBlockTokens = 16;
constexpr auto kMode = internal::v1::EXCHANGE_MODE_UNSPECIFIED;  // one rank exchanges nothing

template <typename T>
void Append(const std::vector<T>& part, std::vector<T>& whole) {
  whole.insert(whole.end(), part.begin(), part.end());
}

template <typename T>
void AppendEach(const std::vector<std::vector<T>>& part, std::vector<std::vector<T>>& whole) {
  whole.resize(part.size());
  for (size_t i = 0; i < part.size(); ++i) Append(part[i], whole[i]);
}

void AppendRows(const Trace& part, Trace& whole) {
  Append(part.logits, whole.logits);
  AppendEach(part.hidden, whole.hidden);
  AppendEach(part.normed, whole.normed);
  AppendEach(part.expert_ids, whole.expert_ids);
  AppendEach(part.expert_weights, whole.expert_weights);
}

// Rows [begin, begin + rows) of each layer, `cols` values to a row.
template <typename T>
std::vector<std::vector<T>> SliceRows(const std::vector<std::vector<T>>& layers, int64_t begin,
                                      int64_t rows, int64_t cols) {
  std::vector<std::vector<T>> out;
  for (const std::vector<T>& layer : layers) {
    const auto first = layer.begin() + begin * cols;
    out.emplace_back(first, first + rows * cols);
  }
  return out;
}

// INVALID_ARGUMENT unless `parts` is empty or one part of `size` for each layer.
template <typename T>
absl::Status CheckLayers(const char* what, const std::vector<std::vector<T>>& parts, int layers,
                         int64_t size) {
  if (parts.empty()) return absl::OkStatus();
  if (static_cast<int>(parts.size()) != layers) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} layers of {}", what, parts.size(), layers));
  }
  for (const std::vector<T>& part : parts) {
    if (static_cast<int64_t>(part.size()) == size) continue;
    return absl::InvalidArgumentError(
        fmt::format("{}: {} values in a layer, not {}", what, part.size(), size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<OfflineModel>> OfflineModel::Create(const OfflineOptions& options) {
  std::unique_ptr<OfflineModel> model(new OfflineModel);
  RETURN_IF_ERROR(model->Load(options));
  return model;
}

absl::Status OfflineModel::Load(const OfflineOptions& options) {
  ASSIGN_OR_RETURN(config_, model::LoadConfig(options.dir));
  ASSIGN_OR_RETURN(auto checkpoint, model::Checkpoint::Open(options.dir, config_));
  placement_ = model::BalancedPlacement(config_, 1);
  limits_.max_step_tokens = options.max_step_tokens;
  limits_.max_sequences = options.max_sequences;
  limits_.full_blocks =
      (options.max_tokens + kBlockTokens - 1) / kBlockTokens + options.max_sequences;
  limits_.sliding_blocks = limits_.full_blocks;
  ASSIGN_OR_RETURN(ops_, MakeDeviceOps(config_, {.device = options.device,
                                                 .threads = options.threads,
                                                 .max_sequences = options.max_sequences,
                                                 .max_step_tokens = options.max_step_tokens,
                                                 .max_blocks = limits_.full_blocks,
                                                 .record_steps = options.record_steps}));
  worker::WeightsRequest request;
  request.placement = &placement_;
  request.heads = options.heads;
  request.threads = options.threads;
  ASSIGN_OR_RETURN(weights_, LoadRankWeights(config_, std::move(checkpoint), request, *ops_,
                                             [](int64_t, int64_t) { return true; }));
  worker::TransformerOptions transformer;
  transformer.max_step_tokens = limits_.max_step_tokens;
  transformer.max_sequences = limits_.max_sequences;
  transformer.block_tokens = kBlockTokens;
  transformer.full_blocks = limits_.full_blocks;
  transformer.sliding_blocks = limits_.sliding_blocks;
  ASSIGN_OR_RETURN(transformer_, worker::Transformer::Create(config_, *weights_, placement_,
                                                             transformer, *ops_, nullptr, nullptr));
  return absl::OkStatus();
}

worker::SequenceTable OfflineModel::MakeTable() const {
  worker::SequenceTable::Limits limits;
  limits.max_sequences = limits_.max_sequences;
  limits.max_step_tokens = limits_.max_step_tokens;
  limits.vocab_size = config_.vocab_size;
  limits.context_length = config_.context_length;
  limits.num_layers = config_.num_layers;
  limits.experts_per_token = config_.experts_per_token;
  limits.num_experts = config_.num_experts;
  limits.sliding_window = config_.sliding_window;
  limits.block_tokens = kBlockTokens;
  limits.full_blocks = limits_.full_blocks;
  limits.sliding_blocks = limits_.sliding_blocks;
  for (const worker::HeadWeights& head : weights_->heads) {
    limits.head_labels.push_back(static_cast<int>(head.config.labels.size()));
  }
  return worker::SequenceTable(limits);
}

absl::Status OfflineModel::Check(const TraceRequest& request) const {
  const int64_t rows = static_cast<int64_t>(request.ids.size());
  const int64_t room = int64_t{limits_.full_blocks} * kBlockTokens;
  if (rows == 0 || rows > std::min<int64_t>(room, config_.context_length)) {
    return absl::InvalidArgumentError(
        fmt::format("{} ids, 1 to {} fit", rows, std::min<int64_t>(room, config_.context_length)));
  }
  for (int id : request.ids) {
    if (id < 0 || id >= config_.vocab_size) {
      return absl::InvalidArgumentError(fmt::format("id {} of {}", id, config_.vocab_size));
    }
  }
  const int layers = config_.num_layers;
  RETURN_IF_ERROR(CheckLayers("forced", request.forced, layers, rows * config_.experts_per_token));
  RETURN_IF_ERROR(
      CheckLayers("layer inputs", request.layer_inputs, layers, rows * config_.hidden_size));
  for (const std::vector<int32_t>& layer : request.forced) {
    for (int32_t id : layer) {
      if (id < -1 || id >= config_.num_experts) {
        return absl::InvalidArgumentError(fmt::format("forced: expert {}", id));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Trace> OfflineModel::Run(const TraceRequest& request) {
  RETURN_IF_ERROR(Check(request));
  const int chunk = std::min(request.chunk > 0 ? request.chunk : limits_.max_step_tokens,
                             limits_.max_step_tokens);
  worker::SequenceTable table = MakeTable();
  worker::GroupDriver driver(config_, limits_, chunk);
  driver.Add({.prompt = request.ids});
  Trace trace;
  while (!driver.Done()) {
    ASSIGN_OR_RETURN(worker::ResolvedStep step, table.Apply(driver.Next()));
    const int begin = step.positions.front();
    const int64_t rows = static_cast<int64_t>(step.positions.size());
    step.forced = SliceRows(request.forced, begin, rows, config_.experts_per_token);
    const auto inputs = SliceRows(request.layer_inputs, begin, rows, config_.hidden_size);
    ASSIGN_OR_RETURN(const Trace part, transformer_->TraceStep(step, inputs));
    AppendRows(part, trace);
  }
  return trace;
}

absl::StatusOr<std::vector<TestResult>> OfflineModel::Generate(
    const std::vector<TestRequest>& requests, int chunk) {
  if (static_cast<int>(requests.size()) > limits_.max_sequences) {
    return absl::InvalidArgumentError(
        fmt::format("{} requests, at most {}", requests.size(), limits_.max_sequences));
  }
  worker::SequenceTable table = MakeTable();
  worker::GroupDriver driver(config_, limits_, chunk);
  for (const TestRequest& request : requests) driver.Add(request);
  while (!driver.Done()) {
    ASSIGN_OR_RETURN(const worker::ResolvedStep step, table.Apply(driver.Next()));
    ASSIGN_OR_RETURN(const worker::StepOutput output, transformer_->Step(step, kMode, 0));
    driver.Absorb(output);
  }
  return driver.results();
}

}  // namespace conclave::gpu
