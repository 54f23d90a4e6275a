#include "client/chat_tools.h"

#include <fmt/format.h>

#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/one_line.h"

namespace conclave::client {
namespace {

using Json = nlohmann::ordered_json;  // a schema's order is shown to the model

// The JSON library's, without its number.
std::string Reason(const std::exception& error) {
  const std::string text = base::OneLine(error.what());
  const size_t end = text.starts_with("[json.exception") ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

// Throws what the JSON library does when `entry` is not a tool.
void AddTool(const Json& entry, v1::Conversation* conversation) {
  const Json& function = entry.contains("function") ? entry.at("function") : entry;
  v1::FunctionTool* tool = conversation->add_tools();
  tool->set_name(function.at("name").get<std::string>());
  tool->set_description(function.value("description", ""));
  if (function.contains("parameters")) tool->set_parameters_json(function.at("parameters").dump());
}

}  // namespace

absl::Status AddToolsFrom(const std::string& path, v1::Conversation* conversation) {
  std::ifstream file(path);
  if (!file.is_open()) return absl::NotFoundError(fmt::format("{}: cannot be read", path));
  int at = -1;  // in the list
  try {
    const Json list = Json::parse(file);
    if (!list.is_array()) {
      return absl::InvalidArgumentError(fmt::format("{}: is not a JSON list of tools", path));
    }
    for (const Json& entry : list) {
      ++at;
      AddTool(entry, conversation);
    }
    return absl::OkStatus();
  } catch (const std::exception& error) {  // of the JSON library
    const std::string place = at < 0 ? path : fmt::format("{}, tool {}", path, at);
    return absl::InvalidArgumentError(fmt::format("{}: {}", place, Reason(error)));
  }
}

}  // namespace conclave::client
