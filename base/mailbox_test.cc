#include "base/mailbox.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace conclave::base {
namespace {

TEST(MailboxTest, DeliversInTheOrderOfPosting) {
  Mailbox<int> mailbox;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(mailbox.Post(i));
  EXPECT_EQ(mailbox.size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(mailbox.Take(absl::ZeroDuration()), i);
  EXPECT_EQ(mailbox.Take(absl::ZeroDuration()), std::nullopt);
}

TEST(MailboxTest, TakeWaitsForAnotherThread) {
  Mailbox<std::unique_ptr<int>> mailbox;
  std::thread poster([&] { mailbox.Post(std::make_unique<int>(7)); });
  auto message = mailbox.Take(absl::Seconds(60));
  poster.join();
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(**message, 7);
}

TEST(MailboxTest, CloseRefusesNewMessagesAndDeliversOldOnes) {
  Mailbox<int> mailbox;
  mailbox.Post(1);
  mailbox.Close();
  EXPECT_FALSE(mailbox.Post(2));
  EXPECT_FALSE(mailbox.closed());
  EXPECT_EQ(mailbox.Take(absl::ZeroDuration()), 1);
  EXPECT_TRUE(mailbox.closed());
  EXPECT_EQ(mailbox.Take(absl::InfiniteDuration()), std::nullopt);
}

}  // namespace
}  // namespace conclave::base
