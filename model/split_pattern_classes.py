#!/usr/bin/env python3
"""Writes split_pattern_runs.cc, the Unicode data of the o200k split pattern.

    python3 model/split_pattern_classes.py > model/split_pattern_runs.cc

The version of Unicode is that of Python's unicodedata; Python 3.11 has 14.0, as PCRE2 10.42 does,
so that the hand-written matcher and a regular expression agree on every code point.
"""

import itertools
import sys
import textwrap
import unicodedata

WHITE_SPACE = {
    *range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
    0x2028, 0x2029, 0x202F, 0x205F, 0x3000,
}
LETTER_OF_CATEGORY = {
    "Lu": "U", "Lt": "U", "Ll": "S", "Lm": "B", "Lo": "B",
    "Mn": "M", "Mc": "M", "Me": "M", "Nd": "N", "Nl": "N", "No": "N",
}


def letter(code_point):
    if code_point in (0x0A, 0x0D):
        return "R"
    if code_point in WHITE_SPACE:
        return "W"
    return LETTER_OF_CATEGORY.get(unicodedata.category(chr(code_point)), "O")


def main():
    runs = ""
    for name, group in itertools.groupby(map(letter, range(0x110000))):
        length = sum(1 for _ in group)
        runs += (str(length) if length > 1 else "") + name
    print("// Made by split_pattern_classes.py from Unicode "
          f"{unicodedata.unidata_version}; not edited by hand.")
    print('#include "model/split_pattern_classes.h"\n')
    print("namespace conclave::model {\n")
    print("const std::string_view kCharClassRuns =")
    lines = [f'    "{line}"' for line in textwrap.wrap(runs, 90)]
    print("\n".join(lines) + ";\n")
    print("}  // namespace conclave::model")


if __name__ == "__main__":
    sys.exit(main())
