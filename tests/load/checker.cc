#include "tests/load/checker.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

namespace conclave::tests {
namespace {

// gRPC's codes.
constexpr int kOk = 0;
constexpr int kCancelled = 1;
constexpr int kDeadlineExceeded = 4;
constexpr int kResourceExhausted = 8;

class StreamCheck {
 public:
  StreamCheck(const Truths& truths, const Stream& stream, const CheckLimits& limits,
              CheckReport& report)
      : truths_(truths), stream_(stream), limits_(limits), report_(report) {}

  // The time of the first token, -1: there was none or it does not count.
  int64_t Run() {
    for (const Event& event : stream_.events) Take(event);
    if (!end_.has_value()) {
      Violation("1: it has no end");
      return -1;
    }
    CheckEnd();
    const bool counts = stream_.action == "read" && end_->code == kOk;
    if (counts && first_token_ > limits_.longest_first_token_micros) {
      Violation(fmt::format("its first token came after {:.3f} s", Seconds(first_token_)));
    }
    if (counts) report_.longest_pause_micros = std::max(report_.longest_pause_micros, pause_);
    return counts ? first_token_ : -1;
  }

 private:
  struct Completion {
    std::vector<uint32_t> tokens;
    const Event* finish = nullptr;
  };

  static double Seconds(int64_t micros) { return static_cast<double>(micros) * 1e-6; }

  void Violation(const std::string& what) {
    report_.violations.push_back(fmt::format("stream {} (work {}, {}): guarantee {}", stream_.id,
                                             stream_.work, stream_.action, what));
  }

  void Take(const Event& event) {
    if (end_.has_value()) return Violation("1: an event after the end");
    if (event.kind == Event::Kind::kEnd) {
      end_ = event;
      return;
    }
    if (event.index < 0 || event.index >= stream_.completions) {
      return Violation(fmt::format("1: completion {} of {}", event.index, stream_.completions));
    }
    Completion& completion = completions_[event.index];
    if (completion.finish != nullptr) {
      return Violation(fmt::format("1: completion {} goes on after its finish", event.index));
    }
    if (event.kind == Event::Kind::kFinish) {
      completion.finish = &event;
      return;
    }
    completion.tokens.insert(completion.tokens.end(), event.tokens.begin(), event.tokens.end());
    if (event.tokens.empty()) return;
    if (first_token_ < 0) first_token_ = event.micros;
    if (last_token_ >= 0) pause_ = std::max(pause_, event.micros - last_token_);
    last_token_ = event.micros;
  }

  void CheckEnd() {
    report_.finished += end_->code == kOk ? 1 : 0;
    const bool answered = !completions_.empty();
    for (int index = 0; index < stream_.completions; ++index) CheckCompletion(index);
    switch (end_->code) {
      case kOk:
        break;
      case kCancelled:
        ++report_.cancelled;
        if (stream_.action != "cancel") Violation("3: CANCELLED, and nobody did");
        break;
      case kDeadlineExceeded:
        ++report_.expired;
        if (stream_.action != "deadline") Violation("3: DEADLINE_EXCEEDED without a deadline");
        break;
      case kResourceExhausted:
        ++report_.refused;
        if (answered) Violation("1: refused after a response");
        break;
      default:
        Violation(fmt::format("1: it ended with code {}", end_->code));
    }
    if (stream_.action == "deadline" &&
        end_->micros > stream_.after + limits_.deadline_slack_micros) {
      Violation(fmt::format("3: it ended {:.3f} s past its deadline",
                            Seconds(end_->micros - stream_.after)));
    }
  }

  void CheckCompletion(int index) {
    const Completion& completion = completions_[index];
    const auto truth = truths_.find({stream_.work, index});
    if (truth == truths_.end()) return Violation(fmt::format("4: no truth of {}", index));
    const std::vector<uint32_t>& whole = truth->second;
    report_.tokens += static_cast<int64_t>(completion.tokens.size());
    const auto difference = std::mismatch(completion.tokens.begin(), completion.tokens.end(),
                                          whole.begin(), whole.end())
                                .first;
    if (difference != completion.tokens.end()) {
      return Violation(fmt::format("2: completion {} differs from token {} of {} on", index,
                                   difference - completion.tokens.begin(),
                                   completion.tokens.size()));
    }
    if (completion.finish == nullptr) {
      if (end_->code == kOk) Violation(fmt::format("1: completion {} has no finish", index));
      return;
    }
    CheckFinish(index, completion, whole);
  }

  void CheckFinish(int index, const Completion& completion, const std::vector<uint32_t>& whole) {
    const Event& finish = *completion.finish;
    report_.cached_tokens += finish.cached;
    const size_t count = completion.tokens.size();
    if (finish.reason == "cancelled") {
      if (stream_.action != "cancel") Violation("3: cancelled, and nobody did");
      return;
    }
    if (static_cast<size_t>(finish.count) != count) {
      Violation(
          fmt::format("2: completion {} has {} tokens, {} arrived", index, finish.count, count));
    }
    const size_t due = std::min(static_cast<size_t>(stream_.max_tokens), whole.size());
    if (count != due) {
      Violation(fmt::format("2: completion {} ended ({}) after {} tokens of {}", index,
                            finish.reason, count, due));
    }
    const bool length = count == static_cast<size_t>(stream_.max_tokens);
    if (finish.reason != "length" &&
        (finish.reason != "stop" || (length && count < whole.size()))) {
      Violation(fmt::format("2: completion {} ended for {} after {} tokens of {}", index,
                            finish.reason, count, whole.size()));
    }
  }

  const Truths& truths_;
  const Stream& stream_;
  const CheckLimits& limits_;
  CheckReport& report_;
  std::map<int, Completion> completions_;
  std::optional<Event> end_;
  int64_t first_token_ = -1;
  int64_t last_token_ = -1;
  int64_t pause_ = 0;
};

}  // namespace

CheckReport Check(const Truths& truths, const std::vector<Stream>& streams,
                  const CheckLimits& limits) {
  CheckReport report;
  std::vector<int64_t> first_tokens;
  for (const Stream& stream : streams) {
    ++report.streams;
    const int64_t first = StreamCheck(truths, stream, limits, report).Run();
    if (first >= 0) first_tokens.push_back(first);
  }
  if (first_tokens.empty()) return report;
  std::sort(first_tokens.begin(), first_tokens.end());
  report.median_first_token_micros = first_tokens[first_tokens.size() / 2];
  report.longest_first_token_micros = first_tokens.back();
  return report;
}

std::string Describe(const CheckReport& report) {
  std::string text = fmt::format(
      "{} streams: {} finished, {} cancelled, {} past their deadline, {} refused\n"
      "{} tokens arrived; {} prompt tokens came from the prefix cache\n"
      "first token after {:.3f} s (median), {:.3f} s (longest); longest pause {:.3f} s\n"
      "{} violations\n",
      report.streams, report.finished, report.cancelled, report.expired, report.refused,
      report.tokens, report.cached_tokens,
      static_cast<double>(report.median_first_token_micros) * 1e-6,
      static_cast<double>(report.longest_first_token_micros) * 1e-6,
      static_cast<double>(report.longest_pause_micros) * 1e-6, report.violations.size());
  constexpr size_t kShown = 20;
  for (size_t i = 0; i < std::min(kShown, report.violations.size()); ++i) {
    text += report.violations[i] + "\n";
  }
  return text;
}

}  // namespace conclave::tests
