#include "coordinator/trace_context.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <random>

namespace conclave::coordinator {
namespace {

constexpr size_t kMaxRequestId = 128;
constexpr std::string_view kIdMarks = "-_.:/+=@";

bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(std::string_view text) { return text.find_first_not_of('0') == text.npos; }

bool IsIdCharacter(char c) {
  const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return letter || (c >= '0' && c <= '9') || kIdMarks.find(c) != kIdMarks.npos;
}

// Not for secrets: only to be different.
uint64_t Random() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed = {device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator();
}

}  // namespace

std::string RequestIdOf(std::string_view given) {
  const bool usable = !given.empty() && given.size() <= kMaxRequestId &&
                      std::all_of(given.begin(), given.end(), IsIdCharacter);
  return usable ? std::string(given) : fmt::format("{:016x}{:016x}", Random(), Random());
}

std::string TraceContext::ToHeader() const {
  return fmt::format("00-{}-{}-{}", trace_id, span_id, flags);
}

TraceContext ParseTraceParent(std::string_view header) {
  // 00-<32>-<16>-<2>
  if (header.size() < 55 || header[2] != '-' || header[35] != '-' || header[52] != '-') return {};
  const std::string_view version = header.substr(0, 2);
  const bool known =
      version == "00" ? header.size() == 55 : (header.size() == 55 || header[55] == '-');
  if (!IsHex(version) || version == "ff" || !known) return {};
  TraceContext context;
  context.trace_id = header.substr(3, 32);
  context.parent_id = header.substr(36, 16);
  context.flags = header.substr(53, 2);
  if (!IsHex(context.trace_id) || IsZero(context.trace_id)) return {};
  if (!IsHex(context.parent_id) || IsZero(context.parent_id) || !IsHex(context.flags)) return {};
  context.span_id = fmt::format("{:016x}", Random() | 1);
  return context;
}

}  // namespace conclave::coordinator
