#ifndef CONCLAVE_CLIENT_LINE_EDITOR_H_
#define CONCLAVE_CLIENT_LINE_EDITOR_H_

// Lines typed at a terminal: editing, history of the session (arrow keys), text pasted over several
// lines as one. By libedit. What is pasted is text: its control characters, but for newlines and
// tabs, are dropped.
//
//   LineEditor editor;                              // before any other thread starts
//   while (true) {
//     const LineEditor::Line line = editor.Read("you> ");
//     if (line.kind == LineEditor::Kind::kEnd) break;  // Ctrl-D, or SIGTERM
//     ...

#include <memory>
#include <string>

namespace conclave::client {

// Whether $TERM names a terminal that understands escape sequences: it is set, and not "dumb".
bool TerminalTakesEscapes();

class LineEditor {
 public:
  enum class Kind { kLine, kInterrupted, kEnd };
  struct Line {
    Kind kind = Kind::kEnd;
    std::string text;  // without the newline at its end
  };

  // Blocks SIGINT, SIGTERM and SIGWINCH in this thread and those it starts later, for good.
  LineEditor();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // Standard input must be a terminal. Ctrl-C gives up the line: kInterrupted.
  Line Read(const std::string& prompt);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_LINE_EDITOR_H_
