// What a peer holds of a file, beside a model that takes the same steps.

#include "sharing/share.h"

#include <map>

#include "native/memory.h"
#include "native/sharing.h"

namespace pgalloc::share_test {
namespace {

using native_tests::make_file;
using native_tests::page_of;
using native_tests::pages;
using native_tests::Random;
using native_tests::take_pages;

constexpr uint64_t kPages = 12;

class Model {
 public:
  bool holds(FileRange range) const {
    for (uint64_t page = page_of(range.start); page < page_of(range.end); ++page) {
      if (counts[page] == 0) return false;
    }
    return true;
  }
  void add(FileRange range, int more) {
    for (uint64_t page = page_of(range.start); page < page_of(range.end); ++page) {
      counts[page] += more;
    }
  }
  bool exact(FileRange range) const {
    const auto found = unpinned.find(range.start);
    return found != unpinned.end() && found->second == range.end;
  }
  bool overlaps(FileRange range) const {
    for (const auto& [start, end] : unpinned) {
      if (start < range.end && range.start < end) return true;
    }
    return false;
  }
  bool release(FileRange range) {
    if (exact(range) && !holds(range)) return unpinned.erase(range.start) == 1;
    std::erase_if(unpinned, [&](const auto& entry) {
      const auto [start, end] = entry;
      if (start >= range.end || range.start >= end) return false;
      add({start, end}, 1);
      return true;
    });
    if (!holds(range)) return false;
    add(range, -1);
    return true;
  }
  bool unpin(FileRange range) {
    if (exact(range)) return true;
    if (overlaps(range) || !holds(range)) return false;
    add(range, -1);
    unpinned[range.start] = range.end;
    return true;
  }
  bool pin(FileRange range) {
    if (!exact(range)) return holds(range);
    unpinned.erase(range.start);
    add(range, 1);
    return true;
  }

  std::array<int, kPages> counts{};
  std::map<uint64_t, uint64_t> unpinned;
};

class Scene {
 public:
  Scene() : file(make_file()), all(take_pages(*file, kPages)), share(file) {}
  ~Scene() {
    EXPECT(share.end_some(SIZE_MAX));
    EXPECT(*file->has_unique_ref(all));  // nothing too much, and nothing too little
    EXPECT(file->dec_ref(all).ok());
  }
  void lease(FileRange range) {
    EXPECT(file->references().lease_anew(range).ok());
    try {
      EXPECT(share.table().add_lease(range).ok());
    } catch (const std::bad_alloc&) {
      (void)file->references().drop_lease(range);
      throw;
    }
  }
  void expect(const Model& model) const {
    EXPECT_EQ(share.verify(), std::nullopt);
    EXPECT_EQ(share.unpinned_count(), model.unpinned.size());
    for (uint64_t page = 0; page < kPages; ++page) {
      const bool held = model.holds(pages(page, page + 1)) || model.exact(pages(page, page + 1));
      EXPECT_EQ(share.need(pages(page, page + 1)).ok(), held);
    }
  }

  const std::shared_ptr<MemoryFile> file;
  const FileRange all;
  Share share;
};

// With one segment after the other, until all is done.
template <class Step>
bool in_pieces(FileRange range, Step step) {
  while (!range.empty()) {
    size_t left = 1;
    const Result<FileRange> done = step(range, &left);
    if (!done.ok()) return false;
    EXPECT(left == 0);
    range.start = done->end;
  }
  return true;
}

void take_steps_in_pieces(uint64_t seed) {
  Random random(seed);
  Scene scene;
  Model model;
  for (int step = 0; step < 400; ++step) {
    const FileRange range = native_tests::random_pages(random, kPages, 4);
    bool intact = false;
    Model next = model;
    switch (random.below(5)) {
      case 0:
      case 1:
        scene.lease(range);
        next.add(range, 1);
        break;
      case 2:
        // What goes wrong in the middle leaves what was done before; so does an end within what is unpinned.
        if (!next.release(range) || (model.overlaps(range) && !model.exact(range))) continue;
        EXPECT(in_pieces(range, [&](FileRange rest, size_t* left) {
          return scene.share.release_front(rest, left);
        }));
        break;
      case 3:
        if (!next.unpin(range)) continue;
        EXPECT(in_pieces(range, [&](FileRange rest, size_t* left) {
          if (model.exact(range)) *left = 0;
          return scene.share.unpin_front(range, rest.start, left);
        }));
        break;
      case 4:
        if (!next.pin(range)) continue;
        EXPECT(in_pieces(range, [&](FileRange rest, size_t* left) {
          return scene.share.pin_front(range, rest.start, left, &intact);
        }));
        EXPECT(intact);
        break;
    }
    model = next;
    scene.expect(model);
  }
}

TEST(a_model_takes_the_same_steps_in_pieces) {
  for (uint64_t seed = 0; seed < 40; ++seed) take_steps_in_pieces(seed);
}

void take_steps(uint64_t seed, bool memory_fails) {
  Random random(seed);
  Scene scene;
  Model model;
  for (int step = 0; step < 400; ++step) {
    const FileRange range = native_tests::random_pages(random, kPages, 4);
    const uint64_t what = random.below(5);
    bool done = false;
    const auto act = [&] {
      switch (what) {
        case 0:
        case 1:
          scene.lease(range);
          done = true;
          break;
        case 2:
          done = scene.share.release(range).ok();
          break;
        case 3:
          done = scene.share.unpin(range).ok();
          break;
        case 4:
          done = scene.share.pin(range).ok();
          break;
      }
    };
    if (memory_fails) {
      native_tests::fail_each_allocation(act, [&] {
        EXPECT_EQ(scene.share.verify(), std::nullopt);
        // What is released may have been pinned before memory ran out.
        if (what != 2) scene.expect(model);
      });
    } else {
      act();
    }
    bool wanted = true;
    switch (what) {
      case 0:
      case 1:
        model.add(range, 1);
        break;
      case 2:
        wanted = model.release(range);
        break;
      case 3:
        wanted = model.unpin(range);
        break;
      case 4:
        wanted = model.pin(range);
        break;
    }
    if (!EXPECT_EQ(done, wanted)) return;
    scene.expect(model);
  }
}

TEST(a_model_takes_the_same_steps) {
  for (uint64_t seed = 0; seed < 40; ++seed) take_steps(seed, false);
}

TEST(a_model_takes_the_same_steps_while_memory_runs_out) {
  for (uint64_t seed = 0; seed < 8; ++seed) take_steps(seed, true);
}

TEST(what_a_peer_held_is_given_back_piece_by_piece) {
  Scene scene;
  for (uint64_t page = 0; page < kPages; ++page) scene.lease(pages(page, page + 1));
  scene.lease(pages(0, 4));
  EXPECT(scene.share.unpin(pages(6, 8)).ok());
  int rounds = 1;
  while (!scene.share.end_some(1)) ++rounds;
  EXPECT(rounds > 2);
  EXPECT_EQ(scene.share.bytes(), 0u);
}

TEST(leases_are_copied_in_steps_whatever_is_let_go_of_meanwhile) {
  Scene scene;
  for (uint64_t page = 0; page < kPages; page += 2) scene.lease(pages(page, page + 1));
  LeaseTable copy(scene.file);
  uint64_t from = 0;
  int steps = 0;
  for (bool done = false; !done; ++steps) {
    size_t left = 1;
    done = *copy.copy_some(scene.share.table(), &from, &left);
    if (steps == 0) EXPECT(*scene.share.release(pages(0, 1)));  // it has been copied
    if (steps == 1) EXPECT(*scene.share.release(pages(4, 5)));  // it never is
  }
  EXPECT_EQ(steps, static_cast<int>(kPages / 2 - 1));
  EXPECT_EQ(copy.bytes(), (kPages / 2 - 1) * page_size());
  EXPECT(copy.has(pages(0, 1)));
  EXPECT(!copy.has(pages(4, 5)));
  EXPECT(copy.drop_some(SIZE_MAX));
}

TEST(a_lease_that_cannot_be_copied_for_want_of_memory_is_not_lost) {
  Scene scene;
  scene.lease(pages(0, 2));
  scene.lease(pages(4, 6));
  scene.lease(pages(5, 6));
  LeaseTable copy(scene.file);
  uint64_t from = 0;
  size_t left = SIZE_MAX;
  native_tests::fail_each_allocation(
      [&] { EXPECT(*copy.copy_some(scene.share.table(), &from, &left)); },
      [&] {
        EXPECT(copy.drop_some(SIZE_MAX));
        from = 0;
      });
  EXPECT_EQ(copy.bytes(), 4 * page_size());
  EXPECT(copy.drop_some(SIZE_MAX));
}

}  // namespace
}  // namespace pgalloc::share_test
