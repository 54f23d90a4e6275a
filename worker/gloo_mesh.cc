#include "worker/gloo_mesh.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/address.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "base/clock.h"
#include "base/status_macros.h"
#include "worker/listen_address.h"

namespace conclave::worker {
namespace {

struct Connection {
  int descriptor = -1;
  std::string self;  // Key of each end
  std::string peer;
};

// Family, port and number of a socket address, comparable.
std::string Key(const sockaddr_storage& address) {
  const auto* any = reinterpret_cast<const sockaddr*>(&address);
  const in_port_t port = address.ss_family == AF_INET6
                             ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                             : reinterpret_cast<const sockaddr_in&>(address).sin_port;
  return fmt::format("[{}]:{}", NumericAddress(any), ntohs(port));
}

std::string Key(const std::vector<char>& gloo_address) {
  return Key(gloo::transport::tcp::Address(gloo_address).getSockaddr());
}

// This process's connected sockets.
std::vector<Connection> OpenConnections() {
  std::vector<Connection> connections;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    const int descriptor = std::atoi(entry.path().filename().c_str());
    sockaddr_storage self = {};
    sockaddr_storage peer = {};
    socklen_t size = sizeof(self);
    if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&self), &size) != 0) continue;
    size = sizeof(peer);
    if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
    if (self.ss_family != AF_INET && self.ss_family != AF_INET6) continue;
    connections.push_back({descriptor, Key(self), Key(peer)});
  }
  return connections;
}

std::chrono::milliseconds Milliseconds(absl::Duration duration) {
  return std::chrono::milliseconds(
      std::max<int64_t>(1, absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1)))));
}

}  // namespace

std::string GlooReason(const std::exception& error) {
  const std::string text = error.what();
  const size_t end = text.starts_with('[') ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

GlooMesh::GlooMesh(int my_rank, int num_ranks, std::shared_ptr<gloo::transport::Device> device,
                   absl::Duration timeout)
    : gloo::Context(my_rank, num_ranks), peer_addresses_(num_ranks) {
  device_ = std::move(device);
  transportContext_ = device_->createContext(rank, size);
  transportContext_->setTimeout(Milliseconds(timeout));
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    // Says which of a host's GPUs this is; no matter here, but must be set.
    transportContext_->createPair(peer)->setLocalRank(0);
  }
}

GlooMesh::~GlooMesh() {
  for (int socket : sockets_) close(socket);
}

absl::Status GlooMesh::Connect(const std::string& prefix, Rendezvous& rendezvous,
                               absl::Time deadline) {
  RETURN_IF_ERROR(ConnectPairs(prefix, rendezvous, deadline));
  RETURN_IF_ERROR(DuplicateSockets());
  for (int peer = 0; peer < size; ++peer) {
    if (peer != rank) getPair(peer)->setSync(true, /*busyPoll=*/false);
  }
  return absl::OkStatus();
}

absl::Status GlooMesh::ConnectPairs(const std::string& prefix, Rendezvous& rendezvous,
                                    absl::Time deadline) {
  // The value: for each peer in rank order (self left out) the address that it is to dial.
  std::string mine;
  int64_t address_bytes = 0;
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    std::vector<char> bytes = getPair(peer)->address().bytes();
    address_bytes = static_cast<int64_t>(bytes.size());
    mine.append(bytes.begin(), bytes.end());
  }
  RETURN_IF_ERROR(rendezvous.Put(fmt::format("{}/{}", prefix, rank), mine));
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    ASSIGN_OR_RETURN(std::string theirs, rendezvous.Get(fmt::format("{}/{}", prefix, peer),
                                                        deadline - base::SteadyNow()));
    if (static_cast<int64_t>(theirs.size()) != address_bytes * (size - 1)) {
      return absl::InternalError(fmt::format("rank {} published {} bytes of addresses, {} expected",
                                             peer, theirs.size(), address_bytes * (size - 1)));
    }
    const int index = rank < peer ? rank : rank - 1;
    const auto begin = theirs.begin() + index * address_bytes;
    peer_addresses_[peer].assign(begin, begin + address_bytes);
    try {
      getPair(peer)->connect(peer_addresses_[peer]);
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          fmt::format("rank {} at {}: {}", peer, Key(peer_addresses_[peer]), GlooReason(error)));
    }
  }
  return absl::OkStatus();
}

absl::Status GlooMesh::DuplicateSockets() {
  const std::vector<Connection> open = OpenConnections();
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    const std::string self = Key(getPair(peer)->address().bytes());
    const std::string other = Key(peer_addresses_[peer]);
    // The dialling side knows both ends. The listening side had a port for this peer alone.
    int found = -1;
    for (const Connection& connection : open) {
      if (connection.self != self) continue;
      if (found < 0 || connection.peer == other) found = connection.descriptor;
    }
    const int duplicate = found < 0 ? -1 : fcntl(found, F_DUPFD_CLOEXEC, 0);
    if (duplicate < 0) {
      return absl::InternalError(
          fmt::format("no socket found for the connection to rank {}", peer));
    }
    sockets_.push_back(duplicate);
  }
  return absl::OkStatus();
}

void GlooMesh::Break() {
  for (int socket : sockets_) shutdown(socket, SHUT_RDWR);
}

}  // namespace conclave::worker
