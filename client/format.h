#ifndef CONCLAVE_CLIENT_FORMAT_H_
#define CONCLAVE_CLIENT_FORMAT_H_

// Text for people: sizes, id ranges, tables.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace conclave::client {

// 1536 -> "1.5 KiB"; below 1 KiB "12 B".
std::string FormatBytes(uint64_t bytes);

// Ascending ids with runs compressed: "0-3,7,9-10"; "-" when there is none.
std::string FormatRanges(std::span<const uint32_t> ids);

// Printable on one line: control characters as \n, \t or \xNN.
std::string Escape(const std::string& text);

// Columns padded to their widest cell, two spaces between them.
class Table {
 public:
  explicit Table(std::vector<std::string> header);
  // As many cells as the header has.
  void AddRow(std::vector<std::string> row);
  // Lines that end in '\n'. Columns whose every cell is a number are aligned right.
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;  // the header first
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_FORMAT_H_
