// What a cache keeps as one, and how large it is.

#include "cache/holders.h"

#include <algorithm>
#include <map>
#include <set>

#include "cache/sizes.h"
#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::cache_holders_test {
namespace {

using cache::Holder;
using cache::Holders;
using native_tests::context;
using native_tests::pages;
using native_tests::Random;

// --- Sizes ---------------------------------------------------------------------------------------

TEST(slots_are_as_large_as_leaves_nothing_over) {
  for (uint64_t length = 0; length <= cache::small_value_max(); ++length) {
    const uint64_t slab = cache::slab_bytes_for(length);
    const uint64_t slot = cache::slot_bytes_for(length);
    EXPECT(slot >= length && slot % cache::kSlotAlignment == 0);
    EXPECT(cache::is_possible_slab(slot, slab));
    // Values of one slot size are in slabs of one size.
    EXPECT_EQ(cache::slab_bytes_for(slot), slab);
    // With slots that are larger by the least there would be fewer of them.
    EXPECT(slab / slot > slab / (slot + cache::kSlotAlignment));
    EXPECT_EQ(cache::slot_bytes_for(slot), slot);
  }
  EXPECT_EQ(cache::pages_for(0), page_size());
  EXPECT_EQ(cache::pages_for(page_size()), page_size());
  EXPECT_EQ(cache::pages_for(page_size() + 1), 2 * page_size());
}

TEST(what_is_no_slab_anywhere_is_known) {
  EXPECT(!cache::is_possible_slab(0, page_size()));
  EXPECT(!cache::is_possible_slab(7, page_size()));
  EXPECT(!cache::is_possible_slab(page_size() + 8, page_size()));
  EXPECT(!cache::is_possible_slab(8, 65 * page_size()));
  EXPECT(cache::is_possible_slab(page_size(), page_size()));
}

TEST(an_eighth_of_the_pages_of_index_is_free_of_charge) {
  EXPECT_EQ(cache::counted(8000, 1000), 8000u);
  EXPECT_EQ(cache::counted(8000, 1001), 8001u);
  EXPECT_EQ(cache::counted(0, 10), 10u);
  const uint64_t plain = cache::index_bytes_for(5, false, false, 0);
  EXPECT(cache::index_bytes_for(5, true, false, 0) > plain);
  EXPECT(cache::index_bytes_for(5, false, true, 0) > plain);
  EXPECT_EQ(cache::index_bytes_for(5, false, true, 9),
            cache::index_bytes_for(5, false, true, 0) + 9);
  // What values of a page with short keys take of it.
  EXPECT_EQ(cache::counted(page_size(), cache::index_bytes_for(32, true, false, 0)), page_size());
}

// --- Holders -------------------------------------------------------------------------------------

// A value in the first slot of a holder with pages of its own.
Holder& add_value(Holders& holders, FileRange range, uint64_t entry) {
  Holder& holder = *holders.add(range, 0);
  EXPECT_EQ(*holders.take_slot(holder, false), 0u);
  holders.set(holder, 0, entry);
  return holder;
}

TEST(a_slab_gives_new_slots_first_and_used_ones_only_if_told) {
  Holders holders(10);
  Holder& slab = *holders.add(pages(4, 5), 1024);
  holders.open(slab);
  EXPECT_EQ(slab.slots(), 4u);
  for (uint32_t slot = 0; slot < 3; ++slot) {
    EXPECT_EQ(holders.take_slot(slab, true), std::optional(slot));
    EXPECT_EQ(slab.place_of(slot), 4 * page_size() + slot * 1024);
    EXPECT_EQ(slab.slot_of(slab.place_of(slot)), slot);
    holders.set(slab, slot, slot + 10);
  }
  holders.vacate(slab, 1);
  EXPECT_EQ(holders.take_slot(slab, true), std::optional(3u));
  holders.vacate(slab, 3);  // it was not used
  EXPECT_EQ(holders.take_slot(slab, false), std::nullopt);
  EXPECT_EQ(slab.live, 2u);
  EXPECT_EQ(holders.verify(), std::nullopt);
  EXPECT_EQ(holders.take_slot(slab, true), std::optional(3u));
  EXPECT_EQ(holders.take_slot(slab, true), std::optional(1u));
  EXPECT_EQ(holders.take_slot(slab, true), std::nullopt);
}

TEST(there_are_no_more_holders_than_allowed) {
  Holders holders(2);
  Holder& first = add_value(holders, pages(0, 1), 0);
  Holder& second = add_value(holders, pages(1, 3), 1);
  EXPECT(holders.add(pages(3, 4), 0) == nullptr);
  EXPECT(holders.add(pages(3, 4), 8) == nullptr);
  EXPECT_EQ(holders.size(), 2u);
  EXPECT_EQ(holders.bytes(), 3 * page_size());
  EXPECT_EQ(second.number, 1u);
  holders.vacate(first, 0);
  const auto gone = holders.remove(first);
  EXPECT(gone->gone && gone->pages() == pages(0, 1));
  EXPECT(holders.add(pages(3, 4), 0) == nullptr);  // others may know it by its number
  holders.free_number(gone->number);
  EXPECT_EQ(add_value(holders, pages(3, 4), 2).number, 0u);  // it has the free number
  EXPECT(&holders.at(1) == &second && holders.any() != nullptr);
  EXPECT_EQ(holders.verify(), std::nullopt);
}

TEST(of_slabs_with_vacant_slots_the_first_is_asked_first) {
  Holders holders(10);
  std::vector<Holder*> slabs;
  for (uint64_t i = 0; i < 3; ++i) {
    Holder* const slab = slabs.emplace_back(holders.add(pages(i, i + 1), 2048));
    holders.open(*slab);
    for (uint32_t slot = 0; slot < 2; ++slot) {
      holders.set(*slab, *holders.take_slot(*slab, false), 2 * i + slot);
    }
    holders.close(*slab);
  }
  EXPECT(holders.first_vacant(2048) == nullptr && holders.first_vacant(8) == nullptr);
  for (const int i : {1, 0, 2}) holders.vacate(*slabs[i], 0);
  EXPECT(holders.first_vacant(2048) == slabs[1]);
  holders.put_off(*slabs[1]);
  EXPECT(holders.first_vacant(2048) == slabs[0]);
  holders.open(*slabs[0]);
  EXPECT(holders.open_slab(2048) == slabs[0] && holders.any_open_slab() == slabs[0]);
  EXPECT(holders.open_slab(1024) == nullptr);
  EXPECT(holders.first_vacant(2048) == slabs[2]);
  holders.close(*slabs[0]);  // its slot is vacant still
  EXPECT(holders.first_vacant(2048) == slabs[2]);
  EXPECT(holders.any_open_slab() == nullptr);
  holders.vacate(*slabs[2], 1);
  (void)holders.remove(*slabs[2]);
  EXPECT(holders.first_vacant(2048) == slabs[1]);
  holders.put_off(*slabs[1]);
  EXPECT(holders.first_vacant(2048) == slabs[0]);
  EXPECT_EQ(holders.verify(), std::nullopt);
}

// All of it against lists of what should be there.
class Model {
 public:
  explicit Model(uint64_t seed) : random_(seed), seed_(seed) {}

  void run() {
    for (int step = 0; step < 3000; ++step) {
      context = "seed " + std::to_string(seed_) + " step " + std::to_string(step);
      take_step();
      if (!check()) return;
    }
  }

 private:
  struct Slab {
    std::map<uint32_t, uint64_t> values;  // by slot
    std::set<uint32_t> used;              // slots, ever
  };

  void take_step() {
    switch (random_.below(8)) {
      case 0:
        return add_whole();
      case 1:
        return remove_one();
      case 2:
        return close_one();
      case 3:
        if (Holder* const slab = holders_.first_vacant(random_slot_bytes()))
          holders_.put_off(*slab);
        return;
      case 4:
        return vacate_one();
      default:
        return put();
    }
  }
  uint32_t random_slot_bytes() { return random_.one_in(2) ? 1024 : 1360; }

  FileRange new_pages(uint64_t count) {
    const FileRange range = pages(next_page_, next_page_ + count);
    next_page_ += count;
    return range;
  }
  void add_whole() {
    Holder* const holder = holders_.add(new_pages(random_.between(1, 3)), 0);
    EXPECT_EQ(holder == nullptr, slabs_.size() == kMax);
    if (holder == nullptr) return;
    EXPECT_EQ(holders_.take_slot(*holder, true), std::optional(0u));
    EXPECT_EQ(holders_.take_slot(*holder, true), std::nullopt);
    holders_.set(*holder, 0, next_entry_);
    slabs_[holder].values[0] = next_entry_++;
  }
  // As a store does it.
  void put() {
    const uint32_t slot_bytes = random_slot_bytes();
    Holder* slab = holders_.open_slab(slot_bytes);
    const bool reuse = random_.one_in(2);
    if (slab == nullptr) {
      slab = holders_.first_vacant(slot_bytes);
      if (slab == nullptr) {
        slab = holders_.add(new_pages(1), slot_bytes);
        if (slab == nullptr) return;
        slabs_[slab] = {};
      }
      holders_.open(*slab);
    }
    const auto slot = holders_.take_slot(*slab, reuse);
    Slab& its = slabs_[slab];
    if (!slot) {
      EXPECT(its.used.size() == slab->slots());
      EXPECT(!reuse || its.values.size() == slab->slots());
      return;
    }
    EXPECT(!its.values.contains(*slot));
    EXPECT(reuse || !its.used.contains(*slot));
    its.used.insert(*slot);
    if (random_.one_in(5)) return holders_.vacate(*slab, *slot);
    holders_.set(*slab, *slot, next_entry_);
    its.values[*slot] = next_entry_++;
  }
  Holder* random_holder() {
    if (slabs_.empty()) return nullptr;
    return std::next(slabs_.begin(), static_cast<ptrdiff_t>(random_.below(slabs_.size())))->first;
  }
  void close_one() {
    Holder* const slab = holders_.any_open_slab();
    if (slab == nullptr) return;
    if (slab->live > 0) return holders_.close(*slab);
    remove(*slab);
  }
  void vacate_one() {
    Holder* const holder = random_holder();
    if (holder == nullptr || slabs_[holder].values.empty()) return;
    auto& values = slabs_[holder].values;
    const uint32_t slot = values.begin()->first;
    holders_.vacate(*holder, slot);
    values.erase(slot);
    if (values.empty() && !holder->open) remove(*holder);
  }
  void remove_one() {
    Holder* const holder = random_holder();
    if (holder == nullptr) return;
    for (const auto& [slot, entry] : slabs_[holder].values) holders_.vacate(*holder, slot);
    remove(*holder);
  }
  void remove(Holder& holder) {
    slabs_.erase(&holder);
    const auto gone = holders_.remove(holder);
    EXPECT(gone->gone);
    holders_.free_number(gone->number);
  }

  bool check() {
    uint64_t bytes = 0;
    std::set<const Holder*> seen;
    holders_.visit([&](const Holder& holder) { seen.insert(&holder); });
    for (const auto& [holder, its] : slabs_) {
      bytes += holder->pages().length();
      if (!EXPECT(seen.contains(holder)) || !EXPECT(&holders_.at(holder->number) == holder)) {
        return false;
      }
      if (!EXPECT_EQ(holder->live, its.values.size())) return false;
      for (const auto& [slot, entry] : its.values) {
        if (!EXPECT_EQ(uint64_t{holder->values[slot]}, entry + 1)) return false;
      }
    }
    return EXPECT_EQ(seen.size(), slabs_.size()) && EXPECT_EQ(holders_.size(), slabs_.size()) &&
           EXPECT_EQ(holders_.bytes(), bytes) && EXPECT_EQ(holders_.verify(), std::nullopt);
  }

  static constexpr uint32_t kMax = 60;
  Random random_;
  const uint64_t seed_;
  Holders holders_{kMax};
  std::map<Holder*, Slab> slabs_;
  uint64_t next_page_ = 0;
  uint64_t next_entry_ = 0;
};

TEST(random_steps_keep_what_should_be_there) {
  for (uint64_t seed = 0; seed < 20; ++seed) Model(seed).run();
}

TEST(without_memory_a_holder_is_not_added) {
  for (const uint32_t slot_bytes : {0u, 64u}) {
    Holders holders(1000);
    for (uint64_t page = 0; page < 200; ++page) {
      Holder* added = nullptr;
      native_tests::fail_each_allocation(
          [&] { added = holders.add(pages(page, page + 1), slot_bytes); },
          [&] {
            EXPECT_EQ(holders.size(), page);
            EXPECT_EQ(holders.verify(), std::nullopt);
          });
      const bool opened = slot_bytes > 0;
      if (opened) holders.open(*added);
      holders.set(*added, *holders.take_slot(*added, false), page);
      if (opened) holders.close(*added);
    }
    // Without any memory, all of it can go.
    native_tests::all_fail = true;
    for (uint32_t number = 0; number < 200; ++number) {
      holders.vacate(holders.at(number), 0);
      (void)holders.remove(holders.at(number));
    }
    native_tests::all_fail = false;
    EXPECT_EQ(holders.bytes(), 0u);
    EXPECT_EQ(holders.verify(), std::nullopt);
  }
}

// --- What verify() finds -------------------------------------------------------------------------

std::string found(const Holders& holders) { return holders.verify().value_or("nothing"); }

TEST(verify_finds_what_is_wrong_with_a_holder) {
  Holders holders(10);
  Holder& whole = add_value(holders, pages(0, 1), 0);
  Holder& slab = *holders.add(pages(1, 2), 1024);
  holders.open(slab);
  for (uint32_t entry = 1; entry < 4; ++entry) {
    holders.set(slab, *holders.take_slot(slab, false), entry);
  }
  holders.vacate(slab, 1);
  EXPECT_EQ(found(holders), "nothing");

  whole.number = 5;
  EXPECT_EQ(found(holders), "holder 0 is not what it is known as");
  whole.number = 0;
  whole.gone = true;
  EXPECT_EQ(found(holders), "holder 0 is not what it is known as");
  whole.gone = false;
  whole.live = 2;
  EXPECT_EQ(found(holders), "holder 0 has another number of values than it says");
  whole.live = whole.values[0] = 0;
  EXPECT_EQ(found(holders), "holder 0 has no value");
  holders.set(whole, 0, 0);

  slab.vacant.push_back(0);
  EXPECT_EQ(found(holders), "holder 1 has slots that are taken twice, or lost");
  slab.vacant = {0};
  EXPECT_EQ(found(holders), "holder 1 has a vacant slot that is used, or listed twice");
  slab.vacant = {3};
  EXPECT_EQ(found(holders), "holder 1 has a vacant slot that is used, or listed twice");
  slab.vacant = {1};
  slab.open = false;
  EXPECT_EQ(found(holders), "holder 1 is open, but not known as open, or the reverse");
  slab.open = true;
  EXPECT_EQ(found(holders), "nothing");

  slab.waiting.range = pages(1, 3);
  EXPECT_EQ(found(holders), "the holders are not those that were counted");
  slab.waiting.range = pages(0, 1);
  EXPECT_EQ(found(holders), "two holders have the same page");
  slab.waiting.range = pages(1, 2);

  holders.close(slab);
  const auto vacant = std::exchange(slab.vacant, {});
  slab.fresh = 2;
  EXPECT_EQ(found(holders), "holder 1 has vacant slots that are not known");
  slab.fresh = 3;
  slab.vacant = vacant;
  EXPECT_EQ(found(holders), "nothing");
  for (const uint32_t slot : {0u, 2u}) holders.vacate(slab, slot);
  EXPECT_EQ(found(holders), "holder 1 is closed and empty");
  (void)holders.remove(slab);
  EXPECT_EQ(found(holders), "nothing");
}

// A slot must not be given to two values.
TEST(verify_finds_a_vacant_slot_that_is_listed_twice) {
  Holders holders(10);
  Holder& slab = *holders.add(pages(1, 2), 1024);
  holders.open(slab);
  for (uint32_t entry = 1; entry < 4; ++entry) {
    holders.set(slab, *holders.take_slot(slab, false), entry);
  }
  holders.vacate(slab, 0);
  holders.vacate(slab, 1);
  slab.vacant = {0, 0};
  EXPECT_EQ(found(holders), "holder 0 has a vacant slot that is used, or listed twice");
  slab.vacant = {0, 1};
  EXPECT_EQ(found(holders), "nothing");
}

}  // namespace
}  // namespace pgalloc::cache_holders_test
