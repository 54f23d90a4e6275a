#include "client/shape_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace conclave::client {
namespace {

using testing::HasSubstr;

model::Config Config120b() {
  model::Config config;
  config.num_layers = 36;
  config.num_experts = 128;
  return config;
}

TEST(ShapeTableTest, TheFastestShapeOfAsManyRanksIsNamedForEachNumberOfSequences) {
  const ShapeTable table = {
      .measured = "here, today",
      .sequences = {1, 32, 512},
      .shapes = {{{1, 1}, {900, 900, 900}}, {{1, 2}, {330, 100, 0}}, {{2, 1}, {300, 120, 0}}}};
  const std::vector<FastestShape> fastest = FastestShapes(table, 2);
  ASSERT_EQ(fastest.size(), 2u) << "nothing of two ranks was measured with 512";
  EXPECT_EQ(fastest[0].sequences, 1);
  EXPECT_EQ(fastest[0].best.tp, 2);
  EXPECT_EQ(fastest[0].tokens_per_second, 330);
  EXPECT_NEAR(fastest[0].margin, 0.1, 1e-9);
  EXPECT_EQ(fastest[1].sequences, 32);
  EXPECT_EQ(fastest[1].best.dp, 2);
  EXPECT_NEAR(fastest[1].margin, 0.2, 1e-9);
  EXPECT_EQ(FastestShapes(table, 1)[2].margin, 0) << "it has no rival";
  EXPECT_TRUE(FastestShapes(table, 3).empty());
}

TEST(ShapeTableTest, EveryMeasuredShapeHasAFigureForEachNumberOfSequences) {
  const ShapeTable* const table = FindShapeTable(Config120b());
  ASSERT_NE(table, nullptr);
  EXPECT_TRUE(std::is_sorted(table->sequences.begin(), table->sequences.end()));
  for (const MeasuredShape& measured : table->shapes) {
    EXPECT_EQ(measured.tokens_per_second.size(), table->sequences.size());
  }
}

TEST(ShapeTableTest, FourRanksOfThe120bModelAreToldWhereItWasMeasured) {
  const std::string text = FastestText(Config120b(), 4);
  EXPECT_THAT(text, HasSubstr("H100"));
  EXPECT_THAT(text, HasSubstr("dp 1 x tp 4"));
  EXPECT_THAT(text, HasSubstr("dp 4 x tp 1"));
  const Json json = FastestJson(Config120b(), 4);
  EXPECT_THAT(json["measured"].get<std::string>(), HasSubstr("H100"));
  EXPECT_EQ(json["shapes"][0]["sequences"], 1);
  EXPECT_EQ(json["shapes"][0]["tp"], 4);
}

TEST(ShapeTableTest, NothingIsSaidOfModelsAndWorldsThatWereNotMeasured) {
  model::Config other = Config120b();
  other.num_layers = 24;
  EXPECT_EQ(FastestText(other, 4), "");
  EXPECT_TRUE(FastestJson(other, 4).is_null());
  EXPECT_EQ(FastestText(Config120b(), 64), "");
  EXPECT_TRUE(FastestJson(Config120b(), 64).is_null());
}

}  // namespace
}  // namespace conclave::client
