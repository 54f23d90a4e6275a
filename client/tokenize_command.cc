#include "client/tokenize_command.h"

#include <fmt/format.h>

#include <charconv>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "client/exit_code.h"
#include "model/tokenizer.h"

namespace conclave::client {
namespace {

using nlohmann::json;

constexpr char kName[] = "tokenize";

absl::Status CheckId(int64_t id, const model::Tokenizer& tokenizer) {
  if (id >= 0 && id < tokenizer.size() && !tokenizer.TokenBytes(static_cast<int>(id)).empty()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      fmt::format("token id {} is not in the vocabulary (0..{})", id, tokenizer.size() - 1));
}

// Between the forms of one text, for both input formats.
class Converter {
 public:
  Converter(const model::Tokenizer& tokenizer, bool allow_special)
      : tokenizer_(tokenizer), allow_special_(allow_special) {}

  absl::StatusOr<std::vector<int>> Encode(std::string_view text) const {
    RETURN_IF_ERROR(base::ValidateUtf8(text));
    return allow_special_ ? tokenizer_.EncodeWithSpecials(text) : tokenizer_.Encode(text);
  }

  absl::StatusOr<std::string> Decode(const std::vector<int64_t>& ids) const {
    std::vector<int> checked;
    checked.reserve(ids.size());
    for (const int64_t id : ids) {
      RETURN_IF_ERROR(CheckId(id, tokenizer_));
      checked.push_back(static_cast<int>(id));
    }
    return tokenizer_.Decode(checked);
  }

 private:
  const model::Tokenizer& tokenizer_;
  const bool allow_special_;
};

// {"text": "..."} -> {"ids": [...]}
absl::StatusOr<json> EncodeLine(const json& line, const Converter& converter) {
  const auto text = line.find("text");
  if (text == line.end() || !text->is_string()) {
    return absl::InvalidArgumentError("expected {\"text\": \"...\"}");
  }
  ASSIGN_OR_RETURN(const std::vector<int> ids, converter.Encode(text->get<std::string>()));
  return json{{"ids", ids}};
}

// {"ids": [...]} -> {"text": "..."}
absl::StatusOr<json> DecodeLine(const json& line, const Converter& converter) {
  const auto list = line.find("ids");
  if (list == line.end() || !list->is_array()) {
    return absl::InvalidArgumentError("expected {\"ids\": [1, 2, 3]}");
  }
  std::vector<int64_t> ids;
  for (const json& id : *list) {
    if (!id.is_number_integer()) {
      return absl::InvalidArgumentError(fmt::format("\"{}\" is not a token id", id.dump()));
    }
    ids.push_back(id.get<int64_t>());
  }
  ASSIGN_OR_RETURN(std::string text, converter.Decode(ids));
  return json{{"text", std::move(text)}};
}

absl::StatusOr<std::string> ConvertLine(const std::string& line, bool decode,
                                        const Converter& converter) {
  const json parsed = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return absl::InvalidArgumentError("not a JSON object");
  ASSIGN_OR_RETURN(const json result,
                   decode ? DecodeLine(parsed, converter) : EncodeLine(parsed, converter));
  return result.dump();
}

absl::Status ConvertLines(bool decode, const Converter& converter, std::istream& in,
                          std::ostream& out) {
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const absl::StatusOr<std::string> result = ConvertLine(line, decode, converter);
    if (!result.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("line {}: {}", number, std::string(result.status().message())));
    }
    out << *result << '\n';
    // Whoever waits for an answer before the next line gets it; a bulk run is not slowed down.
    if (in.rdbuf()->in_avail() <= 0) out.flush();
  }
  return absl::OkStatus();
}

// "1 2,3"
absl::StatusOr<std::vector<int64_t>> ParseIds(std::string_view text) {
  constexpr std::string_view kSeparators = ", \t\r\n";
  std::vector<int64_t> ids;
  for (size_t begin; (begin = text.find_first_not_of(kSeparators)) != std::string_view::npos;) {
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
    int64_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size()) {
      return absl::InvalidArgumentError(fmt::format("\"{}\" is not a token id", word));
    }
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
  return ids;
}

absl::Status ConvertAll(bool decode, const Converter& converter, std::istream& in,
                        std::ostream& out) {
  const std::string input{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (decode) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> ids, ParseIds(input));
    ASSIGN_OR_RETURN(const std::string text, converter.Decode(ids));
    out << text;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<int> ids, converter.Encode(input));
  out << fmt::format("{}\n", fmt::join(ids, " "));
  return absl::OkStatus();
}

}  // namespace

int RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out) {
  const auto tokenizer = model::Tokenizer::Load(options.tokenizer);
  if (!tokenizer.ok()) return Fail(kName, tokenizer.status());
  const Converter converter(**tokenizer, options.allow_special);
  const absl::Status status = options.jsonl ? ConvertLines(options.decode, converter, in, out)
                                            : ConvertAll(options.decode, converter, in, out);
  out.flush();
  if (!status.ok()) return Fail(kName, status);
  if (!out) return Fail(kName, absl::UnavailableError("the output cannot be written"));
  return kExitOk;
}

void AddTokenizeCommand(base::FlagSet& app, std::function<int()>* run) {
  auto options = std::make_shared<TokenizeOptions>();
  base::FlagSet& command = app.AddCommand(kName, "Turn text into token ids, or back");
  command
      .Add("--tokenizer", &options->tokenizer,
           "A tokenizer.json, a folder that holds one, or o200k_base.tiktoken")
      .Required();
  command.AddSwitch("--jsonl", &options->jsonl,
                    "Read {\"text\":...} and write {\"ids\":[...]}, one object per line");
  command.AddSwitch("--decode", &options->decode, "The other way: ids to text");
  command.AddSwitch("--allow-special", &options->allow_special,
                    "Special tokens spelled in the text become their ids");
  command.SetFooter(
      "Without --jsonl the whole input is one text (or one list of ids).\n\n"
      "Example:\n"
      "  echo '{\"text\":\"hello world\"}' |\n"
      "    conclave tokenize --tokenizer /models/gpt-oss-20b/tokenizer.json --jsonl\n"
      "  echo 24912 2375 | conclave tokenize --tokenizer o200k_base.tiktoken --decode");
  command.OnParsed(
      [options, run] { *run = [options] { return RunTokenize(*options, std::cin, std::cout); }; });
}

}  // namespace conclave::client
