#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>

#include "kernels/philox.h"

namespace conclave::kernels {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};

// Falling logit, ties by rising id.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

float Comparable(float logit) { return std::isnan(logit) ? -HUGE_VALF : logit; }

int32_t ArgMax(std::span<const float> logits) {
  int32_t best = 0;
  for (int32_t id = 1; id < static_cast<int32_t>(logits.size()); ++id) {
    if (Comparable(logits[id]) > Comparable(logits[best])) best = id;
  }
  return best;
}

std::vector<Candidate> AllCandidates(std::span<const float> logits) {
  std::vector<Candidate> out(logits.size());
  for (size_t id = 0; id < logits.size(); ++id) {
    out[id] = {Comparable(logits[id]), static_cast<int32_t>(id)};
  }
  return out;
}

// Probabilities up to a common factor: exp((logit - largest) / temperature).
class Weigher {
 public:
  Weigher(float largest, float temperature) : largest_(largest), temperature_(temperature) {}
  double operator()(const Candidate& candidate) const {
    return std::exp((double{candidate.logit} - largest_) / temperature_);
  }

 private:
  double largest_;
  double temperature_;
};

double TotalWeight(std::span<const Candidate> candidates, const Weigher& weigh) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += weigh(candidate);
  return total;
}

void KeepTopK(std::vector<Candidate>& candidates, int top_k) {
  if (top_k <= 0 || top_k >= static_cast<int>(candidates.size())) return;
  std::nth_element(candidates.begin(), candidates.begin() + top_k - 1, candidates.end(), Before);
  candidates.resize(top_k);
}

// Sorts no more of the front than it needs: stretches that grow until top_p is reached.
void KeepTopP(std::vector<Candidate>& candidates, float top_p, const Weigher& weigh) {
  if (top_p >= 1) return;
  const double wanted = double{top_p} * TotalWeight(candidates, weigh);
  constexpr size_t kFirstStretch = 256;
  constexpr size_t kGrowth = 4;
  double sum = 0;
  size_t sorted = 0;
  for (size_t stretch = kFirstStretch; sorted < candidates.size(); stretch *= kGrowth) {
    const size_t end = std::min(sorted + stretch, candidates.size());
    const auto first = candidates.begin() + static_cast<int64_t>(sorted);
    const auto last = candidates.begin() + static_cast<int64_t>(end);
    if (last != candidates.end()) std::nth_element(first, last, candidates.end(), Before);
    std::sort(first, last, Before);
    for (; sorted < end; ++sorted) {
      sum += weigh(candidates[sorted]);
      if (sum >= wanted) {
        candidates.resize(sorted + 1);
        return;
      }
    }
  }
}

void KeepMinP(std::vector<Candidate>& candidates, float min_p, const Weigher& weigh) {
  if (min_p <= 0) return;
  std::erase_if(candidates, [&](const Candidate& candidate) { return weigh(candidate) < min_p; });
}

// The id where the running sum of weights, in rising id, passes u of the total.
int32_t Draw(std::vector<Candidate>& candidates, double u, const Weigher& weigh) {
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  if (!std::is_sorted(candidates.begin(), candidates.end(), by_id)) {
    std::sort(candidates.begin(), candidates.end(), by_id);
  }
  std::vector<double> sums(candidates.size());
  double total = 0;
  for (size_t i = 0; i < candidates.size(); ++i) sums[i] = total += weigh(candidates[i]);
  // u < 1, so the first sum above u * total exists but for rounding, and has a positive weight.
  const auto at = std::upper_bound(sums.begin(), sums.end(), u * total);
  if (at != sums.end()) return candidates[at - sums.begin()].id;
  return candidates[std::lower_bound(sums.begin(), sums.end(), total) - sums.begin()].id;
}

}  // namespace

SlotTokens::SlotTokens(const SlotSampling& sampling)
    : end_tokens_(sampling.end_tokens.begin(), sampling.end_tokens.end()) {
  for (size_t i = 0; i < sampling.bias_tokens.size(); ++i) {
    biases_.emplace_back(sampling.bias_tokens[i], sampling.biases[i]);
  }
  if (!sampling.counted) return;
  for (size_t i = 0; i < sampling.history.size(); ++i) {
    if (i >= static_cast<size_t>(sampling.prompt_tokens)) {
      CountGenerated(sampling.history[i]);
    } else {
      counts_[sampling.history[i]] |= kInPrompt;
    }
  }
}

void SlotTokens::CountGenerated(int32_t token) {
  TokenCount& count = counts_[token];
  count = kernels::CountGenerated(count);
}

void SlotTokens::Adjust(const SampleParams& params, std::span<float> logits) const {
  if (params.biased) {
    for (const auto& [token, bias] : biases_) logits[token] += bias;
  }
  if (params.counted) {
    const Penalties penalties = {params.repetition_penalty, params.presence_penalty,
                                 params.frequency_penalty};
    for (const auto& [token, count] : counts_) {
      logits[token] = Penalized(logits[token], count, penalties);
    }
  }
  if (params.mask_ends) {
    for (const int32_t token : end_tokens_) logits[token] = -HUGE_VALF;
  }
}

int32_t SampleToken(std::span<const float> logits, const SampleParams& params) {
  const int32_t best = ArgMax(logits);
  const float largest = Comparable(logits[best]);
  if (params.temperature <= 0 || !std::isfinite(largest)) return best;
  const Weigher weigh(largest, params.temperature);
  std::vector<Candidate> candidates = AllCandidates(logits);
  KeepTopK(candidates, params.top_k);
  KeepTopP(candidates, params.top_p, weigh);
  KeepMinP(candidates, params.min_p, weigh);
  if (candidates.empty()) return best;  // min_p above 1
  return Draw(candidates, UniformAt(params.seed, params.position), weigh);
}

LogProbs::LogProbs(std::span<const float> logits) : logits_(logits) {
  const double largest = Comparable(logits[ArgMax(logits)]);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  log_sum_ = largest + std::log(sum);
}

float LogProbs::of(int32_t token) const {
  return static_cast<float>(double{logits_[token]} - log_sum_);
}

std::vector<std::pair<int32_t, float>> LogProbs::Top(int count) const {
  const auto wanted = std::min<size_t>(std::max(count, 0), logits_.size());
  std::vector<std::pair<int32_t, float>> out;
  if (wanted == 0) return out;
  std::vector<Candidate> best;  // sorted, at most `wanted`
  for (int32_t id = 0; id < static_cast<int32_t>(logits_.size()); ++id) {
    const Candidate candidate = {Comparable(logits_[id]), id};
    if (best.size() == wanted && !Before(candidate, best.back())) continue;
    if (best.size() == wanted) best.pop_back();
    best.insert(std::upper_bound(best.begin(), best.end(), candidate, Before), candidate);
  }
  for (const Candidate& candidate : best) out.emplace_back(candidate.id, of(candidate.id));
  return out;
}

}  // namespace conclave::kernels
