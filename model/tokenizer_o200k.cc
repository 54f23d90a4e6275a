#include "model/tokenizer_o200k.h"

#include <algorithm>
#include <string_view>

#include "fmt/format.h"

namespace conclave::model {
namespace {

struct Named {
  int id;
  std::string_view name;
};

constexpr Named kNamed[] = {
    {199998, "<|startoftext|>"}, {199999, "<|endoftext|>"}, {200002, "<|return|>"},
    {200003, "<|constrain|>"},   {200005, "<|channel|>"},   {200006, "<|start|>"},
    {200007, "<|end|>"},         {200008, "<|message|>"},   {200012, "<|call|>"},
    {200018, "<|endofprompt|>"},
};
constexpr int kLastListed = 200'018;

std::string Reserved(int id) { return fmt::format("<|reserved_{}|>", id); }

}  // namespace

std::vector<AddedToken> O200kHarmonySpecials() {
  std::vector<AddedToken> specials;
  for (const Named& named : kNamed) specials.push_back({named.id, std::string(named.name)});
  for (int id = kO200kRanks; id < kO200kHarmonyTokens; ++id) {
    const bool named = std::any_of(std::begin(kNamed), std::end(kNamed),
                                   [&](const Named& entry) { return entry.id == id; });
    if (!named) specials.push_back({id, Reserved(id)});
  }
  AddedToken second_spelling{kLastListed, Reserved(kLastListed)};
  second_spelling.names_the_id = false;
  specials.push_back(second_spelling);
  return specials;
}

std::vector<AddedToken> O200kHarmonyPadding(const std::vector<AddedToken>& added, int vocab_size) {
  if (vocab_size != kO200kRanks) return {};
  for (const Named& named : kNamed) {
    const bool listed = std::any_of(added.begin(), added.end(), [&](const AddedToken& token) {
      return token.id == named.id && token.content == named.name;
    });
    if (!listed) return {};
  }
  std::vector<AddedToken> padding;
  for (int id = kO200kRanks; id < kO200kHarmonyTokens; ++id) {
    const bool listed = std::any_of(added.begin(), added.end(),
                                    [&](const AddedToken& token) { return token.id == id; });
    if (listed) continue;
    AddedToken token{id, Reserved(id)};
    token.encodes = false;
    padding.push_back(token);
  }
  return padding;
}

}  // namespace conclave::model
