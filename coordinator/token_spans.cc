#include "coordinator/token_spans.h"

#include <algorithm>

namespace conclave::coordinator {
namespace {

// A token or a word, with the label it is given.
struct Unit {
  std::string_view label;
  float score = 0;
  size_t start_byte = 0;
  size_t end_byte = 0;
};

struct Tag {
  bool begins = false;
  bool ends = false;
  std::string_view name;
};

Tag Split(LabelScheme scheme, std::string_view label) {
  if (label.size() < 2 || label[1] != '-') return {false, false, label};
  const std::string_view name = label.substr(2);
  if (label[0] == 'B') return {true, false, name};
  if (label[0] == 'I') return {false, false, name};
  if (scheme == LabelScheme::kBioes && label[0] == 'E') return {false, true, name};
  if (scheme == LabelScheme::kBioes && label[0] == 'S') return {true, true, name};
  return {false, false, label};
}

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

size_t FloorToCharacter(std::string_view text, size_t at) {
  while (at > 0 && at < text.size() && IsContinuation(text[at])) --at;
  return at;
}

size_t CeilToCharacter(std::string_view text, size_t at) {
  while (at < text.size() && IsContinuation(text[at])) ++at;
  return at;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char byte) { return !IsContinuation(byte); }));
}

size_t Best(std::span<const float> scores) {
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

bool BeginsWord(const ScoredToken& token, std::string_view text) {
  const size_t start = FloorToCharacter(text, token.start_byte);
  if (start == 0 || text[start - 1] == ' ') return true;
  return start < text.size() && text[start] == ' ';
}

class Labeller {
 public:
  Labeller(Aggregation aggregation, std::span<const std::string> labels)
      : aggregation_(aggregation), labels_(labels) {}

  // Label and score of a word, or of a token alone.
  Unit Label(std::span<const ScoredToken> word) const {
    Unit unit = LabelOf(word);
    unit.start_byte = word.front().start_byte;
    unit.end_byte = word.back().end_byte;
    return unit;
  }

 private:
  Unit LabelOf(std::span<const ScoredToken> word) const {
    if (aggregation_ == Aggregation::kAverage) {
      std::vector<float> mean(labels_.size());
      for (size_t i = 0; i < mean.size(); ++i) {
        double sum = 0;
        for (const ScoredToken& token : word) sum += token.scores[i];
        mean[i] = static_cast<float>(sum / static_cast<double>(word.size()));
      }
      return MostLikely(mean);
    }
    Unit best = MostLikely(word.front().scores);
    if (aggregation_ != Aggregation::kMax) return best;
    for (const ScoredToken& token : word.subspan(1)) {
      const Unit unit = MostLikely(token.scores);
      if (unit.score > best.score) best = unit;
    }
    return best;
  }

  Unit MostLikely(std::span<const float> scores) const {
    const size_t best = Best(scores);
    Unit unit;
    unit.label = labels_[best];
    unit.score = scores[best];
    return unit;
  }

  const Aggregation aggregation_;
  const std::span<const std::string> labels_;
};

std::vector<Unit> MakeUnits(Aggregation aggregation, std::span<const std::string> labels,
                            std::span<const ScoredToken> tokens, std::string_view text) {
  const bool words = aggregation != Aggregation::kNone && aggregation != Aggregation::kSimple;
  const Labeller labeller(aggregation, labels);
  std::vector<Unit> units;
  for (size_t first = 0; first < tokens.size();) {
    size_t end = first + 1;
    while (words && end < tokens.size() && !BeginsWord(tokens[end], text)) ++end;
    units.push_back(labeller.Label(tokens.subspan(first, end - first)));
    first = end;
  }
  return units;
}

LabelledSpan MakeSpan(std::span<const Unit> units, std::string_view label, std::string_view text) {
  LabelledSpan span;
  span.label = label;
  double sum = 0;
  for (const Unit& unit : units) sum += unit.score;
  span.score = static_cast<float>(sum / static_cast<double>(units.size()));
  span.start_byte = FloorToCharacter(text, units.front().start_byte);
  span.end_byte = CeilToCharacter(text, units.back().end_byte);
  return span;
}

// Fills the character offsets; spans are in order and do not overlap by more than one character.
void CountOffsets(std::string_view text, std::vector<LabelledSpan>& spans) {
  size_t byte = 0;
  size_t character = 0;
  for (LabelledSpan& span : spans) {
    if (span.start_byte < byte) {  // shares a character with the span before
      character -= CountCharacters(text.substr(span.start_byte, byte - span.start_byte));
    } else {
      character += CountCharacters(text.substr(byte, span.start_byte - byte));
    }
    span.start_char = character;
    character += CountCharacters(text.substr(span.start_byte, span.end_byte - span.start_byte));
    span.end_char = character;
    byte = span.end_byte;
  }
}

}  // namespace

LabelScheme SchemeOf(std::span<const std::string> labels) {
  const bool bioes = std::any_of(labels.begin(), labels.end(), [](const std::string& label) {
    return label.starts_with("E-") || label.starts_with("S-");
  });
  return bioes ? LabelScheme::kBioes : LabelScheme::kBio;
}

std::vector<LabelledSpan> MakeSpans(const SpanRules& rules, std::span<const std::string> labels,
                                    std::span<const ScoredToken> tokens, std::string_view text) {
  const std::vector<Unit> units = MakeUnits(rules.aggregation, labels, tokens, text);
  std::vector<LabelledSpan> spans;
  for (size_t first = 0; first < units.size();) {
    Tag last = Split(rules.scheme, units[first].label);
    const std::string_view name =
        rules.aggregation == Aggregation::kNone ? units[first].label : last.name;
    size_t end = first + 1;
    while (rules.aggregation != Aggregation::kNone && end < units.size() && !last.ends) {
      const Tag tag = Split(rules.scheme, units[end].label);
      if (tag.begins || tag.name != last.name) break;
      last = tag;
      ++end;
    }
    const bool ignored =
        std::find(rules.ignored.begin(), rules.ignored.end(), name) != rules.ignored.end();
    if (!ignored) {
      spans.push_back(MakeSpan(std::span(units).subspan(first, end - first), name, text));
    }
    first = end;
  }
  CountOffsets(text, spans);
  return spans;
}

}  // namespace conclave::coordinator
