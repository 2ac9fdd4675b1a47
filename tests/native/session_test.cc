// What a peer may ask for, operation by operation, with its limits from both sides.

#include "sharing/session.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "file/file_registry.h"
#include "native/fake_level.h"
#include "native/memory.h"
#include "native/payers.h"
#include "native/sharing.h"

namespace pgalloc::session_test {
namespace {

using native_tests::FakeKernel;
using native_tests::make_file;
using native_tests::take_pages;
using wire::Op;

template <class... Fields>
Request request_for(Op op, const Fields&... fields) {
  Request request;
  request.op = op;
  if constexpr (sizeof...(fields) > 0) wire::append(request.payload, fields...);
  return request;
}

struct Scene {
  explicit Scene(Scope its_scope = {}) : scope(std::move(its_scope)) {
    scope.file = file;
    session.emplace(1, offers, scope, ::getpid(), ::getuid());
  }
  // The peer holds nothing that is not in its session, and nothing is left in use.
  ~Scene() {
    session.reset();
    native_tests::drop_all(offers);
    if (file->closed()) return;
    for (const PageSegment& segment : file->segments()) EXPECT_EQ(segment.use.refs, 0u);
  }
  // The answer to a request that needs no second step.
  template <class... Fields>
  Answer ask(Op op, const Fields&... fields) {
    Request request = request_for(op, fields...);
    auto answer = session->step(request);
    EXPECT_EQ(session->verify(), std::nullopt);
    if (!EXPECT(answer.has_value())) return {};
    return std::move(*answer);
  }
  // Which error it is; nothing if it is none.
  template <class... Fields>
  std::optional<ErrorCode> error(Op op, const Fields&... fields) {
    const Answer answer = ask(op, fields...);
    EXPECT(!answer.malformed);
    return answer.status.ok() ? std::nullopt : std::optional(answer.status.code());
  }
  // What its answer says, as one field.
  template <class Field = uint8_t, class... Fields>
  std::optional<Field> yes_or_no(Op op, const Fields&... fields) {
    const Answer answer = ask(op, fields...);
    Field field{};
    if (!answer.status.ok() || !wire::Reader(answer.payload).read_all(field)) return std::nullopt;
    return field;
  }
  wire::Pages allocate(uint64_t pages) {
    const Answer answer = ask(Op::kAllocate, file->id(), pages * page_size(), uint8_t{1},
                              uint8_t{0}, uint32_t{0}, uint8_t{0});
    wire::Pages got;
    EXPECT(answer.status.ok());
    EXPECT(wire::Reader(answer.payload).read_all(got));
    return got;
  }
  wire::Secret offer(const wire::Pages& pages) {
    wire::Secret secret{};
    EXPECT(wire::Reader(ask(Op::kOffer, pages).payload).read_all(secret));
    return secret;
  }
  // Its references.
  uint32_t refs(uint64_t offset) const {
    for (const PageSegment& segment : file->segments()) {
      if (segment.range.contains(offset)) return segment.use.refs;
    }
    return 0;
  }

  std::shared_ptr<MemoryFile> file = make_file();
  Scope scope;
  Offers offers;
  std::optional<Session> session;
};

wire::Pages part(const wire::Pages& pages, uint64_t first, uint64_t end) {
  return {pages.file,
          {pages.range.start + first * page_size(), pages.range.start + end * page_size()}};
}
uint64_t pages_of(uint64_t bytes) { return bytes / page_size(); }

int refused = 0;
int open_refused(const char*, int, mode_t) { return errno = refused, -1; }

TEST(payloads_of_the_wrong_size_are_malformed) {
  Scene scene;
  const wire::Pages pages = scene.allocate(1);
  for (const auto op : {Op::kOpen, Op::kOffer, Op::kAllocate, Op::kDecommit, Op::kUnique,
                        Op::kUnpin, Op::kPin, Op::kUsage, Op::kRelease, Op::kMakeRoom}) {
    std::string payload;
    if (op == Op::kOpen) {
      wire::append(payload, pages.file);
    } else if (op == Op::kMakeRoom) {
      wire::append(payload, uint64_t{1}, uint64_t{1});
    } else if (op == Op::kAllocate) {
      wire::append(payload, pages.file, page_size(), uint8_t{1}, uint8_t{0}, uint32_t{0},
                   uint8_t{0});
    } else if (op == Op::kUsage) {
      wire::append(payload, pages.file, uint32_t{0});
    } else {
      wire::append(payload, pages);
    }
    native_tests::context = "operation " + std::to_string(static_cast<int>(op));
    for (const std::string& wrong : {payload + "x", payload.substr(1)}) {
      EXPECT(scene.ask(op, std::string_view(wrong)).malformed);
    }
    EXPECT(!scene.ask(op, std::string_view(payload)).malformed);
  }
  for (const auto op :
       {Op::kHello, Op::kPart, Op::kFork, static_cast<Op>(0), static_cast<Op>(200)}) {
    EXPECT(scene.ask(op).malformed);
  }
}

TEST(ranges_that_are_no_pages_are_refused) {
  Scene scene;
  const wire::Pages good = scene.allocate(4);
  const uint64_t start = good.range.start;
  const uint64_t end = good.range.end;
  const FileRange bad[] = {{start, start},     {end, start},           {start + 1, end},
                           {start, end - 1},   {start + 1, start + 1}, {start, uint64_t{1} << 63},
                           {start, UINT64_MAX}};
  for (const auto op :
       {Op::kOffer, Op::kDecommit, Op::kUnique, Op::kUnpin, Op::kPin, Op::kRelease}) {
    for (const FileRange range : bad) {
      EXPECT_EQ(scene.error(op, wire::Pages{good.file, range}), ErrorCode::kRange);
    }
    // A whole number of pages that the file does not have.
    const FileRange beyond{start, align_down(kMaxOffset, page_size())};
    EXPECT_EQ(scene.error(op, wire::Pages{good.file, beyond}), ErrorCode::kRefCount);
  }
  EXPECT_EQ(scene.session->bytes_of(good.file), good.range.length());
}

TEST(pages_of_which_one_is_not_held_are_refused) {
  Scene scene;
  const wire::Pages all = scene.allocate(4);
  EXPECT_EQ(scene.error(Op::kRelease, part(all, 2, 3)), std::nullopt);
  for (const auto op :
       {Op::kOffer, Op::kDecommit, Op::kUnique, Op::kUnpin, Op::kPin, Op::kRelease}) {
    EXPECT_EQ(scene.error(op, part(all, 1, 3)), ErrorCode::kRefCount);
    EXPECT_EQ(scene.error(op, part(all, 2, 4)), ErrorCode::kRefCount);
    EXPECT_EQ(scene.error(op, part(all, 2, 3)), ErrorCode::kRefCount);
  }
  EXPECT(scene.offers.empty());
  EXPECT_EQ(scene.session->bytes_of(all.file), 3 * page_size());
}

TEST(a_file_is_opened_by_those_who_were_let_in) {
  Scene scene;
  const Answer answer = scene.ask(Op::kOpen, scene.file->id());
  uint64_t name = 0;
  uint64_t capacity = 0;
  uint8_t readonly = 9;
  wire::Reader reader(answer.payload);
  EXPECT(reader.read_all(name, capacity, readonly));
  EXPECT_EQ(name, scene.file->id());
  EXPECT_EQ(capacity, scene.file->capacity());
  EXPECT_EQ(readonly, 0);
  EXPECT_EQ(::fcntl(answer.descriptor.fd(), F_GETFL) & O_ACCMODE, O_RDWR);
  EXPECT(::fcntl(answer.descriptor.fd(), F_GETFD) & FD_CLOEXEC);
  EXPECT(scene.session->holds_nothing());

  const auto other = make_file();
  EXPECT_EQ(scene.error(Op::kOpen, other->id()), ErrorCode::kSharing);
  EXPECT_EQ(scene.error(Op::kOpen, UINT64_MAX), ErrorCode::kSharing);
  scene.session->be_born_connected();
  EXPECT(scene.session->born_connected());
  EXPECT_EQ(scene.error(Op::kOpen, other->id()), std::nullopt);
  EXPECT_EQ(scene.error(Op::kOpen, UINT64_MAX), ErrorCode::kClosed);
  EXPECT(other->close().ok());
  EXPECT_EQ(scene.error(Op::kOpen, other->id()), ErrorCode::kClosed);
}

TEST(a_label_is_told_up_to_1000_bytes) {
  for (const size_t size : {999u, 1000u, 1001u}) {
    MemoryFileOptions options;
    options.capacity = kChunkSize;
    options.label = std::string(size, 'l');
    Scene scene;
    scene.session.reset();
    scene.file = std::move(*MemoryFile::create(std::monostate{}, options));
    scene.scope.file = scene.file;
    scene.session.emplace(1, scene.offers, scene.scope, 1, 1);
    const Answer answer = scene.ask(Op::kOpen, scene.file->id());
    EXPECT_EQ(answer.payload.size(), 17 + std::min<size_t>(size, 1000));
  }
}

TEST(a_file_that_cannot_be_opened_costs_the_request) {
  Scene scene;
  FakeKernel kernel;
  kernel.calls.open = open_refused;
  refused = EMFILE;
  kernel.begin();
  const Answer answer = scene.ask(Op::kOpen, scene.file->id());
  EXPECT_EQ(answer.status.error_number(), EMFILE);
  EXPECT(!answer.descriptor.open());
  EXPECT(scene.session->holds_nothing());
}

int lstat_refused(const char*, struct stat*) { return errno = ENOENT, -1; }

TEST(an_owner_without_proc_says_so) {
  Scene scene;
  FakeKernel kernel;
  kernel.calls.open = open_refused;
  refused = ENOENT;
  kernel.begin();
  EXPECT_EQ(scene.ask(Op::kOpen, scene.file->id()).status.error_number(), ENOENT);
  kernel.calls.lstat = lstat_refused;
  const Answer answer = scene.ask(Op::kOpen, scene.file->id());
  EXPECT_EQ(answer.status.code(), ErrorCode::kSharing);
  EXPECT(answer.status.message().find("no /proc") != std::string::npos);
}

TEST(who_may_only_read_changes_nothing) {
  Scope scope;
  scope.readonly = true;
  Scene scene(scope);
  const FileRange range = take_pages(*scene.file, 2);
  const wire::Pages pages{scene.file->id(), range};
  EXPECT(scene.file->references().lease_anew(range).ok());
  EXPECT_EQ(scene.session->adopt(scene.file, {{range, 1}}), 1u);
  const Answer opened = scene.ask(Op::kOpen, scene.file->id());
  EXPECT_EQ(::fcntl(opened.descriptor.fd(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(opened.payload[16], 1);
  for (const auto op : {Op::kOffer, Op::kDecommit, Op::kUnpin}) {
    EXPECT_EQ(scene.error(op, pages), ErrorCode::kPermission);
  }
  EXPECT_EQ(scene.error(Op::kAllocate, scene.file->id(), page_size(), uint8_t{1}, uint8_t{0},
                        uint32_t{0}, uint8_t{0}),
            ErrorCode::kPermission);
  EXPECT_EQ(scene.yes_or_no(Op::kUnique, pages), uint8_t{0});
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), uint8_t{1});
  EXPECT_EQ(scene.error(Op::kRelease, pages), std::nullopt);
  EXPECT(scene.file->dec_ref(range).ok());
}

TEST(what_is_allocated_is_of_the_kind_and_place_that_was_asked_for) {
  Scene scene;
  const auto error = [&](uint64_t length, MemoryKind kind, uint8_t direction, uint8_t huge = 0) {
    return scene.error(Op::kAllocate, scene.file->id(), length, static_cast<uint8_t>(kind),
                       direction, uint32_t{0}, huge);
  };
  const auto mapped = static_cast<uint8_t>(MemoryKind::kMapped);
  EXPECT_EQ(error(page_size(), MemoryKind::kMapped, 0), ErrorCode::kOption);
  EXPECT_EQ(error(page_size(), static_cast<MemoryKind>(255), 0), ErrorCode::kOption);
  EXPECT_EQ(error(page_size(), MemoryKind::kTmpfs, 2), ErrorCode::kOption);
  EXPECT_EQ(error(page_size(), MemoryKind::kTmpfs, 0, 3), ErrorCode::kOption);
  EXPECT_EQ(error(0, MemoryKind::kTmpfs, 0), ErrorCode::kRange);
  EXPECT_EQ(error(page_size() + 1, MemoryKind::kTmpfs, 0), ErrorCode::kRange);
  EXPECT_EQ(error(2 * kChunkSize, MemoryKind::kTmpfs, 0), ErrorCode::kOutOfMemory);
  EXPECT(scene.session->holds_nothing());
  for (uint8_t kind = 0; kind < mapped; ++kind) {
    EXPECT_EQ(error(page_size(), static_cast<MemoryKind>(kind), 0), std::nullopt);
  }
  EXPECT_EQ(error(page_size(), MemoryKind::kTmpfs, 1), std::nullopt);
  EXPECT_EQ(scene.session->bytes_of(scene.file->id()), (mapped + uint64_t{1}) * page_size());
  std::vector<int> of_kind(mapped);
  uint64_t highest = 0;
  for (const PageSegment& segment : scene.file->segments()) {
    EXPECT_EQ(segment.use.refs, 1u);
    of_kind[static_cast<size_t>(segment.use.kind)] += static_cast<int>(segment.range.length());
    highest = std::max(highest, segment.range.end);
  }
  for (size_t kind = 0; kind < mapped; ++kind) {
    const bool two = kind == static_cast<size_t>(MemoryKind::kTmpfs);
    EXPECT_EQ(of_kind[kind], static_cast<int>(page_size()) * (two ? 2 : 1));
  }
  EXPECT(highest > huge_page_size() / 2);  // from the top
}

TEST(a_wish_for_huge_pages_is_answered) {
  Scene scene;
  const auto came_true = [&](uint64_t length, uint8_t wish) {
    const Answer answer = scene.ask(Op::kAllocate, scene.file->id(), length, uint8_t{1}, uint8_t{0},
                                    uint32_t{0}, wish);
    wire::Pages pages;
    uint8_t huge = 9;
    wire::Reader reader(answer.payload);
    EXPECT(answer.status.ok() && reader.read(pages));
    EXPECT_EQ(reader.read_all(huge), wish != 0);
    return huge;
  };
  EXPECT_EQ(came_true(huge_page_size(), 2), 1);
  EXPECT_EQ(came_true(huge_page_size() - page_size(), 2), 0);
  EXPECT_EQ(came_true(huge_page_size(), 0), 9);
}

TEST(a_peer_holds_so_many_bytes_at_most) {
  Scope scope;
  scope.limits.bytes = 4 * page_size();
  Scene scene(scope);
  const auto allocate = [&](uint64_t pages) {
    return scene.error(Op::kAllocate, scene.file->id(), pages * page_size(), uint8_t{1}, uint8_t{0},
                       uint32_t{0}, uint8_t{0});
  };
  EXPECT_EQ(allocate(5), ErrorCode::kOutOfMemory);
  EXPECT(scene.session->holds_nothing());
  EXPECT_EQ(allocate(1), std::nullopt);
  EXPECT_EQ(allocate(4), ErrorCode::kOutOfMemory);
  EXPECT_EQ(allocate(3), std::nullopt);
  EXPECT_EQ(allocate(1), ErrorCode::kOutOfMemory);
  EXPECT_EQ(scene.session->bytes_of(scene.file->id()), 4 * page_size());
}

TEST(an_offer_of_a_peer_of_another_pid_namespace_shows_what_it_says_itself) {
  Scene scene;
  const wire::Pages pages = scene.allocate(1);
  scene.session->pid = kUnseen;
  scene.session->shown_pid = 17;
  (void)scene.offer(pages);
  EXPECT_EQ(scene.offers.take_any().pid, 17);
  EXPECT(scene.file->references().drop_lease(pages.range).ok());
}

// Of pages of which every other one has a lease more the books have a segment for each.
struct ManySegments : Scene {
  static constexpr uint64_t kCount = 5 * Session::kSegmentsAtOnce;

  explicit ManySegments(Scope its_scope = {}) : Scene(std::move(its_scope)) {
    all = allocate(kCount);
    for (uint64_t page = 0; page < kCount; page += 2) {
      const FileRange range = part(all, page, page + 1).range;
      EXPECT(file->references().lease_anew(range).ok());
      others.push_back(range);
    }
    EXPECT(file->segments().size() >= kCount);
  }
  ~ManySegments() {
    offers.drop_some(SIZE_MAX);
    for (const FileRange range : others) EXPECT(file->references().drop_lease(range).ok());
  }
  // Steps until the answer: no step comes further than so many segments, which are pages here.
  Answer ask_in_steps(Session& its, Request& request, uint64_t steps_min = 5) {
    for (uint64_t steps = 1;; ++steps) {
      const uint64_t before = request.progress + request.given_back;
      std::optional<Answer> answer = its.step(request);
      if (request.op == Op::kRelease || request.op == Op::kClaim) {
        const uint64_t left = request.op == Op::kClaim && !request.begun.empty()
                                  ? request.begun.front().range.length()
                                  : 0;
        EXPECT(left <= (kCount - steps) * page_size());
      } else if (!answer) {
        const uint64_t most =
            request.op == Op::kDecommit ? pages_of(Session::kPieceBytes) : Session::kSegmentsAtOnce;
        EXPECT(pages_of(request.progress - before) <= most);
      }
      EXPECT_EQ(its.verify(), std::nullopt);
      EXPECT_EQ(offers.verify(), std::nullopt);
      if (!answer && !EXPECT(steps < 100)) return {};
      if (!answer) continue;
      EXPECT(steps >= steps_min);
      return std::move(*answer);
    }
  }

  wire::Pages all;
  std::vector<FileRange> others;
};

TEST(no_step_works_on_more_than_so_many_segments_whatever_a_peer_asks_for) {
  ManySegments scene;
  Session receiver(2, scene.offers, {}, 2, 2);
  Request offer = request_for(Op::kOffer, scene.all);
  const Answer offered = scene.ask_in_steps(*scene.session, offer);
  EXPECT(offered.status.ok());
  EXPECT_EQ(scene.refs(scene.all.range.start), 3u);
  wire::Secret secret{};
  EXPECT(wire::Reader(offered.payload).read_all(secret));
  Request claim = request_for(Op::kClaim, secret);
  EXPECT(scene.ask_in_steps(receiver, claim).status.ok());
  EXPECT_EQ(receiver.bytes_of(scene.all.file), scene.all.range.length());
  EXPECT(scene.offers.empty());
  for (const auto op : {Op::kUnpin, Op::kPin}) {
    Request request = request_for(op, scene.all);
    EXPECT_EQ(scene.ask_in_steps(receiver, request).payload, std::string(1, '\1'));
  }
  Request release = request_for(Op::kRelease, scene.all);
  EXPECT(scene.ask_in_steps(receiver, release).status.ok());
  EXPECT(receiver.holds_nothing());
  EXPECT_EQ(scene.refs(scene.all.range.start), 2u);
  Request decommit = request_for(Op::kDecommit, scene.all);
  EXPECT(scene.ask_in_steps(*scene.session, decommit, 3).status.ok());
  Request unique = request_for(Op::kUnique, scene.all);
  EXPECT_EQ(scene.ask_in_steps(*scene.session, unique, 1).payload, std::string(1, '\0'));
  for (const FileRange range : scene.others) {
    EXPECT(scene.file->references().drop_lease(range).ok());
  }
  scene.others.clear();
}

TEST(an_unpinned_range_of_many_segments_is_released_or_ends_in_steps) {
  for (const bool releases : {true, false}) {
    ManySegments scene;
    Request unpin = request_for(Op::kUnpin, scene.all);
    EXPECT(scene.ask_in_steps(*scene.session, unpin).status.ok());
    EXPECT_EQ(scene.session->bytes_of(scene.all.file), scene.all.range.length());
    if (releases) {
      Request release = request_for(Op::kRelease, scene.all);
      EXPECT(scene.ask_in_steps(*scene.session, release).status.ok());
    } else {
      int steps = 1;
      while (!scene.session->end_some(Session::kSegmentsAtOnce)) ++steps;
      EXPECT(steps >= 5);
    }
    EXPECT(scene.session->holds_nothing());
    EXPECT_EQ(scene.refs(scene.all.range.start), 1u);
  }
}

TEST(one_release_over_many_unpinned_ranges_takes_steps) {
  constexpr uint64_t kRanges = 2 * Session::kSegmentsAtOnce;
  Scene scene;
  const wire::Pages all = scene.allocate(2 * kRanges);
  for (uint64_t page = 0; page < 2 * kRanges; page += 2) {
    EXPECT_EQ(scene.error(Op::kUnpin, part(all, page, page + 1)), std::nullopt);
  }
  Request release = request_for(Op::kRelease, all);
  int steps = 1;
  uint64_t done = 0;
  for (; !scene.session->step(release); ++steps) {
    EXPECT(pages_of(release.given_back - done) <= Session::kSegmentsAtOnce);
    done = release.given_back;
    EXPECT(!release.waits);
  }
  EXPECT(steps >= 3);
  EXPECT(scene.session->holds_nothing());
}

TEST(limits_of_offers_are_checked_before_anything_is_leased) {
  Scope scope;
  scope.limits.unclaimed = page_size();
  ManySegments scene(scope);
  Request offer = request_for(Op::kOffer, scene.all);
  const auto answer = scene.session->step(offer);
  EXPECT(answer.has_value());
  EXPECT_EQ(answer->status.code(), ErrorCode::kSharing);
  EXPECT_EQ(scene.refs(scene.all.range.start), 2u);
}

TEST(an_offer_that_fails_in_the_middle_is_taken_back_in_steps) {
  for (const bool given_up : {true, false}) {
    ManySegments scene;
    Request offer = request_for(Op::kOffer, scene.all);
    for (int i = 0; i < 3; ++i) EXPECT(!scene.session->step(offer));
    EXPECT_EQ(scene.refs(scene.all.range.start), 3u);
    if (given_up) {
      scene.session->give_up(offer);
      EXPECT(scene.offers.dropping());
      int rounds = 1;
      for (; scene.offers.dropping(); ++rounds) scene.offers.drop_some(Session::kSegmentsAtOnce);
      EXPECT(rounds >= 3);
      EXPECT_EQ(scene.offers.take_dropped().size(), 1u);
    } else {
      // It lets go of a page meanwhile.
      const uint64_t last = ManySegments::kCount - 1;
      EXPECT_EQ(scene.error(Op::kRelease, part(scene.all, last, last + 1)), std::nullopt);
      EXPECT_EQ(scene.ask_in_steps(*scene.session, offer, 4).status.code(), ErrorCode::kRefCount);
    }
    EXPECT_EQ(scene.refs(scene.all.range.start), 2u);
    EXPECT(scene.offers.empty());
  }
}

TEST(a_child_gets_leases_of_many_segments_in_steps) {
  ManySegments scene;
  Session child(2, scene.offers, {}, 2, 2);
  Session::Copying copying = scene.session->begin_copy(child);
  int steps = 1;
  while (!*scene.session->copy_some(child, &copying, Session::kSegmentsAtOnce)) ++steps;
  EXPECT(steps >= 5);
  EXPECT_EQ(child.bytes_of(scene.all.file), scene.all.range.length());
}

TEST(what_is_offered_is_claimed_once) {
  Scene scene;
  Session receiver(2, scene.offers, {}, 2, 2);
  const wire::Pages pages = scene.allocate(2);
  const wire::Secret secret = scene.offer(pages);
  EXPECT_EQ(scene.refs(pages.range.start), 2u);
  std::optional<Offers::Key> last;
  const auto offers = scene.offers.of_file(pages.file, 2, &last);
  EXPECT_EQ(offers.size(), 1u);
  EXPECT_EQ(offers[0].range, pages.range);
  EXPECT_EQ(offers[0].sender, 1u);
  EXPECT_EQ(offers[0].pid, ::getpid());  // as is shown

  Request no_secret = request_for(Op::kClaim, uint64_t{1});
  EXPECT_EQ(receiver.step(no_secret)->status.code(), ErrorCode::kSharing);
  Request unknown_file = request_for(Op::kOpen, pages.file);
  EXPECT_EQ(receiver.step(unknown_file)->status.code(), ErrorCode::kSharing);
  Request claim = request_for(Op::kClaim, secret);
  const auto claimed = receiver.step(claim);
  wire::Pages got;
  wire::Reader reader(claimed->payload);
  EXPECT(reader.read(got));
  EXPECT_EQ(got.file, pages.file);
  EXPECT_EQ(got.range, pages.range);
  EXPECT_EQ(receiver.bytes_of(pages.file), pages.range.length());
  // What kOpen would bring, since this peer has nothing of the file.
  uint64_t name = 0;
  EXPECT(reader.read(name));
  EXPECT_EQ(name, pages.file);
  EXPECT(claimed->descriptor.open());
  EXPECT(claimed->descriptor_is_spare);
  EXPECT_EQ(receiver.step(claim)->status.code(), ErrorCode::kSharing);
  EXPECT_EQ(receiver.step(unknown_file)->status.ok(), true);  // it was let in by the pages
  EXPECT_EQ(receiver.files().size(), 1u);
  EXPECT(receiver.end_some(SIZE_MAX));
  EXPECT_EQ(scene.refs(pages.range.start), 1u);
  EXPECT(receiver.step(unknown_file)->status.ok());  // for good
  (void)receiver.take_let_go();
}

TEST(offers_of_a_closed_file_bring_nothing) {
  Scene scene;
  Session receiver(2, scene.offers, {}, 2, 2);
  const wire::Secret secret = scene.offer(scene.allocate(2));
  EXPECT(scene.file->close().ok());
  Request claim = request_for(Op::kClaim, secret);
  EXPECT_EQ(receiver.step(claim)->status.code(), ErrorCode::kClosed);
  EXPECT(receiver.holds_nothing());
  scene.offers.drop_some(1);
  EXPECT_EQ(scene.offers.take_dropped().size(), 1u);
  EXPECT(scene.offers.empty());
  EXPECT(scene.session->files().empty());
}

TEST(ranges_are_released_one_after_the_other_up_to_a_wrong_one) {
  Scene scene;
  const wire::Pages all = scene.allocate(8);
  EXPECT_EQ(scene.error(Op::kRelease, part(all, 0, 1), part(all, 2, 4)), std::nullopt);
  EXPECT_EQ(scene.session->bytes_of(all.file), 5 * page_size());
  EXPECT_EQ(scene.error(Op::kRelease, part(all, 1, 2), part(all, 0, 1), part(all, 7, 8)),
            ErrorCode::kRefCount);
  EXPECT_EQ(scene.session->bytes_of(all.file), 4 * page_size());
  wire::Pages unknown = part(all, 7, 8);
  ++unknown.file;
  EXPECT_EQ(scene.error(Op::kRelease, unknown, part(all, 7, 8)), ErrorCode::kSharing);
  EXPECT_EQ(scene.error(Op::kRelease), std::nullopt);  // none
  EXPECT_EQ(scene.error(Op::kRelease, part(all, 4, 8)), std::nullopt);
  EXPECT(scene.session->holds_nothing());
  EXPECT_EQ(scene.session->take_let_go().size(), 1u);
}

TEST(what_comes_along_is_released_before_the_request_itself) {
  Scene scene;
  const wire::Pages all = scene.allocate(4);
  Request request = request_for(Op::kUnique, part(all, 0, 1), part(all, 1, 2), part(all, 2, 4));
  EXPECT(scene.session->release_first(request));  // nothing is said to come along
  EXPECT_EQ(scene.session->bytes_of(all.file), 4 * page_size());
  request.released = 2 * sizeof(wire::Pages);
  EXPECT(scene.session->release_first(request));
  EXPECT_EQ(scene.session->bytes_of(all.file), 2 * page_size());
  EXPECT_EQ(request.released, 0u);
  EXPECT_EQ(request.progress, 0u);
  EXPECT_EQ(scene.session->step(request)->payload, std::string(1, '\1'));
}

TEST(pages_are_decommitted_8_mib_at_a_time) {
  const uint64_t piece = Session::kPieceBytes;
  for (const uint64_t length : {page_size(), piece, piece + page_size(), 2 * piece}) {
    Scene scene;
    const wire::Pages pages = scene.allocate(pages_of(length));
    for (const uint64_t at : {uint64_t{0}, length / 2, length - 1}) {
      EXPECT(scene.file->write(pages.range.start + at, "x", 1).ok());
    }
    Request request = request_for(Op::kDecommit, pages);
    uint64_t steps = 1;
    std::optional<Answer> answer;
    while (!(answer = scene.session->step(request))) {
      EXPECT_EQ(request.progress, steps * piece);
      EXPECT(!request.waits);
      ++steps;
    }
    EXPECT(answer->status.ok());
    EXPECT_EQ(steps, (length + piece - 1) / piece);
    EXPECT_EQ(*scene.file->total_usage(), 0u);
  }
}

TEST(what_is_released_meanwhile_is_not_decommitted) {
  Scene scene;
  const wire::Pages pages = scene.allocate(pages_of(2 * Session::kPieceBytes));
  Request request = request_for(Op::kDecommit, pages);
  EXPECT(!scene.session->step(request));
  const uint64_t last = pages_of(pages.range.length()) - 1;
  EXPECT_EQ(scene.error(Op::kRelease, part(pages, last, last + 1)), std::nullopt);
  EXPECT_EQ(scene.session->step(request)->status.code(), ErrorCode::kRefCount);
}

TEST(pages_are_unique_if_no_one_else_has_them) {
  Scene scene;
  const wire::Pages pages = scene.allocate(2);
  EXPECT_EQ(scene.yes_or_no(Op::kUnique, pages), uint8_t{1});
  const wire::Secret secret = scene.offer(part(pages, 1, 2));
  EXPECT_EQ(scene.yes_or_no(Op::kUnique, pages), uint8_t{0});
  EXPECT_EQ(scene.yes_or_no(Op::kUnique, part(pages, 0, 1)), uint8_t{1});
  drop(*scene.offers.claim(secret));
  EXPECT_EQ(scene.yes_or_no(Op::kUnique, pages), uint8_t{1});
}

TEST(unpinned_pages_are_pinned_with_what_was_in_them_or_without) {
  Scene scene;
  const wire::Pages pages = scene.allocate(2);
  const wire::Pages other = scene.allocate(2);
  for (const wire::Pages& each : {pages, other}) {
    EXPECT(scene.file->write(each.range.start, "x", 1).ok());
    EXPECT_EQ(scene.yes_or_no(Op::kUnpin, each), uint8_t{1});
    EXPECT_EQ(scene.yes_or_no(Op::kUnpin, each), uint8_t{1});  // twice is once
  }
  EXPECT_EQ(scene.error(Op::kUnpin, part(pages, 0, 1)), ErrorCode::kRefCount);
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), uint8_t{1});
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), uint8_t{1});
  EXPECT(scene.file->discarder().discard(UINT64_MAX, UINT64_MAX).bytes > 0);
  EXPECT_EQ(scene.yes_or_no(Op::kPin, other), uint8_t{0});
  EXPECT_EQ(scene.yes_or_no(Op::kPin, other), uint8_t{1});
  EXPECT_EQ(scene.session->bytes_of(pages.file), 4 * page_size());
}

// Room that is made for a peer in a memory cgroup of its own.
struct RoomScene : Scene {
  RoomScene() { payers.write(::getpid(), "0::/theirs\n"); }
  // A page with something in it, unpinned.
  wire::Pages unpinned_page() {
    const wire::Pages pages = allocate(1);
    EXPECT(file->write(pages.range.start, "x", 1).ok());
    EXPECT_EQ(yes_or_no(Op::kUnpin, pages), 1);
    return pages;
  }
  uint64_t made(uint64_t bytes, uint64_t commit = 0) {
    return yes_or_no<uint64_t>(Op::kMakeRoom, bytes, commit).value_or(UINT64_MAX);
  }
  const native_tests::Payers payers{"0::/ours\n"};
};

TEST(room_is_made_of_what_the_peers_memory_group_pays_for) {
  RoomScene scene;
  const wire::Pages first = scene.unpinned_page();
  const wire::Pages second = scene.unpinned_page();
  Discardable own;
  own.range = take_pages(*scene.file, 1);
  EXPECT(scene.file->write(own.range.start, "x", 1).ok());
  EXPECT(scene.file->unpin(own).ok());
  EXPECT_EQ(scene.made(1), page_size());
  EXPECT_EQ(scene.yes_or_no(Op::kPin, first), 0);
  EXPECT_EQ(scene.yes_or_no(Op::kPin, second), 1);
  EXPECT_EQ(scene.made(1), 0u);  // the rest does not count against its limit
  EXPECT_EQ(scene.yes_or_no(Op::kUnpin, second), 1);
  EXPECT_EQ(scene.made(UINT64_MAX), page_size());
  EXPECT(!own.discarded);
  // The guard may discard all of them.
  const wire::Pages third = scene.unpinned_page();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  EXPECT_EQ(FileRegistry::all().discard(2 * page_size(), deadline).given_back, 2 * page_size());
  EXPECT_EQ(scene.yes_or_no(Op::kPin, third), 0);
  EXPECT(scene.file->end_handle(own).ok());
}

TEST(what_others_pay_for_is_discarded_last) {
  RoomScene scene;
  const wire::Pages theirs = scene.unpinned_page();
  Discardable own;
  own.range = take_pages(*scene.file, 1);
  EXPECT(scene.file->write(own.range.start, "x", 1).ok());
  EXPECT(scene.file->unpin(own).ok());
  EXPECT_EQ(scene.file->discarder().discard(1, UINT64_MAX).given_back, page_size());
  EXPECT(own.list == nullptr);
  EXPECT_EQ(scene.file->discarder().discard(1, UINT64_MAX).given_back, page_size());
  EXPECT_EQ(scene.yes_or_no(Op::kPin, theirs), 0);
  EXPECT(scene.file->end_handle(own).ok());
}

TEST(a_peer_that_was_moved_gets_room_of_where_it_is) {
  RoomScene scene;
  const wire::Pages pages = scene.unpinned_page();
  scene.payers.write(::getpid(), "0::/elsewhere\n");
  EXPECT_EQ(scene.made(1), 0u);
  const wire::Pages later = scene.unpinned_page();
  EXPECT_EQ(scene.made(UINT64_MAX), page_size());
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), 1);
  EXPECT_EQ(scene.yes_or_no(Op::kPin, later), 0);
}

TEST(in_the_owners_memory_group_room_is_made_as_far_as_it_lacks) {
  RoomScene scene;
  scene.payers.write(::getpid(), "0::/ours\n");
  const wire::Pages pages = scene.unpinned_page();
  EXPECT_EQ(scene.made(page_size()), 0u);  // no limit is known
  const native_tests::FakeLevel level(uint64_t{100} << 20, uint64_t{99} << 20);
  EXPECT_EQ(scene.made(page_size()), page_size());
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), 0);
}

// The guard keeps its headroom free by itself: that the rest of a large commit would fit is no reason to
// stop.
TEST(room_is_made_for_the_whole_of_a_commit) {
  RoomScene scene;
  scene.payers.write(::getpid(), "0::/ours\n");
  const wire::Pages pages = scene.unpinned_page();
  const native_tests::FakeLevel level(uint64_t{100} << 20, uint64_t{50} << 20);
  EXPECT_EQ(scene.made(page_size(), uint64_t{30} << 20), 0u);
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), 1);
  EXPECT_EQ(scene.yes_or_no(Op::kUnpin, pages), 1);
  EXPECT_EQ(scene.made(page_size(), uint64_t{60} << 20), page_size());
  EXPECT_EQ(scene.yes_or_no(Op::kPin, pages), 0);
}

TEST(who_may_only_read_asks_for_no_room) {
  Scope scope;
  scope.readonly = true;
  Scene scene(scope);
  EXPECT_EQ(scene.error(Op::kMakeRoom, uint64_t{1}, uint64_t{1}), ErrorCode::kPermission);
}

TEST(a_peer_unpins_so_many_ranges_at_most_in_all_files) {
  Scope scope;
  scope.limits.unpinned = 2;
  Scene scene(scope);
  const wire::Pages all = scene.allocate(3);
  EXPECT_EQ(scene.error(Op::kUnpin, part(all, 0, 1)), std::nullopt);
  EXPECT_EQ(scene.error(Op::kUnpin, part(all, 1, 2)), std::nullopt);
  EXPECT_EQ(scene.error(Op::kUnpin, part(all, 2, 3)), ErrorCode::kSharing);
  EXPECT_EQ(scene.error(Op::kPin, part(all, 0, 1)), std::nullopt);
  EXPECT_EQ(scene.error(Op::kUnpin, part(all, 2, 3)), std::nullopt);

  const auto file = make_file();
  const FileRange range = take_pages(*file, 1);
  EXPECT(file->references().begin_lease(range).ok());
  EXPECT_EQ(scene.session->adopt(file, {{range, 1}}), 1u);
  EXPECT_EQ(scene.error(Op::kUnpin, wire::Pages{file->id(), range}), ErrorCode::kSharing);
}

TEST(a_forked_child_learns_that_its_parent_had_unpinned_pages) {
  Scene scene;
  const wire::Pages pages = scene.allocate(2);
  EXPECT_EQ(scene.error(Op::kRelease, part(pages, 0, 1)), std::nullopt);
  EXPECT_EQ(scene.error(Op::kPin, part(pages, 0, 1)), ErrorCode::kRefCount);
  scene.session->be_born_connected();
  EXPECT_EQ(scene.error(Op::kPin, part(pages, 0, 1)), ErrorCode::kForked);
  EXPECT_EQ(scene.error(Op::kPin, part(pages, 1, 2)), std::nullopt);
}

TEST(usage_is_told_for_all_and_for_one_group) {
  Scene scene;
  const auto allocate = [&](uint64_t pages, MemoryKind kind, uint32_t group) {
    EXPECT_EQ(scene.error(Op::kAllocate, scene.file->id(), pages * page_size(),
                          static_cast<uint8_t>(kind), uint8_t{0}, group, uint8_t{0}),
              std::nullopt);
  };
  allocate(1, MemoryKind::kTmpfs, 0);
  allocate(2, MemoryKind::kAnonymous, 5);
  for (const PageSegment& segment : scene.file->segments()) {
    for (uint64_t at = segment.range.start; at < segment.range.end; at += page_size()) {
      EXPECT(scene.file->write(at, "x", 1).ok());
    }
  }
  EXPECT_EQ(*scene.file->total_usage(), 3 * page_size());
  EXPECT(*scene.file->scanner().update(nullptr));
  const auto usage = [&](uint32_t group) {
    KindBytes bytes{};
    const Answer answer = scene.ask(Op::kUsage, scene.file->id(), group);
    EXPECT_EQ(answer.payload.size(), sizeof bytes);
    std::memcpy(bytes.data(), answer.payload.data(), sizeof bytes);
    return bytes;
  };
  EXPECT_EQ(usage(0), scene.file->ledger().total());
  EXPECT_EQ(usage(5), scene.file->ledger().memcg(5));
  EXPECT(usage(0) != usage(5));
  EXPECT_EQ(usage(6), KindBytes{});
}

TEST(a_listener_says_what_it_serves) {
  Scene scene;
  const Answer plain = scene.ask(Op::kServed);
  uint64_t name = 0;
  uint8_t is_cache = 9;
  EXPECT(wire::Reader(plain.payload).read_all(name, is_cache));
  EXPECT_EQ(name, scene.file->id());
  EXPECT_EQ(is_cache, 0);
  EXPECT_EQ(scene.error(Op::kCache, uint8_t{1}, uint64_t{0}), ErrorCode::kSharing);
  EXPECT_EQ(scene.yes_or_no<uint32_t>(Op::kPing), static_cast<uint32_t>(::getpid()));
  Session nothing(2, scene.offers, {}, 2, 2);
  Request served = request_for(Op::kServed);
  EXPECT_EQ(nothing.step(served)->status.code(), ErrorCode::kSharing);
}

FileRange pages_in(FileRange all, uint64_t first, uint64_t end) {
  return {all.start + first * page_size(), all.start + end * page_size()};
}

// --- A served cache ------------------------------------------------------------------------------

// It counts who is attached.
struct FakeCache final : SharedCache {
  uint64_t id() const override { return 77; }
  bool is_complete() const override { return true; }
  std::string described() const override { return "described"; }
  Result<std::optional<std::string>> call(uint64_t reader, wire::CacheCall call,
                                          std::string_view arguments, uint64_t* progress) override {
    if (arguments == "none") return Status::error(ErrorCode::kSharing, "");
    if (arguments == "refused") return Status::error(ErrorCode::kOutOfMemory, "no");
    if (arguments == "waits" && ++*progress < 3) return std::optional<std::string>();
    return std::optional(std::to_string(reader) + "/" + std::to_string(static_cast<int>(call)));
  }
  Result<os::Descriptor> index_file() const override { return file(); }
  Result<uint64_t> attach() override {
    attached.insert(++last);
    return last;
  }
  Result<uint64_t> attach_copy_of(uint64_t reader) override {
    copies.emplace_back(reader, last + 1);
    return attach();
  }
  Result<os::Descriptor> holds_file(uint64_t) const override {
    if (refuses) return Status::error(ErrorCode::kSharing, "no");
    return file();
  }
  void detach(uint64_t reader) noexcept override { attached.erase(reader); }

  static Result<os::Descriptor> file() {
    return os::Descriptor(os::kernel().memfd_create("cache", MFD_CLOEXEC));
  }
  std::set<uint64_t> attached;
  std::vector<std::pair<uint64_t, uint64_t>> copies;
  uint64_t last = 0;
  bool refuses = false;
};

Scope with_cache(const std::shared_ptr<FakeCache>& cache) {
  Scope scope;
  scope.cache = cache;
  return scope;
}

struct Served : Scene {
  explicit Served(std::shared_ptr<FakeCache> its_cache = std::make_shared<FakeCache>())
      : Scene(with_cache(its_cache)), cache(std::move(its_cache)) {}

  Answer call(wire::CacheCall call, uint64_t id = 0) {
    return ask(Op::kCache, static_cast<uint8_t>(call), id);
  }
  std::optional<uint64_t> attach() {
    const Answer answer = call(wire::CacheCall::kAttach);
    uint64_t reader = 0;
    if (!answer.status.ok() || !wire::Reader(answer.payload).read_all(reader)) return std::nullopt;
    EXPECT(answer.descriptor.open());
    return reader;
  }
  std::shared_ptr<FakeCache> cache;
};

TEST(a_peer_is_attached_to_a_served_cache_until_it_detaches) {
  Served served;
  EXPECT_EQ(served.ask(Op::kServed).payload.back(), 1);
  EXPECT(served.call(wire::CacheCall::kIndex).descriptor.open());
  EXPECT_EQ(served.call(wire::CacheCall::kIndex, 77).payload, "described");
  EXPECT_EQ(served.call(wire::CacheCall::kIndex, 78).status.code(), ErrorCode::kSharing);
  EXPECT(served.session->holds_nothing());
  const auto first = served.attach();
  const auto second = served.attach();
  EXPECT(first && second);
  EXPECT_EQ(served.cache->attached.size(), 2u);
  EXPECT(!served.session->holds_nothing());
  EXPECT_EQ(served.session->files().size(), 2u);  // where it says what it holds
  const auto detach = static_cast<uint8_t>(wire::CacheCall::kDetach);
  EXPECT_EQ(served.error(Op::kCache, detach, uint64_t{0}, *first), std::nullopt);
  EXPECT_EQ(served.cache->attached, (std::set<uint64_t>{*second}));
  EXPECT_EQ(served.error(Op::kCache, detach, uint64_t{0}, *first), ErrorCode::kSharing);
  EXPECT_EQ(served.error(Op::kCache, detach, uint64_t{0}, uint64_t{99}), ErrorCode::kSharing);
  EXPECT(served.session->end_some(1));
  EXPECT(served.cache->attached.empty());
  EXPECT(served.session->holds_nothing());
}

TEST(a_peer_is_attached_so_often_at_most) {
  Served served;
  for (int i = 0; i < 64; ++i) EXPECT(served.attach());
  EXPECT_EQ(served.call(wire::CacheCall::kAttach).status.code(), ErrorCode::kSharing);
  EXPECT_EQ(served.cache->attached.size(), 64u);
}

TEST(who_gets_no_file_is_not_attached) {
  Served served;
  served.cache->refuses = true;
  EXPECT_EQ(served.call(wire::CacheCall::kAttach).status.code(), ErrorCode::kSharing);
  EXPECT(served.cache->attached.empty());
  EXPECT(served.session->holds_nothing());
}

TEST(calls_of_a_cache_that_none_makes) {
  Served served;
  const auto with = [](uint8_t call, const std::string& rest) {
    return std::string(1, static_cast<char>(call)) + rest;
  };
  const std::string served_one(8, '\0');
  for (const std::string& payload :
       {std::string(), with(1, ""), with(1, served_one + "x"), with(2, served_one + "x"),
        with(3, served_one + "x"), with(4, served_one)}) {
    Request request = request_for(Op::kCache, std::string_view(payload));
    EXPECT(served.session->step(request)->malformed);
  }
  Scene without;
  EXPECT_EQ(without.error(Op::kCache, uint8_t{1}, uint64_t{0}), ErrorCode::kSharing);
}

TEST(what_a_peer_wants_of_a_cache_the_cache_does) {
  Served served;
  const auto put = static_cast<uint8_t>(wire::CacheCall::kPut);
  EXPECT_EQ(served.error(Op::kCache, put, uint64_t{0}, uint64_t{1}), ErrorCode::kSharing);
  const uint64_t reader = *served.attach();
  const auto ask = [&](std::string_view arguments) {
    return request_for(Op::kCache, put, uint64_t{0}, reader, arguments);
  };
  Request good = ask("good");
  EXPECT_EQ(served.session->step(good)->payload, std::to_string(reader) + "/4");
  Request refused = ask("refused");
  EXPECT_EQ(served.session->step(refused)->status.code(), ErrorCode::kOutOfMemory);
  Request none = ask("none");
  EXPECT(served.session->step(none)->malformed);
  Request waits = ask("waits");
  EXPECT(!served.session->step(waits) && waits.waits);
  EXPECT(!served.session->step(waits));
  EXPECT(served.session->step(waits).has_value());
}

TEST(who_leaves_and_comes_again_takes_no_more_room) {
  Served served;
  for (int i = 0; i < 200; ++i) {
    const auto reader = served.attach();
    EXPECT_EQ(served.error(Op::kCache, static_cast<uint8_t>(wire::CacheCall::kDetach), uint64_t{0},
                           *reader),
              std::nullopt);
  }
  EXPECT(served.cache->attached.empty());
  EXPECT(served.session->holds_nothing());
}

TEST(a_child_of_a_peer_holds_what_its_parent_holds) {
  Served served;
  const auto reader = served.attach();
  Session child(2, served.offers, with_cache(served.cache), 2, 2);
  (void)served.session->begin_copy(child);
  EXPECT_EQ(served.cache->copies.size(), 1u);
  EXPECT_EQ(served.cache->copies.front().first, *reader);
  EXPECT(!child.holds_nothing());
  EXPECT(served.session->end_some(1));
  EXPECT_EQ(served.cache->attached, (std::set<uint64_t>{served.cache->copies.front().second}));
  EXPECT(child.end_some(1));
  EXPECT(served.cache->attached.empty());
}

TEST(memory_that_runs_out_leaves_no_file_of_which_nothing_is_held) {
  Scene scene;
  const uint64_t file = scene.file->id();
  const wire::Pages not_held{file, {0, page_size()}};
  std::vector<Request> requests;
  requests.push_back(request_for(Op::kOpen, file));
  requests.push_back(request_for(Op::kUsage, file, uint32_t{0}));
  // More than one peer may have.
  requests.push_back(request_for(Op::kAllocate, file, kChunkSize, uint8_t{1}, uint8_t{0},
                                 uint32_t{0}, uint8_t{0}));
  for (const Op op : {Op::kOffer, Op::kDecommit, Op::kUnique, Op::kUnpin, Op::kPin}) {
    requests.push_back(request_for(op, not_held));
  }
  for (Request& request : requests) {
    const uint64_t failures =
        native_tests::fail_each_allocation([&] { (void)scene.session->step(request); },
                                           [&] { EXPECT(scene.session->holds_nothing()); });
    EXPECT(failures > 1);
    EXPECT(scene.session->holds_nothing());
    EXPECT(!scene.session->take_let_go().empty());
  }
}

// --- Children, and the end -----------------------------------------------------------------------

TEST(a_child_gets_the_leases_of_its_parent_in_steps) {
  Scene scene;
  const wire::Pages all = scene.allocate(8);
  for (const uint64_t page : {1, 3, 5}) {
    EXPECT_EQ(scene.error(Op::kRelease, part(all, page, page + 1)), std::nullopt);
  }
  Session child(2, scene.offers, scene.scope, 0, 1);
  EXPECT(!child.born_connected());
  auto copying = scene.session->begin_copy(child);
  EXPECT(child.born_connected());
  int steps = 1;
  while (!*scene.session->copy_some(child, &copying, 1)) ++steps;
  EXPECT(steps >= 4);
  EXPECT_EQ(child.bytes_of(all.file), 5 * page_size());
  EXPECT_EQ(scene.refs(all.range.start), 2u);
  EXPECT_EQ(scene.session->bytes_of(all.file), 5 * page_size());
  EXPECT(child.end_some(SIZE_MAX));
  EXPECT_EQ(scene.refs(all.range.start), 1u);
}

TEST(a_child_knows_the_files_of_its_parent) {
  Scene scene;
  const auto other = make_file();
  Session child(2, scene.offers, {}, 0, 1);
  Session grandchild(3, scene.offers, {}, 0, 1);
  (void)scene.session->begin_copy(child);
  Request open = request_for(Op::kOpen, other->id());
  EXPECT_EQ(child.step(open)->status.code(), ErrorCode::kSharing);
  scene.session->be_born_connected();
  (void)scene.session->begin_copy(grandchild);
  EXPECT(grandchild.step(open)->status.ok());
}

TEST(a_closed_file_is_not_copied) {
  Scene scene;
  (void)scene.allocate(2);
  Session child(2, scene.offers, scene.scope, 0, 1);
  auto copying = scene.session->begin_copy(child);
  EXPECT(scene.file->close().ok());
  EXPECT(*scene.session->copy_some(child, &copying, 1));
  EXPECT(child.holds_nothing());
}

TEST(leases_are_adopted_as_far_as_there_is_memory) {
  const auto file = make_file();
  const FileRange all = take_pages(*file, 6);
  References::Counts pages;
  for (const uint64_t page : {0, 2, 4}) pages.push_back({pages_in(all, page, page + 1), 1});
  Offers offers;
  size_t least = SIZE_MAX;
  for (int64_t number = 0;; ++number) {
    for (const auto& [range, count] : pages) EXPECT(file->references().lease_anew(range).ok());
    Session session(1, offers, {}, 1, 1);
    native_tests::allocations_left = number;
    const size_t adopted = session.adopt(file, pages);
    const bool all_done = native_tests::allocations_left >= 0;
    native_tests::allocations_left = -1;
    EXPECT(adopted <= pages.size());
    EXPECT_EQ(session.verify(), std::nullopt);
    EXPECT_EQ(session.bytes_of(file->id()), adopted * page_size());
    EXPECT_EQ(session.holds_nothing(), adopted == 0);
    for (size_t i = adopted; i < pages.size(); ++i) {
      EXPECT(file->references().drop_lease(pages[i].first).ok());
    }
    least = std::min(least, adopted);
    if (!all_done) continue;
    EXPECT_EQ(adopted, pages.size());
    break;
  }
  EXPECT_EQ(least, 0u);
  EXPECT(*file->has_unique_ref(all));
  Session none(1, offers, {}, 1, 1);
  EXPECT_EQ(none.adopt(file, {}), 0u);
  EXPECT(none.take_let_go().empty());
  EXPECT(file->dec_ref(all).ok());
}

}  // namespace
}  // namespace pgalloc::session_test
