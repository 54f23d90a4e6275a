#include "model/split_pattern_classes.h"

#include <map>

#include "base/check.h"

namespace conclave::model {
namespace {

uint8_t ClassOfLetter(char letter) {
  switch (letter) {
    case 'U':
      return kClassUpper | kClassLetter;
    case 'S':
      return kClassLower | kClassLetter;
    case 'B':
      return kClassUpper | kClassLower | kClassLetter;
    case 'M':
      return kClassUpper | kClassLower;
    case 'N':
      return kClassNumber;
    case 'W':
      return kClassSpace;
    case 'R':
      return kClassSpace | kClassNewline;
    default:
      CONCLAVE_CHECK(letter == 'O');
      return 0;
  }
}

std::vector<uint8_t> Expand(std::string_view runs) {
  std::vector<uint8_t> classes;
  size_t count = 0;
  for (const char c : runs) {
    if (c >= '0' && c <= '9') {
      count = count * 10 + static_cast<size_t>(c - '0');
      continue;
    }
    classes.insert(classes.end(), count == 0 ? 1 : count, ClassOfLetter(c));
    count = 0;
  }
  return classes;
}

}  // namespace

const CharClasses& CharClasses::Get() {
  static const CharClasses& classes = *new CharClasses();
  return classes;
}

CharClasses::CharClasses() {
  const std::vector<uint8_t> classes = Expand(kCharClassRuns);
  CONCLAVE_CHECK(classes.size() == kCodePoints);
  std::map<Block, uint16_t> known;
  for (size_t i = 0; i < block_of_.size(); ++i) {
    Block block;
    for (size_t j = 0; j < kBlockSize; ++j) block[j] = classes[i * kBlockSize + j];
    const auto [entry, is_new] = known.emplace(block, static_cast<uint16_t>(blocks_.size()));
    if (is_new) blocks_.push_back(block);
    block_of_[i] = entry->second;
  }
}

}  // namespace conclave::model
