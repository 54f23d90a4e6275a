#ifndef CONCLAVE_BASE_MAPPED_FILES_H_
#define CONCLAVE_BASE_MAPPED_FILES_H_

// Names the file when a page of a mapped file cannot be read. A map outlives every check of its
// file: the disk may fail later, somebody may cut the file short, and then the kernel sends SIGBUS
// to whoever touches the page. That process cannot go on, but it can say why it ends.
//
//   base::ReportUnreadableFiles("conclave-worker");     // once, early in main
//   const base::MappedFileName name(map, size, path);   // as long as the map

#include <cstddef>
#include <string>

namespace conclave::base {

// Notes that [begin, begin + bytes) is a map of `path`. Thread-safe; the first 1024 maps at one
// time are kept, of a long path its end.
class MappedFileName {
 public:
  MappedFileName(const void* begin, size_t bytes, const std::string& path);
  ~MappedFileName();
  MappedFileName(const MappedFileName&) = delete;
  MappedFileName& operator=(const MappedFileName&) = delete;

 private:
  int slot_;  // -1: not kept
};

// From now on a page that cannot be read ends the process with exit code 1 after one line on
// stderr, "`program`: FILE: ...". A SIGBUS elsewhere ends it as before. `program` is a literal.
void ReportUnreadableFiles(const char* program);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_MAPPED_FILES_H_
