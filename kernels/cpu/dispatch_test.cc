#include "kernels/cpu/dispatch.h"

#include <cstring>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/ops_fixture.h"

namespace conclave::kernels {
namespace {

using ::testing::ElementsAre;

constexpr int kWorld = 3;
constexpr int kHidden = 5;  // ids are not 16-byte aligned by chance
constexpr int kChoices = 2;
constexpr int kBlockSlots = 4;

class DispatchTest : public testing::Test {
 protected:
  DispatchTest()
      : layout_(MakeSlotLayout(DType::kF32, kHidden, kChoices)),
        // Poison: what is not written stays recognizable.
        send_(kWorld * kBlockSlots * layout_.slot_bytes / sizeof(float),
              std::numeric_limits<float>::quiet_NaN()) {
    for (int i = 0; i < 3 * kHidden; ++i) normed_.push_back(static_cast<float>(i));
    PackCopies({kWorld, rank_of_expert_.data()}, layout_, AsTensor(normed_, kHidden),
               {AsTensor(ids_, kChoices), AsTensor(weights_, kChoices)}, kBlockSlots,
               AsTensor(send_, 1), AsTensor(send_index_, kWorld), AsTensor(counts_, 1));
  }

  const std::byte* Slot(int destination, int slot) const {
    return reinterpret_cast<const std::byte*>(send_.data()) +
           (destination * kBlockSlots + slot) * layout_.slot_bytes;
  }
  std::vector<int32_t> Ids(int destination, int copy) const {
    std::vector<int32_t> out(kChoices);
    std::memcpy(out.data(), Slot(destination, 1 + copy) + layout_.expert_ids_offset,
                kChoices * sizeof(int32_t));
    return out;
  }
  std::vector<float> Floats(int destination, int copy, int64_t offset, int count) const {
    std::vector<float> out(count);
    std::memcpy(out.data(), Slot(destination, 1 + copy) + offset, count * sizeof(float));
    return out;
  }

  const SlotLayout layout_;
  std::vector<int32_t> rank_of_expert_ = {0, 0, 1, 1, 2, 2};
  std::vector<float> normed_;
  std::vector<int32_t> ids_ = {3, 0,   // row 0: ranks 1 and 0
                               2, 3,   // row 1: rank 1 twice
                               1, 2};  // row 2: ranks 0 and 1
  std::vector<float> weights_ = {0.7f, 0.3f, 0.6f, 0.4f, 0.9f, 0.1f};
  std::vector<float> send_;
  std::vector<int32_t> send_index_ = std::vector<int32_t>(3 * kWorld, 99);
  std::vector<int32_t> counts_ = std::vector<int32_t>(kWorld, 99);
};

TEST_F(DispatchTest, SendsOneCopyToEveryRankThatHasAnExpertInRowOrder) {
  EXPECT_THAT(counts_, ElementsAre(2, 3, 0));
  EXPECT_THAT(send_index_, ElementsAre(0, 0, -1, -1, 1, -1, 1, 2, -1));
  for (int d = 0; d < kWorld; ++d) {
    int32_t header = -1;
    std::memcpy(&header, Slot(d, 0), sizeof(header));
    EXPECT_EQ(header, counts_[d]);
  }
  EXPECT_THAT(Ids(1, 0), ElementsAre(3, -1));
  EXPECT_THAT(Ids(0, 0), ElementsAre(-1, 0));
  EXPECT_THAT(Ids(1, 1), ElementsAre(2, 3));
  EXPECT_THAT(Ids(0, 1), ElementsAre(1, -1));
  EXPECT_THAT(Ids(1, 2), ElementsAre(-1, 2));
  EXPECT_THAT(Floats(0, 1, layout_.hidden_offset, kHidden), ElementsAre(10, 11, 12, 13, 14));
  EXPECT_THAT(Floats(1, 1, layout_.weights_offset, kChoices), ElementsAre(0.6f, 0.4f));
}

TEST_F(DispatchTest, DoesNotTouchThePadding) {
  const auto untouched = [&](int destination, int copy) {
    for (const float value :
         Floats(destination, copy, 0, static_cast<int>(layout_.slot_bytes / sizeof(float)))) {
      EXPECT_TRUE(std::isnan(value));
    }
  };
  untouched(0, 2);
  for (int copy = 0; copy < 3; ++copy) untouched(2, copy);
}

TEST_F(DispatchTest, CombineAddsRanksInOrderWithOneRounding) {
  base::ThreadPool pool(2);
  // Partials of rank 0 from row 0, of rank 1 from row 4; the rows between are poison.
  std::vector<double> partials(8 * kHidden, std::numeric_limits<double>::quiet_NaN());
  const int32_t first_row[kWorld] = {0, 4, 7};
  const auto set = [&](int row, double value) {
    std::fill_n(partials.begin() + row * kHidden, kHidden, value);
  };
  const double tiny = 0x1.8p-25;  // is lost when it is added to 1 in float32
  set(0, 1.0);
  set(1, 2.0);
  set(4, tiny);
  set(5, 3.0);
  set(6, 4.0);
  std::vector<float> x(3 * kHidden, 1.0f);
  std::fill_n(x.begin(), kHidden, static_cast<float>(tiny));
  AddPartials(AsTensor(partials, kHidden), first_row, AsTensor(send_index_, kWorld), pool,
              AsTensor(x, kHidden));
  const auto once = static_cast<float>(1.0 + 2 * tiny);
  ASSERT_NE(once, 1.0f + static_cast<float>(tiny));
  for (int i = 0; i < kHidden; ++i) {
    EXPECT_EQ(x[i], once);
    EXPECT_EQ(x[kHidden + i], 4.0f);
    EXPECT_EQ(x[2 * kHidden + i], 7.0f);
  }
}

TEST(SlotLayoutTest, FieldsAreAlignedAndSlotsAreMultiplesOf16) {
  for (const DType type : {DType::kF32, DType::kBf16}) {
    for (const int hidden : {1, 5, 96, 2880}) {
      const SlotLayout layout = MakeSlotLayout(type, hidden, 4);
      EXPECT_GE(layout.expert_ids_offset, hidden * SizeOf(type));
      EXPECT_EQ(layout.expert_ids_offset % 4, 0);
      EXPECT_EQ(layout.weights_offset, layout.expert_ids_offset + 16);
      EXPECT_GE(layout.slot_bytes, layout.weights_offset + 16);
      EXPECT_EQ(layout.slot_bytes % 16, 0);
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
