#include "model/checkpoint.h"

#include <utility>

#include "base/status_macros.h"
#include "model/checkpoint_binder.h"
#include "model/checkpoint_files.h"
#include "model/checkpoint_fingerprint.h"
#include "model/random_tensors.h"

namespace conclave::model {

std::string_view LayoutName(Layout layout) {
  switch (layout) {
    case Layout::kMxfp4:
      return "mxfp4";
    case Layout::kBf16:
      return "bf16";
    case Layout::kOriginal:
      return "original";
  }
  return "";
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& dir,
                                                                   const Config& config) {
  ASSIGN_OR_RETURN(CheckpointFiles files, CheckpointFiles::OpenModel(dir));
  auto checkpoint = std::make_shared<Checkpoint>();
  ASSIGN_OR_RETURN(checkpoint->layout_, DetectLayout(files));
  RETURN_IF_ERROR(checkpoint->Bind(files, config));
  checkpoint->files_ = files.files();
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Random(const Config& config,
                                                                     uint64_t seed) {
  auto random = std::make_shared<RandomTensors>(seed);
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->layout_ = config.mxfp4 ? Layout::kMxfp4 : Layout::kBf16;
  const absl::Status bound = checkpoint->Bind(*random, config);
  RETURN_IF_ERROR(random->status());
  RETURN_IF_ERROR(bound);
  checkpoint->random_ = std::move(random);
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

absl::Status Checkpoint::Bind(TensorSource& source, const Config& config) {
  ASSIGN_OR_RETURN(tensors_, BindBackbone(source, config, layout_));
  if (config.head.has_value()) {
    ASSIGN_OR_RETURN(HeadTensors head, BindHead(source, *config.head, config.hidden_size));
    head_ = std::make_unique<HeadTensors>(std::move(head));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(tensors_.lm_head, BindLmHead(source, config, layout_));
  return absl::OkStatus();
}

void Checkpoint::Generate(std::span<const std::byte> part) const {
  if (random_ != nullptr) random_->Generate(part);
}

uint64_t Checkpoint::BackboneFingerprint() const {
  return random_ != nullptr ? random_->Fingerprint() : Fingerprint(tensors_, layout_);
}

}  // namespace conclave::model
