// One peer's packets, parts and answers, without the broker.

#include "sharing/channel.h"

#include <errno.h>
#include <sys/epoll.h>

#include <optional>

#include "native/memory.h"
#include "native/sharing.h"

namespace pgalloc::channel_test {
namespace {

using native_tests::allocations_left;
using native_tests::Client;
using native_tests::FakeKernel;
using Read = Channel::Read;
using wire::Op;
using namespace std::chrono_literals;

const SteadyTime kNow = std::chrono::steady_clock::now();
constexpr size_t kPayloadMax = wire::kPacketBytesMax - sizeof(wire::Header);

std::string packet(Op op, uint32_t number, std::string_view payload = {}) {
  return wire::pack(static_cast<uint8_t>(op), number, payload);
}
// With pages that are given back first.
std::string packet_with(Op op, uint16_t released, std::string_view payload) {
  std::string bytes;
  wire::append(bytes, wire::kVersion, static_cast<uint8_t>(op), released, uint32_t{1}, payload);
  return bytes;
}

struct Scene {
  explicit Scene(bool greeted = true, Scope scope = {}, pid_t pid = 1) {
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    Endpoint socket(pair[0]);
    EXPECT(socket.name_senders());
    auto session = std::make_unique<Session>(1, offers, std::move(scope), pid, ::getuid());
    channel.emplace(std::move(socket), std::move(session), greeted, kNow);
    client.emplace(pair[1]);
  }
  Read read() {
    Channel::make_spare(&spare);
    return channel->read(&spare, kNow);
  }
  Read read(std::string_view bytes) {
    EXPECT(client->send(bytes));
    return read();
  }
  // The next request is done.
  bool answer(Answer answer) {
    return channel->answer(channel->requests().begin(), std::move(answer), kNow);
  }

  Offers offers;
  Channel::Requests spare;
  std::optional<Channel> channel;
  std::optional<Client> client;
};

int refused = 0;
int sends = 0;
ssize_t sendmsg_refused(int, const msghdr*, int) { return ++sends, errno = refused, -1; }
ssize_t recvmsg_refused(int, msghdr*, int) { return errno = refused, -1; }

TEST(a_packet_becomes_a_request) {
  Scene scene;
  EXPECT_EQ(scene.read(), Read::kNothing);
  EXPECT_EQ(scene.read(packet(Op::kUsage, 5, "payload")), Read::kRequest);
  EXPECT_EQ(scene.read(packet(Op::kPing, 6)), Read::kRequest);
  EXPECT_EQ(scene.channel->requests().size(), 2u);
  const Request& first = scene.channel->requests().front();
  EXPECT_EQ(first.op, Op::kUsage);
  EXPECT_EQ(first.number, 5u);
  EXPECT_EQ(first.payload, "payload");
  EXPECT_EQ(first.released, 0u);
  EXPECT_EQ(first.progress, 0u);
  EXPECT(!first.waits);
  EXPECT_EQ(scene.channel->requests().back().number, 6u);
  EXPECT_EQ(scene.channel->not_before(), SteadyTime{});
  scene.client->close();
  EXPECT_EQ(scene.read(), Read::kEnded);
}

TEST(the_first_packet_says_who_a_peer_is_whose_process_is_not_known) {
  Scene unknown(true, {}, 0);
  EXPECT_EQ(unknown.read(packet(Op::kPing, 1)), Read::kRequest);
  EXPECT_EQ(unknown.channel->session().pid, ::getpid());
  Scene known(true, {}, 7);
  EXPECT_EQ(known.read(packet(Op::kPing, 1)), Read::kRequest);
  EXPECT_EQ(known.channel->session().pid, 7);
}

TEST(a_packet_has_64_kib_at_most) {
  Scene scene;
  const std::string longest(kPayloadMax, 'x');
  EXPECT_EQ(scene.read(packet(Op::kCache, 1, longest)), Read::kRequest);
  EXPECT_EQ(scene.channel->requests().back().payload, longest);
  EXPECT_EQ(scene.read(packet(Op::kCache, 1, longest + "x")), Read::kMalformed);
  EXPECT_EQ(scene.channel->requests().size(), 1u);
}

TEST(pages_that_come_along_are_counted) {
  const std::string two(2 * sizeof(wire::Pages), 'p');
  Scene scene;
  EXPECT_EQ(scene.read(packet_with(Op::kPing, 2, two)), Read::kRequest);
  EXPECT_EQ(scene.channel->requests().back().released, two.size());
  EXPECT_EQ(scene.channel->requests().back().payload, two);
  EXPECT_EQ(scene.read(packet_with(Op::kPing, 3, two)), Read::kMalformed);
  Scene stranger(false);
  EXPECT_EQ(stranger.read(packet_with(Op::kPing, 2, two)), Read::kMalformed);
}

TEST(parts_come_before_the_payload_that_they_begin) {
  Scene scene;
  EXPECT_EQ(scene.read(packet(Op::kPart, 0, "ab")), Read::kNothing);
  EXPECT_EQ(scene.read(packet(Op::kPart, 0, "cd")), Read::kNothing);
  EXPECT(scene.channel->requests().empty());
  EXPECT_EQ(scene.read(packet(Op::kCache, 1, "ef")), Read::kRequest);
  EXPECT_EQ(scene.read(packet(Op::kCache, 2, "gh")), Read::kRequest);
  EXPECT_EQ(scene.channel->requests().front().payload, "abcdef");
  EXPECT_EQ(scene.channel->requests().back().payload, "gh");
}

TEST(parts_bring_no_pages_and_come_from_who_has_greeted) {
  const std::string pages(sizeof(wire::Pages), 'p');
  Scene scene;
  EXPECT_EQ(scene.read(packet_with(Op::kPart, 1, pages)), Read::kMalformed);
  Scene begun;
  EXPECT_EQ(begun.read(packet(Op::kPart, 0, "ab")), Read::kNothing);
  EXPECT_EQ(begun.read(packet_with(Op::kCache, 1, pages)), Read::kMalformed);
  Scene stranger(false);
  EXPECT_EQ(stranger.read(packet(Op::kPart, 0, "ab")), Read::kMalformed);
}

TEST(the_parts_of_a_payload_are_limited) {
  const std::string longest(kPayloadMax, 'x');
  const size_t left = wire::kPayloadBytesMax % kPayloadMax;
  for (const bool too_long : {false, true}) {
    Scene scene;
    for (size_t i = 0; i < wire::kPayloadBytesMax / kPayloadMax; ++i) {
      EXPECT_EQ(scene.read(packet(Op::kPart, 0, longest)), Read::kNothing);
    }
    const auto last = scene.read(packet(Op::kPart, 0, std::string(left + too_long, 'y')));
    EXPECT_EQ(last, too_long ? Read::kMalformed : Read::kNothing);
    if (too_long) continue;
    EXPECT_EQ(scene.read(packet(Op::kCache, 1)), Read::kRequest);
    EXPECT_EQ(scene.channel->requests().front().payload.size(), wire::kPayloadBytesMax);
  }
}

TEST(a_kernel_that_is_short_of_something_is_asked_a_moment_later) {
  Scene scene;
  FakeKernel kernel;
  kernel.calls.recvmsg = recvmsg_refused;
  kernel.begin();
  refused = ENOMEM;
  EXPECT_EQ(scene.read(), Read::kNothing);
  EXPECT_EQ(scene.channel->not_before(), kNow + 2ms);
}

TEST(no_packet_is_lost_when_memory_runs_out) {
  const std::string payload(1000, 'p');
  int failed = 0;
  for (int64_t number = 0;; ++number) {
    Scene scene;
    EXPECT(scene.client->send(packet_with(Op::kCache, 1, payload)));
    Channel::make_spare(&scene.spare);
    allocations_left = number;
    const Read read = scene.channel->read(&scene.spare, kNow);
    const bool all = allocations_left >= 0;
    allocations_left = -1;
    EXPECT_EQ(read, Read::kRequest);
    EXPECT_EQ(scene.channel->requests().front().payload, payload);
    EXPECT_EQ(scene.channel->requests().front().op, Op::kCache);
    EXPECT_EQ(scene.channel->requests().front().number, 1u);
    EXPECT_EQ(scene.channel->requests().front().released, sizeof(wire::Pages));
    EXPECT_EQ(scene.spare.empty(), !all);
    if (all) break;
    ++failed;
  }
  EXPECT(failed > 1);
}

TEST(not_more_is_read_than_two_requests_may_be_long) {
  Scene scene;
  const std::string longest(kPayloadMax, 'x');
  const size_t each = wire::kPayloadBytesMax / 2 / kPayloadMax + 1;
  for (uint32_t number = 1; number <= 2; ++number) {
    EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLIN});
    for (size_t i = 1; i < each; ++i) {
      EXPECT_EQ(scene.read(packet(Op::kPart, 0, longest)), Read::kNothing);
    }
    EXPECT_EQ(scene.read(packet(Op::kCache, number, longest)), Read::kRequest);
  }
  EXPECT_EQ(scene.channel->wanted_events(), 0u);
  EXPECT(scene.answer({}));
  EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLIN});
}

TEST(parts_without_memory_end_the_connection) {
  Scene scene;
  const std::string payload(1000, 'p');
  Channel::make_spare(&scene.spare);
  EXPECT(scene.client->send(packet(Op::kPart, 0, payload)));
  native_tests::all_fail = true;
  const Read part = scene.channel->read(&scene.spare, kNow);
  native_tests::all_fail = false;
  EXPECT_EQ(part, Read::kMalformed);
  EXPECT_EQ(scene.read(packet(Op::kPart, 0, payload)), Read::kNothing);
  EXPECT(scene.client->send(packet(Op::kCache, 1)));
  native_tests::all_fail = true;
  const Read request = scene.channel->read(&scene.spare, kNow);
  native_tests::all_fail = false;
  EXPECT_EQ(request, Read::kMalformed);
}

TEST(a_spare_is_made_once) {
  Channel::Requests spare;
  Channel::make_spare(&spare);
  Channel::make_spare(&spare);
  EXPECT_EQ(spare.size(), 1u);
  EXPECT_EQ(spare.front().payload.size(), wire::kPacketBytesMax + 1);
}

TEST(a_request_is_answered_if_it_asks_for_that) {
  Scene scene;
  EXPECT_EQ(scene.read(packet(Op::kPing, 9)), Read::kRequest);
  EXPECT_EQ(scene.read(packet(Op::kPing, 0)), Read::kRequest);
  EXPECT(scene.answer({.payload = "done"}));
  EXPECT_EQ(*scene.client->receive(), (std::pair<uint8_t, std::string>(0, "done")));
  EXPECT(scene.answer({.payload = "unheard"}));
  EXPECT(!scene.client->receive());
  EXPECT(scene.channel->requests().empty());
  EXPECT_EQ(scene.channel->kept_count(), 0u);
  EXPECT_EQ(scene.read(packet(Op::kPing, 10)), Read::kRequest);
  EXPECT(scene.answer({.status = Status::error(ErrorCode::kRange, "no"), .payload = "ignored"}));
  const auto error = scene.client->receive();
  EXPECT_EQ(wire::unpack_error(error->first, error->second).message(), "no");
}

TEST(answers_that_are_not_read_are_kept_in_order) {
  Scene scene;
  for (uint32_t number = 1; number <= 3; ++number) (void)scene.read(packet(Op::kPing, number));
  EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLIN});
  FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_refused;
  kernel.begin();
  refused = EAGAIN;
  for (const char* const text : {"first", "second", "third"}) {
    EXPECT(scene.answer({.payload = text}));
  }
  EXPECT_EQ(sends, 1);  // behind one that is kept, none is tried
  EXPECT_EQ(scene.channel->kept_count(), 3u);
  EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLOUT});
  EXPECT_EQ(scene.channel->not_before(), SteadyTime{});
  os::use(os::kernel());
  EXPECT(scene.channel->send_kept(kNow));
  for (const char* const text : {"first", "second", "third"}) {
    EXPECT_EQ(scene.client->receive()->second, text);
  }
  EXPECT_EQ(scene.channel->kept_count(), 0u);
  EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLIN});
}

TEST(a_peer_that_has_gone_is_seen_when_it_is_answered) {
  Scene scene;
  EXPECT_EQ(scene.read(packet(Op::kPing, 1)), Read::kRequest);
  scene.client->close();
  EXPECT(!scene.answer({}));
  Scene lost;
  EXPECT_EQ(lost.read(packet(Op::kPing, 1)), Read::kRequest);
  ::close(lost.channel->socket().fd());
  EXPECT(!lost.answer({}));
}

TEST(a_descriptor_that_is_refused_again_and_again_costs_its_request) {
  for (const int refusals : {5000, 5001}) {
    Scene scene;
    EXPECT_EQ(scene.read(packet(Op::kOpen, 1)), Read::kRequest);
    FakeKernel kernel;
    kernel.calls.sendmsg = sendmsg_refused;
    kernel.begin();
    refused = ETOOMANYREFS;
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    const os::Descriptor other(pair[1]);
    EXPECT(scene.answer({.payload = "here", .descriptor = os::Descriptor(pair[0])}));
    EXPECT_EQ(scene.channel->not_before(), kNow + 2ms);
    for (int i = 1; i < refusals; ++i) EXPECT(scene.channel->send_kept(kNow + 5s));
    EXPECT_EQ(scene.channel->not_before(), kNow + 5s + 2ms);
    os::use(os::kernel());
    EXPECT(scene.channel->send_kept(kNow));
    const auto answer = scene.client->receive();
    EXPECT_EQ(scene.client->descriptors, refusals == 5000 ? 1 : 0);
    if (refusals == 5000) {
      EXPECT_EQ(*answer, (std::pair<uint8_t, std::string>(0, "here")));
    } else {
      EXPECT_EQ(wire::unpack_error(answer->first, answer->second).error_number(), ETOOMANYREFS);
    }
  }
}

// The answer to the next request, which the kernel refuses to send for ten seconds, and then not.
std::optional<std::pair<uint8_t, std::string>> answer_too_late(Scene& scene) {
  const auto request = scene.channel->requests().begin();
  std::optional<Answer> answer = scene.channel->session().step(*request);
  EXPECT(answer && answer->status.ok());
  FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_refused;
  kernel.begin();
  refused = ENOBUFS;
  EXPECT(scene.channel->answer(request, std::move(*answer), kNow));
  for (int i = 0; i < 5001; ++i) EXPECT(scene.channel->send_kept(kNow));
  os::use(os::kernel());
  EXPECT(scene.channel->send_kept(kNow));
  return scene.client->receive();
}
int error_of(const std::pair<uint8_t, std::string>& answer) {
  return answer.first == 0 ? 0 : wire::unpack_error(answer.first, answer.second).error_number();
}

TEST(what_an_answer_brings_that_cannot_be_sent_is_taken_back) {
  const auto file = native_tests::make_file();
  {
    Scene scene(true, {.file = file});
    Session& session = scene.channel->session();
    EXPECT_EQ(scene.read(wire::pack(static_cast<uint8_t>(Op::kAllocate), 1, file->id(), page_size(),
                                    uint8_t{1}, uint8_t{0}, uint32_t{0}, uint8_t{0})),
              Read::kRequest);
    EXPECT_EQ(error_of(*answer_too_late(scene)), ENOBUFS);
    EXPECT_EQ(session.bytes_of(file->id()), page_size());  // for a moment
    EXPECT_EQ(scene.channel->requests().size(), 1u);
    Request& undo = scene.channel->requests().front();
    EXPECT(session.step(undo)->status.ok());
    EXPECT(scene.answer({}));  // no one waits for that
    EXPECT(!scene.client->receive().has_value());
    EXPECT(session.holds_nothing());
    EXPECT(scene.channel->requests().empty());

    // What was sent by another process.
    const FileRange range = native_tests::take_pages(*file, 1);
    EXPECT(file->references().begin_lease(range).ok());
    const auto secret = *scene.offers.add(Offer::now(file, range, 0, 1, 1));
    EXPECT_EQ(scene.read(wire::pack(static_cast<uint8_t>(Op::kClaim), 2, secret)), Read::kRequest);
    EXPECT_EQ(error_of(*answer_too_late(scene)), 0);  // without its descriptor
    EXPECT_EQ(session.bytes_of(file->id()), page_size());

    // What the peer sends.
    EXPECT_EQ(
        scene.read(wire::pack(static_cast<uint8_t>(Op::kOffer), 3, wire::Pages{file->id(), range})),
        Read::kRequest);
    EXPECT_EQ(error_of(*answer_too_late(scene)), ENOBUFS);
    EXPECT(scene.offers.empty());
    scene.offers.drop_some(1);
    EXPECT(scene.channel->requests().empty());

    // Owner and peer have to agree on these.
    for (const Op op : {Op::kUnpin, Op::kPin}) {
      EXPECT_EQ(scene.read(wire::pack(static_cast<uint8_t>(op), 4, wire::Pages{file->id(), range})),
                Read::kRequest);
      EXPECT_EQ(*answer_too_late(scene), (std::pair<uint8_t, std::string>(0, "\1")));
    }
    EXPECT_EQ(session.bytes_of(file->id()), page_size());
  }
  for (const auto& segment : file->segments()) EXPECT_EQ(segment.use.refs, 0u);
}

TEST(a_descriptor_that_was_closed_from_outside_costs_its_request) {
  Scene scene;
  EXPECT_EQ(scene.read(packet(Op::kOpen, 1)), Read::kRequest);
  int pair[2];
  EXPECT_EQ(os::kernel().socketpair(pair), 0);
  os::Descriptor descriptor(pair[0]);
  ::close(pair[0]);
  EXPECT(scene.answer({.payload = "here", .descriptor = std::move(descriptor)}));
  const auto answer = scene.client->receive();
  EXPECT_EQ(wire::unpack_error(answer->first, answer->second).error_number(), EBADF);
  ::close(pair[1]);
}

TEST(a_peer_that_does_not_read_has_few_descriptors_on_their_way) {
  Scene scene;
  const auto give = [&](uint32_t number) {
    EXPECT_EQ(scene.read(packet(Op::kOpen, number)), Read::kRequest);
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    ::close(pair[1]);
    EXPECT(scene.answer({.descriptor = os::Descriptor(pair[0])}));
  };
  for (uint32_t number = 1; number <= 4; ++number) give(number);
  EXPECT_EQ(scene.channel->kept_count(), 0u);
  give(5);
  EXPECT_EQ(scene.channel->kept_count(), 1u);
  EXPECT(scene.channel->not_before() > kNow);
  // Not while a single answer is unread.
  for (int i = 0; i < 3; ++i) EXPECT(scene.client->receive().has_value());
  EXPECT(scene.channel->send_kept(kNow));
  EXPECT_EQ(scene.channel->kept_count(), 1u);
  EXPECT(scene.client->receive().has_value());
  EXPECT(scene.channel->send_kept(kNow));
  EXPECT_EQ(scene.channel->kept_count(), 0u);
  for (uint32_t number = 6; number <= 8; ++number) give(number);  // 5 to 8 are four again
  EXPECT_EQ(scene.channel->kept_count(), 0u);
  give(9);
  EXPECT_EQ(scene.channel->kept_count(), 1u);
  // Nothing is known of what is unread: it is asked again.
  for (int i = 0; i < 4; ++i) EXPECT(scene.client->receive().has_value());
  FakeKernel fake;
  fake.calls.unread_bytes = [](int) { return errno = ENOMEM, -1; };
  fake.begin();
  EXPECT(scene.channel->send_kept(kNow));
  EXPECT_EQ(scene.channel->kept_count(), 1u);
}

TEST(no_more_is_read_than_a_peer_may_ask_for_at_once) {
  Scope scope;
  scope.limits.requests = 2;
  Scene scene(true, scope);
  EXPECT_EQ(scene.read(packet(Op::kPing, 1)), Read::kRequest);
  EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLIN});
  EXPECT_EQ(scene.read(packet(Op::kPing, 2)), Read::kRequest);
  EXPECT_EQ(scene.channel->wanted_events(), 0u);
  EXPECT(scene.answer({}));
  EXPECT_EQ(scene.channel->wanted_events(), uint32_t{EPOLLIN});
}

TEST(what_is_under_way_is_given_up_with_the_connection) {
  Scene scene(true, {});
  EXPECT_EQ(scene.read(packet(Op::kPing, 1)), Read::kRequest);
  const auto session = scene.channel->take_session();
  EXPECT(session != nullptr);
  EXPECT(scene.channel->requests().empty());
  EXPECT(scene.channel->take_session() == nullptr);
}

}  // namespace
}  // namespace pgalloc::channel_test
