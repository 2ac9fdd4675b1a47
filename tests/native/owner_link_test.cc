// A connection to an owner, with a test as the owner.

#include "sharing/owner_link.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <thread>

#include "native/sharing.h"

namespace pgalloc::owner_link_test {
namespace {

using native_tests::descriptor_count;
using native_tests::FakeKernel;
using native_tests::pages;
using wire::Op;

constexpr auto kAnHour = std::chrono::hours(1);
constexpr size_t kHeadBytes = sizeof(wire::Header);
constexpr size_t kRangeBytes = sizeof(wire::Pages);

// Both ends of a connection.
class Ends {
 public:
  Ends() { EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends_.data()), 0); }
  ~Ends() { close(); }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;

  int peer() const { return ends_[0]; }  // the link's own
  void send(std::string_view packet) const {
    EXPECT_EQ(::send(ends_[1], packet.data(), packet.size(), 0),
              static_cast<ssize_t>(packet.size()));
  }
  void close() {
    if (ends_[1] >= 0) ::close(ends_[1]);
    ends_[1] = -1;
  }
  std::string receive() const {
    std::string packet(1 << 16, '\0');
    packet.resize(static_cast<size_t>(::recv(ends_[1], packet.data(), packet.size(), 0)));
    return packet;
  }
  // Whether there is nothing to receive.
  bool silent() const {
    char byte = 0;
    return ::recv(ends_[1], &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
  }
  int owner() const { return ends_[1]; }
  void hang_up() {
    ::close(ends_[1]);
    ends_[1] = -1;
  }
  // An answer, with a descriptor or without one.
  void send(const std::string& packet, int descriptor = -1) const {
    int error = 0;
    const Endpoint owner(::dup(ends_[1]));
    EXPECT_EQ(owner.send(packet, {}, descriptor, &error), Endpoint::Io::kDone);
  }
  template <class... Fields>
  void answer(uint32_t number, const Fields&... fields) const {
    send(wire::pack(0, number, fields...));
  }

 private:
  std::array<int, 2> ends_{-1, -1};
};

OwnerLink::Patience patient() {
  return {std::chrono::steady_clock::now() + kAnHour, [] { return true; }};
}
std::chrono::steady_clock::time_point in_an_hour() {
  return std::chrono::steady_clock::now() + kAnHour;
}
// The text of a good answer, in `out`.
OwnerLink::Exchange noting(std::string* out) {
  return {[out](OwnerLink::Reply& reply) { *out = reply.payload; }, [out] { *out = "undone"; }};
}

TEST(a_flush_ends_as_soon_as_all_is_on_its_way) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  for (uint64_t i = 0; i < 20; ++i) {
    link->give_back(7, pages(i, i + 1));
    EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
    const std::string packet = ends.receive();
    EXPECT_EQ(packet, wire::pack(static_cast<uint8_t>(wire::Op::kRelease), 0,
                                 wire::Pages{7, pages(i, i + 1)}));
  }
}

TEST(what_was_given_back_while_parked_is_sent_after_that) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  OwnerLink::park_all();
  link->give_back(7, pages(0, 1));
  link->give_back(7, pages(2, 4));
  EXPECT_EQ(native_tests::threads_of_process(), 1u);
  OwnerLink::resume_all();
  EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
  EXPECT_EQ(ends.receive().size(), kHeadBytes + 2 * kRangeBytes);
}

TEST(answers_that_were_sent_before_the_owners_end_arrive) {
  for (const bool unread : {false, true}) {
    Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    std::string got;
    const auto question = link->ask(wire::Op::kClaim, "an offer",
                                    {[&got](OwnerLink::Reply& reply) { got = reply.payload; }, {}});
    const auto other = link->ask(wire::Op::kPing, {}, {});
    (void)ends.receive();
    if (!unread) (void)ends.receive();
    ends.send(wire::pack(0, 1, std::string_view("pages")));
    ends.close();
    EXPECT(!link->has_hung_up());  // that comes behind the answer
    link->give_back(7, pages(0, 1));
    EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
    const OwnerLink::Patience patience{std::chrono::steady_clock::now() + kAnHour,
                                       [] { return true; }};
    EXPECT(link->await(question, patience).ok());
    EXPECT_EQ(got, "pages");
    EXPECT_EQ(link->await(other, patience).code(), ErrorCode::kOwnerGone);
    EXPECT(link->broken());
  }
}

TEST(answers_that_a_fork_keeps_back_arrive_after_the_owners_end) {
  Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const auto later = std::chrono::steady_clock::now() + kAnHour;
  EXPECT(link->hold_answers(later));
  const auto question = link->ask(wire::Op::kClaim, "an offer", {});
  const auto other = link->ask(wire::Op::kPing, {}, {});
  ends.send(wire::pack(0, 1));
  ends.close();
  std::thread asks([&] { EXPECT(link->await(question, {later, [] { return true; }}).ok()); });
  EXPECT_EQ(link->await(other, {later, [] { return true; }}).code(), ErrorCode::kOwnerGone);
  EXPECT(link->broken());
  link->let_answers_in();
  asks.join();
}

TEST(an_owner_that_has_gone_is_noticed_by_what_is_given_back) {
  Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  ends.close();
  EXPECT(link->has_hung_up());
  link->give_back(7, pages(0, 1));
  EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
  EXPECT(link->broken());
}

TEST(nothing_is_kept_for_an_owner_that_has_gone) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  link->break_off();
  link->give_back(7, pages(0, 1));
  EXPECT(link->broken());
  EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
}

// The link's own, if it has one.
bool other_threads_sleep() {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    const pid_t thread = std::stoi(task.path().filename());
    if (thread != ::getpid() && !native_tests::is_asleep(thread)) return false;
  }
  return true;
}

TEST(what_is_given_back_is_sent_though_nothing_else_is) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  for (uint64_t i = 0; i < 20; ++i) {
    link->give_back(7, pages(i, i + 1));
    EXPECT_EQ(ends.receive().size(), kHeadBytes + kRangeBytes);
    while (!other_threads_sleep()) std::this_thread::yield();
  }
}

TEST(requests_are_numbered_and_get_their_own_answers) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  std::string first;
  std::string second;
  ends.answer(2, std::string_view("second"));  // whatever the order
  ends.answer(3, std::string_view("to nothing"));
  ends.answer(1, std::string_view("first"));
  const auto one = link->ask(Op::kPing, "a", noting(&first));
  const auto other = link->ask(Op::kUsage, "b", noting(&second));
  EXPECT(link->await(one, patient()).ok());
  EXPECT(link->await(other, patient()).ok());
  EXPECT_EQ(first, "first");
  EXPECT_EQ(second, "second");
  EXPECT_EQ(ends.receive(), wire::pack(static_cast<uint8_t>(Op::kPing), 1, std::string_view("a")));
  EXPECT_EQ(ends.receive(), wire::pack(static_cast<uint8_t>(Op::kUsage), 2, std::string_view("b")));
}

TEST(a_refusal_reaches_its_asker_and_brings_nothing) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  std::string answer = "none";
  ends.send(wire::pack_error(1, Status::error(ErrorCode::kPermission, "no")));
  const Status status = link->request(Op::kPing, {}, noting(&answer), patient());
  EXPECT_EQ(status.code(), ErrorCode::kPermission);
  EXPECT_EQ(status.message(), "no");
  EXPECT_EQ(answer, "none");
  EXPECT(!link->broken());
}

TEST(long_payloads_go_in_parts) {
  constexpr size_t kPartMax = wire::kPacketBytesMax - kHeadBytes;
  for (const size_t size : {kPartMax, kPartMax + 1, 2 * kPartMax, 2 * kPartMax + 1}) {
    const Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    std::string payload(size, 'p');
    payload.front() = 'f';
    payload.back() = 'l';
    const auto question = link->ask(Op::kCache, payload, {});
    std::string got;
    size_t packets = 0;
    while (got.size() < size) {
      (void)link->flush(std::chrono::steady_clock::time_point::min());  // what there is room for
      const std::string bytes = ends.receive();
      const auto packet = wire::parse(bytes, nullptr);
      got += packet->payload;
      ++packets;
      const bool is_last = got.size() == size;
      EXPECT_EQ(packet->kind, static_cast<uint8_t>(is_last ? Op::kCache : Op::kPart));
      EXPECT_EQ(packet->number, is_last ? 1u : 0u);
    }
    EXPECT_EQ(got, payload);
    EXPECT_EQ(packets, (size + kPartMax - 1) / kPartMax);
  }
}

TEST(the_payload_of_a_request_is_limited) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const OwnerLink::Patience none{{}, [] { return true; }};
  const auto ask = [&](size_t size) {
    return link->request(Op::kCache, std::string(size, 'p'), {}, none).code();
  };
  EXPECT_EQ(ask(wire::kPayloadBytesMax + 1), ErrorCode::kSharing);
  EXPECT(ends.silent());
  EXPECT_EQ(ask(wire::kPayloadBytesMax), ErrorCode::kTimedOut);
}

// So many ranges of one page, none next to another, before anything can be sent.
void give_back(OwnerLink& link, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) link.give_back(7, pages(2 * i, 2 * i + 1));
}

TEST(what_is_given_back_goes_along_with_a_request) {
  for (const uint64_t count : {1, 2, 127, 128, 129, 257}) {
    const Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    OwnerLink::park_all();
    give_back(*link, count);
    const auto question = link->ask(Op::kPing, "payload", {});
    uint64_t page = 0;
    for (bool asked = false; !asked;) {
      const std::string bytes = ends.receive();
      const auto packet = wire::parse(bytes, nullptr);
      asked = packet->kind == static_cast<uint8_t>(Op::kPing);
      const size_t ranges = asked ? packet->released : packet->payload.size();
      EXPECT_EQ(packet->released, asked ? ranges : 0);
      EXPECT(ranges <= 128 * kRangeBytes);
      EXPECT(asked || ranges == 128 * kRangeBytes);
      wire::Reader reader(packet->payload);
      for (size_t i = 0; i < ranges / kRangeBytes; ++i) {
        wire::Pages its;
        EXPECT(reader.read(its));
        EXPECT_EQ(its.range, pages(2 * page, 2 * page + 1));
        ++page;
      }
      EXPECT_EQ(reader.left(), asked ? "payload" : "");
    }
    EXPECT_EQ(page, count);
    EXPECT(ends.silent());
    OwnerLink::resume_all();
  }
}

TEST(a_request_that_leaves_no_room_goes_by_itself) {
  constexpr size_t kPayloadMax = wire::kPacketBytesMax - kHeadBytes;
  for (const size_t room : {2 * kRangeBytes - 1, 2 * kRangeBytes}) {
    const Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    OwnerLink::park_all();
    give_back(*link, 2);
    const std::string payload(kPayloadMax - room, 'p');
    const auto question = link->ask(Op::kCache, payload, {});
    const std::string first = ends.receive();
    if (room < 2 * kRangeBytes) {
      EXPECT_EQ(wire::parse(first, nullptr)->kind, static_cast<uint8_t>(Op::kRelease));
      EXPECT_EQ(ends.receive().size(), kHeadBytes + payload.size());
    } else {
      EXPECT_EQ(first.size(), wire::kPacketBytesMax);
    }
    EXPECT(ends.silent());
    OwnerLink::resume_all();
  }
}

TEST(nothing_goes_along_with_parts_and_greetings) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  OwnerLink::park_all();
  give_back(*link, 1);
  const auto value = link->ask(Op::kCache, std::string(wire::kPacketBytesMax, 'p'), {});
  for (const auto op : {Op::kRelease, Op::kPart, Op::kCache}) {
    const std::string bytes = ends.receive();
    const auto packet = wire::parse(bytes, nullptr);
    EXPECT_EQ(packet->kind, static_cast<uint8_t>(op));
    EXPECT_EQ(packet->released, 0u);
  }
  give_back(*link, 1);
  EXPECT(link->introduce());
  for (const auto op : {Op::kRelease, Op::kHello}) {
    const std::string bytes = ends.receive();
    EXPECT_EQ(wire::parse(bytes, nullptr)->kind, static_cast<uint8_t>(op));
  }
  OwnerLink::resume_all();
}

TEST(a_link_that_is_to_end_does_so_when_late_answers_are_here_and_what_they_brought_is_back) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const OwnerLink::Exchange exchange{[](OwnerLink::Reply&) {}, [&] { give_back(*link, 1); }};
  const OwnerLink::Patience none{{}, [] { return true; }};
  EXPECT_EQ(link->request(Op::kPing, {}, exchange, none).code(), ErrorCode::kTimedOut);
  link->break_off_when_settled();
  EXPECT_EQ(wire::parse(ends.receive(), nullptr)->kind, static_cast<uint8_t>(Op::kPing));
  EXPECT(!link->broken());
  ends.answer(1);
  EXPECT_EQ(wire::parse(ends.receive(), nullptr)->kind, static_cast<uint8_t>(Op::kRelease));
  while (!link->broken()) std::this_thread::yield();
  link->break_off_when_settled();  // harmless
}

TEST(who_does_not_wait_any_more_has_what_comes_undone) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  std::atomic<int> arrived{0};
  std::atomic<int> undone{0};
  const OwnerLink::Exchange exchange{[&](OwnerLink::Reply&) { ++arrived; }, [&] { ++undone; }};
  const OwnerLink::Patience none{{}, [] { return true; }};
  EXPECT_EQ(link->request(Op::kPing, {}, exchange, none).code(), ErrorCode::kTimedOut);
  int waits = 3;
  const OwnerLink::Patience some{in_an_hour(), [&] { return --waits > 0; }};
  EXPECT_EQ(link->request(Op::kPing, {}, exchange, some).code(), ErrorCode::kInterrupted);
  EXPECT_EQ(waits, 0);
  link->post(Op::kPing, {}, exchange);
  for (int i = 0; i < 3; ++i) (void)ends.receive();
  ends.send(wire::pack_error(1, Status::error(ErrorCode::kRange, "no")));  // brings nothing
  ends.answer(2);
  ends.answer(3);
  while (undone < 2) std::this_thread::yield();
  EXPECT_EQ(arrived, 2);
  std::string answer;
  std::thread asks([&] { EXPECT(link->request(Op::kPing, {}, noting(&answer), patient()).ok()); });
  (void)ends.receive();
  ends.answer(4, std::string_view("wanted"));
  asks.join();
  EXPECT_EQ(answer, "wanted");
  EXPECT_EQ(undone, 2);
}

TEST(an_answer_that_lies_there_is_not_late) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  ends.answer(9);  // to nothing
  ends.answer(1, std::string_view("here"));
  std::string answer;
  const OwnerLink::Patience none{{}, [] { return true; }};
  EXPECT(link->request(Op::kPing, {}, noting(&answer), none).ok());
  EXPECT_EQ(answer, "here");
}

TEST(descriptors_that_no_one_takes_are_closed) {
  Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const size_t before = descriptor_count();
  std::string answer;
  ends.send(wire::pack(0, 9), ends.owner());  // to nothing
  ends.send(wire::pack(0, 1), ends.owner());
  EXPECT(link->request(Op::kPing, {}, noting(&answer), patient()).ok());
  EXPECT_EQ(descriptor_count(), before);
  int taken = -1;
  ends.send(wire::pack(0, 2), ends.owner());
  const auto take = [&](OwnerLink::Reply& reply) { taken = std::exchange(reply.descriptor, -1); };
  EXPECT(link->request(Op::kPing, {}, {take, {}}, patient()).ok());
  EXPECT_EQ(descriptor_count(), before + 1);
  EXPECT(::fcntl(taken, F_GETFD) & FD_CLOEXEC);
  ::close(taken);
}

TEST(an_owner_that_breaks_the_protocol_has_gone) {
  for (const std::string& packet :
       {std::string("x"), std::string(8, '\xff'), std::string(wire::kPacketBytesMax + 1, '\1'),
        std::string(wire::kPacketBytesMax + 2, '\1')}) {
    const Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    ends.send(packet);
    const Status status = link->request(Op::kPing, {}, {}, patient());
    EXPECT_EQ(status.code(), ErrorCode::kOwnerGone);
    EXPECT(status.message().ends_with("it does not keep to the protocol"));
    EXPECT(link->broken());
    EXPECT(link->request(Op::kPing, {}, {}, patient()).code() == ErrorCode::kOwnerGone);
    EXPECT(link->ask(Op::kPing, {}, {}) == nullptr);
    link->post(Op::kPing, {}, {});
    EXPECT(::fcntl(ends.peer(), F_GETFD) < 0);
  }
}

TEST(all_who_wait_learn_that_the_owner_has_gone) {
  Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  EXPECT(!link->has_hung_up());
  const auto one = link->ask(Op::kPing, {}, {});
  const auto other = link->ask(Op::kPing, {}, {});
  ends.hang_up();
  EXPECT(!link->has_hung_up());  // their answers may lie there
  EXPECT(!link->broken());
  EXPECT_EQ(link->await(one, patient()).code(), ErrorCode::kOwnerGone);
  EXPECT(link->broken());
  EXPECT_EQ(link->await(other, patient()).code(), ErrorCode::kOwnerGone);
  EXPECT(link->has_hung_up());
}

TEST(a_descriptor_that_was_closed_from_outside_ends_the_link) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  ::close(ends.peer());
  EXPECT(link->has_hung_up());
  const Status status = link->request(Op::kPing, {}, {}, patient());
  EXPECT(status.message().ends_with("the descriptor of the connection was closed"));
}

TEST(a_link_that_goes_tells_the_owner_what_was_given_back) {
  const Ends ends;
  auto link = std::move(*OwnerLink::create(ends.peer()));
  link->give_back(7, pages(0, 1));
  link = nullptr;
  EXPECT_EQ(ends.receive().size(), kHeadBytes + kRangeBytes);
  EXPECT_EQ(ends.receive(), "");
  EXPECT(::fcntl(ends.peer(), F_GETFD) < 0);
}

size_t listed_links() {
  MutexLock lock(OwnerLink::listed_lock());
  size_t count = 0;
  OwnerLink::visit_listed([&](OwnerLink&) { ++count; });
  return count;
}

TEST(a_link_whose_last_owner_is_what_it_waits_for_ends_itself) {
  const Ends ends;
  const size_t listed = listed_links();
  auto link = std::move(*OwnerLink::create(ends.peer()));
  std::atomic<bool> arrived{false};
  link->post(Op::kPing, {}, {[keeps = link, &arrived](OwnerLink::Reply&) { arrived = true; }, {}});
  (void)ends.receive();
  const std::weak_ptr<OwnerLink> left = link;
  link = nullptr;
  EXPECT(!left.expired());
  native_tests::keep_freed_memory();
  ends.answer(1);
  EXPECT_EQ(ends.receive(), "");  // its own thread has hung up
  EXPECT(arrived);
  EXPECT(left.expired());
  while (native_tests::threads_of_process() > 1) std::this_thread::yield();
  EXPECT_EQ(listed_links(), listed);  // or a fork would visit it
  EXPECT(native_tests::freed_memory_is_untouched());
  EXPECT(::fcntl(ends.peer(), F_GETFD) < 0);
}

TEST(what_a_late_answer_brings_is_given_back_though_all_else_has_let_go_of_the_link) {
  const Ends ends;
  auto link = std::move(*OwnerLink::create(ends.peer()));
  auto give_back = [keeps = link] { keeps->give_back(7, pages(0, 1)); };
  const Status status =
      link->request(Op::kAllocate, {}, {[](OwnerLink::Reply&) {}, std::move(give_back)},
                    {std::chrono::steady_clock::now(), [] { return true; }});
  EXPECT_EQ(status.code(), ErrorCode::kTimedOut);
  EXPECT(link->awaits_answers());
  (void)ends.receive();
  link = nullptr;
  ends.answer(1);
  EXPECT_EQ(ends.receive().size(), kHeadBytes + kRangeBytes);
  EXPECT_EQ(ends.receive(), "");
}

TEST(what_an_owner_does_not_take_yet_is_sent_though_all_have_let_go_of_the_link) {
  const Ends ends;
  const size_t listed = listed_links();
  auto link = std::move(*OwnerLink::create(ends.peer()));
  constexpr int kMany = 20'000;  // more than a socket takes
  for (uint64_t i = 0; i < kMany; ++i) link->give_back(7, pages(2 * i, 2 * i + 1));
  link = nullptr;
  size_t received = 0;
  for (std::string packet; (packet = ends.receive()) != "";) {
    received += (packet.size() - kHeadBytes) / kRangeBytes;
  }
  EXPECT_EQ(received, size_t{kMany});
  while (native_tests::threads_of_process() > 1) std::this_thread::yield();
  EXPECT_EQ(listed_links(), listed);
}

TEST(a_link_of_a_copy_leaves_the_socket_to_its_owner) {
  const Ends ends;
  const size_t before = descriptor_count();
  auto link = std::move(*OwnerLink::duplicate(ends.peer()));
  EXPECT_EQ(descriptor_count(), before + 2);  // and that of the owner's process
  link = nullptr;
  EXPECT_EQ(descriptor_count(), before);
  EXPECT(::fcntl(ends.peer(), F_GETFD) >= 0);
  EXPECT_EQ(OwnerLink::duplicate(-1).status().error_number(), EBADF);
  ::close(ends.peer());
}

TEST(each_link_has_a_number_an_owner_and_a_patience) {
  const Ends ends;
  const Ends others;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const auto other = std::move(*OwnerLink::create(others.peer()));
  EXPECT(link->number() != other->number());
  EXPECT_EQ(link->usual_patience(), std::chrono::nanoseconds(std::chrono::seconds(60)));
  link->set_usual_patience(std::chrono::seconds(5));
  EXPECT_EQ(link->usual_patience(), std::chrono::nanoseconds(std::chrono::seconds(5)));
  EXPECT_EQ(link->owner().pid, 0);
  link->set_owner({5, "name", "path", {1}, 6});
  EXPECT_EQ(link->owner().pid, 5);
  EXPECT_EQ(link->owner().name, "name");
  EXPECT_EQ(link->owner().path, "path");
  EXPECT_EQ(link->owner().uid, 6u);
  EXPECT_EQ(OwnerLink::all().size(), 2u);
  other->break_off();
  EXPECT_EQ(OwnerLink::all().size(), 1u);
}

TEST(loose_leases_are_known_until_they_are_some_files) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const wire::Pages first{1, pages(0, 2)};
  const wire::Pages second{1, pages(4, 6)};
  for (const auto& each : {first, second, first}) link->note_loose(each);
  link->forget_loose({2, pages(0, 2)});
  link->forget_loose({1, pages(0, 1)});
  link->forget_loose({1, pages(1, 2)});
  EXPECT_EQ(link->loose_leases().size(), 3u);
  link->forget_loose(first);
  EXPECT_EQ(link->loose_leases().size(), 2u);
  EXPECT_EQ(link->loose_leases()[0].range, second.range);
  link->forget_loose(first);
  link->forget_loose(first);
  EXPECT_EQ(link->loose_leases().size(), 1u);
}

// --- For forks -----------------------------------------------------------------------------------

TEST(answers_are_kept_back_while_a_fork_goes_on) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  std::string answer = "none";
  std::string forked = "none";
  EXPECT(link->hold_answers(std::chrono::steady_clock::time_point::min()));
  ends.answer(1, std::string_view("lease"));
  ends.answer(2, std::string_view("child"));
  const auto question = link->ask(Op::kClaim, {}, noting(&answer));
  const auto fork = link->ask(Op::kFork, {}, noting(&forked));
  EXPECT(link->await(fork, patient()).ok());
  EXPECT_EQ(forked, "child");
  EXPECT_EQ(answer, "none");
  link->let_answers_in();
  EXPECT_EQ(answer, "lease");
  EXPECT(link->await(question, patient()).ok());
  ends.answer(3, std::string_view("later"));
  EXPECT(link->request(Op::kClaim, {}, noting(&answer), patient()).ok());
  EXPECT_EQ(answer, "later");
}

TEST(a_fork_does_not_begin_while_a_lease_arrives) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  std::atomic<bool> arrives{false};
  std::atomic<bool> goes_on{false};
  const auto arrived = [&](OwnerLink::Reply&) {
    arrives = true;
    while (!goes_on) std::this_thread::yield();
  };
  ends.answer(1);
  std::thread asks([&] { EXPECT(link->request(Op::kClaim, {}, {arrived, {}}, patient()).ok()); });
  while (!arrives) std::this_thread::yield();
  EXPECT(!link->hold_answers(std::chrono::steady_clock::time_point::min()));
  goes_on = true;
  EXPECT(link->hold_answers(in_an_hour()));
  link->let_answers_in();
  asks.join();
}

TEST(a_child_gets_a_connection_where_there_are_files) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  EXPECT(!link->ask_for_child());
  link->begin_file();
  link->begin_file();
  link->end_file();
  const auto soon = std::chrono::steady_clock::now();
  for (const bool comes : {true, false}) {
    const auto asked = link->ask_for_child();
    if (!EXPECT(asked.has_value())) return;
    const std::string bytes = ends.receive();
    const auto packet = wire::parse(bytes, nullptr);
    EXPECT_EQ(packet->kind, static_cast<uint8_t>(Op::kFork));
    if (comes) {
      ends.send(wire::pack(0, packet->number), ends.owner());
    } else {
      ends.send(wire::pack_error(packet->number, Status::error(ErrorCode::kSharing, "no")));
    }
    EXPECT_EQ(link->await_child(*asked, soon).open(), comes);  // it is there already
  }
  link->end_file();
  EXPECT(!link->ask_for_child());
  link->begin_file();
  link->break_off();
  EXPECT(!link->ask_for_child());
}

int refusals = 0;
ssize_t sendmsg_refused(int fd, const msghdr* message, int flags) {
  return refusals-- > 0 ? (errno = ENOBUFS, -1) : os::kernel().sendmsg(fd, message, flags);
}

TEST(a_child_says_who_it_is) {
  for (const int times : {0, 19, 20}) {
    const Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    OwnerLink::park_all();
    FakeKernel kernel;
    kernel.calls.sendmsg = sendmsg_refused;
    refusals = times;
    kernel.begin();
    EXPECT_EQ(link->introduce(), times < 20);
    if (times < 20) {
      EXPECT_EQ(ends.receive(), wire::pack(static_cast<uint8_t>(Op::kHello), 0,
                                           static_cast<uint32_t>(::getpid()), wire::Secret{}));
    } else {
      EXPECT(ends.silent());
    }
    OwnerLink::resume_all();
    link->break_off();  // by an owner that lives
    EXPECT(!link->introduce());
  }
}

TEST(what_is_this_processs_own_stays_open) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  link->leave_to_parent();
  EXPECT(::fcntl(ends.peer(), F_GETFD) >= 0);
  EXPECT(link->flush(in_an_hour()));
}

ssize_t sendmsg_full(int, const msghdr*, int) { return errno = EAGAIN, -1; }

TEST(a_flush_ends_at_its_deadline_while_the_owner_does_not_read) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_full;
  kernel.begin();
  link->give_back(7, pages(0, 1));
  EXPECT(!link->flush(std::chrono::steady_clock::time_point::min()));
  os::use(os::kernel());
  EXPECT(link->flush(in_an_hour()));
  EXPECT_EQ(ends.receive().size(), kHeadBytes + kRangeBytes);
}

}  // namespace
}  // namespace pgalloc::owner_link_test
