#ifndef CONCLAVE_BASE_CREDENTIALS_H_
#define CONCLAVE_BASE_CREDENTIALS_H_

// What proves who somebody is, as it lies in files: shared secrets, certificates and their keys.
// Messages of these functions name files and lines, never what is in them.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::base {

// --- Shared secrets ---

// A secret is kept as its SHA-256 and compared as that: the time it takes says nothing about it.
using Digest = std::array<uint8_t, 32>;
Digest Sha256(std::string_view text);
bool SameDigest(const Digest& a, const Digest& b);

// Of an `authorization` header; empty when it is not "Bearer SECRET".
std::string_view BearerSecret(std::string_view header);

// OK for 16 to 1,024 printable characters without blanks.
absl::Status CheckSecret(std::string_view secret);

// The secrets of a file, one a line; blank lines and those that begin with # do not count. At least
// one. INVALID_ARGUMENT names the line.
absl::StatusOr<std::vector<std::string>> ReadSecrets(const std::string& path);

// Files of up to 1 MiB, which is more than any of these has.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

// --- Certificates ---

// PEM files. Each may be empty; what that means is the user's to say.
struct TlsFiles {
  std::string cert = {};  // chain, the own certificate first
  std::string key = {};   // of the own certificate, not encrypted
  std::string ca = {};    // whom to trust

  bool empty() const { return cert.empty() && key.empty() && ca.empty(); }
};

// What is in them.
struct TlsPems {
  std::string cert;
  std::string key;
  std::string ca;
};

// Reads those that are named. INVALID_ARGUMENT when a file does not hold what it should, or the key
// is not the certificate's.
absl::StatusOr<TlsPems> LoadTls(const TlsFiles& files);

// --- Changes ---

// Tells when one of some files was replaced or written to. One thread at a time.
class FileWatch {
 public:
  explicit FileWatch(std::vector<std::string> paths);

  // Whether anything is different from the last call, or from the construction. A few stat calls.
  bool Changed();

 private:
  struct Stamp {
    uint64_t device = 0;
    uint64_t inode = 0;
    int64_t size = -1;
    int64_t modified = 0;  // ns
    int64_t changed = 0;   // ns
    bool operator==(const Stamp&) const = default;
  };
  std::vector<Stamp> Take() const;

  std::vector<std::string> paths_;  // empty ones are passed over
  std::vector<Stamp> stamps_;
};

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_CREDENTIALS_H_
