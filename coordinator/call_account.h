#ifndef CONCLAVE_COORDINATOR_CALL_ACCOUNT_H_
#define CONCLAVE_COORDINATOR_CALL_ACCOUNT_H_

// Calls of the public services: how many are under way, and how those that ended did.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

namespace conclave::coordinator {

enum class Method {
  // Work, which the engine admits.
  kGenerate,
  kGenerateBatch,
  kChat,
  kClassifySequence,
  kClassifyTokens,
  kScoreLabels,
  // Answered without the workers.
  kGetModel,
  kTokenize,
  kDetokenize,
  kGetCluster,
  kRebalance,
  kDrain,
};
inline constexpr size_t kMethods = 12;
inline constexpr size_t kCodes = 17;  // of gRPC, OK is 0

// As docs/api.md has it: GenerationService.Generate.
const char* MethodName(Method method);
// As gRPC spells it: INVALID_ARGUMENT.
const char* CodeName(size_t code);

// Thread-safe, without locks.
class CallAccount {
 public:
  // The name of the API key in an `authorization` header, or "".
  using KeyNames = std::function<std::string(std::string_view authorization)>;
  // Before the first call.
  void NameKeys(KeyNames names) { key_names_ = std::move(names); }
  std::string KeyName(std::string_view authorization) const {
    return key_names_ == nullptr ? "" : key_names_(authorization);
  }

  void Begin(Method method) { open_[static_cast<size_t>(method)].fetch_add(1); }
  // Of a call that has begun.
  void End(Method method, absl::StatusCode code) {
    Count(method, code);
    open_[static_cast<size_t>(method)].fetch_sub(1);
  }
  // The engine has taken something of a call that is work, and owes it an end.
  void Admit() { admitted_.fetch_add(1); }
  void Leave() { admitted_.fetch_sub(1); }
  int admitted() const { return admitted_.load(); }

  // Of a call that never came as far as its service.
  void Count(Method method, absl::StatusCode code) {
    const auto index = static_cast<size_t>(code);
    ended_[static_cast<size_t>(method)][index < kCodes ? index : 2].fetch_add(1);
  }

  int open(Method method) const { return open_[static_cast<size_t>(method)].load(); }
  uint64_t ended(Method method, size_t code) const {
    return ended_[static_cast<size_t>(method)][code].load();
  }

 private:
  KeyNames key_names_;
  std::atomic<int> admitted_{0};
  std::array<std::atomic<int>, kMethods> open_ = {};
  std::array<std::array<std::atomic<uint64_t>, kCodes>, kMethods> ended_ = {};
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CALL_ACCOUNT_H_
