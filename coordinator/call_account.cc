#include "coordinator/call_account.h"

namespace conclave::coordinator {
namespace {

constexpr std::array<const char*, kMethods> kMethodNames = {
    "GenerationService.Generate",
    "GenerationService.GenerateBatch",
    "GenerationService.Chat",
    "ClassificationService.ClassifySequence",
    "ClassificationService.ClassifyTokens",
    "ClassificationService.ScoreLabels",
    "ModelService.GetModel",
    "ModelService.Tokenize",
    "ModelService.Detokenize",
    "ClusterService.GetCluster",
    "ClusterService.Rebalance",
    "ClusterService.Drain",
};

constexpr std::array<const char*, kCodes> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

}  // namespace

const char* MethodName(Method method) { return kMethodNames[static_cast<size_t>(method)]; }

const char* CodeName(size_t code) { return code < kCodes ? kCodeNames[code] : "UNKNOWN"; }

}  // namespace conclave::coordinator
