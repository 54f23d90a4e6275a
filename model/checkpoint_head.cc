// Heads attached from a folder of their own.

#include <string>
#include <utility>

#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/checkpoint.h"
#include "model/checkpoint_binder.h"
#include "model/checkpoint_files.h"
#include "model/checkpoint_fingerprint.h"

namespace conclave::model {
namespace {

bool IsHeadTensor(std::string_view name) { return name == "score.weight" || name == "score.bias"; }

bool IsLmHead(std::string_view name) {
  return name == "lm_head.weight" || name == "unembedding.weight";
}

bool IsBackboneTensor(std::string_view name) {
  return name.starts_with("model.") || name.starts_with("block.") || name == "embedding.weight" ||
         name == "norm.scale";
}

// Whether the folder carries a backbone. A tensor that is none of the three kinds (an adapter's,
// say) would change the answers if it were applied; it is not, so it is refused.
absl::StatusOr<bool> CarriesBackbone(const CheckpointFiles& files) {
  bool backbone = false;
  for (const auto& [name, view] : files.tensors()) {
    if (IsBackboneTensor(name)) {
      backbone = true;
    } else if (!IsHeadTensor(name) && !IsLmHead(name)) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {} is part of neither a head (score.weight, score.bias) nor a "
                      "gpt-oss backbone",
                      view->file, name));
    }
  }
  return backbone;
}

absl::Status CheckFingerprint(const std::string& dir, uint64_t found, uint64_t running) {
  if (found == running) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: the head belongs to another backbone: fingerprint {:016x}, the running one "
                  "has {:016x}",
                  dir, found, running));
}

absl::StatusOr<bool> VerifyBackbone(const std::string& dir, CheckpointFiles& files,
                                    const HeadConfig& head, const Config& config,
                                    const Checkpoint& backbone) {
  ASSIGN_OR_RETURN(const bool carries, CarriesBackbone(files));
  if (!carries && head.backbone_fingerprint.empty()) return false;
  const uint64_t running = backbone.BackboneFingerprint();
  if (carries) {
    ASSIGN_OR_RETURN(const Layout layout, DetectLayout(files));
    ASSIGN_OR_RETURN(const ModelTensors tensors, BindBackbone(files, config, layout));
    RETURN_IF_ERROR(CheckFingerprint(dir, Fingerprint(tensors, layout), running));
  }
  if (!head.backbone_fingerprint.empty()) {
    const uint64_t stated = std::stoull(head.backbone_fingerprint, nullptr, 16);
    RETURN_IF_ERROR(CheckFingerprint(dir, stated, running));
  }
  return true;
}

}  // namespace

absl::StatusOr<AttachedHead> OpenHead(const std::string& name, const std::string& dir,
                                      const Config& config, const Checkpoint& backbone) {
  AttachedHead head;
  head.name = name;
  ASSIGN_OR_RETURN(CheckpointFiles files, CheckpointFiles::OpenHead(dir));
  ASSIGN_OR_RETURN(head.config, LoadHeadConfig(dir, files.Find("score.bias") != nullptr
                                                        ? Architecture::kTokenClassification
                                                        : Architecture::kSequenceClassification));
  ASSIGN_OR_RETURN(head.tensors, BindHead(files, head.config, config.hidden_size));
  ASSIGN_OR_RETURN(head.backbone_verified,
                   VerifyBackbone(dir, files, head.config, config, backbone));
  head.files = files.files();
  return head;
}

}  // namespace conclave::model
