#include "client/line_editor.h"

#include <fmt/format.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/utf8.h"
#include "client/interrupt.h"

namespace conclave::client {
namespace {

constexpr int kHistorySize = 1000;
// Terminals send pasted text between these when asked to.
constexpr std::string_view kPasteBegin = "\x1b[200~";
constexpr std::string_view kPasteEnd = "\x1b[201~";
constexpr char kAskForPasteMarks[] = "\x1b[?2004h";
constexpr char kNoPasteMarks[] = "\x1b[?2004l";
// A pasted newline on the line that is edited.
constexpr std::string_view kShownNewline = "\u2424";

constexpr int kTabStop = 8;

void Send(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

// 0 when the terminal does not say.
int Columns() {
  winsize size = {};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

// Cells of the terminal up to the end of `text`, which begins after `cells`, as libedit shows it.
int Cells(int cells, const wchar_t* text, const wchar_t* end) {
  for (; text < end; ++text) {
    const int width = wcwidth(*text);
    if (*text == L'\t') {
      cells += kTabStop - cells % kTabStop;
    } else {
      cells += width >= 0 ? width : 2;  // ^X
    }
  }
  return cells;
}

// libedit works in the characters of the locale.
void UseUtf8() {
  setlocale(LC_CTYPE, "");
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
}

std::string WithNewlines(std::string text) {
  for (size_t at = text.find(kShownNewline); at != std::string::npos;
       at = text.find(kShownNewline, at + 1)) {
    text.replace(at, kShownNewline.size(), "\n");
  }
  return text;
}

// The code point of one whole character.
wchar_t Decode(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  wchar_t code = byte(0) & (0x7F >> character.size());
  for (size_t i = 1; i < character.size(); ++i) code = (code << 6) | (byte(i) & 0x3F);
  return code;
}

bool IsControl(char c) { return (c >= 0 && c < ' ') || c == '\x7f'; }

}  // namespace

bool TerminalTakesEscapes() {
  const char* term = std::getenv("TERM");
  return term != nullptr && *term != '\0' && std::string_view(term) != "dumb";
}

class LineEditor::Impl {
 public:
  Impl() : signals_({SIGINT, SIGTERM, SIGWINCH}), escapes_(TerminalTakesEscapes()) {
    UseUtf8();
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistorySize);
    history(history_, &event, H_SETUNIQUE, 1);
    line_ = el_init("conclave", stdin, stdout, stderr);
    el_set(line_, EL_CLIENTDATA, this);
    el_set(line_, EL_PROMPT, &Impl::Prompt);
    el_set(line_, EL_EDITOR, "emacs");
    el_set(line_, EL_BIND, "^I", "ed-insert", nullptr);
    // Else \r\n, pasted, would be two newlines.
    el_set(line_, EL_SETTY, "-d", "-icrnl", "-inlcr", nullptr);
    el_set(line_, EL_SIGNAL, 0);
    el_set(line_, EL_HIST, history, history_);
    el_set(line_, EL_GETCFN, &Impl::NextCharacter);
  }
  ~Impl() {
    el_end(line_);
    history_end(history_);
  }

  Line Read(const std::string& prompt) {
    while (signals_.Take() != 0) {
    }
    if (escapes_) Send(kAskForPasteMarks);
    Line line = ReadOne(prompt);
    // A terminal without paste marks: the rest of what was pasted is there already.
    while (line.kind == Kind::kLine && Pending()) {
      Line more = ReadOne("");
      line.kind = more.kind == Kind::kEnd ? Kind::kLine : more.kind;
      if (more.kind != Kind::kLine) break;
      line.text += "\n" + more.text;
    }
    if (escapes_) Send(kNoPasteMarks);
    if (line.kind == Kind::kLine && !line.text.empty()) Remember(line.text);
    return line;
  }

 private:
  static Impl* Self(EditLine* line) {
    void* self = nullptr;
    el_get(line, EL_CLIENTDATA, &self);
    return static_cast<Impl*>(self);
  }
  static char* Prompt(EditLine* line) { return Self(line)->prompt_.data(); }
  static int NextCharacter(EditLine* line, wchar_t* character) {
    return Self(line)->Next(character);
  }

  Line ReadOne(const std::string& prompt) {
    prompt_ = prompt;
    outcome_ = Kind::kLine;
    int count = 0;
    const char* text = el_gets(line_, &count);
    Line line;
    line.kind = outcome_;
    if (outcome_ == Kind::kInterrupted) {
      Send("^C\n");
      pasting_ = false;
      bytes_.clear();
    } else if (text == nullptr || count <= 0) {
      line.kind = Kind::kEnd;
      Send("\n");
    } else {
      line.text.assign(text, static_cast<size_t>(count));
      while (line.text.ends_with('\n') || line.text.ends_with('\r')) line.text.pop_back();
      line.text = WithNewlines(std::move(line.text));
    }
    return line;
  }

  void Remember(const std::string& text) {
    std::string shown;
    for (const char c : text) {
      if (c == '\n') {
        shown += kShownNewline;
      } else {
        shown += c;
      }
    }
    HistEvent event;
    history(history_, &event, H_ENTER, shown.c_str());
  }

  bool Pending() {
    if (!bytes_.empty()) return true;
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    return poll(&input, 1, 0) > 0 && (input.revents & POLLIN) != 0;
  }

  // For libedit: 1 and a character, 0 at the end of input, -1 to give up the line.
  int Next(wchar_t* character) {
    while (!TakeCharacter(character)) {
      const int got = ReadBytes();
      if (got <= 0) return got;
    }
    return 1;
  }

  // Waits for input. A signal that ends the line sets outcome_.
  int ReadBytes() {
    for (;;) {
      std::array<pollfd, 2> fds = {{{STDIN_FILENO, POLLIN, 0}, {signals_.fd(), POLLIN, 0}}};
      if (poll(fds.data(), fds.size(), -1) < 0) continue;
      while (const int signal = signals_.Take()) {
        if (signal == SIGWINCH) {
          Redraw();
          continue;
        }
        MoveToEnd();
        outcome_ = signal == SIGINT ? Kind::kInterrupted : Kind::kEnd;
        return -1;
      }
      if (fds[0].revents == 0) continue;
      std::array<char, 4096> buffer;
      const ssize_t size = read(STDIN_FILENO, buffer.data(), buffer.size());
      if (size <= 0) return 0;
      bytes_.append(buffer.data(), static_cast<size_t>(size));
      return 1;
    }
  }

  // Cells from the beginning of the prompt to `end`, in the line that is edited.
  int CellsTo(const wchar_t* end) {
    return Cells(static_cast<int>(prompt_.size()), el_wline(line_)->buffer, end);
  }

  // After a change of the window. Terminals wrap a long line anew, so the line begins as many rows
  // up as it fills at the new width; libedit then draws from there.
  void Redraw() {
    const int columns = Columns();
    if (!escapes_) {
      Send("\n");
    } else if (columns > 0) {
      const int rows = CellsTo(el_wline(line_)->cursor) / columns;
      Send(fmt::format("\r{}\x1b[J", rows > 0 ? fmt::format("\x1b[{}A", rows) : ""));
    }
    el_resize(line_);
    el_set(line_, EL_REFRESH);
  }

  // So that what is printed next does not stand in the middle of the line.
  void MoveToEnd() {
    const int columns = Columns();
    const LineInfoW* info = el_wline(line_);
    if (!escapes_ || columns <= 0 || info->cursor == info->lastchar) return;
    const int end = CellsTo(info->lastchar);
    const int rows = end / columns - CellsTo(info->cursor) / columns;
    Send(fmt::format("{}\x1b[{}G", rows > 0 ? fmt::format("\x1b[{}B", rows) : "",
                     end % columns + 1));
  }

  // False when bytes_ does not hold a whole character, or paste mark.
  bool TakeCharacter(wchar_t* character) {
    for (const auto& [mark, begins] : {std::pair(kPasteBegin, true), std::pair(kPasteEnd, false)}) {
      if (bytes_.starts_with(mark)) {
        bytes_.erase(0, mark.size());
        pasting_ = begins;
        return TakeCharacter(character);
      }
      // An escape alone is a key too, outside of a paste, and the mark comes in one piece.
      if (bytes_.size() > (pasting_ ? 0 : 1) && mark.starts_with(bytes_)) return false;
    }
    if (bytes_.starts_with("\r\n")) bytes_.erase(0, 1);
    if (bytes_.empty()) return false;
    if (pasting_ && (bytes_[0] == '\r' || bytes_[0] == '\n')) {
      bytes_.erase(0, 1);
      *character = Decode(kShownNewline);
      return true;
    }
    if (pasting_ && bytes_[0] != '\t' && IsControl(bytes_[0])) {
      bytes_.erase(0, 1);
      return TakeCharacter(character);
    }
    size_t size = 1;
    while (size < 4 && size <= bytes_.size() &&
           base::ValidUtf8Prefix(std::string_view(bytes_).substr(0, size)) != size) {
      ++size;
    }
    if (size > bytes_.size()) return false;
    const std::string_view whole = std::string_view(bytes_).substr(0, size);
    const bool valid = base::ValidUtf8Prefix(whole) == size;
    *character = valid ? Decode(whole) : 0xFFFD;
    bytes_.erase(0, valid ? size : 1);
    return true;
  }

  SignalFd signals_;
  const bool escapes_;
  History* history_ = nullptr;
  EditLine* line_ = nullptr;
  std::string prompt_;
  std::string bytes_;  // read and not yet given to libedit
  bool pasting_ = false;
  Kind outcome_ = Kind::kLine;
};

LineEditor::LineEditor() : impl_(std::make_unique<Impl>()) {}
LineEditor::~LineEditor() = default;

LineEditor::Line LineEditor::Read(const std::string& prompt) { return impl_->Read(prompt); }

}  // namespace conclave::client
