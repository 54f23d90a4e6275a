#include "client/backoff.h"

#include "gtest/gtest.h"

namespace conclave::client {
namespace {

constexpr BackoffOptions kOptions{
    .first = absl::Seconds(1), .most = absl::Seconds(5), .stable = absl::Seconds(30)};

TEST(BackoffTest, DoublesUpToTheMost) {
  Backoff backoff(kOptions);
  EXPECT_EQ(backoff.Next(absl::ZeroDuration()), absl::Seconds(1));
  EXPECT_EQ(backoff.Next(absl::ZeroDuration()), absl::Seconds(2));
  EXPECT_EQ(backoff.Next(absl::ZeroDuration()), absl::Seconds(4));
  EXPECT_EQ(backoff.Next(absl::ZeroDuration()), absl::Seconds(5));
  EXPECT_EQ(backoff.failures(), 4);
}

TEST(BackoffTest, AStableRunStartsOver) {
  Backoff backoff(kOptions);
  backoff.Next(absl::ZeroDuration());
  backoff.Next(absl::ZeroDuration());
  EXPECT_EQ(backoff.Next(absl::Seconds(30)), absl::Seconds(1));
  EXPECT_EQ(backoff.failures(), 1);
}

}  // namespace
}  // namespace conclave::client
