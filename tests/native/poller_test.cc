// What wakes the broker up, while descriptors are closed and replaced from outside.

#include "sharing/poller.h"

#include <errno.h>

#include "native/sharing.h"

namespace pgalloc::poller_test {
namespace {

using native_tests::descriptor_count;
using native_tests::FakeKernel;

struct Pair {
  Pair() {
    int ends[2];
    EXPECT_EQ(os::kernel().socketpair(ends), 0);
    here = Endpoint(ends[0]);
    there = Endpoint(ends[1]);
  }
  void send() const {
    int error = 0;
    EXPECT_EQ(there.send("x", {}, -1, &error), Endpoint::Io::kDone);
  }
  Endpoint here;
  Endpoint there;
};

// What there is now: numbers and events.
using Events = std::vector<std::pair<uint64_t, uint32_t>>;
Events events_of(const Poller& poller) {
  std::array<epoll_event, 8> events;
  const int count = os::kernel().epoll_wait(poller.fd(), events.data(), 8, 0);
  Events found;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    found.emplace_back(event.data.u64, event.events);
  }
  return found;
}

int refused = 0;
int calls = 0;
int epoll_ctl_refused(int, int, int, epoll_event*) { return errno = refused, -1; }
int epoll_ctl_counted(int fd, int operation, int file, epoll_event* event) {
  ++calls;
  return os::kernel().epoll_ctl(fd, operation, file, event);
}
int succeeds = 0;  // so many calls, then one fails
template <auto kCall, class... Parameters>
int counted(Parameters... parameters) {
  if (succeeds-- == 0) return errno = ENOMEM, -1;
  return (os::kernel().*kCall)(parameters...);
}

TEST(a_socket_is_watched_for_what_is_wanted) {
  Poller poller;
  EXPECT(poller.ready());
  EXPECT_EQ(poller.generation(), 1u);
  const Pair pair;
  Poller::Registration known;
  EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));
  EXPECT_EQ(known.generation, 1u);
  EXPECT_EQ(known.events, uint32_t{EPOLLIN});
  EXPECT_EQ(events_of(poller), Events{});
  pair.send();
  EXPECT_EQ(events_of(poller), (Events{{7, EPOLLIN}}));
  EXPECT(poller.watch(7, pair.here, EPOLLOUT, &known));
  EXPECT_EQ(events_of(poller), (Events{{7, EPOLLOUT}}));
  EXPECT(poller.watch(7, pair.here, 0, &known));
  EXPECT_EQ(events_of(poller), Events{});
  poller.unwatch(pair.here, &known);
  EXPECT_EQ(known.generation, 0u);
  EXPECT(poller.watch(8, pair.here, EPOLLIN, &known));
  EXPECT_EQ(events_of(poller), (Events{{8, EPOLLIN}}));
}

TEST(the_end_of_a_socket_is_seen_though_nothing_is_wanted) {
  Poller poller;
  EXPECT(poller.ready());
  Pair pair;
  Poller::Registration known;
  EXPECT(poller.watch(7, pair.here, 0, &known));
  pair.there.close();
  EXPECT_EQ(events_of(poller), (Events{{7, EPOLLHUP}}));
  poller.unwatch(pair.here, &known);
  EXPECT_EQ(events_of(poller), Events{});
}

TEST(what_is_known_is_not_said_again) {
  Poller poller;
  EXPECT(poller.ready());
  const Pair pair;
  FakeKernel kernel;
  kernel.calls.epoll_ctl = epoll_ctl_counted;
  kernel.begin();
  Poller::Registration known;
  for (int i = 0; i < 3; ++i) EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));
  EXPECT_EQ(calls, 1);
  for (int i = 0; i < 3; ++i) poller.unwatch(pair.here, &known);
  EXPECT_EQ(calls, 2);
}

TEST(what_the_epoll_knows_better_is_mended) {
  Poller poller;
  EXPECT(poller.ready());
  const Pair pair;
  Poller::Registration known;
  EXPECT(poller.watch(7, pair.here, 0, &known));
  known = {};
  EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));  // it is there already
  pair.send();
  EXPECT_EQ(events_of(poller), (Events{{7, EPOLLIN}}));
  epoll_event event{};
  EXPECT_EQ(os::kernel().epoll_ctl(poller.fd(), EPOLL_CTL_DEL, pair.here.fd(), &event), 0);
  EXPECT(poller.watch(7, pair.here, EPOLLIN | EPOLLOUT, &known));  // it is not there any more
  EXPECT_EQ(events_of(poller), (Events{{7, EPOLLIN | EPOLLOUT}}));
}

TEST(what_the_kernel_refuses_changes_nothing) {
  Poller poller;
  EXPECT(poller.ready());
  const Pair pair;
  Poller::Registration known;
  FakeKernel kernel;
  kernel.calls.epoll_ctl = epoll_ctl_refused;
  kernel.begin();
  for (const int error : {ENOMEM, ENOSPC, EEXIST, ENOENT}) {
    refused = error;
    EXPECT(!poller.watch(7, pair.here, EPOLLIN, &known));
    EXPECT_EQ(known.generation, 0u);
  }
  os::use(os::kernel());
  EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));
  kernel.begin();
  refused = ENOMEM;
  EXPECT(!poller.watch(7, pair.here, EPOLLOUT, &known));
  poller.unwatch(pair.here, &known);
  EXPECT_EQ(known.events, uint32_t{EPOLLIN});
  EXPECT_EQ(known.generation, poller.generation());
}

TEST(a_socket_that_is_not_ours_any_more_is_not_watched) {
  Poller poller;
  EXPECT(poller.ready());
  const Pair pair;
  const Pair other;
  Poller::Registration known;
  EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));
  EXPECT(::dup2(other.here.fd(), pair.here.fd()) >= 0);
  EXPECT(!poller.watch(7, pair.here, EPOLLOUT, &known));
  poller.unwatch(pair.here, &known);
  EXPECT_EQ(known.events, uint32_t{EPOLLIN});
  ::close(pair.here.fd());
}

TEST(all_wakes_are_taken_at_once) {
  Poller poller;
  EXPECT(poller.ready());
  poller.take_wakes();  // none
  for (int i = 0; i < 3; ++i) poller.wake();
  EXPECT_EQ(events_of(poller), (Events{{0, EPOLLIN}}));
  poller.take_wakes();
  EXPECT_EQ(events_of(poller), Events{});
  EXPECT(poller.ready());
  EXPECT_EQ(poller.generation(), 1u);
}

ssize_t sendmsg_refused(int, const msghdr*, int) { return errno = ENOBUFS, -1; }

TEST(a_wake_that_cannot_be_sent_hangs_up) {
  Poller poller;
  EXPECT(poller.ready());
  const Pair pair;
  Poller::Registration known;
  EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));
  FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_refused;
  kernel.begin();
  poller.wake();
  os::use(os::kernel());
  EXPECT_EQ(events_of(poller), (Events{{0, EPOLLIN | EPOLLHUP}}));
  EXPECT(poller.ready());
  EXPECT_EQ(poller.generation(), 2u);
  EXPECT_EQ(events_of(poller), Events{});
  pair.send();
  EXPECT(poller.watch(7, pair.here, EPOLLIN, &known));  // all is registered anew
  EXPECT_EQ(events_of(poller), (Events{{7, EPOLLIN}}));
  poller.wake();
  EXPECT_EQ(events_of(poller).size(), 2u);
}

TEST(an_epoll_that_was_closed_or_replaced_is_made_anew) {
  Poller poller;
  EXPECT(poller.ready());
  ::close(poller.fd());
  EXPECT(poller.ready());
  EXPECT_EQ(poller.generation(), 2u);
  const int another = os::kernel().epoll_create();
  const int place = poller.fd();
  EXPECT(::dup2(another, place) >= 0);
  EXPECT(poller.ready());
  EXPECT_EQ(poller.generation(), 3u);
  EXPECT(poller.fd() != place);
  EXPECT(::close(place) == 0);  // nobody else did
  EXPECT(::close(another) == 0);
  poller.wake();
  EXPECT_EQ(events_of(poller), (Events{{0, EPOLLIN}}));
}

TEST(an_error_of_the_kernel_is_no_proof_that_the_epoll_is_not_ours) {
  Poller poller;
  EXPECT(poller.ready());
  const int fd = poller.fd();
  FakeKernel kernel;
  kernel.calls.epoll_ctl = epoll_ctl_refused;
  kernel.begin();
  for (const int error : {ENOMEM, ENOSPC, EINTR}) {
    refused = error;
    EXPECT(poller.ready());
    EXPECT_EQ(poller.fd(), fd);
  }
  for (const int error : {EBADF, EINVAL, ENOENT, EPERM}) {
    refused = error;
    EXPECT(!poller.ready());  // and no new one is to be had
  }
  os::use(os::kernel());
  EXPECT(poller.ready());
  EXPECT_EQ(poller.generation(), 1u);
}

TEST(one_witness_is_enough_for_the_epoll) {
  for (const size_t witness : {1, 2}) {
    Poller poller;
    EXPECT(poller.ready());
    const int fd = poller.descriptors()[witness];
    const int kept = ::dup(fd);  // else its end would be one of the other's
    ::close(fd);
    EXPECT(poller.ready());
    EXPECT_EQ(poller.generation(), 1u);
    poller.look();
    EXPECT(poller.ready());
    EXPECT_EQ(poller.generation(), 2u);
    poller.look();
    EXPECT(poller.ready());
    EXPECT_EQ(poller.generation(), 2u);
    ::close(kept);
  }
}

TEST(what_cannot_be_made_is_made_later_and_leaves_nothing) {
  const auto fails_at = [](FakeKernel& kernel, int after) {
    Poller poller;
    const size_t before = descriptor_count();
    succeeds = after;
    kernel.begin();
    EXPECT(!poller.ready());
    os::use(os::kernel());
    EXPECT(poller.fd() < 0);
    EXPECT_EQ(descriptor_count(), before);
    EXPECT(poller.ready());
    EXPECT_EQ(poller.generation(), 1u);
  };
  FakeKernel kernel;
  kernel.calls.socketpair = counted<&os::Syscalls::socketpair, int*>;
  fails_at(kernel, 0);
  kernel.calls = os::kernel();
  kernel.calls.fstat = counted<&os::Syscalls::fstat, int, struct stat*>;
  for (const int after : {0, 1}) fails_at(kernel, after);
  kernel.calls = os::kernel();
  kernel.calls.epoll_create = counted<&os::Syscalls::epoll_create>;
  fails_at(kernel, 0);
  kernel.calls = os::kernel();
  kernel.calls.epoll_ctl = counted<&os::Syscalls::epoll_ctl, int, int, int, epoll_event*>;
  for (const int after : {0, 1}) fails_at(kernel, after);
}

TEST(nothing_is_left_open) {
  const size_t before = descriptor_count();
  {
    Poller poller;
    EXPECT(poller.start().ok());
    EXPECT(poller.start().ok());
    EXPECT_EQ(poller.generation(), 2u);
    EXPECT_EQ(descriptor_count(), before + 3);
    EXPECT_EQ(poller.descriptors().size(), 3u);
  }
  EXPECT_EQ(descriptor_count(), before);
}

}  // namespace
}  // namespace pgalloc::poller_test
