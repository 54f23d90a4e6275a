#ifndef CONCLAVE_TESTS_E2E_PAGES_H_
#define CONCLAVE_TESTS_E2E_PAGES_H_

// What the tables of docs/operations.md and docs/api.md say, for tests that compare it with what is
// served.

#include <map>
#include <set>
#include <string>

namespace conclave::tests {

inline constexpr char kOperationsPage[] = "docs/operations.md";
inline constexpr char kApiPage[] = "docs/api.md";

// name -> type.
std::map<std::string, std::string> DocumentedMetrics();

// Labels whose values are ours to choose, all of them documented.
const std::set<std::string>& OurLabels();

// "conclave_tokens_total generated": metrics and the values that are listed for those labels.
std::set<std::string> DocumentedValues();

// "GenerationService.Chat".
std::set<std::string> DocumentedMethods();

// "--model", of all programs.
std::set<std::string> DocumentedFlags();

// "INVALID_ARGUMENT": words in capitals of the first column, of a page's table of codes.
std::set<std::string> DocumentedCodes(const std::string& page);

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_E2E_PAGES_H_
