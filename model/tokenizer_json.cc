// The small fields of a tokenizer.json. What would change the tokens and is not implemented is
// refused by name. Ignored on purpose: truncation and padding (of the library's batches; requests
// say what they want), and post-processors of type ByteLevel (they adjust offsets only).

#include "model/tokenizer_json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "fmt/format.h"
#include "model/tokenizer_json_reader.h"
#include "model/tokenizer_o200k.h"

namespace conclave::model {
namespace {

using nlohmann::json;

absl::Status Invalid(const std::string& message) { return absl::InvalidArgumentError(message); }

// The member, or null when there is none. `object` may be anything.
const json& Member(const json& object, const char* name) {
  static const json& null = *new json();
  if (!object.is_object()) return null;
  const auto it = object.find(name);
  return it == object.end() ? null : *it;
}

// The text of a string member, or empty.
std::string Text(const json& object, const char* name) {
  const json& member = Member(object, name);
  return member.is_string() ? member.get<std::string>() : std::string();
}

// False for null, false, "" and 0: what switches an option off.
bool IsOn(const json& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  if (value.is_number()) return value.get<double>() != 0.0;
  return true;
}

absl::StatusOr<bool> Flag(const json& object, const char* name, std::string_view where,
                          bool missing) {
  const json& value = Member(object, name);
  if (value.is_null()) return missing;
  if (!value.is_boolean()) return Invalid(fmt::format("{}.{} is not true or false", where, name));
  return value.get<bool>();
}

absl::Status CheckModel(const json& model, BpeParts& bpe) {
  if (!model.is_object()) return Invalid("model is missing");
  for (const char* option :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    if (IsOn(Member(model, option))) {
      return Invalid(fmt::format("model.{} is not supported", option));
    }
  }
  if (!Member(model, "vocab").is_object()) return Invalid("model.vocab is missing or no object");
  if (!Member(model, "merges").is_array()) return Invalid("model.merges is missing or no array");
  ASSIGN_OR_RETURN(bpe.whole_entries, Flag(model, "ignore_merges", "model", false));
  return absl::OkStatus();
}

// `field` may be absent or, where it changes nothing, of type ByteLevel.
absl::Status CheckNullOrByteLevel(const json& root, const char* field) {
  const json& value = Member(root, field);
  if (value.is_null() || Text(value, "type") == "ByteLevel") return absl::OkStatus();
  return Invalid(fmt::format("{} of type \"{}\" is not supported", field, Text(value, "type")));
}

absl::StatusOr<AddedToken> ParseAddedToken(const json& entry, const std::string& where) {
  const json& id = Member(entry, "id");
  const json& content = Member(entry, "content");
  if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxTokenId) {
    return Invalid(fmt::format("{}.id is not within 0..{}", where, kMaxTokenId));
  }
  if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
    return Invalid(fmt::format("{}.content is missing or empty", where));
  }
  for (const char* option : {"lstrip", "rstrip", "single_word"}) {
    if (IsOn(Member(entry, option))) {
      return Invalid(fmt::format("{}.{} is not supported", where, option));
    }
  }
  AddedToken token{static_cast<int>(id.get<int64_t>()), content.get<std::string>()};
  ASSIGN_OR_RETURN(token.special, Flag(entry, "special", where, false));
  return token;
}

absl::Status ParseAddedTokens(const json& root, TokenizerSpec& spec) {
  const json& list = Member(root, "added_tokens");
  if (list.is_null()) return absl::OkStatus();
  if (!list.is_array()) return Invalid("added_tokens is not an array");
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(AddedToken token,
                     ParseAddedToken(list[i], fmt::format("added_tokens[{}]", i)));
    spec.added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ParseSplit(const json& step, const std::string& where, TokenizerSpec& spec) {
  if (Text(step, "behavior") != "Isolated") {
    return Invalid(fmt::format("{}.behavior \"{}\" is not supported, only Isolated is", where,
                               Text(step, "behavior")));
  }
  if (IsOn(Member(step, "invert")))
    return Invalid(fmt::format("{}.invert is not supported", where));
  const json& pattern = Member(step, "pattern");
  const bool is_regex = Member(pattern, "Regex").is_string();
  if (!is_regex && !Member(pattern, "String").is_string()) {
    return Invalid(fmt::format("{}.pattern has neither Regex nor String", where));
  }
  auto splitter = is_regex ? MakeSplitter(Text(pattern, "Regex"))
                           : MakeLiteralSplitter(Text(pattern, "String"));
  if (!splitter.ok()) {
    return Invalid(fmt::format("{}.pattern: {}", where, std::string(splitter.status().message())));
  }
  spec.splitters.push_back(*std::move(splitter));
  return absl::OkStatus();
}

absl::Status ParseByteLevel(const json& step, const std::string& where, TokenizerSpec& spec) {
  ASSIGN_OR_RETURN(const bool prefix_space, Flag(step, "add_prefix_space", where, true));
  if (prefix_space) return Invalid(fmt::format("{}.add_prefix_space is not supported", where));
  ASSIGN_OR_RETURN(const bool use_regex, Flag(step, "use_regex", where, true));
  if (!use_regex) return absl::OkStatus();
  ASSIGN_OR_RETURN(auto splitter, MakeSplitter(kByteLevelPattern));
  spec.splitters.push_back(std::move(splitter));
  return absl::OkStatus();
}

// Encoding recurses once a step.
constexpr size_t kMaxPreTokenizerSteps = 16;

// Splits, then ByteLevel; a Sequence or, for ByteLevel alone, the step itself.
absl::Status ParsePreTokenizer(const json& root, TokenizerSpec& spec) {
  const json& pre_tokenizer = Member(root, "pre_tokenizer");
  const bool is_sequence = Text(pre_tokenizer, "type") == "Sequence";
  const json& list = Member(pre_tokenizer, "pretokenizers");
  if (is_sequence && !list.is_array()) {
    return Invalid("pre_tokenizer.pretokenizers is not an array");
  }
  const json steps = is_sequence ? list : json::array({pre_tokenizer});
  if (steps.size() > kMaxPreTokenizerSteps) {
    return Invalid(fmt::format("pre_tokenizer.pretokenizers has {} steps: at most {} are supported",
                               steps.size(), kMaxPreTokenizerSteps));
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string where =
        is_sequence ? fmt::format("pre_tokenizer.pretokenizers[{}]", i) : "pre_tokenizer";
    const std::string type = Text(steps[i], "type");
    const bool last = i + 1 == steps.size();
    if (type == "ByteLevel" && last) return ParseByteLevel(steps[i], where, spec);
    if (type != "Split" || last) {
      return Invalid(
          fmt::format("{} of type \"{}\" is not supported: the steps are Split, any "
                      "number of times, and ByteLevel last",
                      where, type));
    }
    RETURN_IF_ERROR(ParseSplit(steps[i], where, spec));
  }
  return Invalid("pre_tokenizer.pretokenizers is empty");
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerJson(std::string_view text) {
  TokenizerSpec spec;
  TokenizerJsonReader reader(spec.bpe);
  RETURN_IF_ERROR(reader.Read(text));
  const json& root = reader.rest();
  if (!root.is_object()) return Invalid("not a JSON object");
  if (!Member(root, "normalizer").is_null()) {
    return Invalid(fmt::format("normalizer of type \"{}\" is not supported",
                               Text(Member(root, "normalizer"), "type")));
  }
  RETURN_IF_ERROR(CheckModel(Member(root, "model"), spec.bpe));
  RETURN_IF_ERROR(CheckNullOrByteLevel(root, "post_processor"));
  RETURN_IF_ERROR(CheckNullOrByteLevel(root, "decoder"));
  RETURN_IF_ERROR(ParseAddedTokens(root, spec));
  RETURN_IF_ERROR(ParsePreTokenizer(root, spec));
  for (AddedToken& token : O200kHarmonyPadding(spec.added, spec.bpe.vocab.size())) {
    spec.added.push_back(std::move(token));
  }
  return spec;
}

}  // namespace conclave::model
