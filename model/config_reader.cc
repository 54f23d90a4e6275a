#include "model/config_reader.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/one_line.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxJsonBytes = int64_t{32} << 20;

// For messages: the value itself, cut so that a hostile file cannot flood a log.
std::string Shown(const json& value) {
  std::string text = value.is_structured()
                         ? std::string(value.is_array() ? "a list" : "an object")
                         : value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view source) {
  try {
    json object = json::parse(text.begin(), text.end());
    if (object.is_object()) return object;
    return absl::InvalidArgumentError(
        fmt::format("{}: {} instead of an object", source, Shown(object)));
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(
        fmt::format("{}: not valid JSON: {}", source, base::OneLine(error.what())));
  }
}

absl::StatusOr<json> ReadJsonObject(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(fmt::format("{}: no such file", path));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(fmt::format("{}: not a regular file", path));
  }
  const auto size = std::filesystem::file_size(path, error);
  if (error || size > static_cast<uint64_t>(kMaxJsonBytes)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} bytes, more than the {} that are read", path, size, kMaxJsonBytes));
  }
  std::string text(size, '\0');
  std::ifstream in(path, std::ios::binary);
  if (!in.read(text.data(), static_cast<std::streamsize>(size))) {
    return absl::UnavailableError(fmt::format("{}: {}", path, std::strerror(errno)));
  }
  return ParseJsonObject(text, path);
}

FieldReader::FieldReader(const json& object, std::string source, std::string prefix)
    : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

const json* FieldReader::Find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

int FieldReader::Int(std::initializer_list<const char*> names, int min, int max) {
  const char* first_name = nullptr;
  int first = min;
  for (const char* name : names) {
    const json* value = Find(name);
    if (value == nullptr) continue;
    const int number = ToInt(name, *value, min, max);
    if (!ok()) return min;
    if (first_name != nullptr && number != first) {
      Fail(name, fmt::format("is {} but {}{} is {}", number, prefix_, first_name, first));
      return min;
    }
    first_name = name;
    first = number;
  }
  if (first_name == nullptr) Fail(*names.begin(), "is missing");
  return first;
}

double FieldReader::Real(const char* name, RealRange range) {
  const json* value = Find(name);
  if (value != nullptr) return ToReal(name, *value, range);
  Fail(name, "is missing");
  return range.at_most;
}

int FieldReader::IntOr(const char* name, int fallback, int min, int max) {
  const json* value = Find(name);
  return value == nullptr ? fallback : ToInt(name, *value, min, max);
}

double FieldReader::RealOr(const char* name, double fallback, RealRange range) {
  const json* value = Find(name);
  return value == nullptr ? fallback : ToReal(name, *value, range);
}

bool FieldReader::BoolOr(const char* name, bool fallback) {
  const json* value = Find(name);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Fail(name, fmt::format("is {}; true or false is wanted", Shown(*value)));
  return fallback;
}

std::optional<std::string> FieldReader::OptionalString(const char* name) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  Fail(name, fmt::format("is {}; a string is wanted", Shown(*value)));
  return std::nullopt;
}

std::optional<int> FieldReader::OptionalInt(const char* name, int min, int max) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  return ToInt(name, *value, min, max);
}

std::vector<int> FieldReader::IntList(const char* name, int min, int max) {
  const json* value = Find(name);
  if (value == nullptr) return {};
  if (!value->is_array()) return {ToInt(name, *value, min, max)};
  std::vector<int> numbers;
  for (const json& item : *value) {
    numbers.push_back(ToInt(fmt::format("{}[{}]", name, numbers.size()), item, min, max));
  }
  return numbers;
}

void FieldReader::Fail(std::string_view name, std::string_view message) {
  if (!ok()) return;
  status_ = absl::InvalidArgumentError(fmt::format("{}: {}{} {}", source_, prefix_, name, message));
}

void FieldReader::Absorb(const absl::Status& status) {
  if (ok()) status_ = status;
}

int FieldReader::ToInt(std::string_view name, const json& value, int min, int max) {
  if (!value.is_number_integer()) {
    Fail(name, fmt::format("is {}; an integer is wanted", Shown(value)));
    return min;
  }
  const bool fits =
      value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX) : true;
  const int64_t number = fits ? value.get<int64_t>() : 0;
  if (!fits || number < min || number > max) {
    Fail(name, fmt::format("is {}; {} to {} is possible", Shown(value), min, max));
    return min;
  }
  return static_cast<int>(number);
}

double FieldReader::ToReal(std::string_view name, const json& value, RealRange range) {
  if (!value.is_number()) {
    Fail(name, fmt::format("is {}; a number is wanted", Shown(value)));
    return range.at_most;
  }
  const double number = value.get<double>();
  if (!std::isfinite(number) || !(number > range.above && number <= range.at_most)) {
    Fail(name, fmt::format("is {}; more than {} and at most {} is possible", Shown(value),
                           range.above, range.at_most));
    return range.at_most;
  }
  return number;
}

}  // namespace conclave::model
