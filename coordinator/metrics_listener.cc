#include "coordinator/metrics_listener.h"

#include <fmt/format.h>
#include <httplib.h>
#include <sys/socket.h>

#include <charconv>
#include <thread>
#include <utility>

#include "absl/time/clock.h"

namespace conclave::coordinator {
namespace {

constexpr size_t kThreads = 4;
constexpr time_t kPatienceSeconds = 5;  // with a peer that is silent, or does not read
constexpr int kStartTries = 5000;
constexpr size_t kMaxBody = 1024;  // nobody has anything to send
constexpr char kTextFormat[] = "text/plain; version=0.0.4; charset=utf-8";

class Listener final : public MetricsListener {
 public:
  explicit Listener(std::function<std::string()> render) : render_(std::move(render)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_read_timeout(kPatienceSeconds);
    server_.set_write_timeout(kPatienceSeconds);
    server_.set_payload_max_length(kMaxBody);
    // Two processes must not share a port by accident.
    server_.set_socket_options([](int socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(render_(), kTextFormat);
    });
    server_.Get("/", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("Conclave: metrics for Prometheus are at /metrics\n", "text/plain");
    });
  }
  ~Listener() override {
    if (!thread_.joinable()) return;
    server_.stop();
    thread_.join();
  }

  absl::Status Listen(const std::string& address) {
    const size_t colon = address.rfind(':');
    int port = -1;
    if (colon != std::string::npos) {
      const char* end = address.data() + address.size();
      const auto parsed = std::from_chars(address.data() + colon + 1, end, port);
      if (parsed.ptr != end || port > 65535) port = -1;
    }
    if (port < 0) {
      return absl::InvalidArgumentError(
          fmt::format("--metrics-listen {}: it must be HOST:PORT", address));
    }
    std::string host = address.substr(0, colon);
    address_ = host;
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (port == 0) {
      port = server_.bind_to_any_port(host);
    } else if (!server_.bind_to_port(host, port)) {
      port = -1;
    }
    if (port <= 0) {
      return absl::UnavailableError(
          fmt::format("--metrics-listen {}: cannot listen there; is the port taken, is it an "
                      "address of this machine?",
                      address));
    }
    address_ += fmt::format(":{}", port);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // Before it runs the library would not hear stop().
    for (int i = 0; i < kStartTries && !server_.is_running(); ++i) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

 private:
  const std::function<std::string()> render_;
  httplib::Server server_;
  std::string address_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const std::string& address, std::function<std::string()> render) {
  auto listener = std::make_unique<Listener>(std::move(render));
  if (absl::Status status = listener->Listen(address); !status.ok()) return status;
  return listener;
}

}  // namespace conclave::coordinator
