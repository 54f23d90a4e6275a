#include "base/credentials.h"

#include <cstdlib>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::base {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Write(const std::string& name, const std::string& text) {
  const char* dir = std::getenv("TEST_TMPDIR");
  const std::string path = std::string(dir != nullptr ? dir : "/tmp") + "/" + name;
  std::ofstream(path) << text;
  return path;
}

TEST(CredentialsTest, SecretsAreTheLinesThatAreNotComments) {
  const std::string path =
      Write("secrets", "# the old one\n  0123456789abcdef\r\n\nfedcba9876543210");
  const auto secrets = ReadSecrets(path);
  ASSERT_TRUE(secrets.ok()) << secrets.status();
  EXPECT_THAT(*secrets, ElementsAre("0123456789abcdef", "fedcba9876543210"));
}

TEST(CredentialsTest, AFileWithoutAUsableSecretIsRefusedByItsLineAndNotByWhatItSays) {
  const auto message = [](const std::string& text) {
    return std::string(ReadSecrets(Write("bad_secrets", text)).status().message());
  };
  EXPECT_THAT(message("# nothing\n"), HasSubstr("no secret"));
  EXPECT_THAT(message("\nhunter2\n"), HasSubstr("bad_secrets:2:"));
  EXPECT_THAT(message("\nhunter2\n"), Not(HasSubstr("hunter2")));
  EXPECT_THAT(message("correct horse battery\n"), HasSubstr("without blanks"));
  EXPECT_THAT(std::string(ReadSecrets("/nonexistent").status().message()),
              HasSubstr("/nonexistent"));
}

TEST(CredentialsTest, ABearerHeaderGivesItsSecretAndOthersNone) {
  EXPECT_EQ(BearerSecret("Bearer abc"), "abc");
  EXPECT_EQ(BearerSecret("bearer  abc "), "abc");
  EXPECT_EQ(BearerSecret("Basic abc"), "");
  EXPECT_EQ(BearerSecret("Bearer "), "");
  EXPECT_EQ(BearerSecret(""), "");
}

TEST(CredentialsTest, DigestsAreSha256) {
  Digest expected = Sha256("abc");
  EXPECT_EQ(expected[0], 0xba);
  EXPECT_EQ(expected[31], 0xad);
  EXPECT_TRUE(SameDigest(expected, Sha256("abc")));
  expected[31] ^= 1;
  EXPECT_FALSE(SameDigest(expected, Sha256("abc")));
}

TEST(CredentialsTest, WhatIsNoCertificateIsRefusedByItsName) {
  const std::string text = Write("not.pem", "nothing of the kind");
  EXPECT_THAT(std::string(LoadTls({.ca = text}).status().message()), HasSubstr("not.pem"));
  EXPECT_THAT(std::string(LoadTls({.cert = text, .key = text}).status().message()),
              HasSubstr("no certificate"));
  EXPECT_THAT(std::string(LoadTls({.cert = text}).status().message()), HasSubstr("private key"));
}

TEST(CredentialsTest, AWatchSeesAFileWrittenToReplacedAndRemoved) {
  const std::string path = Write("watched", "one");
  FileWatch watch({"", path});
  EXPECT_FALSE(watch.Changed());
  Write("watched", "more");
  EXPECT_TRUE(watch.Changed());
  EXPECT_FALSE(watch.Changed());
  ASSERT_EQ(std::rename(Write("new", "more").c_str(), path.c_str()), 0);
  EXPECT_TRUE(watch.Changed());
  ASSERT_EQ(std::remove(path.c_str()), 0);
  EXPECT_TRUE(watch.Changed());
  EXPECT_FALSE(watch.Changed());
}

}  // namespace
}  // namespace conclave::base
