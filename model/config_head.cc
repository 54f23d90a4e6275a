#include "model/config_head.h"

#include <charconv>
#include <set>
#include <string>
#include <utility>

#include "base/status_macros.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

using nlohmann::json;

constexpr int kMaxLabels = 65536;
constexpr Architecture kArchitectures[] = {Architecture::kCausalLm,
                                           Architecture::kSequenceClassification,
                                           Architecture::kTokenClassification};

// A label id as a JSON key: "12", no sign, no leading zeros. -1 when it is not one.
int LabelId(const std::string& key) {
  int id = -1;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
  const bool whole = error == std::errc() && end == key.data() + key.size();
  return whole && id >= 0 && key == std::to_string(id) ? id : -1;
}

std::vector<std::string> ReadIdToLabel(FieldReader& fields, const json& object) {
  if (!object.is_object() || object.empty() || object.size() > kMaxLabels) {
    fields.Fail("id2label", fmt::format("is not an object of 1 to {} labels", kMaxLabels));
    return {};
  }
  std::vector<std::string> labels(object.size());
  for (const auto& [key, value] : object.items()) {
    const int id = LabelId(key);
    if (id < 0 || static_cast<size_t>(id) >= labels.size()) {
      fields.Fail("id2label", fmt::format("has the key \"{}\"; {} labels have the keys 0 to {}",
                                          key.substr(0, 60), labels.size(), labels.size() - 1));
      return {};
    }
    if (!value.is_string()) {
      fields.Fail(fmt::format("id2label.{}", id), "is not a string");
      return {};
    }
    labels[static_cast<size_t>(id)] = value.get<std::string>();
  }
  return labels;
}

void CheckLabelToId(FieldReader& fields, const std::vector<std::string>& labels) {
  const json* object = fields.Find("label2id");
  if (object == nullptr || !fields.ok()) return;
  if (!object->is_object()) {
    fields.Fail("label2id", "is not an object");
    return;
  }
  for (const auto& [label, id] : object->items()) {
    const bool known = id.is_number_integer() && id >= 0 && id < labels.size() &&
                       labels[id.get<size_t>()] == label;
    if (!known) {
      fields.Fail("label2id", fmt::format("maps \"{}\" to {}, which id2label does not",
                                          label.substr(0, 60), id.dump().substr(0, 60)));
      return;
    }
  }
}

std::vector<std::string> ReadLabels(FieldReader& fields) {
  const std::optional<int> count = fields.OptionalInt("num_labels", 1, kMaxLabels);
  const json* id_to_label = fields.Find("id2label");
  if (id_to_label == nullptr) {
    std::vector<std::string> labels;
    for (int id = 0; id < count.value_or(2); ++id) labels.push_back(fmt::format("LABEL_{}", id));
    return labels;
  }
  std::vector<std::string> labels = ReadIdToLabel(fields, *id_to_label);
  if (count.has_value() && fields.ok() && labels.size() != static_cast<size_t>(*count)) {
    fields.Fail("num_labels", fmt::format("is {} but id2label has {}", *count, labels.size()));
  }
  CheckLabelToId(fields, labels);
  return labels;
}

ProblemType ReadProblemType(FieldReader& fields) {
  const std::optional<std::string> name = fields.OptionalString("problem_type");
  if (!name.has_value()) return ProblemType::kUnset;
  if (*name == "regression") return ProblemType::kRegression;
  if (*name == "single_label_classification") return ProblemType::kSingleLabel;
  if (*name == "multi_label_classification") return ProblemType::kMultiLabel;
  fields.Fail("problem_type", fmt::format("is \"{}\"; regression, single_label_classification and "
                                          "multi_label_classification are possible",
                                          name->substr(0, 60)));
  return ProblemType::kUnset;
}

std::string ReadFingerprint(FieldReader& fields) {
  std::string text = fields.OptionalString("backbone_fingerprint").value_or("");
  const bool hex = text.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!text.empty() && (text.size() != 16 || !hex)) {
    fields.Fail("backbone_fingerprint", "is not 16 hexadecimal digits in lower case");
  }
  return text;
}

}  // namespace

std::string_view ArchitectureName(Architecture architecture) {
  switch (architecture) {
    case Architecture::kCausalLm:
      return "GptOssForCausalLM";
    case Architecture::kSequenceClassification:
      return "GptOssForSequenceClassification";
    case Architecture::kTokenClassification:
      return "GptOssForTokenClassification";
  }
  return "";
}

std::optional<Architecture> ReadArchitecture(FieldReader& fields) {
  const json* list = fields.Find("architectures");
  if (list == nullptr || (list->is_array() && list->empty())) return std::nullopt;
  if (!list->is_array() || !list->front().is_string()) {
    fields.Fail("architectures", "is not a list of names");
    return std::nullopt;
  }
  const std::string name = list->front().get<std::string>();
  for (const Architecture architecture : kArchitectures) {
    if (name == ArchitectureName(architecture)) return architecture;
  }
  fields.Fail("architectures",
              fmt::format("names \"{}\"; {}, {} and {} are supported", name.substr(0, 60),
                          ArchitectureName(kArchitectures[0]), ArchitectureName(kArchitectures[1]),
                          ArchitectureName(kArchitectures[2])));
  return std::nullopt;
}

HeadConfig ReadHead(FieldReader& fields, Architecture kind) {
  HeadConfig head;
  head.kind = kind;
  head.labels = ReadLabels(fields);
  head.problem_type = ReadProblemType(fields);
  head.backbone_fingerprint = ReadFingerprint(fields);
  return head;
}

absl::StatusOr<HeadConfig> LoadHeadConfig(const std::string& dir, Architecture unless_stated) {
  const std::string path = dir + "/config.json";
  ASSIGN_OR_RETURN(const json object, ReadJsonObject(path));
  FieldReader fields(object, path, "");
  const Architecture kind = ReadArchitecture(fields).value_or(unless_stated);
  if (kind == Architecture::kCausalLm) {
    fields.Fail("architectures", "names a language model; a head is a classification model");
  }
  HeadConfig head = ReadHead(fields, kind);
  RETURN_IF_ERROR(fields.status());
  return head;
}

}  // namespace conclave::model
