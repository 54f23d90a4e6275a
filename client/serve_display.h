#ifndef CONCLAVE_CLIENT_SERVE_DISPLAY_H_
#define CONCLAVE_CLIENT_SERVE_DISPLAY_H_

// What `conclave serve` shows on stderr: its own messages, its children's lines, and the progress
// of loading, as a bar on a terminal and as a line now and then elsewhere.

#include <cstdio>
#include <string>
#include <string_view>

#include "proto/conclave/v1/cluster.pb.h"

namespace conclave::client {

class ServeDisplay {
 public:
  // `out` is not owned.
  ServeDisplay(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}

  void Message(std::string_view text);
  void ChildLine(const std::string& child, const std::string& line);
  void Progress(const v1::GetClusterResponse& cluster);
  // Removes the bar.
  void EndProgress();

 private:
  void DrawBar();

  std::FILE* out_;
  const bool terminal_;
  std::string bar_;   // drawn on the last line; empty: none
  std::string text_;  // of the state shown last
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVE_DISPLAY_H_
