#include "client/chat_tools.h"

#include <fmt/format.h>

#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/one_line.h"

namespace conclave::client {
namespace {

using Json = nlohmann::ordered_json;  // a schema's order is shown to the model

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
  try {
    const Json list = Json::parse(file);
    if (!list.is_array()) {
      return absl::InvalidArgumentError(fmt::format("{}: is not a JSON list of tools", path));
    }
    for (const Json& entry : list) AddTool(entry, conversation);
    return absl::OkStatus();
  } catch (const std::exception& error) {  // of the JSON library
    return absl::InvalidArgumentError(fmt::format("{}: {}", path, base::OneLine(error.what())));
  }
}

}  // namespace conclave::client
