// Text of system and developer messages.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/status_macros.h"
#include "model/harmony_render.h"
#include "model/harmony_schema.h"

namespace conclave::model {
namespace {

constexpr char kSectionBreak[] = "\n\n";

// Lines end at \n or \r\n; an empty text has none.
std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (end != std::string_view::npos && line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
  }
  return lines;
}

absl::StatusOr<std::string> ToolType(const HarmonyTool& tool) {
  if (!tool.parameters_json.has_value()) return fmt::format("type {} = () => any;\n", tool.name);
  const absl::StatusOr<std::string> type = HarmonySchemaType(*tool.parameters_json);
  if (!type.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("parameters of {}: {}", tool.name, std::string(type.status().message())));
  }
  return fmt::format("type {} = (_: {}) => any;\n", tool.name, *type);
}

absl::StatusOr<std::string> NamespaceText(const std::string& name,
                                          const HarmonyToolNamespace& space) {
  const bool has_tools = !space.tools.empty();
  std::vector<std::string> lines = {fmt::format("## {}\n", name)};
  if (space.description.has_value()) {
    for (const std::string_view line : Lines(*space.description)) {
      lines.push_back(fmt::format("{}{}", has_tools ? "// " : "", line));
    }
  }
  if (has_tools) {
    lines.push_back(fmt::format("namespace {} {{\n", name));
    for (const HarmonyTool& tool : space.tools) {
      for (const std::string_view line : Lines(tool.description)) {
        lines.push_back(fmt::format("// {}", line));
      }
      ASSIGN_OR_RETURN(std::string type, ToolType(tool));
      lines.push_back(std::move(type));
    }
    lines.push_back(fmt::format("}} // namespace {}", name));
  }
  return fmt::format("{}", fmt::join(lines, "\n"));
}

absl::StatusOr<std::string> ToolsText(const HarmonyToolNamespaces& namespaces) {
  std::string text = "# Tools";
  for (const auto& [name, space] : namespaces) {
    ASSIGN_OR_RETURN(const std::string block, NamespaceText(name, space));
    text += kSectionBreak + block;
  }
  return text;
}

const char* EffortName(HarmonyEffort effort) {
  switch (effort) {
    case HarmonyEffort::kLow:
      return "low";
    case HarmonyEffort::kMedium:
      return "medium";
    case HarmonyEffort::kHigh:
      return "high";
  }
  return "";
}

std::string ChannelsText(const HarmonySystem& system, bool has_functions) {
  std::string text = fmt::format("# Valid channels: {}.", fmt::join(system.channels, ", "));
  if (system.channel_required) text += " Channel must be included for every message.";
  if (has_functions) {
    text += "\nCalls to these tools must go to the commentary channel: 'functions'.";
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> HarmonySystemText(const HarmonySystem& system, bool has_functions) {
  std::vector<std::string> top;
  if (system.model_identity.has_value()) top.push_back(*system.model_identity);
  if (system.knowledge_cutoff.has_value()) {
    top.push_back("Knowledge cutoff: " + *system.knowledge_cutoff);
  }
  if (system.current_date.has_value()) top.push_back("Current date: " + *system.current_date);

  std::vector<std::string> sections;
  if (!top.empty()) sections.push_back(fmt::format("{}", fmt::join(top, "\n")));
  if (system.effort.has_value()) {
    sections.push_back(fmt::format("Reasoning: {}", EffortName(*system.effort)));
  }
  if (!system.tools.empty()) {
    ASSIGN_OR_RETURN(std::string tools, ToolsText(system.tools));
    sections.push_back(std::move(tools));
  }
  if (!system.channels.empty()) sections.push_back(ChannelsText(system, has_functions));
  return fmt::format("{}", fmt::join(sections, kSectionBreak));
}

absl::StatusOr<std::string> HarmonyDeveloperText(const HarmonyDeveloper& developer) {
  std::vector<std::string> sections;
  if (developer.instructions.has_value()) {
    sections.push_back("# Instructions");
    sections.push_back(*developer.instructions);
  }
  if (!developer.tools.empty()) {
    ASSIGN_OR_RETURN(std::string tools, ToolsText(developer.tools));
    sections.push_back(std::move(tools));
  }
  return fmt::format("{}", fmt::join(sections, kSectionBreak));
}

}  // namespace conclave::model
