#ifndef CONCLAVE_CLIENT_LABEL_PROMPTS_H_
#define CONCLAVE_CLIENT_LABEL_PROMPTS_H_

// The question that `conclave classify --labels` asks the language model.

#include <string>
#include <vector>

#include "proto/conclave/v1/classification.pb.h"

namespace conclave::client {

struct LabelQuestion {
  std::vector<std::string> labels;
  std::string text;
  // The prompt, with "{text}" where the text goes; empty: a question that lists the labels.
  std::string template_text;
  bool calibrate = false;
};

// As a conversation where the model is made for those, else as plain text. Labels after plain text
// get a leading space; the answer to a conversation has none.
v1::ScoreLabelsRequest AskForLabel(const LabelQuestion& question, bool can_chat);

// "spam,ham" -> {"spam", "ham"}; white space around a label is dropped.
std::vector<std::string> SplitLabels(const std::string& list);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_LABEL_PROMPTS_H_
