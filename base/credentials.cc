#include "base/credentials.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <utility>

#include "base/status_macros.h"

namespace conclave::base {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMinSecretBytes = 16;
constexpr size_t kMaxSecretBytes = 1024;
constexpr std::string_view kBlanks = " \t\r";

template <auto free>
struct Free {
  template <typename T>
  void operator()(T* pointer) const {
    free(pointer);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

Bio Reader(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

absl::StatusOr<Certificate> ParseCertificate(const std::string& path, const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(Reader(pem).get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (certificate != nullptr) return certificate;
  return absl::InvalidArgumentError(fmt::format("{}: no certificate in PEM format", path));
}

absl::StatusOr<PrivateKey> ParseKey(const std::string& path, const std::string& pem) {
  // Without this OpenSSL asks the terminal for the passphrase of an encrypted key.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  PrivateKey key(PEM_read_bio_PrivateKey(Reader(pem).get(), nullptr, no_passphrase, nullptr));
  ERR_clear_error();
  if (key != nullptr) return key;
  return absl::InvalidArgumentError(
      fmt::format("{}: no private key in PEM format, or it is encrypted", path));
}

absl::Status CheckPair(const TlsFiles& files, const TlsPems& pems) {
  ASSIGN_OR_RETURN(const Certificate certificate, ParseCertificate(files.cert, pems.cert));
  ASSIGN_OR_RETURN(const PrivateKey key, ParseKey(files.key, pems.key));
  const bool fits = X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is not the key of the certificate in {}", files.key, files.cert));
}

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

int64_t Nanoseconds(const timespec& time) {
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

Digest Sha256(std::string_view text) {
  Digest digest;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), digest.data());
  return digest;
}

bool SameDigest(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view BearerSecret(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  if (header.size() <= kScheme.size()) return {};
  const auto same = [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b + 32 : b); };
  if (!std::equal(kScheme.begin(), kScheme.end(), header.begin(), same)) return {};
  return Trim(header.substr(kScheme.size()));
}

absl::Status CheckSecret(std::string_view secret) {
  if (secret.size() < kMinSecretBytes || secret.size() > kMaxSecretBytes) {
    return absl::InvalidArgumentError(fmt::format("a secret has {} to {} characters, this one {}",
                                                  kMinSecretBytes, kMaxSecretBytes, secret.size()));
  }
  const auto printable = [](char c) { return c > ' ' && c <= '~'; };
  if (std::all_of(secret.begin(), secret.end(), printable)) return absl::OkStatus();
  return absl::InvalidArgumentError("a secret is printable ASCII without blanks");
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(
        fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  }
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return absl::InvalidArgumentError(fmt::format("{}: cannot be read", path));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() <= kMaxFileBytes) return text;
  return absl::InvalidArgumentError(fmt::format("{}: larger than 1 MiB", path));
}

absl::StatusOr<std::vector<std::string>> ReadSecrets(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path));
  std::vector<std::string> secrets;
  std::string_view rest = text;
  for (int line = 1; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view secret = Trim(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (secret.empty() || secret.front() == '#') continue;
    if (const absl::Status status = CheckSecret(secret); !status.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: {}", path, line, std::string(status.message())));
    }
    secrets.emplace_back(secret);
  }
  if (!secrets.empty()) return secrets;
  return absl::InvalidArgumentError(fmt::format("{}: no secret in it", path));
}

absl::StatusOr<TlsPems> LoadTls(const TlsFiles& files) {
  if (files.cert.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("{} needs its {}", files.cert.empty() ? files.key : files.cert,
                    files.cert.empty() ? "certificate" : "private key"));
  }
  TlsPems pems;
  if (!files.cert.empty()) {
    ASSIGN_OR_RETURN(pems.cert, ReadSmallFile(files.cert));
    ASSIGN_OR_RETURN(pems.key, ReadSmallFile(files.key));
    RETURN_IF_ERROR(CheckPair(files, pems));
  }
  if (!files.ca.empty()) {
    ASSIGN_OR_RETURN(pems.ca, ReadSmallFile(files.ca));
    RETURN_IF_ERROR(ParseCertificate(files.ca, pems.ca).status());
  }
  return pems;
}

FileWatch::FileWatch(std::vector<std::string> paths) : paths_(std::move(paths)), stamps_(Take()) {}

std::vector<FileWatch::Stamp> FileWatch::Take() const {
  std::vector<Stamp> stamps;
  for (const std::string& path : paths_) {
    if (path.empty()) continue;
    Stamp& stamp = stamps.emplace_back();
    struct stat info = {};
    if (stat(path.c_str(), &info) != 0) continue;  // gone: that is a state, too
    stamp = {info.st_dev, info.st_ino, info.st_size, Nanoseconds(info.st_mtim),
             Nanoseconds(info.st_ctim)};
  }
  return stamps;
}

bool FileWatch::Changed() {
  std::vector<Stamp> now = Take();
  if (now == stamps_) return false;
  stamps_ = std::move(now);
  return true;
}

}  // namespace conclave::base
