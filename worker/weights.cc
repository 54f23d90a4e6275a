#include "worker/weights.h"

#include <fmt/format.h>

#include <utility>

#include "base/status_macros.h"
#include "worker/weights_experts.h"
#include "worker/weights_generator.h"
#include "worker/weights_pager.h"
#include "worker/weights_slice.h"

namespace conclave::worker {
namespace {

// Host views of one layer's share, in the file map.
struct LayerSlices {
  std::span<const uint16_t> input_norm;
  kernels::HostMatrix q, k, v, o;
  std::span<const uint16_t> q_bias, k_bias, v_bias, o_bias, sinks;
  std::span<const uint16_t> post_norm;
  kernels::HostMatrix router;
  std::span<const uint16_t> router_bias;
  std::vector<kernels::HostExpert> experts;
};

class Loader {
 public:
  Loader(const model::Config& config, const model::Checkpoint& checkpoint,
         const WeightsRequest& request, kernels::Ops& ops,
         const std::function<bool(int64_t loaded, int64_t total)>& progress)
      : config_(config),
        checkpoint_(checkpoint),
        request_(request),
        ops_(ops),
        progress_(progress),
        tp_rank_(request.shape.tp_rank(request.rank)),
        kv_heads_(model::KvHeadRange(config, request.shape.tp, tp_rank_)),
        vocab_(model::VocabRange(config, request.shape.tp, tp_rank_)) {}

  absl::StatusOr<RankWeights> Load();

 private:
  absl::Status OpenHeads();
  absl::Status SliceLayer(int layer);
  absl::Status SliceExperts(int layer);
  absl::Status SliceModel();
  std::function<bool(int64_t bytes)> progress();
  absl::Status PageInNext(const WeightSlicer& slicer);
  void Loaded(const WeightSlicer& slicer) const;
  absl::Status LoadModel();
  absl::Status LoadLayer(int layer);
  absl::StatusOr<kernels::VectorWeight> LoadVector(std::span<const uint16_t> values);

  const model::Config& config_;
  const model::Checkpoint& checkpoint_;
  const WeightsRequest& request_;
  kernels::Ops& ops_;
  const std::function<bool(int64_t loaded, int64_t total)>& progress_;
  const int tp_rank_;
  const model::Range kv_heads_;
  const model::Range vocab_;

  RankWeights weights_;
  std::vector<LayerSlices> slices_;
  std::vector<WeightSlicer> layer_slicers_;  // [layers]
  WeightSlicer model_slicer_;                // everything outside the layers
  WeightSlicer head_slicer_;                 // attached heads: always from their own files
  kernels::HostMatrix embedding_, lm_head_;
  bool tied_ = false;  // one matrix is both
  std::span<const uint16_t> final_norm_;
  std::vector<model::HeadTensors> head_tensors_;
  std::vector<kernels::HostMatrix> head_weights_;
  std::vector<std::span<const uint16_t>> head_biases_;
  int64_t loaded_ = 0;
};

absl::StatusOr<RankWeights> Loader::Load() {
  RETURN_IF_ERROR(OpenHeads());
  RETURN_IF_ERROR(SliceModel());
  slices_.resize(config_.num_layers);
  layer_slicers_.resize(config_.num_layers);
  weights_.layers.resize(config_.num_layers);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    RETURN_IF_ERROR(SliceLayer(layer));
    weights_.bytes += layer_slicers_[layer].bytes();
  }
  weights_.bytes += model_slicer_.bytes() + head_slicer_.bytes();

  RETURN_IF_ERROR(PageInNext(model_slicer_));
  RETURN_IF_ERROR(PageIn(head_slicer_.regions(), progress()));
  RETURN_IF_ERROR(LoadModel());
  Loaded(model_slicer_);
  Loaded(head_slicer_);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    RETURN_IF_ERROR(PageInNext(layer_slicers_[layer]));
    // The disk reads the next layer while this one is uploaded.
    if (layer + 1 < config_.num_layers && !checkpoint_.is_random()) {
      ReadAhead(layer_slicers_[layer + 1].regions());
    }
    RETURN_IF_ERROR(LoadLayer(layer));
    Loaded(layer_slicers_[layer]);
  }
  return std::move(weights_);
}

absl::Status Loader::OpenHeads() {
  for (const auto& [name, dir] : request_.heads) {
    HeadWeights head;
    head.name = name;
    if (dir.empty()) {
      if (checkpoint_.head() == nullptr || !config_.head.has_value()) {
        return absl::InvalidArgumentError(
            fmt::format("head {}: the checkpoint carries no classification head", name));
      }
      head.config = *config_.head;
      head_tensors_.push_back(*checkpoint_.head());
    } else {
      ASSIGN_OR_RETURN(model::AttachedHead attached,
                       model::OpenHead(name, dir, config_, checkpoint_));
      head.config = attached.config;
      head_tensors_.push_back(attached.tensors);
      weights_.attached_heads.push_back(std::move(attached));
    }
    weights_.heads.push_back(std::move(head));
  }
  return absl::OkStatus();
}

absl::Status Loader::SliceModel() {
  const model::ModelTensors& tensors = checkpoint_.tensors();
  ASSIGN_OR_RETURN(embedding_, model_slicer_.Rows(tensors.embedding, vocab_.begin, vocab_.size()));
  ASSIGN_OR_RETURN(final_norm_, model_slicer_.Values(tensors.final_norm, 0, config_.hidden_size));
  tied_ = tensors.lm_head.bytes.data() == tensors.embedding.bytes.data();
  if (!tied_ && !tensors.lm_head.bytes.empty()) {
    ASSIGN_OR_RETURN(lm_head_, model_slicer_.Rows(tensors.lm_head, vocab_.begin, vocab_.size()));
  }
  for (size_t i = 0; i < head_tensors_.size(); ++i) {
    const model::HeadTensors& head = head_tensors_[i];
    WeightSlicer& slicer = request_.heads[i].second.empty() ? model_slicer_ : head_slicer_;
    const int64_t labels = head.weight.shape[0];
    ASSIGN_OR_RETURN(kernels::HostMatrix weight, slicer.Rows(head.weight, 0, labels));
    ASSIGN_OR_RETURN(std::span<const uint16_t> bias, slicer.Values(head.bias, 0, labels));
    head_weights_.push_back(weight);
    head_biases_.push_back(bias);
  }
  return absl::OkStatus();
}

absl::Status Loader::SliceLayer(int layer) {
  const model::LayerTensors& tensors = checkpoint_.tensors().layers[layer];
  WeightSlicer& slicer = layer_slicers_[layer];
  LayerSlices& out = slices_[layer];
  const int64_t group = config_.num_heads / config_.num_kv_heads;  // query heads to a KV head
  const int64_t head_begin = kv_heads_.begin * group;
  const int64_t heads = kv_heads_.size() * group;
  const int64_t q_begin = head_begin * config_.head_dim;
  const int64_t q_size = heads * config_.head_dim;
  const int64_t kv_begin = int64_t{kv_heads_.begin} * config_.head_dim;
  const int64_t kv_size = int64_t{kv_heads_.size()} * config_.head_dim;

  ASSIGN_OR_RETURN(out.input_norm, slicer.Values(tensors.input_norm, 0, config_.hidden_size));
  ASSIGN_OR_RETURN(out.q, slicer.Rows(tensors.q_weight, q_begin, q_size));
  ASSIGN_OR_RETURN(out.q_bias, slicer.Values(tensors.q_bias, q_begin, q_size));
  ASSIGN_OR_RETURN(out.k, slicer.Rows(tensors.k_weight, kv_begin, kv_size));
  ASSIGN_OR_RETURN(out.k_bias, slicer.Values(tensors.k_bias, kv_begin, kv_size));
  ASSIGN_OR_RETURN(out.v, slicer.Rows(tensors.v_weight, kv_begin, kv_size));
  ASSIGN_OR_RETURN(out.v_bias, slicer.Values(tensors.v_bias, kv_begin, kv_size));
  ASSIGN_OR_RETURN(out.o, slicer.Columns(tensors.o_weight, q_begin, q_size));
  if (tp_rank_ == 0) {  // the partial sums of the tp ranks are added: one of them brings the bias
    ASSIGN_OR_RETURN(out.o_bias, slicer.Values(tensors.o_bias, 0, config_.hidden_size));
  }
  ASSIGN_OR_RETURN(out.sinks, slicer.Values(tensors.sinks, head_begin, heads));
  ASSIGN_OR_RETURN(out.post_norm, slicer.Values(tensors.post_norm, 0, config_.hidden_size));
  ASSIGN_OR_RETURN(out.router, slicer.Rows(tensors.router_weight, 0, config_.num_experts));
  ASSIGN_OR_RETURN(out.router_bias, slicer.Values(tensors.router_bias, 0, config_.num_experts));
  return SliceExperts(layer);
}

absl::Status Loader::SliceExperts(int layer) {
  const model::LayerTensors& tensors = checkpoint_.tensors().layers[layer];
  WeightSlicer& slicer = layer_slicers_[layer];
  weights_.layers[layer].local_experts = request_.placement->layers[layer].ExpertsOf(request_.rank);
  for (const int expert : weights_.layers[layer].local_experts) {
    ASSIGN_OR_RETURN(const kernels::HostExpert host,
                     SliceExpert(checkpoint_, tensors, expert, slicer));
    slices_[layer].experts.push_back(host);
  }
  return absl::OkStatus();
}

std::function<bool(int64_t bytes)> Loader::progress() {
  return [this](int64_t bytes) {
    loaded_ += bytes;
    return progress_(loaded_, weights_.bytes);
  };
}

absl::Status Loader::PageInNext(const WeightSlicer& slicer) {
  if (!checkpoint_.is_random()) return PageIn(slicer.regions(), progress());
  base::ThreadPool pool(request_.threads);
  return GenerateWeights(checkpoint_, slicer.regions(), pool, progress());
}

// A GPU has its own copy: host memory never holds more than a layer.
void Loader::Loaded(const WeightSlicer& slicer) const {
  if (ops_.info().device == "cuda") GiveBack(slicer.regions());
}

absl::StatusOr<kernels::VectorWeight> Loader::LoadVector(std::span<const uint16_t> values) {
  if (values.empty()) return kernels::VectorWeight();
  return ops_.LoadVector(values);
}

absl::Status Loader::LoadModel() {
  weights_.vocab_begin = vocab_.begin;
  ASSIGN_OR_RETURN(weights_.embedding, ops_.LoadDense(embedding_));
  ASSIGN_OR_RETURN(weights_.final_norm, LoadVector(final_norm_));
  if (lm_head_.data != nullptr) {
    ASSIGN_OR_RETURN(weights_.lm_head, ops_.LoadDense(lm_head_));
  } else if (tied_) {
    weights_.lm_head = weights_.embedding;
  }
  for (size_t i = 0; i < weights_.heads.size(); ++i) {
    ASSIGN_OR_RETURN(weights_.heads[i].weight, ops_.LoadDense(head_weights_[i]));
    ASSIGN_OR_RETURN(weights_.heads[i].bias, LoadVector(head_biases_[i]));
  }
  return absl::OkStatus();
}

absl::Status Loader::LoadLayer(int layer) {
  const LayerSlices& in = slices_[layer];
  LayerWeights& out = weights_.layers[layer];
  ASSIGN_OR_RETURN(out.attention.input_norm, LoadVector(in.input_norm));
  ASSIGN_OR_RETURN(out.attention.q, ops_.LoadDense(in.q));
  ASSIGN_OR_RETURN(out.attention.k, ops_.LoadDense(in.k));
  ASSIGN_OR_RETURN(out.attention.v, ops_.LoadDense(in.v));
  ASSIGN_OR_RETURN(out.attention.o, ops_.LoadDense(in.o));
  ASSIGN_OR_RETURN(out.attention.q_bias, LoadVector(in.q_bias));
  ASSIGN_OR_RETURN(out.attention.k_bias, LoadVector(in.k_bias));
  ASSIGN_OR_RETURN(out.attention.v_bias, LoadVector(in.v_bias));
  ASSIGN_OR_RETURN(out.attention.o_bias, LoadVector(in.o_bias));
  ASSIGN_OR_RETURN(out.attention.sinks, LoadVector(in.sinks));
  ASSIGN_OR_RETURN(out.router.norm, LoadVector(in.post_norm));
  ASSIGN_OR_RETURN(out.router.weight, ops_.LoadDense(in.router));
  ASSIGN_OR_RETURN(out.router.bias, LoadVector(in.router_bias));

  const model::LayerTensors& tensors = checkpoint_.tensors().layers[layer];
  for (size_t i = 0; i < in.experts.size(); ++i) {
    RETURN_IF_ERROR(CheckExpertScales(config_, tensors, out.local_experts[i], in.experts[i]));
  }
  ASSIGN_OR_RETURN(out.experts, ops_.LoadExperts(in.experts));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RankWeights> LoadRankWeights(
    const model::Config& config, std::shared_ptr<const model::Checkpoint> checkpoint,
    const WeightsRequest& request, kernels::Ops& ops,
    const std::function<bool(int64_t loaded, int64_t total)>& progress) {
  Loader loader(config, *checkpoint, request, ops, progress);
  ASSIGN_OR_RETURN(RankWeights weights, loader.Load());
  weights.checkpoint = std::move(checkpoint);
  return weights;
}

}  // namespace conclave::worker
