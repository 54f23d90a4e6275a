#ifndef CONCLAVE_MODEL_SPLIT_PATTERN_CLASSES_H_
#define CONCLAVE_MODEL_SPLIT_PATTERN_CLASSES_H_

// The Unicode properties that kO200kPattern asks for, one byte per code point.
//
// The data is run-length text made by split_pattern_classes.py; it is expanded once, on first use,
// into blocks of 128 code points of which most scripts share a few.

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace conclave::model {

// Bits of a class. "Upper" and "lower" are the two bracketed sets of the pattern's words.
enum CharClass : uint8_t {
  kClassUpper = 1,    // Lu Lt Lm Lo M
  kClassLower = 2,    // Ll Lm Lo M
  kClassLetter = 4,   // L
  kClassNumber = 8,   // N
  kClassSpace = 16,   // White_Space
  kClassNewline = 32  // \r \n
};

class CharClasses {
 public:
  static const CharClasses& Get();

  // CharClass bits of a code point up to U+10FFFF.
  uint8_t operator[](uint32_t code_point) const {
    return blocks_[block_of_[code_point >> kBlockBits]][code_point & (kBlockSize - 1)];
  }

 private:
  static constexpr int kBlockBits = 7;
  static constexpr uint32_t kBlockSize = 1u << kBlockBits;
  static constexpr uint32_t kCodePoints = 0x110000;
  using Block = std::array<uint8_t, kBlockSize>;

  CharClasses();

  std::array<uint16_t, kCodePoints / kBlockSize> block_of_;
  std::vector<Block> blocks_;  // all different
};

// Runs of code points from U+0000 on: a count (left out when it is 1) and a letter.
//   U Lu, Lt   S Ll   B Lm, Lo   M M*   N N*   W White_Space   R \r, \n   O others
extern const std::string_view kCharClassRuns;

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_SPLIT_PATTERN_CLASSES_H_
