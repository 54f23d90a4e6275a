#include "coordinator/rendezvous.h"

#include <optional>
#include <string>

#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

struct Answer {
  std::optional<absl::StatusOr<std::string>> value;
  int calls = 0;
  Rendezvous::Callback Callback() {
    return [this](absl::StatusOr<std::string> got) {
      value = std::move(got);
      ++calls;
    };
  }
};

TEST(Rendezvous, AValueIsThereForThoseWhoCameBeforeAndAfter) {
  Rendezvous store;
  store.BeginEpoch(3);
  Answer before;
  Answer after;
  Answer other;
  store.Get(3, "world/0", before.Callback());
  store.Get(3, "world/1", other.Callback());
  EXPECT_EQ(before.calls, 0);
  ASSERT_TRUE(store.Put(3, "world/0", "here").ok());
  store.Get(3, "world/0", after.Callback());
  EXPECT_EQ(**before.value, "here");
  EXPECT_EQ(**after.value, "here");
  EXPECT_EQ(before.calls, 1);
  EXPECT_EQ(other.calls, 0);
  store.EndEpoch();
}

TEST(Rendezvous, WaitersOfAnEpochAreAbortedWhenItEnds) {
  Rendezvous store;
  store.BeginEpoch(1);
  Answer by_end;
  store.Get(1, "a", by_end.Callback());
  store.EndEpoch();
  EXPECT_EQ(by_end.value->status().code(), absl::StatusCode::kAborted);
  store.BeginEpoch(2);
  Answer by_next;
  store.Get(2, "a", by_next.Callback());
  store.BeginEpoch(3);
  EXPECT_EQ(by_next.value->status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(by_end.calls + by_next.calls, 2);
}

TEST(Rendezvous, NothingPassesFromOneEpochToAnother) {
  Rendezvous store;
  EXPECT_EQ(store.Put(0, "a", "x").code(), absl::StatusCode::kAborted);
  store.BeginEpoch(1);
  ASSERT_TRUE(store.Put(1, "a", "old").ok());
  store.BeginEpoch(2);
  EXPECT_EQ(store.Put(1, "a", "late").code(), absl::StatusCode::kAborted);
  Answer late;
  store.Get(1, "a", late.Callback());
  EXPECT_EQ(late.value->status().code(), absl::StatusCode::kAborted);
  Answer current;
  store.Get(2, "a", current.Callback());
  EXPECT_EQ(current.calls, 0);
  store.EndEpoch();
}

TEST(Rendezvous, ACancelledGetIsCalledOnceAndNeverGetsTheValue) {
  Rendezvous store;
  store.BeginEpoch(1);
  Answer answer;
  const auto waiter = store.Get(1, "a", answer.Callback());
  store.CancelGet(waiter);
  store.CancelGet(waiter);
  ASSERT_TRUE(store.Put(1, "a", "x").ok());
  EXPECT_EQ(answer.value->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(answer.calls, 1);
}

TEST(Rendezvous, ValuesAreBounded) {
  Rendezvous store;
  store.BeginEpoch(1);
  const std::string large(Rendezvous::kMaxValueBytes, 'x');
  EXPECT_EQ(store.Put(1, "a", large).code(), absl::StatusCode::kResourceExhausted);
  const std::string fits(Rendezvous::kMaxValueBytes - 8, 'x');
  int stored = 0;
  while (store.Put(1, std::to_string(stored), fits).ok()) ++stored;
  EXPECT_EQ(stored, 64);
  // Replacing a value does not count it twice.
  EXPECT_TRUE(store.Put(1, "0", fits).ok());
}

}  // namespace
}  // namespace conclave::coordinator
