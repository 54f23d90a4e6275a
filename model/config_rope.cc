#include "model/config_rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "fmt/format.h"

namespace conclave::model {
namespace {

using nlohmann::json;

constexpr FieldReader::RealRange kTheta = {1.0, 1e12};
constexpr FieldReader::RealRange kRotations = {0.0, 1e6};
constexpr FieldReader::RealRange kFactor = {0.0, 1e6};
constexpr FieldReader::RealRange kMultiplier = {0.0, 100.0};
constexpr FieldReader::RealRange kPositions = {0.0, 16777216.0};

double Concentration(double factor, double mscale = 1.0) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// Zero counts as absent, as in Transformers.
bool IsSet(const FieldReader& fields, const char* name) {
  const json* value = fields.Find(name);
  return value != nullptr && *value != 0;
}

double AttentionFactor(FieldReader& fields, double factor) {
  if (fields.Has("attention_factor")) return fields.Real("attention_factor", kMultiplier);
  if (IsSet(fields, "mscale") && IsSet(fields, "mscale_all_dim")) {
    return Concentration(factor, fields.Real("mscale", kMultiplier)) /
           Concentration(factor, fields.Real("mscale_all_dim", kMultiplier));
  }
  return Concentration(factor);
}

void CheckBetas(FieldReader& fields, const char* fast_name, const Rope& rope) {
  if (rope.beta_fast >= rope.beta_slow) return;
  fields.Fail(fast_name,
              fmt::format("is {}, less than the slow one, {}", rope.beta_fast, rope.beta_slow));
}

// One dictionary of rotary parameters.
Rope ReadParameters(const json& object, const std::string& source, const std::string& name,
                    double outer_theta, int max_positions, absl::Status& status) {
  FieldReader fields(object, source, name + ".");
  Rope rope;
  rope.theta = fields.RealOr("rope_theta", outer_theta, kTheta);
  const std::string type = fields.OptionalString("rope_type")
                               .value_or(fields.OptionalString("type").value_or("default"));
  if (type == "default") {
    rope.yarn = false;
    rope.factor = 1.0;
    rope.attention_factor = 1.0;
  } else if (type == "yarn") {
    rope.factor = fields.Real("factor", kFactor);
    rope.beta_fast = fields.RealOr("beta_fast", 32.0, kRotations);
    rope.beta_slow = fields.RealOr("beta_slow", 1.0, kRotations);
    rope.original_max_positions =
        fields.RealOr("original_max_position_embeddings", max_positions, kPositions);
    rope.truncate = fields.BoolOr("truncate", true);
    rope.attention_factor = AttentionFactor(fields, rope.factor);
    CheckBetas(fields, "beta_fast", rope);
  } else {
    fields.Fail("rope_type",
                fmt::format("is \"{}\"; \"yarn\" and \"default\" are supported", type));
  }
  status = fields.status();
  return rope;
}

bool Same(const Rope& a, const Rope& b) {
  return a.theta == b.theta && a.yarn == b.yarn && a.factor == b.factor &&
         a.beta_fast == b.beta_fast && a.beta_slow == b.beta_slow &&
         a.original_max_positions == b.original_max_positions && a.truncate == b.truncate &&
         a.attention_factor == b.attention_factor;
}

// {"sliding_attention": {...}, "full_attention": {...}}
Rope ReadPerLayerType(FieldReader& fields, const json& object, const std::string& name,
                      double theta, int max_positions) {
  Rope ropes[2];
  constexpr const char* kTypes[] = {"sliding_attention", "full_attention"};
  for (int i = 0; i < 2; ++i) {
    const std::string path = name + "." + kTypes[i];
    const auto found = object.find(kTypes[i]);
    if (found == object.end() || !found->is_object()) {
      fields.Fail(path, "is missing or not an object");
      return {};
    }
    absl::Status status;
    ropes[i] = ReadParameters(*found, fields.source(), path, theta, max_positions, status);
    fields.Absorb(status);
  }
  if (!Same(ropes[0], ropes[1])) {
    fields.Fail(name,
                "differs between sliding_attention and full_attention; one table is supported");
  }
  return ropes[0];
}

const json* FindParameters(FieldReader& fields, std::string& name) {
  const json* empty = nullptr;
  for (const char* candidate : {"rope_scaling", "rope_parameters"}) {
    const json* value = fields.Find(candidate);
    if (value == nullptr) continue;
    name = candidate;
    if (!value->is_object()) {
      fields.Fail(candidate, "is not an object");
      return nullptr;
    }
    if (!value->empty()) return value;
    empty = value;
  }
  return empty;
}

}  // namespace

Rope ReadRope(FieldReader& fields, int max_positions) {
  Rope rope;
  const double theta = fields.RealOr("rope_theta", rope.theta, kTheta);
  std::string name;
  const json* parameters = FindParameters(fields, name);
  if (parameters == nullptr) {
    rope.theta = theta;
    return rope;
  }
  if (parameters->contains("sliding_attention") || parameters->contains("full_attention")) {
    return ReadPerLayerType(fields, *parameters, name, theta, max_positions);
  }
  absl::Status status;
  rope = ReadParameters(*parameters, fields.source(), name, theta, max_positions, status);
  fields.Absorb(status);
  return rope;
}

Rope ReadOriginalRope(FieldReader& fields, int initial_context_length) {
  Rope rope;
  rope.theta = fields.RealOr("rope_theta", 150000.0, kTheta);
  rope.factor = fields.RealOr("rope_scaling_factor", 32.0, kFactor);
  rope.beta_slow = fields.RealOr("rope_ntk_alpha", 1.0, kRotations);
  rope.beta_fast = fields.RealOr("rope_ntk_beta", 32.0, kRotations);
  rope.original_max_positions = initial_context_length;
  rope.truncate = false;
  rope.yarn = rope.factor > 1.0;
  rope.attention_factor = Concentration(rope.factor);
  CheckBetas(fields, "rope_ntk_beta", rope);
  return rope;
}

std::vector<float> RopeInverseFrequencies(const Rope& rope, int head_dim) {
  // Every step in float32 and in this order, as the reference evaluates it: at long contexts one
  // rounding more or less is visible in the angle.
  std::vector<float> table(static_cast<size_t>(head_dim / 2));
  const auto correction = [&](double rotations) {
    return head_dim * std::log(rope.original_max_positions / (2 * std::numbers::pi * rotations)) /
           (2 * std::log(rope.theta));
  };
  double low = correction(rope.beta_fast);
  double high = correction(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < table.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float power = std::pow(static_cast<float>(rope.theta), exponent);
    const float extrapolated = 1.0f / power;
    if (!rope.yarn) {
      table[i] = extrapolated;
      continue;
    }
    const float interpolated = 1.0f / (static_cast<float>(rope.factor) * power);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    table[i] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return table;
}

}  // namespace conclave::model
