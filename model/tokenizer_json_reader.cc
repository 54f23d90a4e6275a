#include "model/tokenizer_json_reader.h"

#include "base/one_line.h"
#include "fmt/format.h"
#include "model/tokenizer_byte_level.h"

namespace conclave::model {

using nlohmann::json;

absl::Status TokenizerJsonReader::Read(std::string_view text) {
  const bool whole = json::sax_parse(text.data(), text.data() + text.size(), this);
  if (!whole) return status_;
  if (!deferred_.empty() && !vocab_read_) {
    return absl::InvalidArgumentError("model.vocab is missing");
  }
  for (const auto& [left, right] : deferred_) {
    if (!ResolveMerge(left, right)) return status_;
  }
  deferred_.clear();
  return absl::OkStatus();
}

// Events of the tree. nullptr when the value has no place, which the parser rules out.
json* TokenizerJsonReader::Put(json value) {
  if (open_.empty()) {
    root_ = std::move(value);
    return &root_;
  }
  json& parent = *open_.back();
  if (parent.is_array()) {
    parent.push_back(std::move(value));
    return &parent.back();
  }
  json& member = parent[key_];
  member = std::move(value);
  return &member;
}

bool TokenizerJsonReader::PutScalar(json value) {
  switch (place_) {
    case Place::kTree:
      Put(std::move(value));
      return true;
    case Place::kVocab:
      return Fail(fmt::format("model.vocab: the id of \"{}\" is not a whole number", key_));
    default:
      return Fail(fmt::format("model.merges[{}] is not a pair of strings", MergeIndex()));
  }
}

bool TokenizerJsonReader::IsModelMember(std::string_view name) const {
  return model_ != nullptr && open_.size() == 2 && open_.back() == model_ && key_ == name;
}

bool TokenizerJsonReader::Fail(const std::string& message) {
  status_ = absl::InvalidArgumentError(message);
  return false;
}

bool TokenizerJsonReader::null() { return PutScalar(nullptr); }
bool TokenizerJsonReader::boolean(bool value) { return PutScalar(value); }
bool TokenizerJsonReader::number_float(number_float_t value, const string_t&) {
  return PutScalar(value);
}
bool TokenizerJsonReader::binary(binary_t&) { return Fail("binary values are not JSON"); }

bool TokenizerJsonReader::number_integer(number_integer_t value) {
  return place_ == Place::kVocab ? AddToken(value) : PutScalar(value);
}

bool TokenizerJsonReader::number_unsigned(number_unsigned_t value) {
  if (place_ != Place::kVocab) return PutScalar(value);
  return AddToken(value > INT64_MAX ? INT64_MAX : static_cast<int64_t>(value));
}

bool TokenizerJsonReader::string(string_t& value) {
  switch (place_) {
    case Place::kTree:
      if (IsModelMember("type") && value != "BPE") {
        return Fail(fmt::format("model.type \"{}\" is not supported, only BPE is", value));
      }
      Put(value);
      return true;
    case Place::kMerges:
      return AddSpacedMerge(value);
    case Place::kPair:
      pair_.push_back(value);
      return pair_.size() <= 2 || PutScalar(nullptr);
    default:
      return PutScalar(nullptr);
  }
}

bool TokenizerJsonReader::start_object(size_t) {
  if (place_ != Place::kTree) return PutScalar(nullptr);
  const bool is_vocab = IsModelMember("vocab");
  const bool is_model = open_.size() == 1 && key_ == "model" && root_.is_object();
  json* object = Put(json::object());
  if (is_vocab) {
    if (vocab_read_) return Fail("model.vocab is given twice");
    place_ = Place::kVocab;
    return true;
  }
  if (is_model) model_ = object;
  open_.push_back(object);
  return true;
}

bool TokenizerJsonReader::key(string_t& value) {
  key_ = value;
  return true;
}

bool TokenizerJsonReader::end_object() {
  if (place_ == Place::kVocab) {
    place_ = Place::kTree;
    vocab_read_ = true;
    return true;
  }
  open_.pop_back();
  return true;
}

bool TokenizerJsonReader::start_array(size_t) {
  if (place_ == Place::kMerges) {
    place_ = Place::kPair;
    pair_.clear();
    return true;
  }
  if (place_ != Place::kTree) return PutScalar(nullptr);
  const bool is_merges = IsModelMember("merges");
  json* array = Put(json::array());
  if (is_merges) {
    if (merges_read_) return Fail("model.merges is given twice");
    merges_read_ = true;
    place_ = Place::kMerges;
    return true;
  }
  open_.push_back(array);
  return true;
}

bool TokenizerJsonReader::end_array() {
  if (place_ == Place::kPair) {
    place_ = Place::kMerges;
    return pair_.size() == 2 ? AddMerge(pair_[0], pair_[1]) : PutScalar(nullptr);
  }
  if (place_ == Place::kMerges) {
    place_ = Place::kTree;
    return true;
  }
  open_.pop_back();
  return true;
}

bool TokenizerJsonReader::parse_error(size_t, const std::string&,
                                      const nlohmann::detail::exception& error) {
  return Fail(base::OneLine(error.what()));
}

// The vocabulary and the merges.

bool TokenizerJsonReader::AddToken(int64_t id) {
  left_bytes_.clear();
  if (!FromByteLevel(key_, left_bytes_)) {
    return Fail(fmt::format("model.vocab: \"{}\" is not in the ByteLevel alphabet", key_));
  }
  const absl::Status status = parts_.vocab.Add(left_bytes_, id);
  return status.ok() || Fail(fmt::format("model.vocab: {}", std::string(status.message())));
}

// The older spelling of a merge: "left right".
bool TokenizerJsonReader::AddSpacedMerge(std::string_view pair) {
  const size_t space = pair.find(' ');
  if (space == std::string_view::npos || pair.find(' ', space + 1) != std::string_view::npos) {
    return Fail(fmt::format("model.merges[{}]: \"{}\" is not two tokens and one space",
                            MergeIndex(), pair));
  }
  return AddMerge(pair.substr(0, space), pair.substr(space + 1));
}

bool TokenizerJsonReader::AddMerge(std::string_view left, std::string_view right) {
  if (vocab_read_) return ResolveMerge(left, right);
  deferred_.emplace_back(left, right);
  return true;
}

bool TokenizerJsonReader::ResolveMerge(std::string_view left, std::string_view right) {
  const uint32_t rank = next_rank_++;
  left_bytes_.clear();
  right_bytes_.clear();
  int left_id = -1;
  int right_id = -1;
  int id = -1;
  if (FromByteLevel(left, left_bytes_) && FromByteLevel(right, right_bytes_)) {
    left_id = parts_.vocab.Find(left_bytes_);
    right_id = parts_.vocab.Find(right_bytes_);
    left_bytes_ += right_bytes_;
    id = parts_.vocab.Find(left_bytes_);
  }
  if (left_id < 0 || right_id < 0 || id < 0) {
    return Fail(
        fmt::format("model.merges[{}]: \"{}\", \"{}\" or the two together are not in "
                    "model.vocab",
                    rank, left, right));
  }
  parts_.merges.Set(left_id, right_id, {rank, id});
  return true;
}

}  // namespace conclave::model
