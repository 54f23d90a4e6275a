#include "worker/group_driver.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace conclave::worker {
namespace {

constexpr int kBlockTokens = 16;

uint32_t TakeBlock(std::vector<uint32_t>& free) {
  CONCLAVE_CHECK(!free.empty());
  const uint32_t block = free.back();
  free.pop_back();
  return block;
}

// Lowest first, so that blocks of one sequence are not neighbours once several grow together.
std::vector<uint32_t> AllBlocks(int count) {
  std::vector<uint32_t> blocks(count);
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  return blocks;
}

}  // namespace

internal::v1::Sampling TestRequest::Greedy() {
  internal::v1::Sampling sampling;
  sampling.set_temperature(0);
  sampling.set_top_p(1);
  sampling.set_logprobs(-1);
  return sampling;
}

GroupDriver::GroupDriver(const model::Config& config, const HarnessOptions& options, int chunk)
    : config_(config),
      max_step_tokens_(options.max_step_tokens),
      chunk_(chunk),
      free_full_(AllBlocks(options.full_blocks)),
      free_sliding_(AllBlocks(options.sliding_blocks)) {}

void GroupDriver::Add(const TestRequest& request) {
  State& state = states_.emplace_back();
  state.request = request;
  results_.emplace_back();
}

bool GroupDriver::Done() const {
  return std::all_of(states_.begin(), states_.end(), [](const State& s) { return s.finished; });
}

internal::v1::StepPlan GroupDriver::Next() {
  internal::v1::StepPlan plan;
  int left = max_step_tokens_;
  for (int slot = 0; slot < static_cast<int>(states_.size()); ++slot) {
    State& state = states_[slot];
    if (state.finished) {
      if (!state.freed) Free(slot, plan);
      continue;
    }
    const int prompt_left = static_cast<int>(state.request.prompt.size()) - state.position;
    const int rows = std::min(prompt_left > 0 ? std::min(prompt_left, chunk_) : 1, left);
    if (rows == 0) continue;
    left -= rows;
    if (!state.announced) Announce(slot, plan);
    PlanChunk(slot, rows, plan);
  }
  return plan;
}

void GroupDriver::Announce(int slot, internal::v1::StepPlan& plan) {
  State& state = states_[slot];
  internal::v1::NewSequence& added = *plan.add_new_sequences();
  added.set_slot(slot);
  *added.mutable_sampling() = state.request.sampling;
  for (uint32_t id : state.request.forced_expert_ids) added.add_forced_expert_ids(id);
  for (int id : state.request.prompt) added.add_history(id);
  state.announced = true;
}

void GroupDriver::PlanChunk(int slot, int rows, internal::v1::StepPlan& plan) {
  State& state = states_[slot];
  const int prompt = static_cast<int>(state.request.prompt.size());
  const int end = state.position + rows;
  internal::v1::Chunk& chunk = *plan.add_chunks();
  chunk.set_slot(slot);
  chunk.set_start_position(state.position);
  for (int i = state.position; i < std::min(end, prompt); ++i) {
    chunk.add_tokens(state.request.prompt[i]);
  }
  PlanBlocks(state, end, chunk);
  if (state.request.head >= 0 && state.position < prompt) {
    internal::v1::HeadWant& want = *chunk.add_heads();
    want.set_head(state.request.head);
    want.set_first(0);
    want.set_count(rows);
  }
  if (state.request.prompt_logprobs >= 0) {
    for (int i = state.position; i < std::min(end, prompt - 1); ++i) {
      chunk.mutable_logprobs()->add_targets(state.request.prompt[i + 1]);
    }
    chunk.mutable_logprobs()->set_top(state.request.prompt_logprobs);
  }
  if (end >= prompt && state.sampled < state.request.max_tokens) {
    chunk.set_sample(true);
    ++state.sampled;
  }
  state.position = end;
  state.finished = end >= prompt && state.sampled == state.request.max_tokens;
}

void GroupDriver::PlanBlocks(State& state, int end, internal::v1::Chunk& chunk) {
  const int visible = std::max(0, state.position - config_.sliding_window + 1);
  const int released = visible / kBlockTokens - state.sliding_first;
  chunk.set_released_sliding_blocks(released);
  free_sliding_.insert(free_sliding_.end(), state.sliding.begin(),
                       state.sliding.begin() + released);
  state.sliding.erase(state.sliding.begin(), state.sliding.begin() + released);
  state.sliding_first += released;
  const int blocks = (end + kBlockTokens - 1) / kBlockTokens;
  while (static_cast<int>(state.full.size()) < blocks) {
    state.full.push_back(TakeBlock(free_full_));
    chunk.add_new_full_blocks(state.full.back());
  }
  while (state.sliding_first + static_cast<int>(state.sliding.size()) < blocks) {
    state.sliding.push_back(TakeBlock(free_sliding_));
    chunk.add_new_sliding_blocks(state.sliding.back());
  }
  most_sliding_blocks_ = std::max(most_sliding_blocks_, static_cast<int>(state.sliding.size()));
}

void GroupDriver::Free(int slot, internal::v1::StepPlan& plan) {
  State& state = states_[slot];
  plan.add_freed_slots(slot);
  free_full_.insert(free_full_.end(), state.full.begin(), state.full.end());
  free_sliding_.insert(free_sliding_.end(), state.sliding.begin(), state.sliding.end());
  state.freed = true;
}

void GroupDriver::Absorb(const StepOutput& output) {
  for (const SampledToken& sampled : output.sampled) {
    TestResult& result = results_[sampled.slot];
    result.tokens.push_back(sampled.token);
    result.logprobs.push_back(sampled.logprob);
    result.top.push_back(sampled.top);
  }
  for (const TargetOutput& target : output.targets) {
    TestResult& result = results_[target.slot];
    result.prompt_logprobs.insert(result.prompt_logprobs.end(), target.logprobs.begin(),
                                  target.logprobs.end());
    result.prompt_top.insert(result.prompt_top.end(), target.top_tokens.begin(),
                             target.top_tokens.end());
  }
  for (const HeadOutput& head : output.heads) {
    TestResult& result = results_[head.slot];
    result.head_logits.insert(result.head_logits.end(), head.logits.begin(), head.logits.end());
  }
}

}  // namespace conclave::worker
