#include "model/harmony.h"

#include <array>
#include <utility>

#include "absl/status/status.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

constexpr std::array<std::pair<HarmonyRole, std::string_view>, 5> kRoles = {{
    {HarmonyRole::kSystem, "system"},
    {HarmonyRole::kDeveloper, "developer"},
    {HarmonyRole::kUser, "user"},
    {HarmonyRole::kAssistant, "assistant"},
    {HarmonyRole::kTool, "tool"},
}};

}  // namespace

std::string_view HarmonyRoleName(HarmonyRole role) {
  for (const auto& [known, name] : kRoles) {
    if (known == role) return name;
  }
  return "";
}

std::optional<HarmonyRole> HarmonyRoleOf(std::string_view name) {
  for (const auto& [role, known] : kRoles) {
    if (known == name) return role;
  }
  return std::nullopt;
}

absl::StatusOr<HarmonyTokens> HarmonyTokens::Find(const Tokenizer& tokenizer) {
  HarmonyTokens tokens;
  const std::array<std::pair<std::string_view, int*>, 7> names = {{
      {"<|start|>", &tokens.start},
      {"<|message|>", &tokens.message},
      {"<|channel|>", &tokens.channel},
      {kConstrainMarker, &tokens.constrain},
      {"<|end|>", &tokens.end},
      {"<|return|>", &tokens.ret},
      {"<|call|>", &tokens.call},
  }};
  std::string missing;
  for (const auto& [name, id] : names) {
    const std::optional<int> found = tokenizer.SpecialId(name);
    if (found.has_value()) {
      *id = *found;
    } else {
      missing += fmt::format("{}{}", missing.empty() ? "" : ", ", name);
    }
  }
  if (missing.empty()) return tokens;
  return absl::FailedPreconditionError(fmt::format(
      "the tokenizer has no special tokens {}, which the Harmony chat format needs", missing));
}

}  // namespace conclave::model
