#include "worker/listen_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>

#include <vector>

namespace conclave::worker {
namespace {

struct LocalAddress {
  std::string interface;
  std::string number;
};

// IPv4 before IPv6, otherwise in the system's order.
std::vector<LocalAddress> LocalAddresses() {
  std::vector<LocalAddress> v4;
  std::vector<LocalAddress> v6;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return v4;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    std::string number = NumericAddress(entry->ifa_addr);
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
    numbers.push_back(NumericAddress(entry->ai_addr));
  }
  freeaddrinfo(found);
  return numbers;
}

}  // namespace

std::string NumericAddress(const sockaddr* address) {
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

}  // namespace conclave::worker
