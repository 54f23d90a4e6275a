#include "coordinator/serving_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <set>

#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

namespace fs = std::filesystem;

// Name of the head that a classification checkpoint carries itself.
constexpr char kOwnHeadName[] = "default";

std::string NameOf(const std::string& dir) {
  const fs::path path = fs::path(dir).lexically_normal();
  return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
}

absl::StatusOr<std::shared_ptr<const model::Tokenizer>> LoadTokenizer(
    const ServingModelOptions& options) {
  if (!options.tokenizer.empty()) return model::Tokenizer::Load(options.tokenizer);
  const std::string path = (fs::path(options.dir) / "tokenizer.json").string();
  std::error_code error;
  if (!fs::exists(path, error)) return std::shared_ptr<const model::Tokenizer>();
  return model::Tokenizer::Load(path);
}

absl::Status AddHeads(const ServingModelOptions& options, ServingModel& model) {
  std::set<std::string> names;
  if (model.config.head.has_value()) {
    model.heads.push_back({kOwnHeadName, "", *model.config.head, true});
    names.insert(kOwnHeadName);
  }
  for (const auto& [name, dir] : options.heads) {
    if (name.empty() || !names.insert(name).second) {
      return absl::InvalidArgumentError(
          fmt::format("--head {}={}: the name is empty or already taken", name, dir));
    }
    ASSIGN_OR_RETURN(model::AttachedHead head,
                     model::OpenHead(name, dir, model.config, *model.checkpoint));
    model.heads.push_back({name, dir, head.config, head.backbone_verified});
  }
  return absl::OkStatus();
}

absl::Status CheckTokenizer(const ServingModel& model) {
  if (model.tokenizer == nullptr || model.tokenizer->size() <= model.config.vocab_size) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      fmt::format("{}: tokenizer.json has ids up to {} but config.json says vocab_size {}",
                  model.dir, model.tokenizer->size() - 1, model.config.vocab_size));
}

bool IsKind(const Head& head, model::Architecture kind) { return head.config.kind == kind; }

}  // namespace

absl::StatusOr<ServingModel> LoadServingModel(const ServingModelOptions& options) {
  ServingModel model;
  model.name = NameOf(options.dir);
  model.dir = options.dir;
  model.limits = options.limits;
  model.allow_forced_routing = options.allow_forced_routing;
  ASSIGN_OR_RETURN(model.config, model::LoadConfig(options.dir));
  ASSIGN_OR_RETURN(model.checkpoint, model::Checkpoint::Open(options.dir, model.config));
  ASSIGN_OR_RETURN(model.tokenizer, LoadTokenizer(options));
  RETURN_IF_ERROR(CheckTokenizer(model));
  RETURN_IF_ERROR(AddHeads(options, model));
  return model;
}

absl::StatusOr<int> FindHead(const ServingModel& model, model::Architecture kind,
                             const std::string& name) {
  const bool sequence = kind == model::Architecture::kSequenceClassification;
  std::vector<std::string> names;
  int found = -1;
  for (size_t i = 0; i < model.heads.size(); ++i) {
    if (!IsKind(model.heads[i], kind)) continue;
    names.push_back(model.heads[i].name);
    if (name.empty() || model.heads[i].name == name) found = static_cast<int>(i);
  }
  if (names.empty()) {
    return absl::FailedPreconditionError(fmt::format(
        "no {} classification head is loaded: start the server with --head NAME=DIR or serve a {} "
        "checkpoint",
        sequence ? "sequence" : "token",
        sequence ? "GptOssForSequenceClassification" : "GptOssForTokenClassification"));
  }
  if (found < 0 || (name.empty() && names.size() > 1)) {
    return absl::InvalidArgumentError(
        fmt::format("head '{}' is not a {} classification head; loaded: {}", name,
                    sequence ? "sequence" : "token", fmt::join(names, ", ")));
  }
  return found;
}

}  // namespace conclave::coordinator
