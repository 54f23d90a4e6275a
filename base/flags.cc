#include "base/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/check.h"

namespace conclave::base {
namespace {

// What `declare` returns. CLI11 throws when a name is malformed or taken.
template <typename Declare>
auto Declared(const Declare& declare) {
  decltype(declare()) declared = nullptr;
  try {
    declared = declare();
  } catch (const CLI::ConstructionError& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  CONCLAVE_CHECK(declared != nullptr);
  return declared;
}

template <typename T>
Flag AddVariable(CLI::App& app, const std::string& name, T* value, const std::string& help) {
  return Flag(Declared([&] { return app.add_option(name, *value, help); }));
}

template <typename T>
Flag AddFunction(CLI::App& app, const std::string& name, std::function<void(const T&)> set,
                 const std::string& help) {
  return Flag(Declared([&] { return app.add_option_function<T>(name, std::move(set), help); }));
}

template <typename T>
Flag AddOptional(CLI::App& app, const std::string& name, std::optional<T>* value,
                 const std::string& help) {
  return AddFunction<T>(
      app, name, [value](const T& given) { *value = given; }, help);
}

}  // namespace

Flag& Flag::Type(const std::string& name) {
  option_->type_name(name);
  return *this;
}

Flag& Flag::ShowDefault() {
  option_->capture_default_str();
  return *this;
}

Flag& Flag::Required() {
  option_->required();
  return *this;
}

Flag& Flag::Group(const std::string& heading) {
  option_->group(heading);
  return *this;
}

Flag& Flag::Repeatable() {
  option_->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  return *this;
}

Flag& Flag::ValueOptional(const std::string& value) {
  option_->expected(0, 1)->default_str(value);
  return *this;
}

Flag& Flag::OneOf(const std::vector<std::string>& values) {
  option_->check(CLI::IsMember(values));
  return *this;
}

Flag& Flag::Range(int64_t low, int64_t high) {
  option_->check(CLI::Range(low, high));
  return *this;
}

Flag& Flag::SilentRange(int64_t low, int64_t high) {
  option_->check(CLI::Range(low, high).description(""));
  return *this;
}

Flag& Flag::NonNegative() {
  option_->check(CLI::NonNegativeNumber);
  return *this;
}

FlagSet::FlagSet(const std::string& description, const std::string& program)
    : owned_(std::make_unique<CLI::App>(description, program)), app_(owned_.get()) {}

FlagSet::FlagSet(CLI::App* app) : app_(app) {}

FlagSet::~FlagSet() = default;

FlagSet& FlagSet::AddCommand(const std::string& name, const std::string& description) {
  CLI::App* command = Declared([&] { return app_->add_subcommand(name, description); });
  app_->require_subcommand(1);
  commands_.push_back(std::unique_ptr<FlagSet>(new FlagSet(command)));
  return *commands_.back();
}

void FlagSet::SetFooter(const std::string& text) { app_->footer(text); }

void FlagSet::OnParsed(std::function<void()> callback) { app_->callback(std::move(callback)); }

Flag FlagSet::Add(const std::string& name, std::string* value, const std::string& help) {
  return AddVariable(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, int* value, const std::string& help) {
  return AddVariable(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, int64_t* value, const std::string& help) {
  return AddVariable(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, uint64_t* value, const std::string& help) {
  return AddVariable(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, double* value, const std::string& help) {
  return AddVariable(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, std::optional<std::string>* value,
                  const std::string& help) {
  return AddOptional(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, std::optional<uint32_t>* value,
                  const std::string& help) {
  return AddOptional(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, std::optional<uint64_t>* value,
                  const std::string& help) {
  return AddOptional(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, std::optional<float>* value, const std::string& help) {
  return AddOptional(*app_, name, value, help);
}

Flag FlagSet::Add(const std::string& name, std::vector<std::string>* values,
                  const std::string& help) {
  return AddVariable(*app_, name, values, help);
}

Flag FlagSet::Add(const std::string& name, std::vector<uint32_t>* values, const std::string& help) {
  return AddVariable(*app_, name, values, help);
}

Flag FlagSet::Add(const std::string& name, std::function<void(const std::string&)> callback,
                  const std::string& help) {
  return AddFunction<std::string>(*app_, name, std::move(callback), help);
}

Flag FlagSet::AddSwitch(const std::string& name, bool* value, const std::string& help) {
  return Flag(Declared([&] { return app_->add_flag(name, *value, help); }));
}

Flag FlagSet::AddSwitch(const std::string& name, std::function<void()> callback,
                        const std::string& help) {
  return Flag(Declared([&] { return app_->add_flag_callback(name, std::move(callback), help); }));
}

ParsedFlags FlagSet::Parse(int argc, const char* const* argv) {
  return Parse(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
}

ParsedFlags FlagSet::Parse(std::vector<std::string> arguments) {
  using Outcome = ParsedFlags::Outcome;
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  ParsedFlags parsed;
  try {
    app_->parse(std::move(arguments));
  } catch (const CLI::CallForHelp&) {
    parsed.outcome = Outcome::kHelp;
    parsed.text = app_->help();
  } catch (const CLI::ParseError& error) {
    parsed.outcome = Outcome::kError;
    parsed.text = error.what();
  }
  if (const auto reached = app_->get_subcommands(); !reached.empty()) {
    parsed.command = reached.front()->get_name();
  }
  return parsed;
}

}  // namespace conclave::base
