#ifndef CONCLAVE_TESTS_GOLDENS_GOLDENS_H_
#define CONCLAVE_TESTS_GOLDENS_GOLDENS_H_

// Expected outputs of demo/tiny_gpt_oss, made with Transformers' GptOssFor* in float32 (eager).
// Targets that depend on this get the files and the checkpoint in their runfiles.

#include <span>
#include <string>
#include <vector>

namespace conclave::goldens {

struct Generation {
  std::vector<int> prompt;
  std::vector<float> last_logits;  // [V], of the last position
  std::vector<int> argmax;         // [positions]
  std::vector<double> logsumexp;   // [positions], over the vocabulary
  // Continuation of 24 tokens, end tokens ignored, and the logit of the best token less that of the
  // next at each of its steps.
  std::vector<int> greedy;
  std::vector<double> greedy_margin;
  // Leading tokens of `greedy` that are the arg-max of their step. All 24, but for the prompt of
  // 100 tokens 1: from its second step on the file's tokens are not the best ones (of rank up to
  // 51), though they are what its margins belong to: fed with them we get all 24 margins to 1e-4.
  // The continuation looks sampled.
  size_t arg_max_steps = 0;
  // L2 norms of the last position's hidden state: after the embedding, after each layer but the
  // last, after the final norm. [layers + 1]
  std::vector<double> hidden_norms;
};

// A sequence head reads the last position: one row. A token head reads every position.
struct Classification {
  std::vector<int> ids;
  std::vector<std::vector<float>> logits;  // [rows][labels]
};

// Each ends the process when its file is missing or malformed: tests cannot go on without.
std::vector<Generation> LoadGenerations();
std::vector<Classification> LoadSequenceClassifications();
std::vector<Classification> LoadTokenClassifications();

// Measures of agreement: |got - want| / |want|, and log(sum(exp(logits))).
double RelativeL2(std::span<const float> got, std::span<const float> want);
double LogSumExp(std::span<const float> logits);

// demo/tiny_gpt_oss, as tests find it.
std::string TinyModelDir();

}  // namespace conclave::goldens

#endif  // CONCLAVE_TESTS_GOLDENS_GOLDENS_H_
