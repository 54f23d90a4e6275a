#include "worker/gloo_mesh.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/address.h>
#include <ifaddrs.h>
#include <netdb.h>
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

namespace conclave::worker {
namespace {

struct LocalAddress {
  std::string interface;
  std::string number;
};

// "" for a family that is not IP and for link-local IPv6, which needs a scope.
std::string NumberOf(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    inet_ntop(AF_INET, &v4->sin_addr, text, sizeof(text));
  } else if (address->sa_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
    if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) return "";
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof(text));
  }
  return text;
}

// IPv4 before IPv6, otherwise in the system's order.
std::vector<LocalAddress> LocalAddresses() {
  std::vector<LocalAddress> v4;
  std::vector<LocalAddress> v6;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return v4;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    std::string number = NumberOf(entry->ifa_addr);
    if (number.empty()) continue;
    (entry->ifa_addr->sa_family == AF_INET ? v4 : v6).push_back({entry->ifa_name, number});
  }
  freeifaddrs(list);
  v4.insert(v4.end(), v6.begin(), v6.end());
  return v4;
}

std::string Describe(const std::vector<LocalAddress>& addresses) {
  std::string text;
  for (const LocalAddress& address : addresses) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", address.interface, address.number);
  }
  return text;
}

std::vector<std::string> Lookup(const std::string& hostname) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  std::vector<std::string> numbers;
  if (getaddrinfo(hostname.c_str(), nullptr, &hints, &found) != 0) return numbers;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    numbers.push_back(NumberOf(entry->ai_addr));
  }
  freeaddrinfo(found);
  return numbers;
}

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
  return fmt::format("[{}]:{}", NumberOf(any), ntohs(port));
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

absl::StatusOr<std::string> ResolveListenAddress(const std::string& interface,
                                                 const std::string& hostname) {
  std::vector<LocalAddress> all = LocalAddresses();
  std::vector<LocalAddress> usable;
  for (const LocalAddress& address : all) {
    if (interface.empty() || address.interface == interface) usable.push_back(address);
  }
  if (usable.empty()) {
    return absl::InvalidArgumentError(fmt::format(
        "interface '{}' has no address; this machine has {}", interface, Describe(all)));
  }
  if (hostname.empty()) return usable.front().number;
  for (const std::string& number : Lookup(hostname)) {
    for (const LocalAddress& address : usable) {
      if (address.number == number) return number;
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("address '{}' is none of this machine's ({})", hostname, Describe(usable)));
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
    getPair(peer)->connect(peer_addresses_[peer]);
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
