#include "client/serve_display.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave::client {
namespace {

constexpr int kBarWidth = 30;
constexpr int kSparsePercent = 25;
constexpr char kEraseLine[] = "\r\x1b[K";

// Empty when there is nothing to wait for.
std::string StateText(const v1::GetClusterResponse& cluster, int percent) {
  if (cluster.state() == v1::LOADING) return fmt::format("loading weights, {} %", percent);
  if (!cluster.problem().empty()) return cluster.problem();
  switch (cluster.state()) {
    case v1::FORMING:
      return "waiting for workers";
    case v1::RECOVERING:
      return "a worker was lost, waiting for another";
    default:
      return "";
  }
}

int Percent(const v1::GetClusterResponse& cluster) {
  return static_cast<int>(100 * std::clamp(cluster.load_progress(), 0.0, 1.0));
}

}  // namespace

void ServeDisplay::Message(std::string_view text) {
  fmt::print(out_, "{}conclave serve: {}\n", bar_.empty() ? "" : kEraseLine, text);
  DrawBar();
}

void ServeDisplay::ChildLine(const std::string& child, const std::string& line) {
  const char* erase = bar_.empty() ? "" : kEraseLine;
  // A JSON object stays one.
  if (line.starts_with('{')) {
    fmt::print(out_, "{}{}\n", erase, line);
  } else {
    fmt::print(out_, "{}[{}] {}\n", erase, child, line);
  }
  DrawBar();
}

void ServeDisplay::Progress(const v1::GetClusterResponse& cluster) {
  const int percent = cluster.state() == v1::LOADING ? Percent(cluster) : 0;
  // Where there is no terminal, loading moves in a few large steps.
  const int shown = terminal_ ? percent : percent / kSparsePercent * kSparsePercent;
  const std::string text = StateText(cluster, shown);
  if (text == text_) return;
  text_ = text;
  if (text.empty()) {
    EndProgress();
  } else if (terminal_) {
    const int done = shown * kBarWidth / 100;
    bar_ =
        fmt::format("[{}{}] {}", std::string(done, '#'), std::string(kBarWidth - done, '.'), text);
    fmt::print(out_, "{}", kEraseLine);
    DrawBar();
  } else {
    Message(text);
  }
}

void ServeDisplay::EndProgress() {
  if (bar_.empty()) return;
  bar_.clear();
  fmt::print(out_, "{}", kEraseLine);
  std::fflush(out_);
}

void ServeDisplay::DrawBar() {
  if (!bar_.empty()) fmt::print(out_, "{}", bar_);
  std::fflush(out_);
}

}  // namespace conclave::client
