// Another process's pages, with a test as their owner: its answers lie ready before they are asked for.

#include "sharing/peer_file.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "native/memory.h"
#include "native/sharing.h"
#include "sharing/shared_discards.h"

namespace pgalloc::peer_file_test {
namespace {

using native_tests::FakeKernel;
using native_tests::pages;
using wire::Op;
using Ranges = std::vector<FileRange>;

constexpr uint64_t kId = 7;
constexpr uint64_t kPages = 8;

OwnerLink::Patience patient() {
  return {std::chrono::steady_clock::now() + std::chrono::hours(1), [] { return true; }};
}
OwnerLink::Patience impatient() {
  return {SteadyTime::min(), [] { return true; }};
}

struct Scene {
  explicit Scene(bool readonly = false, uint64_t capacity = kChunkSize) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    owner = os::Descriptor(pair[1]);
    memory = os::Descriptor(os::kernel().memfd_create("peer_file_test", 0));
    grow(kPages);
    link = std::move(*OwnerLink::create(pair[0]));
    file = std::move(*PeerFile::create(memory.fd(), {kId, capacity, readonly}, link));
  }
  void grow(uint64_t count) const {
    EXPECT_EQ(::ftruncate(memory.fd(), static_cast<off_t>(count * page_size())), 0);
  }
  // The owner's answer to request `number`.
  template <class... Fields>
  void answer(uint32_t number, const Fields&... fields) const {
    send(wire::pack(0, number, fields...));
  }
  template <class... Fields>
  void answer_next(const Fields&... fields) {
    answer(++asked, fields...);
  }
  void refuse_next(ErrorCode code) { send(wire::pack_error(++asked, Status::error(code, "no"))); }
  void send(const std::string& packet) const {
    EXPECT_EQ(::send(owner.fd(), packet.data(), packet.size(), 0),
              static_cast<ssize_t>(packet.size()));
  }
  // What the owner was told next, which may still be on its way: nothing once the link is gone.
  std::optional<wire::Packet> heard() {
    buffer.resize(1 << 16);
    const ssize_t size = ::recv(owner.fd(), buffer.data(), buffer.size(), 0);
    return size <= 0 ? std::nullopt
                     : wire::parse({buffer.data(), static_cast<size_t>(size)}, nullptr);
  }
  // The op of the next request, and its only range.
  void expect_request(Op op, FileRange range) {
    const auto packet = heard();
    wire::Pages its;
    EXPECT_EQ(packet->kind, static_cast<uint8_t>(op));
    EXPECT(wire::Reader(packet->payload).read_all(its));
    EXPECT_EQ(its.file, kId);
    EXPECT_EQ(its.range, range);
  }
  // What was given back since the owner heard something last. Nothing else may be under way.
  Ranges given_back() {
    Ranges ranges;
    EXPECT(link->flush(std::chrono::steady_clock::now() + std::chrono::hours(1)));
    buffer.resize(1 << 16);
    for (;;) {
      const ssize_t size = ::recv(owner.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (size <= 0) return ranges;
      const auto packet = wire::parse({buffer.data(), static_cast<size_t>(size)}, nullptr);
      const size_t count = packet->kind == static_cast<uint8_t>(Op::kRelease)
                               ? packet->payload.size() / sizeof(wire::Pages)
                               : packet->released / sizeof(wire::Pages);
      wire::Reader reader(packet->payload);
      wire::Pages its;
      for (size_t i = 0; i < count; ++i) {
        EXPECT(reader.read(its));
        EXPECT_EQ(its.file, kId);
        ranges.push_back(its.range);
      }
    }
  }
  void adopt(FileRange range) const { EXPECT(file->adopt(range).ok()); }
  // How many such requests came that were not heard yet.
  int count(Op op) {
    int found = 0;
    buffer.resize(1 << 16);
    for (;;) {
      const ssize_t size = ::recv(owner.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (size <= 0) return found;
      const auto packet = wire::parse({buffer.data(), static_cast<size_t>(size)}, nullptr);
      found += packet->kind == static_cast<uint8_t>(op);
    }
  }

  os::Descriptor owner;
  os::Descriptor memory;
  std::shared_ptr<OwnerLink> link;
  std::shared_ptr<PeerFile> file;
  uint32_t asked = 0;
  std::string buffer;
};

const FileRange kNoPages[] = {{0, 0}, {1, 1}, {4096, 0}, {1, 4096}, {0, 4095}};

TEST(an_impossible_capacity_is_refused) {
  const Scene scene;
  const auto create = [&](uint64_t capacity) {
    return PeerFile::create(scene.memory.fd(), {kId, capacity, false}, scene.link).status().code();
  };
  EXPECT_EQ(create(0), ErrorCode::kOption);
  EXPECT_EQ(create(kMaxOffset + 1), ErrorCode::kOption);
  EXPECT_EQ(create(UINT64_MAX), ErrorCode::kOption);
  // The kernel has no room for it, but it is possible.
  EXPECT(create(kMaxOffset) != ErrorCode::kOption);
  EXPECT_EQ(scene.file->identity().capacity, kChunkSize);
}

TEST(a_descriptor_that_cannot_be_duplicated_makes_no_file) {
  const Scene scene;
  const auto failed = PeerFile::create(-1, {kId, kChunkSize, false}, scene.link);
  EXPECT_EQ(failed.status().error_number(), EBADF);
}

TEST(one_lease_on_a_page_is_enough) {
  Scene scene;
  scene.adopt(pages(0, 4));
  EXPECT_EQ(scene.given_back(), Ranges{});
  scene.adopt(pages(2, 6));
  EXPECT_EQ(scene.given_back(), (Ranges{pages(2, 4)}));
  EXPECT_EQ(scene.file->leased_bytes(), 6 * page_size());
  EXPECT(scene.file->holds(pages(0, 6)));
  EXPECT(!scene.file->holds(pages(0, 7)));
  EXPECT(!scene.file->holds({0, 0}));
}

TEST(a_lease_that_cannot_be_kept_is_given_back) {
  Scene scene;
  for (const FileRange range : {FileRange{0, 1}, FileRange{1, page_size()}}) {
    EXPECT_EQ(scene.file->adopt(range).code(), ErrorCode::kRange);
    EXPECT_EQ(scene.given_back(), Ranges{range});
  }
  EXPECT(!scene.file->close());
  EXPECT_EQ(scene.file->adopt(pages(0, 1)).code(), ErrorCode::kClosed);
  EXPECT_EQ(scene.given_back(), Ranges{pages(0, 1)});
  EXPECT_EQ(scene.file->leased_bytes(), 0u);
}

// Each allocation fails once while an answer is taken; pages, and a lease that is one too many, go back.
TEST(pages_for_which_there_is_no_memory_are_given_back) {
  bool failed = true;
  for (int64_t left = 0; failed; ++left) {
    EXPECT(left < 100);
    Scene scene;
    EXPECT(scene.file->adopt(pages(1, 2)).ok());
    (void)scene.given_back();
    scene.answer_next(wire::Pages{kId, pages(0, 3)});
    bool adopted = false;
    const auto take = [&](OwnerLink::Reply&) {
      native_tests::allocations_left = left;
      adopted = scene.file->adopt(pages(0, 3)).ok();
      native_tests::allocations_left = -1;
    };
    const auto question = scene.link->ask(Op::kAllocate, {}, {take, {}});
    const Status status = scene.link->await(question, patient());
    failed = !status.ok();
    EXPECT_EQ(adopted, !failed);
    if (failed) EXPECT_EQ(status.code(), ErrorCode::kNoMemory);
    EXPECT_EQ(scene.given_back(), (Ranges{failed ? pages(0, 3) : pages(1, 2)}));
    EXPECT_EQ(scene.file->holds(pages(0, 1)), !failed);
    EXPECT(scene.file->holds(pages(1, 2)));
  }
}

TEST(pages_are_given_back_with_their_last_handle) {
  Scene scene;
  scene.adopt(pages(0, 4));
  EXPECT(scene.file->inc_ref(pages(1, 3), 0).ok());
  EXPECT(!*scene.file->has_unique_ref(pages(0, 4)));
  EXPECT(*scene.file->has_unique_ref(pages(0, 1)));
  EXPECT(scene.file->dec_ref(pages(0, 4)).ok());
  EXPECT_EQ(scene.given_back(), (Ranges{pages(0, 1), pages(3, 4)}));
  EXPECT(*scene.file->has_unique_ref(pages(1, 3)));
  EXPECT(scene.file->dec_ref(pages(1, 3)).ok());
  EXPECT_EQ(scene.given_back(), Ranges{pages(1, 3)});
}

TEST(handles_are_on_pages_that_this_process_has) {
  Scene scene;
  scene.adopt(pages(0, 2));
  for (const FileRange range : {pages(1, 3), pages(2, 3)}) {
    EXPECT_EQ(scene.file->inc_ref(range, 0).code(), ErrorCode::kRange);
    EXPECT_EQ(scene.file->dec_ref(range).code(), ErrorCode::kRange);
    EXPECT_EQ(scene.file->has_unique_ref(range).status().code(), ErrorCode::kRange);
    EXPECT_EQ(scene.file->decommit(range, patient()).code(), ErrorCode::kRange);
    EXPECT_EQ(scene.file->unpin(range, patient()).status().code(), ErrorCode::kRange);
  }
  for (const FileRange range : kNoPages) {
    EXPECT_EQ(scene.file->inc_ref(range, 0).code(), ErrorCode::kRange);
    EXPECT_EQ(scene.file->dec_ref(range).code(), ErrorCode::kRange);
    EXPECT_EQ(scene.file->has_unique_ref(range).status().code(), ErrorCode::kRange);
  }
  EXPECT_EQ(scene.given_back(), Ranges{});
  EXPECT_EQ(scene.file->leased_bytes(), 2 * page_size());
}

TEST(what_is_inside_the_file_can_be_mapped) {
  const uint64_t capacity = 2 * kPages * page_size();
  Scene scene(false, capacity);
  EXPECT_EQ(scene.file->size(), kPages * page_size());
  EXPECT(*scene.file->find_mapped(pages(0, 1)) == nullptr);
  EXPECT_EQ(scene.file->map({0, 0}).status().code(), ErrorCode::kRange);
  EXPECT_EQ(scene.file->map(pages(0, kPages + 1)).status().code(), ErrorCode::kRange);
  char* const first = *scene.file->map(pages(0, kPages));
  EXPECT_EQ(*scene.file->find_mapped(pages(1, 2)), first + page_size());
  EXPECT_EQ(::pwrite(scene.memory.fd(), "x", 1, static_cast<off_t>(page_size())), 1);
  EXPECT_EQ(first[page_size()], 'x');
  scene.grow(3 * kPages);  // by more than this process was told
  EXPECT_EQ(*scene.file->map(pages(0, 2 * kPages)), first);
  EXPECT_EQ(scene.file->map(pages(0, 2 * kPages + 1)).status().code(), ErrorCode::kRange);
  EXPECT_EQ(scene.file->size(), 3 * kPages * page_size());
  scene.link->break_off();
  EXPECT(scene.file->map(pages(0, 1)).ok());  // they are there as long as they are mapped
  (void)scene.file->close();
  EXPECT_EQ(scene.file->map(pages(0, 1)).status().code(), ErrorCode::kClosed);
  EXPECT_EQ(scene.file->find_mapped(pages(0, 1)).status().code(), ErrorCode::kClosed);
}

int fstat_refused(int, struct stat*) { return errno = EIO, -1; }

TEST(a_size_that_is_not_told_is_an_error) {
  const Scene scene;
  FakeKernel kernel;
  kernel.calls.fstat = fstat_refused;
  kernel.begin();
  EXPECT_EQ(scene.file->map(pages(0, 1)).status().error_number(), EIO);
  EXPECT_EQ(scene.file->size(), 0u);
  os::use(os::kernel());
  EXPECT(scene.file->map(pages(0, kPages)).ok());
  kernel.begin();
  EXPECT(scene.file->map(pages(0, kPages)).ok());  // it was told before
}

TEST(pages_are_written_committed_and_populated) {
  const Scene scene;
  EXPECT(scene.file->write(page_size() - 1, "ab", 2).ok());
  char bytes[2] = {};
  EXPECT_EQ(::pread(scene.memory.fd(), bytes, 2, static_cast<off_t>(page_size()) - 1), 2);
  EXPECT_EQ(std::string(bytes, 2), "ab");
  const auto stored = [&] {
    struct stat status{};
    EXPECT_EQ(::fstat(scene.memory.fd(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks) * 512 / page_size();
  };
  EXPECT_EQ(stored(), 2u);
  EXPECT(scene.file->commit(pages(2, 5)).ok());
  EXPECT_EQ(stored(), 5u);
  EXPECT(scene.file->populate(pages(6, 8)).ok());
  EXPECT_EQ(stored(), 7u);
  EXPECT_EQ(scene.file->populate(pages(6, 9)).code(), ErrorCode::kRange);
  EXPECT_EQ(scene.file->commit({0, 0}).error_number(), EINVAL);
  (void)scene.file->close();
  EXPECT_EQ(scene.file->write(0, "a", 1).code(), ErrorCode::kClosed);
}

TEST(new_pages_are_those_of_the_answer) {
  Scene scene;
  AllocateRequest request;
  request.length = 2 * page_size();
  request.kind = MemoryKind::kTmpfs;
  request.direction = Direction::kTopDown;
  request.memcg_id = 9;
  request.huge = HugeWish::kAsked;
  scene.answer_next(wire::Pages{kId, pages(3, 5)}, uint8_t{0});
  EXPECT_EQ(*scene.file->allocate(request, patient()), pages(3, 5));
  EXPECT(scene.file->holds(pages(3, 5)));
  const auto packet = scene.heard();
  EXPECT_EQ(packet->kind, static_cast<uint8_t>(Op::kAllocate));
  uint64_t id = 0;
  uint64_t length = 0;
  uint8_t kind = 0;
  uint8_t direction = 0;
  uint32_t group = 0;
  uint8_t huge = 0;
  EXPECT(wire::Reader(packet->payload).read_all(id, length, kind, direction, group, huge));
  EXPECT_EQ(id, kId);
  EXPECT_EQ(length, request.length);
  EXPECT_EQ(kind, static_cast<uint8_t>(MemoryKind::kTmpfs));
  EXPECT_EQ(direction, static_cast<uint8_t>(Direction::kTopDown));
  EXPECT_EQ(group, 9u);
  EXPECT_EQ(huge, 2);

  const FileRange last{kChunkSize - 2 * page_size(), kChunkSize};
  scene.answer_next(wire::Pages{kId, last}, uint8_t{0});
  EXPECT_EQ(*scene.file->allocate(request, patient()), last);
  scene.refuse_next(ErrorCode::kOutOfMemory);
  EXPECT_EQ(scene.file->allocate(request, patient()).status().code(), ErrorCode::kOutOfMemory);
}

TEST(answers_that_name_no_pages_of_the_file_are_not_believed) {
  Scene scene;
  AllocateRequest request;
  request.length = 2 * page_size();
  const uint64_t size = page_size();
  const wire::Pages wrong[] = {
      {kId + 1, pages(3, 5)},      {kId, pages(3, 4)},
      {kId, pages(3, 6)},          {kId, {1, 1 + 2 * size}},
      {kId, {5 * size, 3 * size}}, {kId, {kChunkSize - size, kChunkSize + size}}};
  for (const wire::Pages& answer : wrong) {
    scene.answer_next(answer);
    EXPECT_EQ(scene.file->allocate(request, patient()).status().code(), ErrorCode::kOwnerGone);
  }
  scene.answer_next(kId);
  EXPECT_EQ(scene.file->allocate(request, patient()).status().code(), ErrorCode::kOwnerGone);
  request.huge = HugeWish::kAsked;  // whether that came true is missing
  scene.answer_next(wire::Pages{kId, pages(3, 5)});
  EXPECT_EQ(scene.file->allocate(request, patient()).status().code(), ErrorCode::kOwnerGone);
  EXPECT_EQ(scene.file->leased_bytes(), 0u);
}

TEST(pages_that_come_too_late_are_given_back) {
  Scene scene;
  AllocateRequest request;
  request.length = page_size();
  EXPECT_EQ(scene.file->allocate(request, impatient()).status().code(), ErrorCode::kTimedOut);
  EXPECT_EQ(scene.heard()->kind, static_cast<uint8_t>(Op::kAllocate));
  scene.answer_next(wire::Pages{kId, pages(0, 1)});
  scene.expect_request(Op::kRelease, pages(0, 1));
  EXPECT_EQ(scene.file->leased_bytes(), 0u);
}

TEST(the_owner_is_asked_whether_pages_are_unique_unless_it_is_known_here) {
  Scene scene;
  scene.adopt(pages(0, 2));
  for (const uint8_t answer : {0, 1, 2}) {
    scene.answer_next(answer);
    EXPECT_EQ(*scene.file->has_unique_ref(pages(0, 2), patient()), answer == 1);
    scene.expect_request(Op::kUnique, pages(0, 2));
  }
  scene.answer_next();
  EXPECT_EQ(scene.file->has_unique_ref(pages(0, 2), patient()).status().code(),
            ErrorCode::kOwnerGone);
  scene.answer_next(uint16_t{1});
  EXPECT_EQ(scene.file->has_unique_ref(pages(0, 2), patient()).status().code(),
            ErrorCode::kOwnerGone);
  scene.refuse_next(ErrorCode::kRefCount);
  EXPECT_EQ(scene.file->has_unique_ref(pages(0, 2), patient()).status().code(),
            ErrorCode::kRefCount);
  EXPECT(scene.file->inc_ref(pages(1, 2), 0).ok());
  EXPECT(!*scene.file->has_unique_ref(pages(0, 2), patient()));
  EXPECT_EQ(scene.file->has_unique_ref(pages(0, 3), patient()).status().code(), ErrorCode::kRange);
}

TEST(usage_is_of_its_size) {
  Scene scene;
  KindBytes bytes{1, 2, 3, 4, 5, 6};
  const std::string_view whole(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  scene.answer_next(whole);
  EXPECT_EQ(*scene.file->usage(5, patient()), bytes);
  uint64_t id = 0;
  uint32_t group = 0;
  EXPECT(wire::Reader(scene.heard()->payload).read_all(id, group));
  EXPECT_EQ(id, kId);
  EXPECT_EQ(group, 5u);
  for (const std::string& wrong : {std::string(whole) + "x", std::string(whole.substr(1))}) {
    scene.answer_next(std::string_view(wrong));
    EXPECT_EQ(scene.file->usage(0, patient()).status().code(), ErrorCode::kOwnerGone);
    (void)scene.heard();
  }
}

TEST(pages_with_one_handle_here_are_unpinned) {
  Scene scene;
  scene.adopt(pages(0, 4));
  scene.answer_next(uint8_t{1});
  EXPECT(*scene.file->unpin(pages(0, 2), patient()));
  scene.expect_request(Op::kUnpin, pages(0, 2));
  EXPECT(scene.file->inc_ref(pages(3, 4), 0).ok());
  EXPECT(!*scene.file->unpin(pages(2, 4), patient()));  // and the owner is not asked
  for (const uint8_t intact : {1, 0}) {
    scene.answer_next(intact);
    EXPECT_EQ(*scene.file->pin(pages(0, 2), patient()), intact == 1);
    scene.expect_request(Op::kPin, pages(0, 2));
  }
  scene.refuse_next(ErrorCode::kRefCount);
  EXPECT_EQ(scene.file->pin(pages(0, 2), patient()).status().code(), ErrorCode::kRefCount);
}

// The guard of this process has to know that there is something to discard.
TEST(an_unpin_whose_answer_comes_late_is_heard_of) {
  Scene scene;
  scene.adopt(pages(0, 2));
  EXPECT_EQ(scene.file->unpin(pages(0, 2), impatient()).status().code(), ErrorCode::kTimedOut);
  EXPECT(!scene.link->may_have_room());
  scene.answer_next(uint8_t{1});
  while (!scene.link->may_have_room()) std::this_thread::yield();
}

// Handles that come are preceded by a pin of what they touch; what was lost by then is remembered.
TEST(what_another_handle_touches_is_pinned_for_it) {
  Scene scene;
  scene.adopt(pages(0, 8));
  for (const uint64_t page : {1, 3, 5}) {
    scene.answer_next(uint8_t{1});
    EXPECT(*scene.file->unpin(pages(page, page + 2), patient()));
    scene.expect_request(Op::kUnpin, pages(page, page + 2));
  }
  EXPECT(scene.file->pin_others(pages(0, 1), patient()).ok());  // touches none
  EXPECT(scene.file->pin_others(pages(7, 8), patient()).ok());
  scene.answer_next(uint8_t{1});
  scene.answer_next(uint8_t{0});
  EXPECT(scene.file->pin_others(pages(4, 6), patient()).ok());
  scene.expect_request(Op::kPin, pages(3, 5));
  scene.expect_request(Op::kPin, pages(5, 7));
  EXPECT(scene.file->pin_others(pages(3, 8), patient()).ok());  // once
  for (const auto& [page, intact] : {std::pair<uint64_t, bool>{3, true}, {5, false}, {5, true}}) {
    scene.answer_next(uint8_t{1});
    EXPECT_EQ(*scene.file->pin(pages(page, page + 2), patient()), intact);
  }
  scene.refuse_next(ErrorCode::kOutOfMemory);
  EXPECT_EQ(scene.file->pin_others(pages(2, 3), patient()).code(), ErrorCode::kOutOfMemory);
}

TEST(what_was_lost_is_forgotten_with_its_handle_or_when_it_is_unpinned_again) {
  for (const bool ends : {true, false}) {
    Scene scene;
    scene.adopt(pages(0, 2));
    const auto lose = [&] {
      scene.answer_next(uint8_t{1});
      EXPECT(*scene.file->unpin(pages(0, 2), patient()));
      scene.answer_next(uint8_t{0});
      EXPECT(scene.file->pin_others(pages(0, 1), patient()).ok());
    };
    lose();
    if (ends) {
      EXPECT(scene.file->dec_ref(pages(0, 2)).ok());
      scene.adopt(pages(0, 2));
    } else {
      scene.answer_next(uint8_t{1});
      EXPECT(*scene.file->unpin(pages(0, 2), patient()));
    }
    scene.answer_next(uint8_t{1});
    EXPECT(*scene.file->pin(pages(0, 2), patient()));
  }
}

TEST(an_owner_is_asked_for_room_until_it_has_none) {
  OwnerLink::no_room_pause = std::chrono::hours(1);
  Scene scene;
  scene.answer_next(uint64_t{3});
  scene.answer_next(uint64_t{0});
  EXPECT_EQ(scene.link->ask_for_room(10, 0), 3u);
  EXPECT_EQ(scene.link->ask_for_room(10, 0), 0u);
  EXPECT(!scene.link->may_have_room());
  EXPECT_EQ(scene.link->ask_for_room(10, 0),
            0u);  // at once: it has not got the time to have some again
  EXPECT_EQ(scene.count(Op::kMakeRoom), 2);
  // What is unpinned it can discard.
  scene.adopt(pages(0, 1));
  scene.answer_next(uint8_t{1});
  EXPECT(*scene.file->unpin(pages(0, 1), patient()));
  EXPECT(scene.link->may_have_room());
  scene.answer_next(page_size());
  EXPECT_EQ(scene.link->ask_for_room(page_size(), 0), page_size());
}

TEST(this_process_itself_is_not_asked_for_room) {
  Scene scene;
  EXPECT(scene.link->is_to_this_process());
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  EXPECT(SharedDiscards().discard(1, end).exhausted);
  EXPECT_EQ(scene.count(Op::kMakeRoom), 0);
}

TEST(an_owner_without_room_to_give_is_not_waited_for_again) {
  for (const bool refuses : {true, false}) {
    OwnerLink::no_answer_pause = std::chrono::hours(1);
    Scene scene;
    if (refuses) scene.refuse_next(ErrorCode::kPermission);
    EXPECT_EQ(scene.link->ask_for_room(1, 0), 0u);  // or it says nothing
    scene.answer(2, uint64_t{1});
    EXPECT_EQ(scene.link->ask_for_room(1, 0), 0u);
    EXPECT_EQ(scene.count(Op::kMakeRoom), 1);
  }
}

TEST(an_unpin_that_was_refused_leaves_pages_pinned) {
  for (const bool refused : {true, false}) {
    Scene scene;
    scene.adopt(pages(0, 2));
    if (refused) {
      scene.refuse_next(ErrorCode::kSharing);
      EXPECT_EQ(scene.file->unpin(pages(0, 2), patient()).status().code(), ErrorCode::kSharing);
      EXPECT(scene.file->pin_others(pages(0, 2), patient()).ok());  // nothing to ask
    } else {
      EXPECT_EQ(scene.file->unpin(pages(0, 2), impatient()).status().code(), ErrorCode::kTimedOut);
      ++scene.asked;
      scene.expect_request(Op::kUnpin, pages(0, 2));
      // It may have been unpinned.
      std::thread asks([&] {
        EXPECT_EQ(scene.file->pin_others(pages(0, 2), patient()).code(), ErrorCode::kSharing);
      });
      scene.expect_request(Op::kPin, pages(0, 2));
      scene.refuse_next(ErrorCode::kSharing);
      asks.join();
    }
  }
}

TEST(a_lease_on_unpinned_pages_has_them_pinned) {
  Scene scene;
  scene.adopt(pages(0, 4));
  scene.answer_next(uint8_t{1});
  EXPECT(*scene.file->unpin(pages(1, 3), patient()));
  scene.expect_request(Op::kUnpin, pages(1, 3));
  scene.adopt(pages(2, 5));
  scene.expect_request(Op::kPin, pages(1, 3));
  scene.expect_request(Op::kRelease, pages(2, 4));
  scene.answer_next(uint8_t{0});
  std::thread asks([&] {
    EXPECT(!*scene.file->pin(pages(1, 3), patient()));  // they were lost before
  });
  scene.expect_request(Op::kPin, pages(1, 3));
  scene.answer_next(uint8_t{1});
  asks.join();
}

TEST(what_is_viewed_is_kept_when_the_file_is_closed) {
  Scene scene;
  scene.adopt(pages(0, 8));
  scene.file->begin_view(pages(1, 3));
  scene.file->begin_view(pages(2, 4));
  scene.file->begin_view(pages(6, 8));
  EXPECT(scene.file->close());
  EXPECT(scene.file->closed());
  EXPECT_EQ(scene.given_back(), (Ranges{pages(0, 1), pages(4, 6)}));
  EXPECT(scene.file->close());  // still
  EXPECT_EQ(scene.given_back(), Ranges{});
  scene.file->end_view(pages(1, 3));
  EXPECT_EQ(scene.given_back(), Ranges{pages(1, 2)});
  scene.file->end_view(pages(2, 4));
  EXPECT_EQ(scene.given_back(), Ranges{pages(2, 4)});
  EXPECT(scene.file->close());
  scene.file->end_view(pages(6, 8));
  EXPECT_EQ(scene.given_back(), Ranges{pages(6, 8)});
  EXPECT(!scene.file->close());
}

TEST(a_view_that_ends_before_gives_nothing_back) {
  Scene scene;
  scene.adopt(pages(0, 2));
  scene.file->begin_view(pages(0, 2));
  scene.file->end_view(pages(0, 2));
  EXPECT_EQ(scene.given_back(), Ranges{});
  EXPECT(!scene.file->close());
  EXPECT_EQ(scene.given_back(), Ranges{pages(0, 2)});
}

TEST(a_file_that_goes_gives_all_back_and_its_descriptor) {
  Scene scene;
  const size_t before = native_tests::descriptor_count();
  auto other =
      std::move(*PeerFile::create(scene.memory.fd(), {kId, kChunkSize, false}, scene.link));
  EXPECT_EQ(native_tests::descriptor_count(), before + 1);
  EXPECT(other->fd() != scene.memory.fd());
  EXPECT(other->adopt(pages(4, 6)).ok());
  other = nullptr;
  EXPECT_EQ(scene.given_back(), Ranges{pages(4, 6)});
  EXPECT_EQ(native_tests::descriptor_count(), before);
}

TEST(a_closed_or_orphaned_file_asks_for_nothing) {
  for (const bool closes : {true, false}) {
    Scene scene;
    scene.adopt(pages(0, 2));
    if (closes) {
      (void)scene.file->close();
    } else {
      scene.link->break_off();
    }
    const auto wanted = closes ? ErrorCode::kClosed : ErrorCode::kOwnerGone;
    const FileRange range = pages(0, 2);
    EXPECT_EQ(scene.file->check_usable().code(), wanted);
    EXPECT_EQ(scene.file->allocate({}, patient()).status().code(), wanted);
    EXPECT_EQ(scene.file->decommit(range, patient()).code(), wanted);
    EXPECT_EQ(scene.file->has_unique_ref(range, patient()).status().code(), wanted);
    EXPECT_EQ(scene.file->usage(0, patient()).status().code(), wanted);
    EXPECT_EQ(scene.file->unpin(range, patient()).status().code(), wanted);
    EXPECT_EQ(scene.file->pin(range, patient()).status().code(), wanted);
    // What is held can be held once more without the owner.
    if (!closes) EXPECT(scene.file->inc_ref(range, 0).ok());
    if (!closes) EXPECT(scene.file->dec_ref(range).ok());
    if (closes) EXPECT_EQ(scene.file->inc_ref(range, 0).code(), wanted);
    if (closes) EXPECT_EQ(scene.file->dec_ref(range).code(), wanted);
    if (!closes) EXPECT(scene.file->dec_ref(range).ok());
  }
}

TEST(a_decommit_is_the_owners_work) {
  Scene scene;
  scene.adopt(pages(0, 4));
  scene.answer_next();
  EXPECT(scene.file->decommit(pages(1, 3), patient()).ok());
  scene.expect_request(Op::kDecommit, pages(1, 3));
  scene.refuse_next(ErrorCode::kPermission);
  EXPECT_EQ(scene.file->decommit(pages(1, 3), patient()).code(), ErrorCode::kPermission);
}

TEST(what_a_parent_held_its_child_holds_with_as_many_handles) {
  Scene scene;
  auto chunks = std::move(*ChunkMap::reserve(kChunkSize));
  const auto file =
      std::move(*PeerFile::inherit(chunks, scene.memory.fd(), {kId, kChunkSize, false}, scene.link,
                                   {{pages(0, 2), 2}, {pages(4, 5), 1}}));
  EXPECT_EQ(file->leased_bytes(), 3 * page_size());
  EXPECT(file->dec_ref(pages(0, 2)).ok());
  EXPECT_EQ(scene.given_back(), Ranges{});
  EXPECT(file->dec_ref(pages(0, 2)).ok());
  EXPECT(file->dec_ref(pages(4, 5)).ok());
  EXPECT_EQ(scene.given_back(), (Ranges{pages(0, 2), pages(4, 5)}));
}

TEST(a_page_has_so_many_handles_at_most) {
  Scene scene;
  auto chunks = std::move(*ChunkMap::reserve(kChunkSize));
  const auto file =
      std::move(*PeerFile::inherit(chunks, scene.memory.fd(), {kId, kChunkSize, false}, scene.link,
                                   {{pages(0, 1), UINT32_MAX - 2}, {pages(1, 2), 1}}));
  EXPECT(file->inc_ref(pages(0, 2), 0).ok());
  EXPECT(file->adopt(pages(0, 2)).ok());
  EXPECT_EQ(scene.given_back(), Ranges({pages(0, 1), pages(1, 2)}));  // one lease is enough
  EXPECT_EQ(file->inc_ref(pages(0, 2), 0).code(), ErrorCode::kRefCount);
  EXPECT_EQ(file->adopt(pages(0, 2)).code(), ErrorCode::kRefCount);
  EXPECT_EQ(scene.given_back(), Ranges{pages(0, 2)});
  EXPECT(file->dec_ref(pages(1, 2)).ok());
  EXPECT(!file->close());
  EXPECT_EQ(scene.given_back(), Ranges({pages(0, 1), pages(1, 2)}));
}

TEST(a_peers_child_holds_what_it_had_but_what_was_unpinned) {
  Scene scene;
  scene.adopt(pages(0, 6));
  scene.answer_next(uint8_t{1});
  EXPECT(*scene.file->unpin(pages(2, 4), patient()));
  (void)scene.heard();
  scene.file->begin_view(pages(0, 1));
  scene.file->lock_for_fork();
  scene.file->lock_for_fork();
  scene.file->unlock_after_fork();
  scene.file->unlock_after_fork();
  const auto child = std::move(*PeerFile::inherit(*scene.file, scene.link));
  EXPECT(child->holds(pages(0, 2)));
  EXPECT(child->holds(pages(4, 6)));
  EXPECT(!child->holds(pages(2, 3)));
  EXPECT_EQ(child->identity().id, kId);
  EXPECT(child->chunks() == scene.file->chunks());
  EXPECT_EQ(scene.file->leased_bytes(), 0u);
  EXPECT(child->close());  // with its parent's view
  EXPECT_EQ(scene.given_back(), (Ranges{pages(1, 2), pages(4, 6)}));
  child->end_view(pages(0, 1));
  EXPECT_EQ(scene.given_back(), Ranges{pages(0, 1)});
}

TEST(what_is_read_only_is_mapped_so) {
  const Scene scene(true);
  EXPECT(scene.file->readonly());
  char* const address = *scene.file->map(pages(0, 1));
  // A system call that would write there is told so.
  EXPECT_EQ(::pread(scene.memory.fd(), address, 1, 0), -1);
  EXPECT_EQ(errno, EFAULT);
  const Scene other;
  EXPECT(!other.file->readonly());
  EXPECT_EQ(::pread(other.memory.fd(), *other.file->map(pages(0, 1)), 1, 0), 1);
}

TEST(l8_pages_that_were_handed_over_are_held_although_their_owner_has_ended_since) {
  Scene scene;
  scene.link->break_off();
  const FileRange range = pages(0, 1);
  EXPECT(scene.file->adopt(range).ok());
  EXPECT(scene.file->holds(range));
  EXPECT(scene.file->map(range).ok());
  EXPECT(scene.file->inc_ref(range, 0).ok());
  EXPECT(scene.file->dec_ref(range).ok());
  EXPECT(scene.file->dec_ref(range).ok());
  EXPECT(!scene.file->close());
  EXPECT_EQ(scene.file->adopt(range).code(), ErrorCode::kClosed);
}

constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD, which older headers lack
pid_t other_end = 0;
int getsockopt_of_other_end(int fd, int name, void* value, socklen_t* size) {
  if (name == kPeerPidfd) return errno = ENOPROTOOPT, -1;
  const int result = os::kernel().getsockopt(fd, name, value, size);
  if (name == SO_PEERCRED) static_cast<ucred*>(value)->pid = other_end;
  return result;
}

TEST(
    l3_a_file_that_comes_after_the_end_of_its_connection_may_be_anothers_unless_its_owner_has_ended) {
  for (const bool closed_here : {false, true}) {
    for (const bool lives : {true, false}) {
      other_end = lives ? ::getpid() : ::fork();
      if (other_end == 0) ::_exit(0);
      FakeKernel kernel;
      kernel.calls.getsockopt = getsockopt_of_other_end;
      kernel.calls.poll = native_tests::poll_without_waiting;
      kernel.begin();
      int pair[2];
      EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
      const os::Descriptor memory(os::kernel().memfd_create("peer_file_test", 0));
      EXPECT_EQ(::ftruncate(memory.fd(), static_cast<off_t>(page_size())), 0);
      const auto link = std::move(*OwnerLink::create(pair[0]));
      // An answer lies there that was sent before.
      const std::string late = wire::pack(0, 1);
      EXPECT_EQ(::send(pair[1], late.data(), late.size(), 0), static_cast<ssize_t>(late.size()));
      ::close(closed_here ? pair[0] : pair[1]);
      // A zombie has ended, too.
      const auto file = PeerFile::create(memory.fd(), {kId, kChunkSize, false}, link);
      EXPECT_EQ(file.ok(), !lives);
      if (lives) EXPECT(file.status().code() == ErrorCode::kOwnerGone);
      if (!lives) ::waitpid(other_end, nullptr, 0);
      if (closed_here) ::close(pair[1]);
    }
  }
}

}  // namespace
}  // namespace pgalloc::peer_file_test
