// Which values have a tag.

#include "cache/tags.h"

#include <algorithm>
#include <map>
#include <set>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::cache_tags_test {
namespace {

using cache::Tags;
using native_tests::context;
using native_tests::Random;

void give(Tags& tags, uint64_t entry, std::string_view name) {
  Tags::Tag& tag = tags.claim(name, entry + 1);
  tags.add(entry, tag);
  tags.let_go(tag);
}

TEST(a_tag_is_known_as_long_as_an_entry_has_it_or_it_is_claimed) {
  Tags tags;
  EXPECT(tags.find("a") == nullptr && tags.of(0) == nullptr && tags.of(1000) == nullptr);
  Tags::Tag& tag = tags.claim("a", 5);
  EXPECT(&tags.claim("a", 5) == &tag);
  EXPECT(tags.find("a") == &tag && tags.size() == 1 && tags.entries() == 0);
  tags.let_go(tag);
  tags.add(4, tag);
  tags.remove(4);
  EXPECT(tags.find("a") == &tag);
  tags.add(3, tag);
  tags.let_go(tag);
  EXPECT(tags.of(3) == &tag && tags.of(4) == nullptr);
  tags.remove(4);  // it has none
  tags.remove(1000);
  tags.remove(3);
  EXPECT(tags.find("a") == nullptr && tags.size() == 0);
}

TEST(tags_may_be_any_bytes) {
  Tags tags;
  const std::string zero("a\0b", 3);
  give(tags, 0, "");
  give(tags, 1, zero);
  give(tags, 2, "a");
  EXPECT_EQ(tags.of(0)->name, "");
  EXPECT_EQ(tags.of(1)->name, zero);
  EXPECT_EQ(tags.size(), 3u);
  tags.remove(0);
  EXPECT(tags.find("") == nullptr && tags.find(zero) == tags.of(1));
}

// The entries of a tag, by taking them all as a store does.
std::set<uint64_t> take_all(Tags& tags, const std::string& name) {
  std::set<uint64_t> entries;
  const Tags::Tag* const tag = tags.find(name);
  for (uint64_t left = tag == nullptr ? 0 : tag->size; left > 0; --left) {
    const uint64_t entry = tag->first;
    EXPECT(entries.insert(entry).second);
    tags.remove(entry);
  }
  EXPECT(tags.find(name) == nullptr);
  return entries;
}

TEST(random_steps_keep_the_lists) {
  constexpr uint64_t kEntries = 300;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed);
    Tags tags;
    std::map<uint64_t, std::string> reference;
    const auto random_name = [&] { return "tag " + std::to_string(random.below(12)); };
    for (int step = 0; step < 2000; ++step) {
      const uint64_t entry = random.below(kEntries);
      if (random.one_in(3)) {
        tags.remove(entry);
        reference.erase(entry);
      } else if (random.one_in(30)) {
        const std::string name = random_name();
        std::set<uint64_t> expected;
        for (const auto& [its_entry, its_name] : reference) {
          if (its_name == name) expected.insert(its_entry);
        }
        EXPECT_EQ(take_all(tags, name), expected);
        std::erase_if(reference, [&](const auto& each) { return each.second == name; });
      } else {
        const std::string name = random_name();
        tags.remove(entry);
        give(tags, entry, name);
        reference[entry] = name;
      }
      std::map<std::string, uint64_t> sizes;
      for (const auto& [its_entry, name] : reference) ++sizes[name];
      EXPECT_EQ(tags.size(), sizes.size());
      EXPECT_EQ(tags.entries(), reference.size());
      for (const auto& [name, size] : sizes) {
        const Tags::Tag* const tag = tags.find(name);
        if (EXPECT(tag != nullptr)) EXPECT_EQ(tag->size, size);
      }
      for (uint64_t each = 0; each < kEntries; ++each) {
        const Tags::Tag* const tag = tags.of(each);
        const auto found = reference.find(each);
        EXPECT_EQ(tag == nullptr ? "none" : tag->name,
                  found == reference.end() ? "none" : found->second);
      }
      if (native_tests::failures > 0) return;
    }
  }
}

TEST(without_memory_a_tag_is_not_claimed_and_what_was_claimed_can_be_given) {
  const std::string long_name(1000, 'x');
  Tags tags;
  for (uint64_t entry = 0; entry < 100; ++entry) {
    const std::string name = long_name + std::to_string(entry % 7);
    Tags::Tag* tag = nullptr;
    native_tests::fail_each_allocation([&] { tag = &tags.claim(name, entry + 1); },
                                       [&] {
                                         EXPECT_EQ(tags.size(), std::min<uint64_t>(entry, 7));
                                         EXPECT_EQ(tags.entries(), entry);
                                       });
    native_tests::all_fail = true;
    tags.add(entry, *tag);
    tags.let_go(*tag);
    native_tests::all_fail = false;
  }
  native_tests::all_fail = true;
  for (uint64_t entry = 0; entry < 100; ++entry) tags.remove(entry);
  native_tests::all_fail = false;
  EXPECT_EQ(tags.size(), 0u);
}

}  // namespace
}  // namespace pgalloc::cache_tags_test
