#include "model/safetensors_header.h"

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "base/one_line.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

using nlohmann::json;

constexpr size_t kMaxDimensions = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

// One pass without a tree: a header of 100 MB may not become a gigabyte of nodes.
class HeaderReader final : public nlohmann::json_sax<json> {
 public:
  absl::StatusOr<std::vector<SafetensorsEntry>> Read(std::string_view text) {
    const bool done = json::sax_parse(text.begin(), text.end(), this);
    if (!error_.empty() || !done) return absl::InvalidArgumentError(error_);
    return std::move(entries_);
  }

  bool null() override { return Scalar("null"); }
  bool boolean(bool) override { return Scalar("true or false"); }
  bool number_float(number_float_t, const string_t& text) override { return Scalar(text); }
  bool binary(binary_t&) override { return Scalar("binary data"); }

  bool number_integer(number_integer_t value) override { return Scalar(fmt::to_string(value)); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX)) return Fail("a dimension is out of range");
      if (entry().shape.size() == kMaxDimensions) return Fail("more than 8 dimensions");
      entry().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (offsets_read_ == 2) return Fail("data_offsets is not two numbers");
      (offsets_read_++ == 0 ? entry().begin : entry().end) = value;
      return true;
    }
    return Scalar(fmt::to_string(value));
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != "dtype") return Scalar("a string");
    entry().dtype = std::move(value);
    return true;
  }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        place_ = name_ == kMetadataKey ? Place::kMetadata : Place::kTensor;
        if (place_ == Place::kTensor) entries_.push_back({name_, "", {}, 0, 0});
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return true;
      default:
        return Scalar("an object");
    }
  }

  bool key(string_t& value) override {
    if (place_ == Place::kTop) {
      if (!names_.insert(value).second) return Fail(fmt::format("\"{}\" is given twice", value));
      name_ = std::move(value);
      return true;
    }
    if (place_ == Place::kMetadata) return true;
    field_ = std::move(value);
    bool* seen = field_ == "dtype"          ? &has_dtype_
                 : field_ == "shape"        ? &has_shape_
                 : field_ == "data_offsets" ? &has_offsets_
                                            : nullptr;
    if (seen == nullptr) return Fail(fmt::format("the field \"{}\" is unknown", field_));
    if (*seen) return Fail(fmt::format("{} is given twice", field_));
    *seen = true;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_) {
        return Fail(fmt::format("{} is missing", !has_dtype_   ? "dtype"
                                                 : !has_shape_ ? "shape"
                                                               : "data_offsets"));
      }
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::kTensor && field_ == "shape") {
      place_ = Place::kShape;
      return true;
    }
    if (place_ == Place::kTensor && field_ == "data_offsets") {
      place_ = Place::kOffsets;
      offsets_read_ = 0;
      return true;
    }
    return Scalar("a list");
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_read_ != 2) {
      return Fail("data_offsets is not two numbers");
    }
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    return Fail(base::OneLine(error.what()));
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  SafetensorsEntry& entry() { return entries_.back(); }

  // A value of a kind that its place does not take.
  bool Scalar(std::string_view what) {
    switch (place_) {
      case Place::kStart:
        return Fail("not a JSON object");
      case Place::kTop:
        return Fail(fmt::format("\"{}\" is {} instead of an object", name_, what));
      case Place::kMetadata:
        return Fail(fmt::format("a value of __metadata__ is {} instead of a string", what));
      case Place::kShape:
      case Place::kOffsets:
      case Place::kTensor:
      case Place::kEnd:
        break;
    }
    return Fail(fmt::format("{} holds {}", field_, what));
  }

  bool Fail(std::string_view message) {
    const bool in_tensor =
        place_ == Place::kTensor || place_ == Place::kShape || place_ == Place::kOffsets;
    error_ = in_tensor ? fmt::format("tensor {}: {}", name_, message)
                       : fmt::format("header: {}", message);
    return false;
  }

  std::vector<SafetensorsEntry> entries_;
  std::unordered_set<std::string> names_;
  std::string error_;
  Place place_ = Place::kStart;
  std::string name_;   // of the tensor being read
  std::string field_;  // of that tensor
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  int offsets_read_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text) {
  return HeaderReader().Read(text);
}

}  // namespace conclave::model
