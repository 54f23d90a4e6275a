#ifndef CONCLAVE_CLIENT_TOKENIZE_COMMAND_H_
#define CONCLAVE_CLIENT_TOKENIZE_COMMAND_H_

// conclave tokenize: text to token ids and back, from a vocabulary file, without a server.

#include <functional>
#include <istream>
#include <ostream>
#include <string>

#include "base/flags.h"

namespace conclave::client {

struct TokenizeOptions {
  std::string tokenizer;       // tokenizer.json, a folder with one, or a .tiktoken file
  bool jsonl = false;          // one JSON object per line, else the whole input is one text
  bool decode = false;         // ids to text
  bool allow_special = false;  // special tokens spelled in the text become their ids
};

// Reads `in` to its end; line n of `out` answers line n of `in`. Prints the first error on stderr,
// with its line, and stops. Returns the exit code.
int RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out);

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddTokenizeCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_TOKENIZE_COMMAND_H_
