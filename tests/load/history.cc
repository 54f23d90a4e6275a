#include "tests/load/history.h"

#include <istream>
#include <ostream>
#include <sstream>

#include "absl/status/status.h"

namespace conclave::tests {
namespace {

absl::Status BadLine(int number, const std::string& line) {
  return absl::InvalidArgumentError("line " + std::to_string(number) + ": " + line);
}

// The rest of the line as numbers; false when there is anything else.
bool ReadTokens(std::istringstream& words, std::vector<uint32_t>& tokens) {
  uint32_t token = 0;
  while (words >> token) tokens.push_back(token);
  return words.eof();
}

bool ReadStream(std::istringstream& words, Stream& stream) {
  return static_cast<bool>(words >> stream.id >> stream.work >> stream.completions >>
                           stream.max_tokens >> stream.action >> stream.after) &&
         (stream.action == "read" || stream.action == "cancel" || stream.action == "deadline");
}

bool ReadEvent(const std::string& kind, std::istringstream& words, Event& event) {
  if (!(words >> event.micros)) return false;
  if (kind == "end") {
    event.kind = Event::Kind::kEnd;
    return static_cast<bool>(words >> event.code);
  }
  if (!(words >> event.index)) return false;
  if (kind == "finish") {
    event.kind = Event::Kind::kFinish;
    return static_cast<bool>(words >> event.reason >> event.count >> event.cached);
  }
  return kind == "tokens" && ReadTokens(words, event.tokens);
}

void WriteTokens(const std::vector<uint32_t>& tokens, std::ostream& out) {
  for (uint32_t token : tokens) out << ' ' << token;
  out << '\n';
}

}  // namespace

void Write(const Stream& stream, std::ostream& out) {
  out << "stream " << stream.id << ' ' << stream.work << ' ' << stream.completions << ' '
      << stream.max_tokens << ' ' << stream.action << ' ' << stream.after << '\n';
  for (const Event& event : stream.events) {
    switch (event.kind) {
      case Event::Kind::kTokens:
        out << "tokens " << event.micros << ' ' << event.index;
        WriteTokens(event.tokens, out);
        break;
      case Event::Kind::kFinish:
        out << "finish " << event.micros << ' ' << event.index << ' ' << event.reason << ' '
            << event.count << ' ' << event.cached << '\n';
        break;
      case Event::Kind::kEnd:
        out << "end " << event.micros << ' ' << event.code << '\n';
        break;
    }
  }
}

void WriteTruths(const Truths& truths, std::ostream& out) {
  for (const auto& [key, tokens] : truths) {
    out << "truth " << key.first << ' ' << key.second;
    WriteTokens(tokens, out);
  }
}

absl::StatusOr<std::vector<Stream>> ParseHistory(std::istream& in) {
  std::vector<Stream> streams;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "stream") {
      if (!ReadStream(words, streams.emplace_back())) return BadLine(number, line);
      continue;
    }
    Event event;
    if (streams.empty() || !ReadEvent(kind, words, event)) return BadLine(number, line);
    streams.back().events.push_back(std::move(event));
  }
  return streams;
}

absl::StatusOr<Truths> ParseTruths(std::istream& in) {
  Truths truths;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    std::istringstream words(line);
    std::string kind;
    int work = 0;
    int index = 0;
    std::vector<uint32_t> tokens;
    const bool good = (words >> kind >> work >> index) && kind == "truth";
    if (!good || !ReadTokens(words, tokens)) return BadLine(number, line);
    truths[{work, index}] = std::move(tokens);
  }
  return truths;
}

}  // namespace conclave::tests
