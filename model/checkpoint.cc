#include "model/checkpoint.h"

#include <utility>

#include "base/status_macros.h"
#include "model/checkpoint_binder.h"
#include "model/checkpoint_files.h"
#include "model/checkpoint_fingerprint.h"

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
  ASSIGN_OR_RETURN(const CheckpointFiles files, CheckpointFiles::OpenModel(dir));
  auto checkpoint = std::make_shared<Checkpoint>();
  ASSIGN_OR_RETURN(checkpoint->layout_, DetectLayout(files));
  ASSIGN_OR_RETURN(checkpoint->tensors_, BindBackbone(files, config, checkpoint->layout_));
  if (config.head.has_value()) {
    ASSIGN_OR_RETURN(HeadTensors head, BindHead(files, *config.head, config.hidden_size));
    checkpoint->head_ = std::make_unique<HeadTensors>(std::move(head));
  } else {
    ASSIGN_OR_RETURN(checkpoint->tensors_.lm_head, BindLmHead(files, config, checkpoint->layout_));
  }
  checkpoint->files_ = files.files();
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

uint64_t Checkpoint::BackboneFingerprint() const { return Fingerprint(tensors_, layout_); }

}  // namespace conclave::model
