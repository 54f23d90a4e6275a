#ifndef CONCLAVE_BASE_FLAGS_H_
#define CONCLAVE_BASE_FLAGS_H_

// The flags of a program and of its subcommands. A flag is declared with a pointer to where its
// value goes:
//
//   base::FlagSet app("Talks to a server.", "talk");
//   base::FlagSet& status = app.AddCommand("status", "Show the server's state");
//   status.Add("--server", &server, "Address of the server").Type("HOST:PORT").ShowDefault();
//   status.AddSwitch("--json", &json, "Print one JSON object");
//   const base::ParsedFlags parsed = app.Parse(argc, argv);
//
// CLI11 does the work behind this header, out of sight: it takes a compiler ten seconds to read, in
// each file that includes it.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace conclave::base {

// A flag as just declared, to say more of it. Refers to its FlagSet; copy it freely.
class Flag {
 public:
  explicit Flag(CLI::Option* option) : option_(option) {}

  // What the help calls the value, such as "HOST:PORT"; else the kind of value: TEXT, INT, ...
  Flag& Type(const std::string& name);
  // The help shows the value that the variable has now.
  Flag& ShowDefault();
  Flag& Required();
  // The heading of the help under which the flag stands.
  Flag& Group(const std::string& heading);
  // For a vector: the help shows one value, as for a flag that is given once for each. Several
  // behind one flag are taken all the same.
  Flag& Repeatable();
  // May be given without a value, which is then `value`; the help says so.
  Flag& ValueOptional(const std::string& value);

  // Other values are errors.
  Flag& OneOf(const std::vector<std::string>& values);
  // An integer from `low` to `high`, both included. The help says so.
  Flag& Range(int64_t low, int64_t high);
  // The same where the limits are of no interest: the help is silent.
  Flag& SilentRange(int64_t low, int64_t high);
  Flag& NonNegative();

 private:
  CLI::Option* option_;  // of the FlagSet
};

struct ParsedFlags {
  enum class Outcome {
    kOk,     // all variables are set, all callbacks have run
    kHelp,   // --help was given
    kError,  // wrong usage
  };
  Outcome outcome = Outcome::kOk;
  std::string command;  // the subcommand that was reached; empty: none
  std::string text;     // kHelp: the help, whole lines. kError: what is wrong
};

// Every FlagSet understands -h and --help. Two flags of one name are a broken invariant.
//
// Variables must outlive Parse. Each is written when its flag is given, and only then: an optional
// tells whether that was so. Numbers that are malformed or do not fit are errors; uint64_t alone
// reads as strtoull does: -1 is the largest, and so is what is too large.
class FlagSet {
 public:
  FlagSet(const std::string& description, const std::string& program);
  ~FlagSet();
  FlagSet(const FlagSet&) = delete;
  FlagSet& operator=(const FlagSet&) = delete;

  // With subcommands, exactly one has to be given. This owns what is returned.
  FlagSet& AddCommand(const std::string& name, const std::string& description);

  // What ends the help, such as examples.
  void SetFooter(const std::string& text);
  // Runs at the end of a parse that is right and, for a subcommand, reached it.
  void OnParsed(std::function<void()> callback);

  // `name` is as the user types it: "--model".
  Flag Add(const std::string& name, std::string* value, const std::string& help);
  Flag Add(const std::string& name, int* value, const std::string& help);
  Flag Add(const std::string& name, int64_t* value, const std::string& help);
  Flag Add(const std::string& name, uint64_t* value, const std::string& help);
  Flag Add(const std::string& name, double* value, const std::string& help);
  Flag Add(const std::string& name, std::optional<std::string>* value, const std::string& help);
  Flag Add(const std::string& name, std::optional<uint32_t>* value, const std::string& help);
  Flag Add(const std::string& name, std::optional<uint64_t>* value, const std::string& help);
  Flag Add(const std::string& name, std::optional<float>* value, const std::string& help);
  // Takes values up to the next flag, and may be given again; they are kept in the order given.
  Flag Add(const std::string& name, std::vector<std::string>* values, const std::string& help);
  Flag Add(const std::string& name, std::vector<uint32_t>* values, const std::string& help);
  // Callbacks run in the order of the declarations.
  Flag Add(const std::string& name, std::function<void(const std::string&)> callback,
           const std::string& help);

  // A flag without a value.
  Flag AddSwitch(const std::string& name, bool* value, const std::string& help);
  Flag AddSwitch(const std::string& name, std::function<void()> callback, const std::string& help);

  // Prints nothing. `argv[0]` is passed over.
  ParsedFlags Parse(int argc, const char* const* argv);
  // `arguments` without the program's name.
  ParsedFlags Parse(std::vector<std::string> arguments);

 private:
  explicit FlagSet(CLI::App* app);

  std::unique_ptr<CLI::App> owned_;  // null for a subcommand, which the program's App owns
  CLI::App* app_;
  std::vector<std::unique_ptr<FlagSet>> commands_;
};

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_FLAGS_H_
