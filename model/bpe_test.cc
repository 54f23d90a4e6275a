#include "model/bpe.h"

#include <ctime>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of this process, one thread: other work on the machine does not count.
double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// All single bytes: id = byte.
BpeParts Bytes() {
  BpeParts parts;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    EXPECT_TRUE(parts.vocab.Add(std::string_view(&c, 1), byte).ok());
  }
  return parts;
}

int AddEntry(BpeParts& parts, std::string_view bytes) {
  const int id = parts.vocab.size();
  EXPECT_TRUE(parts.vocab.Add(bytes, id).ok()) << bytes;
  return id;
}

std::vector<int> Encode(const Bpe& bpe, std::string_view piece) {
  std::vector<int> ids;
  bpe.Encode(piece, ids);
  return ids;
}

Bpe Create(BpeParts parts) {
  auto bpe = Bpe::Create(std::move(parts));
  EXPECT_TRUE(bpe.ok()) << bpe.status();
  return *std::move(bpe);
}

TEST(BpeVocabTest, FindsEntriesOfEveryLength) {
  BpeVocab vocab;
  std::mt19937_64 random(1);
  std::map<std::string, int> ids;
  while (ids.size() < 5'000) {
    std::string bytes(random() % 40 + 1, '\0');
    for (char& c : bytes) c = static_cast<char>(random() % 3);  // many are prefixes of others
    if (ids.emplace(bytes, vocab.size()).second) {
      ASSERT_TRUE(vocab.Add(bytes, vocab.size()).ok());
    }
  }
  for (const auto& [bytes, id] : ids) {
    EXPECT_EQ(vocab.Find(bytes), id);
    EXPECT_EQ(vocab.Bytes(id), bytes);
    const std::string longer = bytes + '\3';
    EXPECT_EQ(vocab.Find(longer), -1);
  }
  EXPECT_EQ(vocab.Find(""), -1);
  EXPECT_EQ(vocab.Bytes(-1), "");
  EXPECT_EQ(vocab.Bytes(vocab.size()), "");
}

TEST(BpeVocabTest, ContradictionsAreRefused) {
  BpeVocab vocab;
  ASSERT_TRUE(vocab.Add("a", 5).ok());
  const auto message = [](const absl::Status& status) { return std::string(status.message()); };
  EXPECT_THAT(message(vocab.Add("a", 6)), HasSubstr("tokens 5 and 6"));
  EXPECT_THAT(message(vocab.Add("b", 5)), HasSubstr("id 5 is used twice"));
  EXPECT_THAT(message(vocab.Add("", 7)), HasSubstr("empty"));
  EXPECT_THAT(message(vocab.Add("b", -1)), HasSubstr("-1"));
  EXPECT_THAT(message(vocab.Add("b", int64_t{kMaxTokenId} + 1)), HasSubstr("2097152"));
  EXPECT_TRUE(vocab.AddHidden("a", 6).ok());
  EXPECT_EQ(vocab.Find("a"), 5);
  EXPECT_EQ(vocab.Bytes(6), "a");
}

TEST(BpeTest, LowestRankFirstThenLeftmost) {
  BpeParts parts = Bytes();
  const int aa = AddEntry(parts, "aa");
  const int ab = AddEntry(parts, "ab");
  parts.merges.Set('a', 'a', {1, aa});
  parts.merges.Set('a', 'b', {0, ab});
  const Bpe bpe = Create(std::move(parts));
  EXPECT_THAT(Encode(bpe, "aaa"), ElementsAre(aa, 'a'));
  EXPECT_THAT(Encode(bpe, "aab"), ElementsAre('a', ab));
  EXPECT_THAT(Encode(bpe, "aaab"), ElementsAre(aa, ab));
}

TEST(BpeTest, WholeEntryOnlyWhereItsMergesLeadOrWhenTold) {
  for (const bool whole_entries : {false, true}) {
    BpeParts parts = Bytes();
    const int bc = AddEntry(parts, "bc");
    const int abc = AddEntry(parts, "abc");
    parts.merges.Set('b', 'c', {0, bc});
    parts.whole_entries = whole_entries;
    const Bpe bpe = Create(std::move(parts));
    EXPECT_THAT(Encode(bpe, "bc"), ElementsAre(bc));
    if (whole_entries) {
      EXPECT_THAT(Encode(bpe, "abc"), ElementsAre(abc));
    } else {
      EXPECT_THAT(Encode(bpe, "abc"), ElementsAre('a', bc));
    }
  }
}

TEST(BpeTest, SpecialEntryIsNeverMadeFromText) {
  BpeParts parts = Bytes();
  const int special = AddEntry(parts, "<s>");
  parts.whole_entries = true;
  parts.special_ids = {special};
  EXPECT_THAT(Encode(Create(std::move(parts)), "<s>"), ElementsAre('<', 's', '>'));
}

TEST(BpeTest, MissingByteIsRefused) {
  BpeParts parts;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    if (byte == 0x9F) continue;
    ASSERT_TRUE(parts.vocab.Add(std::string_view(&c, 1), byte).ok());
  }
  EXPECT_THAT(std::string(Bpe::Create(std::move(parts)).status().message()), HasSubstr("0x9F"));
}

using Pairs = std::map<std::pair<int, int>, Merge>;

// The definition, word for word.
std::vector<int> Reference(const std::string& piece, const Pairs& pairs) {
  std::vector<int> ids(piece.begin(), piece.end());
  while (true) {
    Merge best;
    size_t place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = pairs.find({ids[i], ids[i + 1]});
      if (it == pairs.end() || it->second.rank >= best.rank) continue;
      best = it->second;
      place = i;
    }
    if (best.rank == Merge::kNoMerge) return ids;
    ids[place] = best.id;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(place) + 1);
  }
}

// Short and long pieces go different ways; `shared_ranks` is how .tiktoken vocabularies rank pairs.
void CompareWithReference(bool shared_ranks) {
  std::mt19937_64 random(shared_ranks ? 2 : 3);
  for (int round = 0; round < 30; ++round) {
    BpeParts parts = Bytes();
    Pairs pairs;
    std::vector<int> known = {'a', 'b', 'c'};
    uint32_t rank = 0;
    for (int i = 0; i < 60; ++i) {
      const int left = known[random() % known.size()];
      const int right = known[random() % known.size()];
      const std::string bytes =
          std::string(parts.vocab.Bytes(left)) + std::string(parts.vocab.Bytes(right));
      int id = parts.vocab.Find(bytes);
      if (id < 0) known.push_back(id = AddEntry(parts, bytes));
      if (pairs.contains({left, right})) continue;
      const Merge merge = {shared_ranks ? static_cast<uint32_t>(id) : rank++, id};
      pairs[{left, right}] = merge;
      parts.merges.Set(left, right, merge);
    }
    const Bpe bpe = Create(std::move(parts));
    for (int i = 0; i < 200; ++i) {
      std::string piece(random() % 200 + 1, '\0');
      for (char& c : piece) c = static_cast<char>('a' + random() % 3);
      ASSERT_EQ(Encode(bpe, piece), Reference(piece, pairs)) << piece;
    }
  }
}

TEST(BpeTest, AgreesWithTheDefinitionForRanksOfPairs) { CompareWithReference(false); }
TEST(BpeTest, AgreesWithTheDefinitionForRanksOfResults) { CompareWithReference(true); }

TEST(BpeTest, MegabyteOfOneCharacterTakesLessThanASecond) {
  BpeParts parts = Bytes();
  std::string entry = "a";
  for (int left = 'a'; entry.size() < 64;) {
    entry += entry;
    const int id = AddEntry(parts, entry);
    parts.merges.Set(left, left, {static_cast<uint32_t>(id), id});
    left = id;
  }
  const int longest = parts.vocab.size() - 1;
  const Bpe bpe = Create(std::move(parts));
  const double start = CpuSeconds();
  const std::vector<int> ids = Encode(bpe, std::string(1 << 20, 'a'));
  EXPECT_LT(CpuSeconds() - start, 1.0 * base::TimeScale());
  EXPECT_EQ(ids, std::vector<int>((1 << 20) / 64, longest));
}

}  // namespace
}  // namespace conclave::model
