#include "coordinator/serving_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <set>

#include "base/status_macros.h"
#include "model/checkpoint_tokenizer.h"

namespace conclave::coordinator {
namespace {

namespace fs = std::filesystem;

// Name of the head that a classification checkpoint carries itself.
constexpr char kOwnHeadName[] = "default";

std::string NameOf(const std::string& dir) {
  const fs::path path = fs::path(dir).lexically_normal();
  return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
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

const char* KindName(model::Architecture kind) {
  return kind == model::Architecture::kSequenceClassification ? "sequence" : "token";
}

// "mood (sequence), ner (token)"
std::string ListHeads(const ServingModel& model) {
  std::vector<std::string> names;
  for (const Head& head : model.heads) {
    names.push_back(fmt::format("{} ({})", head.name, KindName(head.config.kind)));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

// In quotation marks; one that is no head's may be anything.
std::string ShortName(const std::string& name) {
  constexpr size_t kMaxBytes = 64;
  if (name.size() > kMaxBytes) return fmt::format("(a name of {} bytes)", name.size());
  return fmt::format("'{}'", name);
}

}  // namespace

std::string ServingModel::prompt_bound() const {
  if (longest_prompt(0) == config.context_length) {
    return fmt::format("with a context of {}", config.context_length);
  }
  return fmt::format("with --max-prompt-tokens {}", limits.max_prompt_tokens);
}

absl::StatusOr<ServingModel> LoadServingModel(const ServingModelOptions& options) {
  ServingModel model;
  model.name = NameOf(options.dir);
  model.dir = options.dir;
  model.limits = options.limits;
  model.allow_forced_routing = options.allow_forced_routing;
  model.random_weights = options.random_weights;
  const model::ModelSource source = {options.dir, options.random_weights};
  ASSIGN_OR_RETURN(model.config, model::LoadConfig(source));
  ASSIGN_OR_RETURN(model.checkpoint, model::OpenCheckpoint(source, model.config));
  ASSIGN_OR_RETURN(model.tokenizer,
                   model::LoadCheckpointTokenizer(options.dir, options.tokenizer, model.config));
  if (model.tokenizer != nullptr) {
    auto harmony = model::HarmonyTokens::Find(*model.tokenizer);
    if (harmony.ok()) model.harmony = *harmony;
  }
  RETURN_IF_ERROR(AddHeads(options, model));
  return model;
}

absl::StatusOr<int> FindHead(const ServingModel& model, model::Architecture kind,
                             const std::string& name) {
  int found = -1;
  int of_kind = 0;
  bool known = false;  // a head of another kind counts
  for (size_t i = 0; i < model.heads.size(); ++i) {
    known = known || model.heads[i].name == name;
    if (model.heads[i].config.kind != kind) continue;
    ++of_kind;
    if (name.empty() || model.heads[i].name == name) found = static_cast<int>(i);
  }
  if (of_kind == 0 && (name.empty() || model.heads.empty())) {
    return absl::FailedPreconditionError(fmt::format(
        "no {} classification head is loaded: start the server with --head NAME=DIR or serve a "
        "classification checkpoint",
        KindName(kind)));
  }
  if (name.empty() && of_kind > 1) {
    return absl::InvalidArgumentError(
        fmt::format("head is empty and there are several; name one of: {}", ListHeads(model)));
  }
  if (found < 0) {
    return absl::InvalidArgumentError(
        known
            ? fmt::format("head '{}' is not a {} classification head; loaded: {}", name,
                          KindName(kind), ListHeads(model))
            : fmt::format("head {} is not loaded; loaded: {}", ShortName(name), ListHeads(model)));
  }
  return found;
}

}  // namespace conclave::coordinator
