#ifndef CONCLAVE_BASE_LOG_JSON_H_
#define CONCLAVE_BASE_LOG_JSON_H_

#include <string>
#include <string_view>

namespace conclave::base {

// A log line's `key=value key="value"` pairs as members of a JSON object, without the braces:
//
//   event=lost worker=3 why="a \"name\""   ->   "event":"lost","worker":3,"why":"a \"name\""
//
// Bare numbers, true and false stay what they are, all else is a string. What is no pair is the
// member `message`. Of members with one name the first counts, and none is called ts, level,
// process or pid. Always valid JSON and UTF-8, whatever the line holds.
std::string JsonMembers(std::string_view line);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_LOG_JSON_H_
