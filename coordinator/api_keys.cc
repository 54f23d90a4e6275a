#include "coordinator/api_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <iterator>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "base/logging.h"
#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

constexpr absl::Duration kLookInterval = absl::Seconds(1);
constexpr size_t kMaxNameBytes = 64;
constexpr std::string_view kHashed = "sha256:";

absl::Status Wrong(const char* what) { return absl::InvalidArgumentError(what); }

bool IsName(std::string_view name) {
  const auto allowed = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  };
  return name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), allowed);
}

absl::Status ParseSecret(std::string_view text, base::Digest& digest) {
  if (!text.starts_with(kHashed)) {
    digest = base::Sha256(text);
    return base::CheckSecret(text);
  }
  const std::string_view hex = text.substr(kHashed.size());
  if (hex.size() != 2 * digest.size() || !std::all_of(hex.begin(), hex.end(), [](char c) {
        return absl::ascii_isxdigit(static_cast<unsigned char>(c));
      })) {
    return Wrong("after sha256: stand 64 hexadecimal digits");
  }
  const std::string bytes = absl::HexStringToBytes(std::string(hex));
  std::copy(bytes.begin(), bytes.end(), digest.begin());
  return absl::OkStatus();
}

// A date is its first moment, UTC.
bool ParseTime(const std::string& text, absl::Time* time) {
  std::string error;
  return absl::ParseTime("%Y-%m-%d", text, time, &error) ||
         absl::ParseTime(absl::RFC3339_full, text, time, &error);
}

template <typename Number>
bool ParseLimit(const std::string& text, Number* number) {
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, *number);
  return parsed.ec == std::errc() && parsed.ptr == end && *number >= 1;
}

absl::Status ParseOption(const std::string& option, ApiKey& key) {
  const size_t equals = std::min(option.find('='), option.size());
  const std::string name = option.substr(0, equals);
  const std::string value = option.substr(std::min(equals + 1, option.size()));
  if (option == "admin") {
    key.admin = true;
    return absl::OkStatus();
  }
  if (name == "expires") {
    if (ParseTime(value, &key.expires)) return absl::OkStatus();
    return Wrong("expires= takes 2027-01-31 or 2027-01-31T12:00:00Z");
  }
  if (name == "max-requests") {
    if (ParseLimit(value, &key.limits.max_requests)) return absl::OkStatus();
    return Wrong("max-requests= takes a number from 1");
  }
  if (name == "tokens-per-minute") {
    if (ParseLimit(value, &key.limits.tokens_per_minute)) return absl::OkStatus();
    return Wrong("tokens-per-minute= takes a number from 1");
  }
  return Wrong("an option is admin, expires=, max-requests= or tokens-per-minute=");
}

absl::StatusOr<ApiKey> ParseLine(const std::vector<std::string>& words) {
  ApiKey key;
  if (words.size() < 2) return Wrong("a line is NAME KEY [OPTION ...]");
  if (!IsName(words[0])) return Wrong("a name is up to 64 letters, digits, '-', '_' or '.'");
  key.name = words[0];
  RETURN_IF_ERROR(ParseSecret(words[1], key.digest));
  for (size_t i = 2; i < words.size(); ++i) RETURN_IF_ERROR(ParseOption(words[i], key));
  return key;
}

// Services whose methods are for every key. The methods of all others take an admin.
constexpr std::array<std::string_view, 6> kForEverybody = {
    "/conclave.v1.GenerationService/",
    "/conclave.v1.ClassificationService/",
    "/conclave.v1.ModelService/",
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
};

bool NeedsAdmin(std::string_view method) {
  return method != "/conclave.v1.ClusterService/GetCluster" &&
         std::none_of(kForEverybody.begin(), kForEverybody.end(),
                      [method](std::string_view service) { return method.starts_with(service); });
}

}  // namespace

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& text, const std::string& path) {
  std::vector<ApiKey> keys;
  std::set<std::string> names;
  std::set<base::Digest> digests;
  std::istringstream lines(text);
  int line = 0;
  for (std::string content; std::getline(lines, content);) {
    ++line;
    std::istringstream blanks(content);
    const std::vector<std::string> words{std::istream_iterator<std::string>(blanks), {}};
    if (words.empty() || words.front().starts_with('#')) continue;
    absl::StatusOr<ApiKey> key = ParseLine(words);
    if (key.ok() && !names.insert(key->name).second) key = Wrong("the name was there before");
    if (key.ok() && !digests.insert(key->digest).second) key = Wrong("the key was there before");
    if (!key.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: {}", path, line, std::string(key.status().message())));
    }
    keys.push_back(*std::move(key));
  }
  if (!keys.empty()) return keys;
  return absl::InvalidArgumentError(fmt::format("{}: no key in it", path));
}

absl::StatusOr<std::shared_ptr<ApiKeys>> ApiKeys::Open(const std::string& path,
                                                       const base::Clock& clock,
                                                       const base::Clock& wall) {
  base::FileWatch watch({path});  // before it is read: a change in between must not be missed
  ASSIGN_OR_RETURN(const std::string text, base::ReadSmallFile(path));
  ASSIGN_OR_RETURN(std::vector<ApiKey> keys, ParseApiKeys(text, path));
  return std::shared_ptr<ApiKeys>(
      new ApiKeys(path, clock, wall, std::move(watch), std::move(keys)));
}

ApiKeys::ApiKeys(const std::string& path, const base::Clock& clock, const base::Clock& wall,
                 base::FileWatch watch, std::vector<ApiKey> keys)
    : path_(path), clock_(clock), wall_(wall), watch_(std::move(watch)), looked_(clock.Now()) {
  absl::MutexLock lock(&mutex_);
  Replace(std::move(keys));
}

// Requests that are open count for the key of their name, whatever else the new file says of it.
void ApiKeys::Replace(std::vector<ApiKey> keys) {
  std::map<std::string, std::shared_ptr<ApiKeyAccount>> accounts;
  if (keys_ != nullptr) {
    for (const Held& held : *keys_) accounts[held.key.name] = held.account;
  }
  auto next = std::make_shared<Keys>();
  for (ApiKey& key : keys) {
    std::shared_ptr<ApiKeyAccount>& account = accounts[key.name];
    if (account == nullptr) account = std::make_shared<ApiKeyAccount>(key.name, clock_);
    account->SetLimits(key.limits);
    next->push_back({.key = std::move(key), .account = account});
  }
  keys_ = std::move(next);
}

std::shared_ptr<const ApiKeys::Keys> ApiKeys::Current() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = clock_.Now();
  if (now - looked_ < kLookInterval) return keys_;
  looked_ = now;
  if (!watch_.Changed()) return keys_;
  const absl::StatusOr<std::string> text = base::ReadSmallFile(path_);
  absl::StatusOr<std::vector<ApiKey>> keys = text.ok() ? ParseApiKeys(*text, path_) : text.status();
  if (keys.ok()) {
    base::Log().info("event=api_keys_reloaded file={} keys={}", path_, keys->size());
    Replace(*std::move(keys));
  } else {
    base::Log().error("event=api_keys_refused keeping=old error=\"{}\"",
                      std::string(keys.status().message()));
  }
  return keys_;
}

const ApiKeys::Held* ApiKeys::Find(const Keys& keys, std::string_view authorization) {
  const std::string_view secret = base::BearerSecret(authorization);
  const base::Digest digest = base::Sha256(secret);
  const Held* found = nullptr;
  for (const Held& held : keys) {  // all of them: when it is found says nothing
    if (base::SameDigest(held.key.digest, digest)) found = &held;
  }
  return secret.empty() ? nullptr : found;
}

absl::Status ApiKeys::Check(std::string_view method, std::string_view authorization) {
  if (authorization.empty()) {
    return absl::UnauthenticatedError(
        "an API key is required: send metadata 'authorization: Bearer KEY'");
  }
  const std::shared_ptr<const Keys> keys = Current();
  const Held* held = Find(*keys, authorization);
  if (held == nullptr) return absl::UnauthenticatedError("the API key is not valid");
  if (wall_.Now() >= held->key.expires) {
    return absl::UnauthenticatedError("the API key has expired");
  }
  if (held->key.admin || !NeedsAdmin(method)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      fmt::format("the API key '{}' is not an admin's", held->key.name));
}

std::shared_ptr<ApiKeyAccount> ApiKeys::Account(std::string_view authorization) {
  const std::shared_ptr<const Keys> keys = Current();
  const Held* held = Find(*keys, authorization);
  return held == nullptr ? nullptr : held->account;
}

}  // namespace conclave::coordinator
