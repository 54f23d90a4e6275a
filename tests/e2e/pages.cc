#include "tests/e2e/pages.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

namespace conclave::tests {
namespace {

// What stands in backticks in `text`.
std::vector<std::string> Quoted(const std::string& text) {
  std::vector<std::string> quoted;
  for (size_t begin = text.find('`'); begin != text.npos; begin = text.find('`', begin)) {
    const size_t end = std::min(text.find('`', begin + 1), text.size());
    quoted.push_back(text.substr(begin + 1, end - begin - 1));
    begin = std::min(end + 1, text.size());
  }
  return quoted;
}

// Of a row of a table.
std::vector<std::string> Cells(const std::string& row) {
  std::vector<std::string> cells(1);
  for (size_t i = 1; i < row.size(); ++i) {
    if (row[i] == '|' && row[i - 1] != '\\') {
      cells.emplace_back();
    } else {
      cells.back() += row[i];
    }
  }
  return cells;
}

bool IsCapital(char c) { return (c >= 'A' && c <= 'Z') || c == '_'; }

}  // namespace

std::map<std::string, std::string> DocumentedMetrics() {
  std::map<std::string, std::string> metrics;
  std::ifstream docs(kOperationsPage);
  for (std::string line; std::getline(docs, line);) {
    const std::string mark = "| `conclave_";
    if (!line.starts_with(mark)) continue;
    const size_t end = line.find('`', 3);
    const size_t type = line.find("| ", end) + 2;
    metrics[line.substr(3, end - 3)] = line.substr(type, line.find(' ', type) - type);
  }
  return metrics;
}

const std::set<std::string>& OurLabels() {
  static const auto& labels =
      *new std::set<std::string>{"state", "role", "outcome", "kind", "stage"};
  return labels;
}

std::set<std::string> DocumentedValues() {
  std::set<std::string> values;
  std::ifstream docs(kOperationsPage);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| `conclave_")) continue;
    const std::vector<std::string> cells = Cells(line);
    const auto labels = Quoted(cells[2]);
    const auto ours = [](const std::string& label) { return OurLabels().contains(label); };
    if (std::none_of(labels.begin(), labels.end(), ours)) continue;
    for (const std::string& value : Quoted(cells[3])) {
      values.insert(Quoted(cells[0])[0] + " " + value);
    }
  }
  return values;
}

std::set<std::string> DocumentedMethods() {
  std::set<std::string> methods;
  std::ifstream docs(kApiPage);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| `") || line.find("Service.") > line.find('|', 1)) continue;
    std::string service;  // said once for the methods of a row
    for (const std::string& name : Quoted(Cells(line)[0])) {
      const size_t dot = name.find('.');
      if (dot != name.npos) service = name.substr(0, dot + 1);
      methods.insert(dot != name.npos ? name : service + name);
    }
  }
  return methods;
}

std::set<std::string> DocumentedFlags() {
  std::set<std::string> flags;
  std::ifstream docs(kOperationsPage);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| `--")) continue;
    for (const std::string& flag : Quoted(Cells(line)[0])) {
      flags.insert(flag.substr(0, flag.find(' ')));
    }
  }
  return flags;
}

std::set<std::string> DocumentedCodes(const std::string& page) {
  std::set<std::string> codes;
  std::ifstream docs(page);
  bool in_table = false;
  for (std::string line; std::getline(docs, line);) {
    in_table = line.starts_with("| code |") || (in_table && line.starts_with("|"));
    if (!in_table) continue;
    std::istringstream names(Cells(line)[0]);
    for (std::string name; names >> name;) {
      if (name.ends_with(',')) name.pop_back();
      if (std::all_of(name.begin(), name.end(), IsCapital)) codes.insert(name);
    }
  }
  return codes;
}

}  // namespace conclave::tests
