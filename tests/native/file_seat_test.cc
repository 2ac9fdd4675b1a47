// What a handle finds in a forked child. The child is played by this process: it begins a generation.

#include "file/file_seat.h"

#include <cstring>

#include "native/support.h"

namespace pgalloc::file_seat_test {
namespace {

using native_tests::pages;

// From here to its end, this process is a child of what it was.
class Child {
 public:
  Child() { begin_process_generation(); }
  ~Child() { internal::process_generation.fetch_sub(1); }
};

std::shared_ptr<MemoryFile> new_file() {
  auto file = MemoryFile::create({}, {.capacity = 2 * kChunkSize});
  EXPECT(file.ok());
  EXPECT((*file)->allocate({.length = 4 * page_size()}, true).ok());
  return *file;
}

TEST(the_owner_finds_its_file) {
  const auto file = new_file();
  FileSeat seat(file);
  EXPECT(seat.owned() == file.get());
  EXPECT(&seat.pages() == file.get());
  EXPECT(!seat.orphaned());
  EXPECT(seat.pages().check_usable().ok());
}

TEST(a_peer_owns_nothing) {
  const auto file = new_file();
  FileSeat seat(std::static_pointer_cast<Pages>(file));
  EXPECT(seat.owned() == nullptr);
  EXPECT(&seat.pages() == file.get());
}

TEST(a_forked_child_may_read_the_views_it_inherited_and_nothing_else) {
  const auto file = new_file();
  char* const address = *file->map(pages(0, 1));
  std::strcpy(address, "hello");
  FileSeat seat(file);
  const Child child;
  EXPECT(seat.orphaned());
  EXPECT(seat.owned() == nullptr);
  Pages& orphaned = seat.pages();
  const FileRange range = pages(0, 1);
  Discardable entry;
  entry.range = range;
  for (const Status& status :
       {orphaned.inc_ref(range, 0), orphaned.dec_ref(range), orphaned.write(0, "x", 1),
        orphaned.has_unique_ref(range).status().clone(), orphaned.unpin(entry),
        orphaned.end_handle(entry), orphaned.check_usable(),
        orphaned.map({kChunkSize, kChunkSize + page_size()}).status().clone()}) {
    if (EXPECT(!status.ok())) {
      EXPECT(status.code() == ErrorCode::kForked || status.code() == ErrorCode::kRange);
    }
  }
  orphaned.pin(entry, true);
  orphaned.forget(entry);
  EXPECT(!entry.discarded);
  EXPECT(*orphaned.map(range) == address);
  EXPECT_EQ(std::string(*orphaned.find_mapped(range)), "hello");
  EXPECT(!orphaned.is_remote() && !orphaned.incomplete() && !orphaned.discarding());
}

TEST(what_was_not_mapped_before_the_fork_is_refused) {
  const auto file = new_file();
  FileSeat seat(file);
  const Child child;
  EXPECT_EQ(seat.pages().map(pages(0, 1)).status().code(), ErrorCode::kForked);
  EXPECT(*seat.pages().find_mapped(pages(0, 1)) == nullptr);
}

TEST(a_child_with_leases_uses_them_until_it_forks_itself) {
  const auto parents = new_file();
  FileSeat seat(parents);
  const Child child;
  const auto leased = new_file();
  seat.become(leased);
  EXPECT(!seat.orphaned());
  EXPECT(seat.owned() == nullptr);  // a peer's
  EXPECT(&seat.pages() == leased.get());
  EXPECT(seat.pages().inc_ref(pages(0, 1), 0).ok());
  EXPECT(!*leased->has_unique_ref(pages(0, 1)));
  char* const address = *seat.pages().map(pages(0, 1));
  {
    const Child grandchild;
    EXPECT(seat.orphaned());
    EXPECT_EQ(seat.pages().dec_ref(pages(0, 1)).code(), ErrorCode::kForked);
    EXPECT(*seat.pages().map(pages(0, 1)) == address);  // of the pages it had last
  }
  EXPECT(seat.pages().dec_ref(pages(0, 1)).ok());
}

}  // namespace
}  // namespace pgalloc::file_seat_test
