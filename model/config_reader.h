#ifndef CONCLAVE_MODEL_CONFIG_READER_H_
#define CONCLAVE_MODEL_CONFIG_READER_H_

// Reads typed fields of one JSON object. The first error sticks, names the field and the value
// found, and makes every later call return its default; ask status() once at the end.
//
//   FieldReader fields(object, "config.json", "");
//   config.hidden_size = fields.Int("hidden_size", 1, 65536);
//   RETURN_IF_ERROR(fields.status());

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::model {

// `text` as one JSON object. INVALID_ARGUMENT with `source` and the place of the error.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view source);

// A whole JSON file. NOT_FOUND when it is absent, INVALID_ARGUMENT when larger than 32 MiB.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

class FieldReader {
 public:
  struct RealRange {
    double above;    // exclusive
    double at_most;  // inclusive
  };

  // `object` must be a JSON object and outlive the reader. `prefix` stands before field names in
  // errors: "rope_scaling.".
  FieldReader(const nlohmann::json& object, std::string source, std::string prefix);

  // Present and not null.
  bool Has(const char* name) const { return Find(name) != nullptr; }
  const nlohmann::json* Find(const char* name) const;

  // Required. Of several names for the same thing one must be there; all that are must agree.
  int Int(const char* name, int min, int max) { return Int({name}, min, max); }
  int Int(std::initializer_list<const char*> names, int min, int max);
  double Real(const char* name, RealRange range);

  // Optional: `fallback` when absent or null.
  int IntOr(const char* name, int fallback, int min, int max);
  double RealOr(const char* name, double fallback, RealRange range);
  bool BoolOr(const char* name, bool fallback);
  std::optional<std::string> OptionalString(const char* name);
  std::optional<int> OptionalInt(const char* name, int min, int max);
  // One integer or a list of them.
  std::vector<int> IntList(const char* name, int min, int max);

  // Makes `message`, after "source: prefix+name", the error unless there is one.
  void Fail(std::string_view name, std::string_view message);
  // Takes over an error that stands already complete.
  void Absorb(const absl::Status& status);

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  const std::string& source() const { return source_; }

 private:
  int ToInt(std::string_view name, const nlohmann::json& value, int min, int max);
  double ToReal(std::string_view name, const nlohmann::json& value, RealRange range);

  const nlohmann::json& object_;
  std::string source_;
  std::string prefix_;
  absl::Status status_;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CONFIG_READER_H_
